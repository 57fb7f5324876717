// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Dropout masks on the CPU. libtorch draws their entries one by one, which takes a sixth of a training step; here an entry
/// is a hash of its place and the mask's key, many at a time. It depends on nothing else: not on the width of the
/// machine's vectors, the number of threads or the version of libtorch.
/// </summary>
internal static class DropoutMask
{
    private const int Bits = 24;

    /// <summary>True where <see cref="Apply"/> can do it.</summary>
    /// <param name="x">What is dropped out.</param>
    public static bool Fits(Tensor x) => x.dtype == ScalarType.Float32 && x.device_type == DeviceType.CPU;

    /// <summary>Entries times 0 or 1/(1-p).</summary>
    /// <param name="x">Float32 on the CPU, any shape.</param>
    /// <param name="probability">Share p of entries dropped.</param>
    /// <param name="key">Key of the mask.</param>
    public static Tensor Apply(Tensor x, double probability, ulong key)
    {
        Tensor mask = empty(x.shape, dtype: ScalarType.Float32);
        Fill(MemoryMarshal.Cast<byte, float>(mask.bytes), probability, key);
        return x * mask;
    }

    /// <summary>Hashes below this number, of 2^24, are dropped.</summary>
    /// <param name="probability">Share of zeros.</param>
    public static int Threshold(double probability) => (int)Math.Round(probability * (1 << Bits));

    /// <summary>Writes a mask.</summary>
    /// <param name="mask">Where it goes.</param>
    /// <param name="probability">Share of zeros.</param>
    /// <param name="key">Key of the mask.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Fill(Span<float> mask, double probability, ulong key)
    {
        int threshold = Threshold(probability);
        float kept = (float)(1 / (1 - probability));
        key = Pass.Mix(key);
        uint low = (uint)key, high = (uint)(key >> 32);
        int lanes = Vector<uint>.Count, done = 0;
        Span<uint> first = stackalloc uint[lanes];
        for (int i = 0; i < lanes; i++) first[i] = (uint)i;
        Vector<uint> place = new(first), next = new((uint)lanes);
        Vector<float> keptLanes = new(kept);
        Vector<int> limit = new(threshold - 1);
        for (; done <= mask.Length - lanes; done += lanes, place += next)
        {
            Vector<int> drawn = Vector.AsVectorInt32(Mix(place, low, high) >>> (32 - Bits));
            Vector.ConditionalSelect(Vector.GreaterThan(drawn, limit), keptLanes, Vector<float>.Zero).CopyTo(mask[done..]);
        }
        for (; done < mask.Length; done++)
            mask[done] = (int)(Mix(new Vector<uint>((uint)done), low, high)[0] >> (32 - Bits)) >= threshold ? kept : 0;
    }

    // A 32-bit finisher of two rounds, with half of the mixed key before each: neighbours in, unrelated numbers out.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector<uint> Mix(Vector<uint> x, uint low, uint high)
    {
        x = (x * 0x9E3779B9u) + new Vector<uint>(low);
        x ^= x >>> 16;
        x *= 0x21F0AAADu;
        x ^= (x >>> 15) ^ new Vector<uint>(high);
        x *= 0x735A2D97u;
        return x ^ (x >>> 15);
    }
}
