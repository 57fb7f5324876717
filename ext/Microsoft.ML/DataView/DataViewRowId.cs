// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Numerics;

namespace Microsoft.ML.Data;

/// <summary>
/// A 128-bit identity of a row that survives reordering. New ids are hashes of old ones
/// (rounds of MurmurHash3 x64/128), so that ids of different parents do not collide in practice.
/// </summary>
public readonly struct DataViewRowId : IComparable<DataViewRowId>, IEquatable<DataViewRowId>
{
    // MurmurHash3's constants for 128 bits.
    private const ulong C1 = 0x87c37b91114253d5;
    private const ulong C2 = 0x4cf5ad432745937f;

    public readonly ulong Low;
    public readonly ulong High;

    public DataViewRowId(ulong low, ulong high)
    {
        Low = low;
        High = high;
    }

    /// <summary>The id of another child of the same row.</summary>
    public DataViewRowId Next() => Round(0, 0);

    /// <summary>An id for a row that is made of this one: as if one bit were hashed in.</summary>
    public DataViewRowId Fork()
    {
        var mixed = Round(0, 0);
        return new DataViewRowId(mixed.Low ^ BitOperations.RotateLeft(C1, 31) * C2, mixed.High);
    }

    /// <summary>The id of a row that is made of this row and another.</summary>
    public DataViewRowId Combine(DataViewRowId other)
    {
        var forked = other.Fork();
        ulong low = BitOperations.RotateLeft(forked.Low * C1, 31) * C2;
        ulong high = BitOperations.RotateLeft(forked.High * C2, 33) * C1;
        return Round(low, high);
    }

    // One round of the hash's state (Low, High) with an already scrambled block.
    private DataViewRowId Round(ulong low, ulong high)
    {
        ulong h1 = (BitOperations.RotateLeft(Low ^ low, 27) + High) * 5 + 0x52dce729;
        ulong h2 = (BitOperations.RotateLeft(High ^ high, 31) + h1) * 5 + 0x38495ab5;
        return new DataViewRowId(h1, h2);
    }

    public int CompareTo(DataViewRowId other) => High != other.High ? High.CompareTo(other.High) : Low.CompareTo(other.Low);

    public bool Equals(DataViewRowId other) => Low == other.Low && High == other.High;

    public override bool Equals(object obj) => obj is DataViewRowId other && Equals(other);

    public override int GetHashCode() => HashCode.Combine(Low, High);

    public override string ToString() => $"{High:x16}{Low:x16}";
}
