// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Numerics;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms;

namespace Microsoft.ML.Data;

/// <summary>The column that decides which rows of a split go where: random, or the same for rows of the same sampling key.</summary>
internal static class SplitColumn
{
    private const int HashBits = 30;
    private const uint DefaultHashSeed = 314489979;
    private const uint DefaultRandomSeed = 42;

    /// <summary>Adds the column to the data.</summary>
    internal static string Add(IHostEnvironment env, ref IDataView data, string samplingKeyColumn, int? seed)
    {
        string name = data.Schema.GetTempColumnName("SplitColumn");
        seed ??= ((IHostEnvironmentInternal)env).Seed;
        if (samplingKeyColumn == null)
        {
            data = new ComputedColumnView(env, data, new(name, NumberDataViewType.Single), null,
                row => RandomNumbers(row, (uint?)seed ?? DefaultRandomSeed), isStateful: true);
            return name;
        }
        if (data.Schema.GetColumnOrNull(samplingKeyColumn) is not { } key)
            throw env.ExceptSchemaMismatch(nameof(samplingKeyColumn), "SamplingKeyColumn", samplingKeyColumn);

        PrimitiveDataViewType type;
        Func<DataViewRow, Delegate> makeGetter;
        if (key.Type is KeyDataViewType keyType)
        {
            // The real one copies the column by an estimator, of which there is one more host to draw a seed for.
            env.Register(nameof(ColumnCopyingEstimator));
            type = keyType;
            makeGetter = row => ColumnTypeExtensions.InvokeGeneric<Delegate>(typeof(DataViewRow), row, nameof(DataViewRow.GetGetter), keyType.RawType, key);
        }
        else if (key.Type == NumberDataViewType.Single || key.Type == NumberDataViewType.Double)
        {
            type = (PrimitiveDataViewType)key.Type;
            var view = data;
            makeGetter = ColumnTypeExtensions.InvokeGeneric<Func<DataViewRow, Delegate>>(typeof(SplitColumn), null, nameof(Scaled), type.RawType, view, key);
        }
        else
        {
            type = new KeyDataViewType(typeof(uint), 1 << HashBits);
            uint hashSeed = (uint?)seed ?? DefaultHashSeed;
            makeGetter = row => ColumnTypeExtensions.InvokeGeneric<Delegate>(typeof(SplitColumn), null,
                key.Type is VectorDataViewType ? nameof(HashOfVector) : nameof(HashOfValue), key.Type.GetItemType().RawType, row, key, hashSeed);
        }
        data = new ComputedColumnView(env, data, new(name, type), key.Index, makeGetter, isStateful: false);
        return name;
    }

    // One number a row, whether asked for or not: the n-th row's number is always the same.
    private static ValueGetter<float> RandomNumbers(DataViewRow row, uint seed)
    {
        var random = new TauswortheHybrid(seed);
        long drawn = -1;
        float current = 0;
        return (ref float value) =>
        {
            Contracts.Check(row.Position >= 0, "Cannot get value as the cursor either has not started yet, or already finished");
            for (; drawn < row.Position; drawn++)
                current = random.NextSingle();
            value = current;
        };
    }

    private static Func<DataViewRow, Delegate> Scaled<T>(IDataView data, DataViewSchema.Column column) where T : struct, IBinaryFloatingPointIeee754<T>
    {
        T low = T.PositiveInfinity, high = T.NegativeInfinity, value = default;
        using (var cursor = data.GetRowCursor([column]))
        {
            var getter = cursor.GetGetter<T>(column);
            while (cursor.MoveNext())
            {
                getter(ref value);
                if (T.IsFinite(value))
                    (low, high) = (T.Min(low, value), T.Max(high, value));
            }
        }
        T scale = high > low ? T.One / (high - low) : T.Zero;
        return row =>
        {
            var getter = row.GetGetter<T>(column);
            return (ValueGetter<T>)((ref T scaled) =>
            {
                getter(ref scaled);
                scaled = (scaled - low) * scale;
            });
        };
    }

    private static ValueGetter<uint> HashOfValue<T>(DataViewRow row, DataViewSchema.Column column, uint seed)
    {
        var getter = row.GetGetter<T>(column);
        T value = default;
        return (ref uint hash) =>
        {
            getter(ref value);
            hash = Hash([value], column.Type, seed);
        };
    }

    private static ValueGetter<uint> HashOfVector<T>(DataViewRow row, DataViewSchema.Column column, uint seed)
    {
        var getter = row.GetGetter<VBuffer<T>>(column);
        VBuffer<T> value = default;
        return (ref uint hash) =>
        {
            getter(ref value);
            hash = Hash(value.DenseValues(), column.Type.GetItemType(), seed);
        };
    }

    // A key from 1 to 2^30, 0 where any value is missing.
    private static uint Hash<T>(IEnumerable<T> values, DataViewType itemType, uint seed)
    {
        uint hash = seed;
        int length = 0;
        foreach (T value in values)
        {
            if (value is ReadOnlyMemory<char> text)
            {
                if (text.IsEmpty)
                    return 0;
                hash = Hashing.MurmurHash(hash, text.Span.Trim(' '));
                continue;
            }
            if (IsMissing(value, itemType))
                return 0;
            foreach (uint word in Words(value))
            {
                hash = Hashing.MurmurRound(hash, word);
                length += sizeof(uint);
            }
        }
        if (itemType is not TextDataViewType)
            hash = Hashing.MixHash(hash, length);
        return (hash & (1u << HashBits) - 1) + 1;
    }

    private static bool IsMissing<T>(T value, DataViewType type)
        => value is float.NaN or double.NaN || type is KeyDataViewType && Convert.ToUInt64(value) == 0;

    // 0 and -0 are the same value.
    private static uint[] Words<T>(T value) => value switch
    {
        float single => [BitConverter.SingleToUInt32Bits(single == 0 ? 0 : single)],
        double number => Halves(BitConverter.DoubleToUInt64Bits(number == 0 ? 0 : number)),
        bool flag => [flag ? 1u : 0u],
        sbyte number => [(uint)number],
        short number => [(uint)number],
        int number => [(uint)number],
        byte number => [number],
        ushort number => [number],
        uint number => [number],
        long number => Halves((ulong)number),
        ulong number => Halves(number),
        DateTime time => Halves((ulong)time.Ticks),
        DateTimeOffset time => Halves((ulong)time.Ticks),
        TimeSpan span => Halves((ulong)span.Ticks),
        _ => throw Contracts.ExceptNotSupp($"Splitting by values of {typeof(T)} needs the package Microsoft.ML."),
    };

    private static uint[] Halves(ulong value) => [(uint)value, (uint)(value >> 32)];
}
