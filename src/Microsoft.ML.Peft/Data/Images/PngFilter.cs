// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Microsoft.ML.Peft.Data;

/// <summary>PNG's predictions of a byte from its neighbours to the left (a), above (b) and above left (c).</summary>
internal static class PngFilter
{
    /// <summary>Adds the prediction to each byte of a row, in place; false where there is no such filter.</summary>
    /// <param name="filter">0 to 4.</param>
    /// <param name="row">The row's bytes.</param>
    /// <param name="above">The row above it, done; zeros for the first one.</param>
    /// <param name="pixel">Bytes from a sample to the same sample of the next pixel; at least 1.</param>
    public static bool Undo(int filter, Span<byte> row, ReadOnlySpan<byte> above, int pixel)
    {
        switch (filter)
        {
            case 0:
                return true;
            case 1:
                for (int i = pixel; i < row.Length; i++)
                    row[i] += row[i - pixel];
                return true;
            case 2:
                Up(row, above);
                return true;
            case 3:
                Average(row, above, pixel);
                return true;
            case 4:
                if (Vector128.IsHardwareAccelerated && pixel is 3 or 4)
                    PaethPixels(row, above, pixel);
                else
                    Paeth(row, above, pixel, 0);
                return true;
            default:
                return false;
        }
    }

    private static void Up(Span<byte> row, ReadOnlySpan<byte> above)
    {
        int i = 0;
        for (; i + Vector<byte>.Count <= row.Length; i += Vector<byte>.Count)
            (new Vector<byte>(row[i..]) + new Vector<byte>(above[i..])).CopyTo(row[i..]);
        for (; i < row.Length; i++)
            row[i] += above[i];
    }

    private static void Average(Span<byte> row, ReadOnlySpan<byte> above, int pixel)
    {
        for (int i = 0; i < pixel && i < row.Length; i++)
            row[i] += (byte)(above[i] >> 1);
        for (int i = pixel; i < row.Length; i++)
            row[i] += (byte)((row[i - pixel] + above[i]) >> 1);
    }

    private static void Paeth(Span<byte> row, ReadOnlySpan<byte> above, int pixel, int from)
    {
        for (int i = from; i < row.Length; i++)
        {
            int a = i < pixel ? 0 : row[i - pixel], b = above[i], c = i < pixel ? 0 : above[i - pixel];
            int da = Math.Abs(b - c), db = Math.Abs(a - c), dc = Math.Abs(a + b - c - c);
            row[i] += (byte)(da <= db && da <= dc ? a : db <= dc ? b : c);
        }
    }

    // A pixel's channels at once; its left neighbour stays in a register. Four bytes are loaded for three.
    private static void PaethPixels(Span<byte> row, ReadOnlySpan<byte> above, int pixel)
    {
        Vector128<short> a = default, c = default;
        int i = 0;
        for (; i + 4 <= row.Length; i += pixel)
        {
            Vector128<short> b = Load(above[i..]), x = Load(row[i..]);
            Vector128<short> fromA = b - c, fromB = a - c;
            Vector128<short> da = Vector128.Abs(fromA), db = Vector128.Abs(fromB), dc = Vector128.Abs(fromA + fromB);
            Vector128<short> least = Vector128.Min(da, Vector128.Min(db, dc));
            Vector128<short> nearest = Vector128.ConditionalSelect(Vector128.Equals(da, least), a,
                Vector128.ConditionalSelect(Vector128.Equals(db, least), b, c));
            a = (x + nearest) & Vector128.Create((short)0xFF);
            c = b;
            uint bytes = Vector128.Narrow(a.AsUInt16(), a.AsUInt16()).AsUInt32().ToScalar();
            if (pixel == 4)
            {
                Unsafe.WriteUnaligned(ref row[i], bytes);
                continue;
            }

            row[i] = (byte)bytes;
            row[i + 1] = (byte)(bytes >> 8);
            row[i + 2] = (byte)(bytes >> 16);
        }

        Paeth(row, above, pixel, i);
    }

    private static Vector128<short> Load(ReadOnlySpan<byte> bytes) =>
        Vector128.WidenLower(Vector128.CreateScalarUnsafe(Unsafe.ReadUnaligned<uint>(in bytes[0])).AsByte()).AsInt16();
}
