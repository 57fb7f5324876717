// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A cursor that counts its own rows, and closes itself after the last.</summary>
internal abstract class RootCursorBase : DataViewRowCursor
{
    protected readonly IChannel Ch;
    private long _position = -1;
    private bool _disposed;

    protected RootCursorBase(IChannelProvider provider) => Ch = Contracts.CheckRef(provider, nameof(provider)).Start("Cursor");

    public sealed override long Position => _position;

    protected bool IsGood => _position >= 0;

    public sealed override bool MoveNext()
    {
        if (_disposed)
            return false;
        if (MoveNextCore())
        {
            _position++;
            return true;
        }
        Dispose();
        return false;
    }

    protected abstract bool MoveNextCore();

    protected override void Dispose(bool disposing)
    {
        if (_disposed)
            return;
        _disposed = true;
        if (disposing)
        {
            Ch.Dispose();
            _position = -1;
        }
        base.Dispose(disposing);
    }
}

/// <summary>A root cursor over another cursor's rows, some of which it leaves out or reorders.</summary>
internal abstract class LinkedRowRootCursorBase(IChannelProvider provider, DataViewRowCursor input, DataViewSchema schema, bool[] active) : RootCursorBase(provider)
{
    protected DataViewRowCursor Input { get; } = input;

    public sealed override DataViewSchema Schema { get; } = schema;

    public sealed override bool IsColumnActive(DataViewSchema.Column column)
    {
        Ch.Check(column.Index < Schema.Count);
        return active == null || active[column.Index];
    }

    public override ValueGetter<TValue> GetGetter<TValue>(DataViewSchema.Column column) => Input.GetGetter<TValue>(column);

    protected override void Dispose(bool disposing)
    {
        if (disposing)
            Input.Dispose();
        base.Dispose(disposing);
    }
}

/// <summary>Keeps the rows that <see cref="Accept"/> accepts.</summary>
internal abstract class LinkedRowFilterCursorBase(IChannelProvider provider, DataViewRowCursor input, DataViewSchema schema, bool[] active)
    : LinkedRowRootCursorBase(provider, input, schema, active)
{
    public override long Batch => Input.Batch;

    public override ValueGetter<DataViewRowId> GetIdGetter() => Input.GetIdGetter();

    protected override bool MoveNextCore()
    {
        while (Input.MoveNext())
            if (Accept())
                return true;
        return false;
    }

    protected abstract bool Accept();
}

/// <summary>A cursor that moves with another, row by row.</summary>
internal abstract class SynchronizedCursorBase : DataViewRowCursor
{
    protected readonly IChannel Ch;
    private readonly DataViewRowCursor _root;
    private bool _disposed;

    protected SynchronizedCursorBase(IChannelProvider provider, DataViewRowCursor input)
    {
        Ch = provider.Start("Cursor");
        Input = input;
        // Chains of these move their innermost cursor directly.
        _root = input is SynchronizedCursorBase synchronized ? synchronized._root : input;
    }

    protected DataViewRowCursor Input { get; }

    public sealed override long Position => _root.Position;

    public sealed override long Batch => _root.Batch;

    protected bool IsGood => Position >= 0;

    public sealed override bool MoveNext() => _root.MoveNext();

    public sealed override ValueGetter<DataViewRowId> GetIdGetter() => Input.GetIdGetter();

    protected override void Dispose(bool disposing)
    {
        if (_disposed)
            return;
        _disposed = true;
        if (disposing)
        {
            Input.Dispose();
            Ch.Dispose();
        }
        base.Dispose(disposing);
    }
}

/// <summary>A row made of another row; disposing it disposes that.</summary>
internal abstract class WrappingRow(DataViewRow input) : DataViewRow
{
    private bool _disposed;

    protected DataViewRow Input { get; } = input;

    public sealed override long Batch => Input.Batch;

    public sealed override long Position => Input.Position;

    public override ValueGetter<DataViewRowId> GetIdGetter() => Input.GetIdGetter();

    protected sealed override void Dispose(bool disposing)
    {
        if (_disposed)
            return;
        _disposed = true;
        DisposeCore(disposing);
        if (disposing)
            Input.Dispose();
    }

    protected virtual void DisposeCore(bool disposing) { }
}
