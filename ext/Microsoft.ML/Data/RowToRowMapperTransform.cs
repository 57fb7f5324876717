// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A view that adds the columns of a mapper to another view's.</summary>
internal sealed class RowToRowMapperTransform : IDataTransform, IRowToRowMapper
{
    private readonly IHost _host;
    private readonly IRowMapper _mapper;
    private readonly ColumnBindings _bindings;

    internal RowToRowMapperTransform(IHostEnvironment env, IDataView input, IRowMapper mapper, Func<DataViewSchema, IRowMapper> mapperFactory)
    {
        _host = env.Register(nameof(RowToRowMapperTransform));
        Source = Contracts.CheckRef(input, nameof(input));
        _mapper = Contracts.CheckRef(mapper, nameof(mapper));
        _bindings = new ColumnBindings(input.Schema, mapper.GetOutputColumns());
        MapperFactory = mapperFactory;
    }

    internal Func<DataViewSchema, IRowMapper> MapperFactory { get; }

    public IDataView Source { get; }

    public DataViewSchema Schema => _bindings.Schema;

    public DataViewSchema InputSchema => Source.Schema;

    public DataViewSchema OutputSchema => _bindings.Schema;

    public bool CanShuffle => Source.CanShuffle;

    public long? GetRowCount() => Source.GetRowCount();

    internal ITransformer GetTransformer() => _mapper.GetTransformer();

    internal static DataViewSchema GetOutputSchema(DataViewSchema inputSchema, IRowMapper mapper)
        => new ColumnBindings(Contracts.CheckRef(inputSchema, nameof(inputSchema)), mapper.GetOutputColumns()).Schema;

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
    {
        var active = ActiveColumns.Of(OutputSchema, columnsNeeded);
        // The real library reads ahead on several threads where a column of the mapper's is asked for, through a cursor that
        // refuses inactive columns in words of its own.
        bool readsAhead = _bindings.AddedColumnIndices.Any(index => active[index]);
        return new Cursor(_host, Source.GetRowCursor(InputsFor(active), rand), this, active, readsAhead);
    }

    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
    {
        var active = ActiveColumns.Of(OutputSchema, columnsNeeded);
        var inputs = Source.GetRowCursorSet(InputsFor(active), n, rand);
        return Array.ConvertAll(inputs, input => (DataViewRowCursor)new Cursor(_host, input, this, active, readsAhead: false));
    }

    private DataViewSchema.Column[] InputsFor(bool[] active)
    {
        var needed = new bool[InputSchema.Count];
        for (int i = 0; i < active.Length; i++)
            if (active[i] && _bindings.MapColumnIndex(out bool isSource, i) is var index && isSource)
                needed[index] = true;
        var dependency = _mapper.GetDependencies(Outputs(active));
        return [.. InputSchema.Where(column => needed[column.Index] || dependency(column.Index))];
    }

    private Func<int, bool> Outputs(bool[] active) => added => active[_bindings.AddedColumnIndices[added]];

    IEnumerable<DataViewSchema.Column> IRowToRowMapper.GetDependencies(IEnumerable<DataViewSchema.Column> dependingColumns)
        => InputsFor(ActiveColumns.Of(OutputSchema, dependingColumns));

    DataViewRow IRowToRowMapper.GetRow(DataViewRow input, IEnumerable<DataViewSchema.Column> activeColumns)
    {
        _host.CheckValue(input, nameof(input));
        _host.CheckValue(activeColumns, nameof(activeColumns));
        _host.Check(input.Schema == Source.Schema, "Schema of input row must be the same as the schema the mapper is bound to");
        using var channel = _host.Start("GetEntireRow");
        var active = ActiveColumns.Of(OutputSchema, activeColumns);
        var getters = _mapper.CreateGetters(input, Outputs(active), out var disposer);
        return new Row(input, this, getters, disposer);
    }

    private static ValueGetter<TValue> Typed<TValue>(Delegate getter)
        => getter as ValueGetter<TValue>
            ?? throw Contracts.Except($"Invalid TValue in GetGetter: '{typeof(TValue)}', expected type: '{getter?.GetType().GetGenericArguments()[0]}'.");

    private sealed class Row(DataViewRow input, RowToRowMapperTransform parent, Delegate[] getters, Action disposer) : WrappingRow(input)
    {
        public override DataViewSchema Schema => parent.OutputSchema;

        public override bool IsColumnActive(DataViewSchema.Column column)
        {
            int index = parent._bindings.MapColumnIndex(out bool isSource, column.Index);
            return isSource ? Input.IsColumnActive(Input.Schema[index]) : getters[index] != null;
        }

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            int index = parent._bindings.MapColumnIndex(out bool isSource, column.Index);
            return isSource ? Input.GetGetter<TValue>(Input.Schema[index]) : Typed<TValue>(getters[index]);
        }

        protected override void DisposeCore(bool disposing)
        {
            if (disposing)
                disposer?.Invoke();
        }
    }

    private sealed class Cursor : SynchronizedCursorBase
    {
        private readonly RowToRowMapperTransform _parent;
        private readonly bool[] _active;
        private readonly bool _readsAhead;
        private readonly Delegate[] _getters;
        private Action _disposer;

        internal Cursor(IChannelProvider provider, DataViewRowCursor input, RowToRowMapperTransform parent, bool[] active, bool readsAhead) : base(provider, input)
        {
            _parent = parent;
            _active = active;
            _readsAhead = readsAhead;
            _getters = parent._mapper.CreateGetters(input, parent.Outputs(active), out _disposer);
        }

        public override DataViewSchema Schema => _parent.OutputSchema;

        public override bool IsColumnActive(DataViewSchema.Column column)
        {
            Ch.Check(column.Index < Schema.Count);
            return _active[column.Index];
        }

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            Ch.CheckParam(!_readsAhead || IsColumnActive(column), nameof(column), "requested column not active.");
            Ch.Check(IsColumnActive(column));
            int index = _parent._bindings.MapColumnIndex(out bool isSource, column.Index);
            return isSource ? Input.GetGetter<TValue>(Input.Schema[index]) : Typed<TValue>(_getters[index]);
        }

        protected override void Dispose(bool disposing)
        {
            var disposer = _disposer;
            _disposer = null;
            if (disposing)
                disposer?.Invoke();
            base.Dispose(disposing);
        }
    }
}
