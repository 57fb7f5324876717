// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Transforms;

/// <summary>A view on some of the columns of another, with the same rows.</summary>
internal sealed class SelectedColumns(IHost host, IDataView source, DataViewSchema schema, int[] map) : IDataTransform, IRowToRowMapper
{
    public IDataView Source => source;

    public DataViewSchema Schema => schema;

    public bool CanShuffle => source.CanShuffle;

    DataViewSchema IRowToRowMapper.InputSchema => source.Schema;

    DataViewSchema IRowToRowMapper.OutputSchema => schema;

    public long? GetRowCount() => source.GetRowCount();

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
    {
        bool[] active = ActiveColumns.Of(schema, columnsNeeded);
        return new Cursor(host, source.GetRowCursor(Inputs(active), rand), this, active);
    }

    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
    {
        bool[] active = ActiveColumns.Of(schema, columnsNeeded);
        return Array.ConvertAll(source.GetRowCursorSet(Inputs(active), n, rand), input => (DataViewRowCursor)new Cursor(host, input, this, active));
    }

    IEnumerable<DataViewSchema.Column> IRowToRowMapper.GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns)
        => Inputs(ActiveColumns.Of(schema, dependingColumns));

    DataViewRow IRowToRowMapper.GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns) => new Row(input, this);

    private DataViewSchema.Column InputOf(DataViewSchema.Column output) => source.Schema[map[output.Index]];

    private DataViewSchema.Column[] Inputs(bool[] active)
        => map.Where((_, output) => active[output]).Distinct().Order().Select(index => source.Schema[index]).ToArray();

    private sealed class Row(DataViewRow input, SelectedColumns parent) : WrappingRow(input)
    {
        public override DataViewSchema Schema => parent.Schema;

        public override bool IsColumnActive(DataViewSchema.Column column) => Input.IsColumnActive(parent.InputOf(column));

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column) => Input.GetGetter<TValue>(parent.InputOf(column));
    }

    private sealed class Cursor(IHost host, DataViewRowCursor input, SelectedColumns parent, bool[] active) : SynchronizedCursorBase(host, input)
    {
        public override DataViewSchema Schema => parent.Schema;

        public override bool IsColumnActive(DataViewSchema.Column column) => active[column.Index];

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            Ch.Check(IsColumnActive(column), "Can't get getter for inactive column");
            return Input.GetGetter<TValue>(parent.InputOf(column));
        }
    }
}
