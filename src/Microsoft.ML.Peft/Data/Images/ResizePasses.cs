// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// The two passes of resizing: sums of bytes with integer weights, rounded to bytes. Where the processor multiplies pairs
/// of 16-bit numbers, a weight goes in two halves (its upper bits, and the lower eleven): sums of both, put together, are
/// the sum with the whole weight, to the bit.
/// </summary>
internal static class ResizePasses
{
    private const int Bits = 22, Half = 1 << (Bits - 1), LowBits = 11, LowMask = (1 << LowBits) - 1;

    /// <summary>Each row from <paramref name="top"/> on, to the target's width.</summary>
    public static void Horizontal(PixelImage image, ResizeWeights columns, int top, PixelImage target)
    {
        if (Avx2.IsSupported && image.Channels == 3)
        {
            HorizontalRgb(image, columns, top, target);
            return;
        }

        for (int y = 0; y < target.Height; y++)
            HorizontalRow(image.Row(top + y), columns, target.Row(y), image.Channels);
    }

    /// <summary>Each column, to the target's height. The image's first row is number <paramref name="first"/> of those that the weights count.</summary>
    public static void Vertical(PixelImage image, ResizeWeights rows, int first, PixelImage target)
    {
        int stride = image.Width * image.Channels;
        int[] high = new int[rows.Taps / 2 + 1], low = new int[high.Length];
        for (int y = 0; y < target.Height; y++)
        {
            ReadOnlySpan<int> weights = rows.Values.AsSpan(y * rows.Taps, rows.Taps);
            int start = rows.Starts[y] - first, taps = Math.Min(rows.Taps, image.Height - start), x = 0;
            ReadOnlySpan<byte> from = image.Pixels.AsSpan(start * stride, taps * stride);
            if (Avx2.IsSupported)
            {
                SplitPairs(weights[..taps], high, low);
                x = VerticalChunks(from, stride, taps, high, low, target.Row(y));
            }

            VerticalRest(from, stride, weights[..taps], target.Row(y), x);
        }
    }

    private static byte Rounded(int sum) => (byte)Math.Clamp(sum >> Bits, 0, 255);

    private static void HorizontalRow(ReadOnlySpan<byte> from, ResizeWeights columns, Span<byte> to, int channels)
    {
        int width = from.Length / channels;
        for (int x = 0; x < columns.Starts.Length; x++)
        {
            int start = columns.Starts[x];
            ReadOnlySpan<int> weights = columns.Values.AsSpan(x * columns.Taps, Math.Min(columns.Taps, width - start));
            for (int c = 0; c < channels; c++)
            {
                int sum = Half;
                for (int k = 0; k < weights.Length; k++)
                    sum += weights[k] * from[(start + k) * channels + c];
                to[x * channels + c] = Rounded(sum);
            }
        }
    }

    private static void VerticalRest(ReadOnlySpan<byte> from, int stride, ReadOnlySpan<int> weights, Span<byte> to, int x)
    {
        for (; x < to.Length; x++)
        {
            int sum = Half;
            for (int k = 0; k < weights.Length; k++)
                sum += weights[k] * from[k * stride + x];
            to[x] = Rounded(sum);
        }
    }

    // Two weights in one number, the first one below: their upper bits, and their lower ones.
    private static void SplitPairs(ReadOnlySpan<int> weights, Span<int> high, Span<int> low)
    {
        for (int k = 0; k < weights.Length; k += 2)
        {
            int a = weights[k], b = k + 1 < weights.Length ? weights[k + 1] : 0;
            high[k / 2] = (ushort)(a >> LowBits) | (b >> LowBits) << 16;
            low[k / 2] = (a & LowMask) | (b & LowMask) << 16;
        }
    }

    // Sixteen samples at a time: pairs of rows, a sample of each beside the other, times pairs of weights.
    private static int VerticalChunks(ReadOnlySpan<byte> from, int stride, int taps, ReadOnlySpan<int> high, ReadOnlySpan<int> low, Span<byte> to)
    {
        ref byte source = ref MemoryMarshal.GetReference(from);
        int x = 0;
        for (; x + 16 <= to.Length; x += 16)
        {
            Vector256<int> high0 = default, high1 = default, low0 = default, low1 = default;
            for (int k = 0; k < taps; k += 2)
            {
                Vector128<byte> a = Vector128.LoadUnsafe(ref source, (nuint)(k * stride + x));
                Vector128<byte> b = k + 1 < taps ? Vector128.LoadUnsafe(ref source, (nuint)((k + 1) * stride + x)) : default;
                Vector256<short> first = Avx2.ConvertToVector256Int16(Sse2.UnpackLow(a, b));
                Vector256<short> second = Avx2.ConvertToVector256Int16(Sse2.UnpackHigh(a, b));
                Vector256<short> upper = Vector256.Create(high[k / 2]).AsInt16(), lower = Vector256.Create(low[k / 2]).AsInt16();
                high0 += Avx2.MultiplyAddAdjacent(first, upper);
                high1 += Avx2.MultiplyAddAdjacent(second, upper);
                low0 += Avx2.MultiplyAddAdjacent(first, lower);
                low1 += Avx2.MultiplyAddAdjacent(second, lower);
            }

            Vector256<int> left = Joined(high0, low0), right = Joined(high1, low1);
            // Packing works in halves of 128 bits: put them back in order.
            Vector256<short> words = Avx2.Permute4x64(Avx2.PackSignedSaturate(left, right).AsInt64(), 0b11_01_10_00).AsInt16();
            Sse2.PackUnsignedSaturate(words.GetLower(), words.GetUpper()).CopyTo(to[x..]);
        }

        return x;
    }

