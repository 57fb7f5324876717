// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>
/// Keeps the rows whose value lies within bounds, or outside of them. Of a key the fraction counts:
/// its category's middle on a scale from 0 to 1.
/// </summary>
internal sealed class RangeFilter : RowSubsetView
{
    private readonly int _index;
    private readonly double _min;
    private readonly double _max;
    private readonly bool _complement;
    private readonly bool _includeMax;

    internal RangeFilter(IHostEnvironment env, IDataView source, string column, double min, double max, bool complement = false, bool? includeMax = null)
        : base(env, "RangeFilter", source)
    {
        _index = source.Schema[column].Index;
        var type = source.Schema[_index].Type;
        Host.CheckUserArg(min <= max, "Min", "min must be less than or equal to max");
        bool isKey = type is KeyDataViewType;
        if (!isKey && type != NumberDataViewType.Single && type != NumberDataViewType.Double)
            throw Host.ExceptUserArg("Column", $"Column '{column}' does not have compatible type");
        _min = isKey && min < 0 ? double.NegativeInfinity : min;
        _max = isKey && max > 1 ? double.PositiveInfinity : max;
        _complement = complement;
        _includeMax = includeMax ?? (isKey && _max >= 1);
    }

    protected override IEnumerable<int> OwnColumns => [_index];

    private protected override DataViewRowCursor MakeCursor(DataViewRowCursor input, bool[] active, Random rand)
        => ColumnTypeExtensions.InvokeGeneric<DataViewRowCursor>(typeof(RangeFilter), this, nameof(TypedCursor), Schema[_index].Type.RawType, input, active);

    private DataViewRowCursor TypedCursor<T>(DataViewRowCursor input, bool[] active) => new Cursor<T>(this, input, active);

    // A value that is no number is neither inside nor outside.
    private bool Keeps(double value)
        => _complement ? value < _min || (_includeMax ? value > _max : value >= _max)
            : value >= _min && (_includeMax ? value <= _max : value < _max);

    private sealed class Cursor<T> : LinkedRowFilterCursorBase
    {
        private readonly RangeFilter _parent;
        private readonly ValueGetter<T> _source;
        private readonly ulong _keyCount;
        private T _value;

        internal Cursor(RangeFilter parent, DataViewRowCursor input, bool[] active) : base(parent.Host, input, parent.Schema, active)
        {
            _parent = parent;
            _source = input.GetGetter<T>(parent.Schema[parent._index]);
            _keyCount = parent.Schema[parent._index].Type.GetKeyCount();
        }

        protected override bool Accept()
        {
            _source(ref _value);
            if (_keyCount == 0)
                return _parent.Keeps(Convert.ToDouble(_value));
            ulong key = Convert.ToUInt64(_value);
            return key != 0 && key <= _keyCount && _parent.Keeps((key - 0.5) / _keyCount);
        }

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            Ch.Check(IsColumnActive(column));
            if (column.Index != _parent._index)
                return Input.GetGetter<TValue>(column);
            ValueGetter<T> getter = (ref T value) =>
            {
                Ch.Check(IsGood, "Cannot get value as the cursor either has not started yet, or already finished");
                value = _value;
            };
            return getter as ValueGetter<TValue> ?? throw Ch.Except($"Invalid TValue in GetGetter: '{typeof(TValue)}', expected type: '{typeof(T)}'.");
        }
    }
}
