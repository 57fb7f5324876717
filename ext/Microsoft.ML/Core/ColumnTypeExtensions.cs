// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics.CodeAnalysis;
using System.Reflection;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Questions about column types and schemas that many components ask.</summary>
internal static class ColumnTypeExtensions
{
    private static readonly Dictionary<Type, PrimitiveDataViewType> _byRawType = new PrimitiveDataViewType[]
    {
        NumberDataViewType.SByte, NumberDataViewType.Byte, NumberDataViewType.Int16, NumberDataViewType.UInt16, NumberDataViewType.Int32,
        NumberDataViewType.UInt32, NumberDataViewType.Int64, NumberDataViewType.UInt64, NumberDataViewType.Single, NumberDataViewType.Double,
        BooleanDataViewType.Instance, TextDataViewType.Instance, TimeSpanDataViewType.Instance, DateTimeDataViewType.Instance,
        DateTimeOffsetDataViewType.Instance, RowIdDataViewType.Instance,
    }.ToDictionary(type => type.RawType);

    /// <summary>The type itself, or the item type of a vector.</summary>
    internal static DataViewType GetItemType(this DataViewType type) => type is VectorDataViewType vector ? vector.ItemType : type;

    /// <summary>The number of categories of a key type, 0 for any other type.</summary>
    internal static ulong GetKeyCount(this DataViewType type) => type is KeyDataViewType key ? key.Count : 0;

    /// <summary>The size of a vector type, 0 where it is not known, 1 for a single value.</summary>
    internal static int GetValueCount(this DataViewType type) => type is VectorDataViewType vector ? vector.Size : 1;

    /// <summary>The size of a vector type, 0 where it is not known or for a single value.</summary>
    internal static int GetVectorSize(this DataViewType type) => type is VectorDataViewType vector ? vector.Size : 0;

    internal static bool IsStandardScalar(this DataViewType type)
        => type is NumberDataViewType or TextDataViewType or BooleanDataViewType or RowIdDataViewType or TimeSpanDataViewType or DateTimeDataViewType or DateTimeOffsetDataViewType;

    internal static bool TryPrimitiveTypeFromType(Type rawType, [NotNullWhen(true)] out PrimitiveDataViewType type)
        => _byRawType.TryGetValue(rawType == typeof(string) ? typeof(ReadOnlyMemory<char>) : rawType, out type);

    internal static PrimitiveDataViewType PrimitiveTypeFromType(Type rawType)
        => TryPrimitiveTypeFromType(rawType, out var type) ? type : throw Contracts.ExceptParam(nameof(rawType), $"No primitive column type holds {rawType}.");

    internal static PrimitiveDataViewType PrimitiveTypeFromKind(DataKind kind) => PrimitiveTypeFromType(kind switch
    {
        DataKind.SByte => typeof(sbyte),
        DataKind.Byte => typeof(byte),
        DataKind.Int16 => typeof(short),
        DataKind.UInt16 => typeof(ushort),
        DataKind.Int32 => typeof(int),
        DataKind.UInt32 => typeof(uint),
        DataKind.Int64 => typeof(long),
        DataKind.UInt64 => typeof(ulong),
        DataKind.Single => typeof(float),
        DataKind.Double => typeof(double),
        DataKind.String => typeof(ReadOnlyMemory<char>),
        DataKind.Boolean => typeof(bool),
        DataKind.TimeSpan => typeof(TimeSpan),
        DataKind.DateTime => typeof(DateTime),
        DataKind.DateTimeOffset => typeof(DateTimeOffset),
        _ => throw Contracts.ExceptParam(nameof(kind), $"Unknown data kind {kind}."),
    });

    /// <summary>The <see cref="DataKind"/> whose values have this raw type, where there is one.</summary>
    internal static DataKind? KindOf(Type rawType)
        => Enum.GetValues<DataKind>().Cast<DataKind?>().FirstOrDefault(kind => PrimitiveTypeFromKind(kind!.Value).RawType == rawType);

    internal static bool TryGetColumnIndex(this DataViewSchema schema, string name, out int index)
    {
        index = schema.GetColumnOrNull(name)?.Index ?? -1;
        return index >= 0;
    }

    /// <summary>A column name that the schema does not use.</summary>
    internal static string GetTempColumnName(this DataViewSchema schema, string tag = null)
    {
        string candidate = string.IsNullOrWhiteSpace(tag) || schema.GetColumnOrNull(tag) == null ? tag : null;
        for (int i = 0; string.IsNullOrEmpty(candidate) || schema.GetColumnOrNull(candidate) != null; i++)
            candidate = $"temp_{tag}_{i:000}";
        return candidate;
    }

    /// <summary>Calls a generic method of <paramref name="host"/> (or a static one) for a type known only at run time, unwrapping its exception.</summary>
    internal static TResult InvokeGeneric<TResult>(Type declaring, object host, string method, Type typeArgument, params object[] args)
        => InvokeGeneric<TResult>(declaring, host, method, [typeArgument], args);

    internal static TResult InvokeGeneric<TResult>(Type declaring, object host, string method, Type[] typeArguments, params object[] args)
    {
        var flags = BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly | (host == null ? BindingFlags.Static : BindingFlags.Instance);
        var open = declaring.GetMethods(flags).Single(candidate => candidate.Name == method && candidate.IsGenericMethodDefinition);
        return (TResult)open.MakeGenericMethod(typeArguments).Invoke(host, BindingFlags.DoNotWrapExceptions, null, args, null);
    }
}
