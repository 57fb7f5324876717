// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Microsoft.ML.Transforms;

/// <summary>A view on some of the columns of another, with the same rows.</summary>
internal sealed class SelectedColumns : IDataView, IRowToRowMapper
{
    private readonly IDataView _source;
    private readonly RowMapper _mapper;

    public SelectedColumns(IDataView source, DataViewSchema schema, int[] map)
    {
        _mapper = new RowMapper(source.Schema, schema, map);
        _source = source;
    }

    public DataViewSchema Schema => _mapper.OutputSchema;

    public bool CanShuffle => _source.CanShuffle;

    DataViewSchema IRowToRowMapper.InputSchema => _mapper.InputSchema;

    DataViewSchema IRowToRowMapper.OutputSchema => _mapper.OutputSchema;

    public long? GetRowCount() => _source.GetRowCount();

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
    {
        DataViewSchema.Column[] needed = columnsNeeded.ToArray();
        return new Cursor(_source.GetRowCursor(_mapper.GetDependencies(needed), rand), _mapper, needed);
    }

    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
    {
        DataViewSchema.Column[] needed = columnsNeeded.ToArray();
        return _source.GetRowCursorSet(_mapper.GetDependencies(needed), n, rand)
            .Select(cursor => (DataViewRowCursor)new Cursor(cursor, _mapper, needed)).ToArray();
    }

    IEnumerable<DataViewSchema.Column> IRowToRowMapper.GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns)
        => _mapper.GetDependencies(dependingColumns);

    DataViewRow IRowToRowMapper.GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns) => _mapper.GetRow(input, activeColumns);

    /// <summary>The same view on one row.</summary>
    internal sealed class RowMapper(DataViewSchema inputSchema, DataViewSchema outputSchema, int[] map) : IRowToRowMapper
    {
        public DataViewSchema InputSchema => inputSchema;

        public DataViewSchema OutputSchema => outputSchema;

        public DataViewSchema.Column Source(DataViewSchema.Column output) => inputSchema[map[output.Index]];

        public IEnumerable<DataViewSchema.Column> GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns)
            => dependingColumns.Select(column => map[column.Index]).Distinct().Order().Select(index => inputSchema[index]).ToArray();

        public DataViewRow GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns) => new Row(input, this);
    }

    private sealed class Row(DataViewRow input, RowMapper mapper) : DataViewRow
    {
        public override DataViewSchema Schema => mapper.OutputSchema;

        public override long Position => input.Position;

        public override long Batch => input.Batch;

        public override ValueGetter<DataViewRowId> GetIdGetter() => input.GetIdGetter();

        public override bool IsColumnActive(DataViewSchema.Column column) => input.IsColumnActive(mapper.Source(column));

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column) => input.GetGetter<TValue>(mapper.Source(column));

        protected override void Dispose(bool disposing)
        {
            if (disposing)
                input.Dispose();
        }
    }

    private sealed class Cursor(DataViewRowCursor input, RowMapper mapper, DataViewSchema.Column[] needed) : DataViewRowCursor
    {
        private readonly HashSet<int> _active = needed.Select(column => column.Index).ToHashSet();

        public override DataViewSchema Schema => mapper.OutputSchema;

        public override long Position => input.Position;

        public override long Batch => input.Batch;

        public override bool MoveNext() => input.MoveNext();

        public override ValueGetter<DataViewRowId> GetIdGetter() => input.GetIdGetter();

        public override bool IsColumnActive(DataViewSchema.Column column) => _active.Contains(column.Index);

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column) => input.GetGetter<TValue>(mapper.Source(column));

        protected override void Dispose(bool disposing)
        {
            if (disposing)
                input.Dispose();
        }
    }
}
