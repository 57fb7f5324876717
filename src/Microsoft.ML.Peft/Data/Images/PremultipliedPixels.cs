// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Microsoft.ML.Peft.Data;

/// <summary>From four bytes a pixel, colours multiplied by alpha, to what models see.</summary>
internal static class PremultipliedPixels
{
    public static PixelImage ToImage(ReadOnlySpan<byte> pixels, int width, int height, bool blueFirst, AlphaTreatment alpha)
    {
        PixelImage target = PixelImage.Empty(width, height, alpha == AlphaTreatment.Keep ? 4 : 3);
        if (alpha != AlphaTreatment.Keep && IsOpaque(pixels))
            DropFourth(pixels, target.Pixels, blueFirst);
        else
            Convert(pixels, target, blueFirst, alpha);
        return target;
    }

    private static bool IsOpaque(ReadOnlySpan<byte> pixels)
    {
        int i = 0;
        var all = Vector256<byte>.AllBitsSet;
        for (; i + 32 <= pixels.Length; i += 32)
            all &= Vector256.Create(pixels.Slice(i, 32));
        byte rest = 255;
        for (i += 3; i < pixels.Length; i += 4)
            rest &= pixels[i];
        return rest == 255 && (all.AsUInt32() | Vector256.Create(0x00FFFFFFu)) == Vector256<uint>.AllBitsSet;
    }

    private static void DropFourth(ReadOnlySpan<byte> pixels, Span<byte> target, bool blueFirst)
    {
        int from = 0, to = 0;
        var order = blueFirst
            ? Vector128.Create((byte)2, 1, 0, 6, 5, 4, 10, 9, 8, 14, 13, 12, 255, 255, 255, 255)
            : Vector128.Create((byte)0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 255, 255, 255, 255);
        // Sixteen bytes are written for twelve: the next four follow over them.
        for (; to + 16 <= target.Length; from += 16, to += 12)
            Vector128.Shuffle(Vector128.Create(pixels.Slice(from, 16)), order).CopyTo(target[to..]);
        int red = blueFirst ? 2 : 0;
        for (; to < target.Length; from += 4, to += 3)
        {
            target[to] = pixels[from + red];
            target[to + 1] = pixels[from + 1];
            target[to + 2] = pixels[from + 2 - red];
        }
    }

    private static void Convert(ReadOnlySpan<byte> pixels, PixelImage target, bool blueFirst, AlphaTreatment alpha)
    {
        byte[] to = target.Pixels;
        for (int from = 0, at = 0; from < pixels.Length; from += 4, at += target.Channels)
        {
            int a = pixels[from + 3];
            for (int c = 0; c < 3; c++)
            {
                int colour = pixels[from + (blueFirst ? 2 - c : c)];
                // The colour under full transparency is not in the pixels any more: black.
                to[at + c] = (byte)Math.Min(255, alpha == AlphaTreatment.White ? colour + 255 - a : a == 0 ? 0 : (colour * 255 + a / 2) / a);
            }

            if (target.Channels == 4)
                to[at + 3] = (byte)a;
        }
    }
}
