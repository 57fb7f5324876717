// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// The numbers that PyTorch's generator on the CPU gives for a seed (Mersenne Twister, Matsumoto and Nishimura 1998), on every
/// machine and version: adapter files may hold a seed in place of frozen random tensors.
/// </summary>
internal sealed class TorchGenerator
{
    private const int Size = 624, Middle = 397;
    private readonly uint[] _state = new uint[Size];
    private int _next = Size;
    private double? _spare;

    public TorchGenerator(long seed)
    {
        _state[0] = unchecked((uint)seed);
        for (uint i = 1; i < Size; i++) _state[i] = (1812433253 * (_state[i - 1] ^ (_state[i - 1] >> 30))) + i;
    }

    private uint Next()
    {
        if (_next == Size) Twist();
        uint y = _state[_next++];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C5680;
        y ^= (y << 15) & 0xEFC60000;
        return y ^ (y >> 18);
    }

    private void Twist()
    {
        for (int i = 0; i < Size; i++)
        {
            uint y = (_state[i] & 0x80000000) | (_state[(i + 1) % Size] & 0x7FFFFFFF);
            _state[i] = _state[(i + Middle) % Size] ^ (y >> 1) ^ ((y & 1) * 0x9908B0DF);
        }
        _next = 0;
    }

    private float NextSingle() => (Next() & 0xFFFFFF) * (1f / (1 << 24));

    private double NextDouble()
    {
        ulong high = Next(), low = Next();
        return (((high << 32) | low) & ((1UL << 53) - 1)) * (1.0 / (1UL << 53));
    }

    /// <summary>The numbers 0 to count − 1 in random order, as <c>torch.randperm</c>.</summary>
    public int[] Permutation(int count)
    {
        int[] order = [.. Enumerable.Range(0, count)];
        for (int i = 0; i < count - 1; i++)
        {
            int other = i + (int)(Next() % (uint)(count - i));
            (order[i], order[other]) = (order[other], order[i]);
        }
        return order;
    }

    /// <summary>The beginning of what <c>torch.randperm</c> gives, without the rest.</summary>
    /// <param name="size">Number of places to choose from.</param>
    /// <param name="count">How many are chosen, at most <paramref name="size"/>.</param>
    /// <exception cref="ArgumentException">There are so many places that PyTorch draws in another way.</exception>
    public long[] First(long size, long count)
    {
        if (size >= uint.MaxValue / 20) throw new ArgumentException($"A weight of {size} numbers is too large for random positions; at most {(uint.MaxValue / 20) - 1} are allowed.");
        var moved = new Dictionary<long, long>();
        var chosen = new long[count];
        for (long i = 0; i < count; i++)
        {
            // The last place has nothing to swap with, and draws no number.
            long other = i < size - 1 ? i + (Next() % (size - i)) : i;
            chosen[i] = moved.GetValueOrDefault(other, other);
            moved[other] = moved.GetValueOrDefault(i, i);
        }
        return chosen;
    }

    /// <summary>Numbers of [0, 1), as <c>torch.rand</c>.</summary>
    public float[] Rand(long count) => Fill(count, NextSingle);

    /// <summary>Numbers of ±bound, as <c>uniform_</c> on float32.</summary>
    public float[] Uniform(double bound, long count)
    {
        float from = (float)-bound, width = (float)bound - from;
        return Fill(count, () => MathF.FusedMultiplyAdd(NextSingle(), width, from));
    }

    /// <summary>Numbers of ±bound, as <c>uniform_</c> on bfloat16: drawn in float32 and rounded; what would reach the bound goes to the other end.</summary>
    public float[] UniformHalf(double bound, long count)
    {
        float end = Rounded((float)bound);
        return [.. Uniform(bound, count).Select(Rounded).Select(v => v >= end ? -end : v)];
    }

    /// <summary>Normal numbers with mean 0, as <c>normal_</c> on float32.</summary>
    public float[] Normal(double deviation, long count)
    {
        if (count < 16) return Fill(count, () => (float)(NextNormal() * deviation));
        float[] values = Rand(count);
        for (int start = 0; start + 16 <= count; start += 16) Pairs(values.AsSpan(start, 16), (float)deviation);
        if (count % 16 == 0) return values;
        Span<float> last = values.AsSpan((int)count - 16);                       // the end is drawn once more
        for (int i = 0; i < 16; i++) last[i] = NextSingle();
        Pairs(last, (float)deviation);
        return values;
    }

    // Box and Muller: the first eight are lengths, the others angles.
    private static void Pairs(Span<float> values, float deviation)
    {
        for (int i = 0; i < 8; i++)
        {
            float radius = MathF.Sqrt(-2 * MathF.Log(1 - values[i])), angle = 2 * MathF.PI * values[i + 8];
            (values[i], values[i + 8]) = (radius * MathF.Cos(angle) * deviation, radius * MathF.Sin(angle) * deviation);
        }
    }

