// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>From a PNG file's samples to 8-bit colours: palettes applied, grey scaled to 0..255, the high byte of 16 bits.</summary>
internal static class PngPixels
{
    public static PixelImage ToImage(PngReader png, AlphaTreatment alpha)
    {
        bool transparent = png.Channels is 2 or 4 || png.Transparency is not null;
        if (!transparent && alpha != AlphaTreatment.Keep && png is { Channels: 3, SampleBytes: 1 })
            return new PixelImage(png.Width, png.Height, 3, png.Samples);
        PixelImage target = PixelImage.Empty(png.Width, png.Height, alpha == AlphaTreatment.Keep ? 4 : 3);
        if (png.Channels == 1 && png.SampleBytes == 1)
            FromTable(png, Table(png), target, alpha);
        else
            FromColours(png, target, alpha);
        return target;
    }

    /// <summary>The samples as they are: grey, or the indices of a palette.</summary>
    /// <exception cref="ImageFormatException">There are several channels, or samples above 255.</exception>
    public static PixelImage ToIndices(PngReader png, string name) =>
        png.Channels == 1 && png.SampleBytes == 1
            ? new PixelImage(png.Width, png.Height, 1, png.Samples)
            : throw new ImageFormatException(name, $"a label map has one channel of at most 8 bits, not {png.Channels} of {png.Depth}.");

    // What each sample of one channel stands for: red, green, blue, alpha.
    private static byte[] Table(PngReader png)
    {
        byte[] table = new byte[256 * 4];
        int scale = png.IsIndexed ? 0 : 255 / ((1 << png.Depth) - 1);
        int clear = png.IsIndexed || png.Transparency is null ? -1 : png.Transparency[0] << 8 | png.Transparency[1];
        for (int i = 0; i < 256; i++)
        {
            Span<byte> entry = table.AsSpan(i * 4, 4);
            if (!png.IsIndexed)
                entry.Fill((byte)(i * scale));
            else if (i * 3 + 3 <= png.Palette.Length)
                png.Palette.AsSpan(i * 3, 3).CopyTo(entry);
            bool hasAlpha = png.IsIndexed && png.Transparency is not null && i < png.Transparency.Length;
            entry[3] = hasAlpha ? png.Transparency![i] : i == clear ? (byte)0 : (byte)255;
        }

        return table;
    }

    private static void FromTable(PngReader png, byte[] table, PixelImage target, AlphaTreatment alpha)
    {
        for (int i = 0; i < 256; i++)
            Treat(table.AsSpan(i * 4, 4), alpha);
        byte[] pixels = target.Pixels;
        int channels = target.Channels, to = 0;
        foreach (byte sample in png.Samples)
        {
            for (int c = 0; c < channels; c++)
                pixels[to + c] = table[sample * 4 + c];
            to += channels;
        }
    }

    private static void FromColours(PngReader png, PixelImage target, AlphaTreatment alpha)
    {
        byte[] from = png.Samples, pixels = target.Pixels;
        int size = png.SampleBytes, step = png.Channels * size, colours = png.Channels >= 3 ? size : 0, channels = target.Channels;
        int alphaAt = png.Channels is 2 or 4 ? step - size : -1;
        byte[]? clear = Key(png);
        Span<byte> colour = stackalloc byte[4];
        for (int at = 0, to = 0; at < from.Length; at += step, to += channels)
        {
            colour[0] = from[at];
            colour[1] = from[at + colours];
            colour[2] = from[at + 2 * colours];
            colour[3] = alphaAt >= 0 ? from[at + alphaAt] : clear is not null && from.AsSpan(at, step).SequenceEqual(clear) ? (byte)0 : (byte)255;
            Treat(colour, alpha);
            colour[..channels].CopyTo(pixels.AsSpan(to));
        }
    }

    // The colour that is transparent, in the bytes of a stored pixel.
    private static byte[]? Key(PngReader png)
    {
        if (png.Transparency is not { } stored || png.Channels is 2 or 4)
            return null;
        return png.SampleBytes == 2 ? stored[..(2 * png.Channels)] : [.. Enumerable.Range(0, png.Channels).Select(c => stored[2 * c + 1])];
    }

    /// <summary>Lays a colour on white where that is asked for.</summary>
    private static void Treat(Span<byte> colour, AlphaTreatment alpha)
    {
        if (alpha != AlphaTreatment.White || colour[3] == 255)
            return;
        for (int c = 0; c < 3; c++)
            colour[c] = OnWhite(colour[c], colour[3]);
    }

    /// <summary>(a c + (255 - a) 255) / 255 with the rounding of Pillow's composition.</summary>
    public static byte OnWhite(int colour, int alpha)
    {
        int sum = 128 * (colour * alpha + 255 * (255 - alpha) + 128);
        return (byte)((sum + (sum >> 8)) >> 15);
    }
}
