// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A view made of another view.</summary>
internal interface IDataTransform : IDataView
{
    IDataView Source { get; }
}

/// <summary>Which columns of a schema a set of columns asks for.</summary>
internal static class ActiveColumns
{
    internal static bool[] Of(DataViewSchema schema, IEnumerable<DataViewSchema.Column> columnsNeeded)
    {
        Contracts.CheckValue(columnsNeeded, nameof(columnsNeeded));
        var active = new bool[schema.Count];
        foreach (var column in columnsNeeded)
        {
            Contracts.CheckParam(column.Index < active.Length, nameof(columnsNeeded), $"Column '{column.Name}' is not of this schema.");
            active[column.Index] = true;
        }
        return active;
    }
}

/// <summary>A view with no rows, which stands for its schema.</summary>
internal sealed class EmptyDataView(IHostEnvironment env, DataViewSchema schema) : IDataView
{
    private readonly IHost _host = env.Register(nameof(EmptyDataView));

    public DataViewSchema Schema { get; } = schema;

    public bool CanShuffle => true;

    public long? GetRowCount() => 0;

    public DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
        => new Cursor(_host, Schema, ActiveColumns.Of(Schema, columnsNeeded));

    public DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
        => [GetRowCursor(columnsNeeded, rand)];

    private sealed class Cursor(IChannelProvider provider, DataViewSchema schema, bool[] active) : RootCursorBase(provider)
    {
        public override DataViewSchema Schema { get; } = schema;

        public override long Batch => 0;

        protected override bool MoveNextCore() => false;

        public override bool IsColumnActive(DataViewSchema.Column column) => active[column.Index];

        public override ValueGetter<DataViewRowId> GetIdGetter() => (ref DataViewRowId _) => throw Ch.Except("The cursor is at no row.");

        public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column)
        {
            Ch.Check(IsColumnActive(column), "Can't get getter for inactive column");
            Ch.Check(typeof(TValue) == column.Type.RawType, $"Invalid TValue in GetGetter: '{typeof(TValue)}', expected type: '{column.Type.RawType}'.");
            return (ref TValue _) => throw Ch.Except("The cursor is at no row.");
        }
    }
}

/// <summary>A view of another view's rows, or some of them, with the same columns.</summary>
internal abstract class RowSubsetView(IHostEnvironment env, string name, IDataView source) : IDataTransform
{
    protected readonly IHost Host = env.Register(name);

    public IDataView Source { get; } = Contracts.CheckRef(source, nameof(source));

    public DataViewSchema Schema => Source.Schema;

    public virtual bool CanShuffle => Source.CanShuffle;

    public virtual long? GetRowCount() => null;

    /// <summary>The columns that the subset itself has to read.</summary>
    protected virtual IEnumerable<int> OwnColumns => [];

    public virtual DataViewRowCursor GetRowCursor(IEnumerable<DataViewSchema.Column> columnsNeeded, Random rand = null)
    {
        var active = ActiveColumns.Of(Schema, columnsNeeded);
        return MakeCursor(Source.GetRowCursor(Needed(active), rand), active, rand);
    }

    public virtual DataViewRowCursor[] GetRowCursorSet(IEnumerable<DataViewSchema.Column> columnsNeeded, int n, Random rand = null)
        => [GetRowCursor(columnsNeeded, rand)];

    private protected IEnumerable<DataViewSchema.Column> Needed(bool[] active)
    {
        var own = OwnColumns.ToHashSet();
        return Schema.Where(column => active[column.Index] || own.Contains(column.Index)).ToArray();
    }

    private protected abstract DataViewRowCursor MakeCursor(DataViewRowCursor input, bool[] active, Random rand);
}
