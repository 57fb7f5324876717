// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Leaves out the rows in which one of some columns is missing: NaN, or the missing key.</summary>
internal sealed class MissingValueFilter : RowSubsetView
{
    private readonly DataViewSchema.Column[] _columns;

    internal MissingValueFilter(IHostEnvironment env, IDataView source, string[] columns) : base(env, "MissingValueFilter", source)
    {
        _columns = Array.ConvertAll(columns, name =>
        {
            var column = Schema.GetColumnOrNull(name) ?? throw Host.ExceptUserArg("Columns", $"Source column '{name}' not found");
            var item = column.Type.GetItemType();
            Host.CheckUserArg(item == NumberDataViewType.Single || item == NumberDataViewType.Double || item is KeyDataViewType, "Columns",
                $"Column '{name}' has type {column.Type} which does not support missing values, so we cannot filter on them");
            return column;
        });
        Host.CheckUserArg(_columns.Select(column => column.Index).Distinct().Count() == columns.Length, "Columns", "A source column is specified multiple times");
    }

    protected override IEnumerable<int> OwnColumns => _columns.Select(column => column.Index);

    private protected override DataViewRowCursor MakeCursor(DataViewRowCursor input, bool[] active, Random rand)
    {
        var tests = Array.ConvertAll(_columns, column => ColumnTypeExtensions.InvokeGeneric<Func<bool>>(typeof(MissingValueFilter), null,
            column.Type is VectorDataViewType ? nameof(AnyMissing) : nameof(OneMissing), column.Type.GetItemType().RawType, input, column));
        return new PredicateCursor(Host, input, Schema, active, () => !tests.Any(isMissing => isMissing()));
    }

    private static bool IsMissing<T>(T value) => value switch
    {
        float single => float.IsNaN(single),
        double number => double.IsNaN(number),
        _ => Convert.ToUInt64(value) == 0,
    };

    private static Func<bool> OneMissing<T>(DataViewRow row, DataViewSchema.Column column)
    {
        var getter = row.GetGetter<T>(column);
        T value = default;
        return () =>
        {
            getter(ref value);
            return IsMissing(value);
        };
    }

    private static Func<bool> AnyMissing<T>(DataViewRow row, DataViewSchema.Column column)
    {
        var getter = row.GetGetter<VBuffer<T>>(column);
        bool absentIsMissing = column.Type.GetItemType() is KeyDataViewType;
        VBuffer<T> value = default;
        return () =>
        {
            getter(ref value);
            if (absentIsMissing && !value.IsDense)
                return true;
            foreach (var item in value.GetValues())
                if (IsMissing(item))
                    return true;
            return false;
        };
    }
}

/// <summary>Keeps the rows that a user's predicate, on objects, says true to.</summary>
internal sealed class PredicateFilter<TRow>(IHostEnvironment env, IDataView source, Func<TRow, bool> predicate)
    : RowSubsetView(env, "CustomFilter", source) where TRow : class, new()
{
    private readonly ObjectFiller<TRow> _filler = new(env, source.Schema, ignoreMissingColumns: false, null);

    protected override IEnumerable<int> OwnColumns => _filler.Columns.Select(column => column.Index);

    private protected override DataViewRowCursor MakeCursor(DataViewRowCursor input, bool[] active, Random rand)
    {
        var row = new TRow();
        var fill = _filler.Bind(input);
        return new PredicateCursor(Host, input, Schema, active, () =>
        {
            fill(row);
            // True means that the row goes: the predicate says what to filter out.
            return !predicate(row);
        });
    }
}

internal sealed class PredicateCursor(IChannelProvider provider, DataViewRowCursor input, DataViewSchema schema, bool[] active, Func<bool> accept)
    : LinkedRowFilterCursorBase(provider, input, schema, active)
{
    protected override bool Accept() => accept();
}

/// <summary>Leaves out the first rows, or takes only them. The order of rows is kept, whatever the reader asks.</summary>
internal sealed class SkipTakeFilter(IHostEnvironment env, IDataView source, long skip, long take) : RowSubsetView(env, "SkipTakeFilter", source)
{
    public override bool CanShuffle => false;

    public override long? GetRowCount() => Source.GetRowCount() is { } rows ? Math.Min(take, Math.Max(0, rows - skip)) : null;

    public override DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
        => base.GetRowCursor(columnsNeeded, null);

    private protected override DataViewRowCursor MakeCursor(DataViewRowCursor input, bool[] active, Random rand)
        => new Cursor(Host, input, Schema, active, skip, take);

    private sealed class Cursor(IChannelProvider provider, DataViewRowCursor input, DataViewSchema schema, bool[] active, long skip, long take)
        : LinkedRowRootCursorBase(provider, input, schema, active)
    {
        private long _toSkip = skip;
        private long _toTake = take;

        public override long Batch => 0;

        public override ValueGetter<DataViewRowId> GetIdGetter() => Input.GetIdGetter();

        protected override bool MoveNextCore()
        {
            if (_toTake-- <= 0)
                return false;
            for (; _toSkip > 0; _toSkip--)
                if (!Input.MoveNext())
                    return false;
            return Input.MoveNext();
        }
    }
}
