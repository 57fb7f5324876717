// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A view of objects, one a row, read anew by each cursor.</summary>
internal sealed class ObjectDataView<TRow> : IDataView where TRow : class
{
    private readonly IHost _host;
    private readonly IEnumerable<TRow> _data;
    private readonly MemberColumn[] _columns;

    internal ObjectDataView(IHostEnvironment env, IEnumerable<TRow> data, SchemaDefinition definition)
    {
        _host = env.Register("StreamingDataView");
        _data = Contracts.CheckRef(data, nameof(data));
        _columns = MemberColumn.Of(typeof(TRow), definition, SchemaDefinition.Direction.Read);
        Schema = MemberColumn.SchemaOf(_columns);
    }

    public DataViewSchema Schema { get; }

    public bool CanShuffle => false;

    public long? GetRowCount() => (_data as ICollection<TRow>)?.Count;

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
        => new Cursor(_host, this, ActiveColumns.Of(Schema, columnsNeeded));

    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
        => [GetRowCursor(columnsNeeded, rand)];

    private sealed class Cursor : RootCursorBase
    {
        private readonly IEnumerator<TRow> _rows;
        private readonly ObjectGetters<TRow> _getters;
        private TRow _current;

        internal Cursor(IHost host, ObjectDataView<TRow> parent, bool[] active) : base(host)
        {
            Schema = parent.Schema;
            _getters = new ObjectGetters<TRow>(host, parent._columns, active, () => _current);
            _rows = parent._data.GetEnumerator();
        }

        public override DataViewSchema Schema { get; }

        public override long Batch => 0;

        protected override bool MoveNextCore()
        {
            bool moved = _rows.MoveNext();
            _current = moved ? _rows.Current : null;
            if (moved && _current == null)
                throw Ch.Except("Encountered null when iterating over data, this is not supported.");
            return moved;
        }

        public override ValueGetter<DataViewRowId> GetIdGetter() => (ref DataViewRowId value) =>
        {
            Ch.Check(IsGood, "Cannot get value as the cursor either has not started yet, or already finished");
            value = new DataViewRowId((ulong)Position, 0);
        };

        public override bool IsColumnActive(DataViewSchema.Column column) => _getters.IsActive(column);

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column) => _getters.Get<TValue>(column);

        protected override void Dispose(bool disposing)
        {
            if (disposing)
                _rows.Dispose();
            base.Dispose(disposing);
        }
    }
}

/// <summary>The getters of an object's columns.</summary>
internal sealed class ObjectGetters<TRow>(IExceptionContext context, MemberColumn[] columns, bool[] active, Func<TRow> current)
{
    private readonly Delegate[] _getters = [.. columns.Select((column, i) => active == null || active[i] ? column.MakeGetter(current) : null)];

    internal bool IsActive(DataViewSchema.Column column)
    {
        context.Check(column.Index < _getters.Length, $"Column index must be between 0 and {_getters.Length}");
        return _getters[column.Index] != null;
    }

    internal ValueGetter<TValue> Get<TValue>(DataViewSchema.Column column)
    {
        context.CheckParam(IsActive(column), nameof(column), "requested column not active");
        return _getters[column.Index] as ValueGetter<TValue>
            ?? throw context.Except($"Invalid TValue in GetGetter for column #{column}: '{typeof(TValue)}', expected type: '{_getters[column.Index].GetType().GetGenericArguments()[0]}'.");
    }
}

/// <summary>A row whose object is set from outside, again and again: what a prediction engine feeds its mappers.</summary>
internal sealed class ObjectRow<TRow> : DataViewRow where TRow : class
{
    private readonly IHost _host;
    private readonly ObjectGetters<TRow> _getters;
    private TRow _current;
    private long _position = -1;

    internal ObjectRow(IHostEnvironment env, SchemaDefinition definition)
    {
        _host = env.Register("Row");
        var columns = MemberColumn.Of(typeof(TRow), definition, SchemaDefinition.Direction.Read);
        Schema = MemberColumn.SchemaOf(columns);
        _getters = new ObjectGetters<TRow>(_host, columns, null, () => _position >= 0 ? _current : throw _host.Except("There is no object yet."));
    }

    public override DataViewSchema Schema { get; }

    public override long Position => _position;

    public override long Batch => 0;

    internal void Set(TRow row)
    {
        _current = Contracts.CheckRef(_host, row, nameof(row));
        _position++;
    }

    public override ValueGetter<DataViewRowId> GetIdGetter() => (ref DataViewRowId value) => value = new DataViewRowId((ulong)_position, 0);

    public override bool IsColumnActive(DataViewSchema.Column column) => _getters.IsActive(column);

    public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column) => _getters.Get<TValue>(column);
}