    private static Vector256<int> Joined(Vector256<int> high, Vector256<int> low) =>
        ((high << LowBits) + low + Vector256.Create(Half)) >> Bits;

    // Four pixels at a time: three channels of pairs of pixels, times pairs of weights.
    private static void HorizontalRgb(PixelImage image, ResizeWeights columns, int top, PixelImage target)
    {
        int groups = (columns.Taps + 3) / 4, reach = (columns.Starts[^1] + groups * 4) * 3 + 4;
        short[] weights = GroupedWeights(columns, groups);
        byte[]? copy = null;
        int stride = image.Width * 3;
        for (int y = 0; y < target.Height; y++)
        {
            int start = (top + y) * stride;
            ReadOnlySpan<byte> row = image.Pixels.AsSpan(start);
            // Weights of 0 read beyond a row: into the next one, and for the last rows into a copy with room behind.
            if (row.Length < reach)
            {
                copy ??= new byte[Math.Max(reach, stride)];
                row[..stride].CopyTo(copy);
                row = copy;
            }

            HorizontalRgbRow(row, columns.Starts, weights, groups, target.Row(y));
        }
    }

    // Of each output sample and group of four pixels: sixteen upper halves, sixteen lower ones, in the order of the shuffle.
    private static short[] GroupedWeights(ResizeWeights columns, int groups)
    {
        short[] grouped = new short[checked(columns.Starts.Length * groups * 32)];
        for (int x = 0, to = 0; x < columns.Starts.Length; x++)
            for (int group = 0; group < groups; group++, to += 32)
                for (int i = 0; i < 16; i++)
                {
                    int k = group * 4 + i / 8 * 2 + (i & 1);
                    int weight = k < columns.Taps ? columns.Values[x * columns.Taps + k] : 0;
                    grouped[to + i] = (short)(weight >> LowBits);
                    grouped[to + 16 + i] = (short)(weight & LowMask);
                }

        return grouped;
    }

    private static void HorizontalRgbRow(ReadOnlySpan<byte> row, int[] starts, short[] weights, int groups, Span<byte> to)
    {
        // r0 r1 g0 g1 b0 b1 - - as 16-bit numbers, of the first two pixels below, of the next two above.
        var order = Vector256.Create((byte)0, 255, 3, 255, 1, 255, 4, 255, 2, 255, 5, 255, 255, 255, 255, 255,
            6, 255, 9, 255, 7, 255, 10, 255, 8, 255, 11, 255, 255, 255, 255, 255);
        ref byte source = ref MemoryMarshal.GetReference(row);
        ref short weight = ref MemoryMarshal.GetArrayDataReference(weights);
        nuint at = 0;
        for (int x = 0; x < starts.Length; x++)
        {
            Vector256<int> high = default, low = default;
            nuint pixel = (nuint)starts[x] * 3;
            for (int group = 0; group < groups; group++, pixel += 12, at += 32)
            {
                Vector128<byte> four = Vector128.LoadUnsafe(ref source, pixel);
                Vector256<short> pairs = Avx2.Shuffle(Vector256.Create(four, four), order).AsInt16();
                high += Avx2.MultiplyAddAdjacent(pairs, Vector256.LoadUnsafe(ref weight, at));
                low += Avx2.MultiplyAddAdjacent(pairs, Vector256.LoadUnsafe(ref weight, at + 16));
            }

            Vector128<int> sum = ((high.GetLower() + high.GetUpper()) << LowBits) + low.GetLower() + low.GetUpper();
            sum = (sum + Vector128.Create(Half)) >> Bits;
            Vector128<short> words = Sse2.PackSignedSaturate(sum, sum);
            uint bytes = Sse2.PackUnsignedSaturate(words, words).AsUInt32().ToScalar();
            int target = x * 3;
            to[target] = (byte)bytes;
            to[target + 1] = (byte)(bytes >> 8);
            to[target + 2] = (byte)(bytes >> 16);
        }
    }
}
