// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Finds, checks and reads the columns of scored data.</summary>
internal static class EvaluationColumns
{
    /// <summary>The column that plays a role. The message has role and name the wrong way round, as in the real package.</summary>
    public static DataViewSchema.Column Find(DataViewSchema schema, string role, string name)
        => schema.GetColumnOrNull(name) ?? throw Contracts.ExceptParam(nameof(schema), $"{name} column '{role}' not found");

    public static void CheckSingle(DataViewSchema.Column column, string role)
    {
        if (!column.Type.Equals(NumberDataViewType.Single))
            throw Mismatch(column, role, "Single");
    }

    public static Exception Mismatch(DataViewSchema.Column column, string role, string expected)
        => Contracts.ExceptSchemaMismatch("schema", role, column.Name, expected, column.Type.ToString()!);

    /// <summary>The count of a key type, 0 for any other type.</summary>
    public static ulong KeyCount(DataViewType type) => type is KeyDataViewType key ? key.Count : 0;

    public static Func<T> Reader<T>(DataViewRow row, DataViewSchema.Column column)
    {
        ValueGetter<T> getter = row.GetGetter<T>(column);
        T value = default!;
        return () =>
        {
            getter(ref value);
            return value;
        };
    }

    /// <summary>Reads a label as a number: keys from 0, Boolean as 0 and 1, NaN where it is missing.</summary>
    public static Func<float> LabelReader(DataViewRow row, DataViewSchema.Column column)
    {
        switch (column.Type)
        {
            case KeyDataViewType key:
                Func<ulong> read = KeyReader(row, column);
                return () => read() is var raw && raw > 0 && raw <= key.Count ? raw - 1 : float.NaN;
            case BooleanDataViewType:
                Func<bool> flag = Reader<bool>(row, column);
                return () => flag() ? 1 : 0;
            case var type when type.Equals(NumberDataViewType.Double):
                Func<double> wide = Reader<double>(row, column);
                return () => (float)wide();
            default:
                return Reader<float>(row, column);
        }
    }

    /// <summary>Reads a key's raw value, 0 where it is missing.</summary>
    public static Func<ulong> KeyReader(DataViewRow row, DataViewSchema.Column column)
    {
        Type raw = column.Type.RawType;
        if (raw == typeof(byte))
            return Widen(Reader<byte>(row, column), x => x);
        if (raw == typeof(ushort))
            return Widen(Reader<ushort>(row, column), x => x);
        return raw == typeof(uint) ? Widen(Reader<uint>(row, column), x => x) : Reader<ulong>(row, column);
    }

    /// <summary>A vector of texts among a column's annotations, null where it has none under that name or of that size.</summary>
    public static string[]? Texts(DataViewSchema.Column column, string annotation)
    {
        if (column.Annotations.Schema.GetColumnOrNull(annotation)?.Type is not VectorDataViewType { IsKnownSize: true, ItemType: TextDataViewType })
            return null;
        VBuffer<ReadOnlyMemory<char>> values = default;
        column.Annotations.GetValue(annotation, ref values);
        return values.DenseValues().Select(x => x.ToString()).ToArray();
    }

    private static Func<ulong> Widen<T>(Func<T> read, Func<T, ulong> widen) => () => widen(read());
}
