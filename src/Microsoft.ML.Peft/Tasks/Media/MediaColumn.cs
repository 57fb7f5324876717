// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Persistence;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A column of images or sounds: paths as text, encoded bytes, or values that are decoded already.</summary>
/// <typeparam name="T">What a row is decoded to.</typeparam>
/// <param name="name">Name of the column.</param>
/// <param name="role">Its role, for messages.</param>
/// <param name="root">Folder that relative paths begin in; null for the current one.</param>
internal abstract class MediaColumn<T>(string name, string role, string? root) : IRowColumns<MediaRow<T>> where T : class
{
    public string Name => name;

    public string? Root => root;

    public virtual IReadOnlyList<string> Names => [name];

    /// <summary>What the column may hold beside paths and bytes, in words.</summary>
    protected abstract string Decoded { get; }

    /// <summary>True for a column of decoded values.</summary>
    /// <param name="item">Type of the column, or of its items.</param>
    /// <param name="vector">True for a vector.</param>
    protected abstract bool IsDecoded(DataViewType item, bool vector);

    /// <summary>Gives a function that reads the decoded value of the current row.</summary>
    /// <param name="row">The row.</param>
    protected abstract Func<T> DecodedReader(DataViewRow row);

    private string Expected => $"String (a path), Vector<Byte> (the file's bytes) or {Decoded}";

    public virtual void Check(DataViewSchema schema)
    {
        DataViewSchema.Column column = schema.GetColumnOrNull(name) ?? throw InputColumns.Missing(name, role, schema.Select(c => c.Name));
        if (!Fits((column.Type as VectorDataViewType)?.ItemType ?? column.Type, column.Type is VectorDataViewType))
            throw new ArgumentOutOfRangeException("inputSchema", $"Schema mismatch for {role} column '{name}': expected {Expected}, got {column.Type}.");
    }

    public virtual void Check(SchemaShape shape) => OutputShapes.CheckColumn(
        shape, name, role, column => !column.IsKey && Fits(column.ItemType, column.Kind != SchemaShape.Column.VectorKind.Scalar), Expected);

    private bool Fits(DataViewType item, bool vector) =>
        (!vector && item is TextDataViewType) || (vector && item == NumberDataViewType.Byte) || IsDecoded(item, vector);

    public Func<MediaRow<T>> Reader(DataViewRow row)
    {
        DataViewSchema.Column column = row.Schema[name];
        if (column.Type is TextDataViewType) return Paths(row, column);
        return column.Type is VectorDataViewType { ItemType: var item } && item == NumberDataViewType.Byte ? Files(row, column) : Values(row);
    }

    private Func<MediaRow<T>> Paths(DataViewRow row, DataViewSchema.Column column)
    {
        ValueGetter<ReadOnlyMemory<char>> getter = row.GetGetter<ReadOnlyMemory<char>>(column);
        ReadOnlyMemory<char> value = default;
        return () =>
        {
            getter(ref value);
            string path = value.ToString();
            return new MediaRow<T>(row.Position, root is null || path.Length == 0 ? path : Path.Combine(root, path), null, null);
        };
    }

    private static Func<MediaRow<T>> Files(DataViewRow row, DataViewSchema.Column column)
    {
        ValueGetter<VBuffer<byte>> getter = row.GetGetter<VBuffer<byte>>(column);
        VBuffer<byte> value = default;
        return () =>
        {
            getter(ref value);
            return new MediaRow<T>(row.Position, null, [.. value.DenseValues()], null);
        };
    }

    // A value that cannot be taken is a row that cannot be read, which may be skipped.
    private Func<MediaRow<T>> Values(DataViewRow row)
    {
        Func<T> read = DecodedReader(row);
        return () =>
        {
            try
            {
                return new MediaRow<T>(row.Position, null, null, read());
            }
            catch (Exception e) when (e is FormatException or ArgumentException)
            {
                return new MediaRow<T>(row.Position, null, null, null, e);
            }
        };
    }
}
