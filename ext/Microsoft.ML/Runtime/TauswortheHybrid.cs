// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Numerics;

namespace Microsoft.ML.Runtime;

/// <summary>
/// L'Ecuyer's combined Tausworthe generator with a linear congruential component added ("hybrid Taus"),
/// the generator behind every seed of the library. Splits and shuffles depend on its exact stream.
/// </summary>
internal sealed class TauswortheHybrid : Random
{
    private uint _z1, _z2, _z3, _z4;

    internal TauswortheHybrid(uint seed)
    {
        _z1 = seed;
        _z2 = Hashing.MurmurRound(_z1, _z1);
        _z3 = Hashing.MurmurRound(_z2, _z1);
        _z4 = Hashing.MurmurRound(_z3, _z1);
    }

    internal TauswortheHybrid(Random source)
    {
        _z1 = AtLeast128(source);
        _z2 = AtLeast128(source);
        _z3 = AtLeast128(source);
        _z4 = Draw(source);
    }

    internal TauswortheHybrid(uint z1, uint z2, uint z3, uint z4) => (_z1, _z2, _z3, _z4) = (z1, z2, z3, z4);

    internal static TauswortheHybrid Create(int? seed) => seed is { } s ? new TauswortheHybrid((uint)s) : new TauswortheHybrid(new Random());

    internal (uint, uint, uint, uint) State => (_z1, _z2, _z3, _z4);

    private static uint Draw(Random source)
    {
        uint high = (uint)source.Next(0x10000);
        return high << 16 | (uint)source.Next(0x10000);
    }

    // The Tausworthe components degenerate on small states.
    private static uint AtLeast128(Random source)
    {
        uint drawn;
        do drawn = Draw(source);
        while (drawn < 128);
        return drawn;
    }

    private uint NextUInt()
    {
        _z1 = (_z1 & ~0x1u) << 12 ^ (_z1 << 13 ^ _z1) >> 19;
        _z2 = (_z2 & ~0x7u) << 4 ^ (_z2 << 2 ^ _z2) >> 25;
        _z3 = (_z3 & ~0xfu) << 17 ^ (_z3 << 3 ^ _z3) >> 11;
        _z4 = 1664525 * _z4 + 1013904223;
        return _z1 ^ _z2 ^ _z3 ^ _z4;
    }

    public override float NextSingle() => (NextUInt() >> 9) * (1f / (1 << 23));

    public override double NextDouble() => NextUInt() * (1.0 / 4294967296.0);

    protected override double Sample() => NextDouble();

    public override int Next()
    {
        uint drawn = NextUInt();
        return (int)(drawn + (drawn & 0x80000000u));
    }

    public override int Next(int maxValue)
    {
        Contracts.CheckParam(maxValue >= 0, nameof(maxValue), "maxValue must be non-negative");
        return (int)((ulong)NextUInt() * (ulong)maxValue >> 32);
    }

    public override int Next(int minValue, int maxValue)
    {
        Contracts.CheckParam(minValue <= maxValue, nameof(minValue), "minValue must be less than or equal to maxValue.");
        long range = (long)maxValue - minValue;
        return (int)((long)(NextDouble() * range) + minValue);
    }

    public override void NextBytes(byte[] buffer)
    {
        Contracts.CheckValue(buffer, nameof(buffer));
        for (int i = 0; i < buffer.Length; i++)
            buffer[i] = (byte)Next();
    }

    internal int NextSigned() => (int)NextUInt();
}