    private double NextNormal()
    {
        if (_spare is { } kept)
        {
            _spare = null;
            return kept;
        }
        double angle = 2 * Math.PI * NextDouble(), radius = Math.Sqrt(-2 * Math.Log(1 - NextDouble()));
        _spare = radius * Math.Sin(angle);
        return radius * Math.Cos(angle);
    }

    /// <summary>The nearest bfloat16, ties to even.</summary>
    public static float Rounded(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);
        return BitConverter.UInt32BitsToSingle((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000);
    }

    private static float[] Fill(long count, Func<float> next)
    {
        var values = new float[count];
        for (int i = 0; i < values.Length; i++) values[i] = next();
        return values;
    }
}

/// <summary>The whole numbers that NumPy's default generator gives for a seed (PCG64, O'Neill 2014), for the same reason.</summary>
internal sealed class NumpyGenerator
{
    private static readonly UInt128 _multiplier = new(2549297995355413924, 4865540595714422341);
    private readonly UInt128 _increment;
    private UInt128 _state;
    private uint? _upper;

    public NumpyGenerator(long seed)
    {
        uint[] pool = Pool(unchecked((ulong)seed));
        ulong[] words = new ulong[4];
        uint hash = 0x8b51f9dd;
        for (int i = 0; i < 8; i++)
        {
            uint value = pool[i % 4] ^ hash;
            hash *= 0x58f38ded;
            value *= hash;
            words[i / 2] |= (ulong)(value ^ (value >> 16)) << (32 * (i % 2));
        }
        _increment = (new UInt128(words[2], words[3]) << 1) | 1;
        Step();
        _state += new UInt128(words[0], words[1]);
        Step();
    }

    // The seed's words spread over a pool of four, each mixed into each.
    private static uint[] Pool(ulong seed)
    {
        uint hash = 0x43b0d7e5;
        uint Hash(uint value)
        {
            value ^= hash;
            hash *= 0x931e8875;
            value *= hash;
            return value ^ (value >> 16);
        }
        uint[] pool = [Hash((uint)seed), Hash((uint)(seed >> 32)), Hash(0), Hash(0)];
        for (int from = 0; from < 4; from++)
            for (int to = 0; to < 4; to++)
                if (from != to)
                {
                    uint mixed = (0xca01f9dd * pool[to]) - (0x4973f715 * Hash(pool[from]));
                    pool[to] = mixed ^ (mixed >> 16);
                }
        return pool;
    }

    private void Step() => _state = unchecked((_state * _multiplier) + _increment);

    private uint Next()
    {
        if (_upper is { } kept)
        {
            _upper = null;
            return kept;
        }
        Step();
        ulong high = (ulong)(_state >> 64);
        ulong value = System.Numerics.BitOperations.RotateRight(high ^ (ulong)_state, (int)(high >> 58));
        _upper = (uint)(value >> 32);
        return (uint)value;
    }

    // 0 to most, each as likely (Lemire 2019).
    private uint Upto(uint most)
    {
        if (most == 0) return 0;
        ulong range = most + 1UL, product = Next() * range;
        if ((uint)product < range)
            for (uint threshold = (uint)((uint.MaxValue - most) % range); (uint)product < threshold;) product = Next() * range;
        return (uint)(product >> 32);
    }

    // The same by throwing away what is too large; NumPy has both ways, in different places.
    private uint Within(uint most)
    {
        uint mask = most == 0 ? 0 : uint.MaxValue >> System.Numerics.BitOperations.LeadingZeroCount(most), value;
        do value = Next() & mask;
        while (value > most);
        return value;
    }

    /// <summary>Puts the numbers into a random order, as <c>shuffle</c>.</summary>
    public void Shuffle(Span<long> values) => Shuffle(values, 1, Within);

    private static void Shuffle(Span<long> values, int first, Func<uint, uint> draw)
    {
        for (int i = values.Length - 1; i >= first; i--)
        {
            int j = (int)draw((uint)i);
            (values[i], values[j]) = (values[j], values[i]);
        }
    }

    /// <summary>Different numbers of 0 to <paramref name="population"/> − 1, in random order, as <c>choice(replace=False)</c>.</summary>
    public long[] Choose(int population, int count)
    {
        if (population > 10000 && count > population / 50)
        {
            long[] all = [.. Enumerable.Range(0, population).Select(i => (long)i)];
            Shuffle(all, Math.Max(population - count, 1), Upto);
            return all[(population - count)..];
        }
        var taken = new HashSet<long>();                                           // Floyd's way
        var chosen = new long[count];
        for (int j = population - count; j < population; j++)
        {
            long value = Upto((uint)j);
            if (!taken.Add(value)) taken.Add(value = j);
            chosen[j - population + count] = value;
        }
        Shuffle(chosen, 1, Upto);
        return chosen;
    }
}
