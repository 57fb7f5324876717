// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Random positions as PyTorch's CPU generator gives them for a seed: adapters whose files hold a seed in place of their
/// positions (FourierFT, WaveFT) are read by them. The Mersenne twister (Matsumoto and Nishimura 1998) and Fisher and Yates'
/// shuffle, of which only the beginning is run.
/// </summary>
internal static class TorchPositions
{
    private const int Words = 624, Apart = 397;

    // From here on PyTorch draws with 64 bits.
    private const long Largest = uint.MaxValue / 20;

    /// <summary>The first entries of a random permutation of 0 to size - 1.</summary>
    /// <param name="seed">Seed of the generator.</param>
    /// <param name="size">Number of positions to choose from.</param>
    /// <param name="count">How many are chosen, at most <paramref name="size"/>.</param>
    /// <exception cref="ArgumentException">The size is beyond what this order is defined for.</exception>
    public static long[] First(long seed, long size, long count)
    {
        if (size >= Largest) throw new ArgumentException($"A weight of {size} numbers is too large for random positions; at most {Largest - 1} are allowed.");
        uint[] state = Start(unchecked((uint)seed));
        int at = Words;
        var moved = new Dictionary<long, long>();
        var chosen = new long[count];
        for (long i = 0; i < count; i++)
        {
            // The last place has nothing to swap with, and draws no number.
            long other = i < size - 1 ? i + (Next(state, ref at) % (size - i)) : i;
            chosen[i] = moved.GetValueOrDefault(other, other);
            moved[other] = moved.GetValueOrDefault(i, i);
        }
        return chosen;
    }

    private static uint[] Start(uint seed)
    {
        var state = new uint[Words];
        state[0] = seed;
        for (uint i = 1; i < Words; i++) state[i] = (1812433253u * (state[i - 1] ^ (state[i - 1] >> 30))) + i;
        return state;
    }

    private static uint Next(uint[] state, ref int at)
    {
        if (at == Words)
        {
            for (int i = 0; i < Words; i++)
            {
                uint y = (state[i] & 0x80000000u) | (state[(i + 1) % Words] & 0x7FFFFFFFu);
                state[i] = state[(i + Apart) % Words] ^ (y >> 1) ^ ((y & 1) == 0 ? 0 : 0x9908B0DFu);
            }
            at = 0;
        }
        uint x = state[at++];
        x ^= x >> 11;
        x ^= (x << 7) & 0x9D2C5680u;
        x ^= (x << 15) & 0xEFC60000u;
        return x ^ (x >> 18);
    }
}
