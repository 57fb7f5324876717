// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A view with one more column, computed from each row of another view.</summary>
internal sealed class ComputedColumnView : IDataTransform
{
    private readonly IHost _host;
    private readonly ColumnBindings _bindings;
    private readonly int? _input;
    private readonly bool _isStateful;
    private readonly Func<DataViewRow, Delegate> _makeGetter;

    /// <param name="env">The environment.</param>
    /// <param name="source">The rows.</param>
    /// <param name="added">The new column.</param>
    /// <param name="input">The source's column that it is computed from, if any.</param>
    /// <param name="makeGetter">Makes the column's getter for a row.</param>
    /// <param name="isStateful">Whether the values depend on the order of the rows, which then is fixed.</param>
    internal ComputedColumnView(IHostEnvironment env, IDataView source, DataViewSchema.DetachedColumn added, int? input,
        Func<DataViewRow, Delegate> makeGetter, bool isStateful)
    {
        _host = env.Register(nameof(ComputedColumnView));
        Source = source;
        _bindings = new ColumnBindings(source.Schema, [added]);
        _input = input;
        _makeGetter = makeGetter;
        _isStateful = isStateful;
    }

    public IDataView Source { get; }

    public DataViewSchema Schema => _bindings.Schema;

    public bool CanShuffle => !_isStateful && Source.CanShuffle;

    public long? GetRowCount() => Source.GetRowCount();

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
    {
        var active = ActiveColumns.Of(Schema, columnsNeeded);
        var needed = new bool[Source.Schema.Count];
        for (int i = 0; i < active.Length; i++)
            if (active[i] && _bindings.MapColumnIndex(out bool isSource, i) is var index && isSource)
                needed[index] = true;
        if (_input is { } input && active[_bindings.AddedColumnIndices[0]])
            needed[input] = true;
        return new Cursor(this, Source.GetRowCursor(Source.Schema.Where(column => needed[column.Index]), _isStateful ? null : rand), active);
    }

    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
        => [GetRowCursor(columnsNeeded, rand)];

    private sealed class Cursor : SynchronizedCursorBase
    {
        private readonly ComputedColumnView _parent;
        private readonly bool[] _active;
        private readonly Delegate _getter;

        internal Cursor(ComputedColumnView parent, DataViewRowCursor input, bool[] active) : base(parent._host, input)
        {
            _parent = parent;
            _active = active;
            if (active[parent._bindings.AddedColumnIndices[0]])
                _getter = parent._makeGetter(input);
        }

        public override DataViewSchema Schema => _parent.Schema;

        public override bool IsColumnActive(DataViewSchema.Column column)
        {
            Ch.Check(column.Index < Schema.Count);
            return _active[column.Index];
        }

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            Ch.Check(IsColumnActive(column));
            int index = _parent._bindings.MapColumnIndex(out bool isSource, column.Index);
            if (isSource)
                return Input.GetGetter<TValue>(Input.Schema[index]);
            return _getter as ValueGetter<TValue>
                ?? throw Ch.Except($"Invalid TValue in GetGetter: '{typeof(TValue)}', expected type: '{column.Type.RawType}'.");
        }
    }
}
