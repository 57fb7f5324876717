// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>A picture of 8-bit samples: rows from the top, the channels of a pixel side by side.</summary>
public sealed class PixelImage
{
    /// <summary>Wraps pixels; they are not copied.</summary>
    /// <param name="width">Pixels in a row.</param>
    /// <param name="height">Rows.</param>
    /// <param name="channels">1 (grey, or the indices of a label map), 3 (red, green, blue) or 4 (with alpha).</param>
    /// <param name="pixels">[height, width, channels].</param>
    /// <exception cref="ArgumentException">A size that is not positive, or another number of samples.</exception>
    public PixelImage(int width, int height, int channels, byte[] pixels)
    {
        ArgumentNullException.ThrowIfNull(pixels);
        if (width <= 0 || height <= 0)
            throw new ArgumentException($"An image has at least one pixel, not {width} x {height}.");
        if (channels is not (1 or 3 or 4))
            throw new ArgumentException($"An image has 1, 3 or 4 channels, not {channels}.", nameof(channels));
        if (pixels.LongLength != (long)width * height * channels)
            throw new ArgumentException($"{width} x {height} pixels of {channels} channel(s) are {(long)width * height * channels} bytes, not {pixels.Length}.", nameof(pixels));
        (Width, Height, Channels, Pixels) = (width, height, channels, pixels);
    }

    /// <summary>Pixels in a row.</summary>
    public int Width { get; }

    /// <summary>Rows.</summary>
    public int Height { get; }

    /// <summary>1, 3 or 4.</summary>
    public int Channels { get; }

    /// <summary>[height, width, channels].</summary>
    public byte[] Pixels { get; }

    /// <summary>The samples of one row: [width, channels].</summary>
    /// <param name="y">The row, from 0 at the top.</param>
    public Span<byte> Row(int y) => Pixels.AsSpan(y * Width * Channels, Width * Channels);

    internal static PixelImage Empty(int width, int height, int channels) =>
        new(width, height, channels, GC.AllocateUninitializedArray<byte>(checked(width * height * channels)));

    /// <summary>A part of the picture, copied.</summary>
    /// <param name="left">The first column.</param>
    /// <param name="top">The first row.</param>
    /// <param name="width">Columns.</param>
    /// <param name="height">Rows.</param>
    /// <exception cref="ArgumentException">The part does not lie in the picture.</exception>
    public PixelImage Crop(int left, int top, int width, int height)
    {
        if (left < 0 || top < 0 || width <= 0 || height <= 0 || left > Width - width || top > Height - height)
            throw new ArgumentException($"A part of {width} x {height} at ({left}, {top}) does not lie in an image of {Width} x {Height}.");
        if (width == Width && height == Height)
            return this;
        PixelImage part = Empty(width, height, Channels);
        for (int y = 0; y < height; y++)
            Row(top + y).Slice(left * Channels, width * Channels).CopyTo(part.Row(y));
        return part;
    }
}
