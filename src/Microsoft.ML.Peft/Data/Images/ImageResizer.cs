// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>Resizing as Pillow does it, equal to the bit: one pass an axis, each rounded to bytes.</summary>
public static class ImageResizer
{
    /// <summary>Resizes an image.</summary>
    /// <param name="image">The image.</param>
    /// <param name="width">The new width.</param>
    /// <param name="height">The new height.</param>
    /// <param name="filter">How samples are weighted.</param>
    /// <returns>The same object where nothing changes.</returns>
    /// <exception cref="ArgumentException">A size that is not positive.</exception>
    public static PixelImage Resize(PixelImage image, int width, int height, ResizeFilter filter) =>
        Resize(image, width, height, filter, new ResizeWindow(0, 0, width, height));

    /// <summary>Resizes an image, and computes a part of the result alone: the same pixels as resizing and cropping.</summary>
    internal static PixelImage Resize(PixelImage image, int width, int height, ResizeFilter filter, ResizeWindow window, bool horizontalFirst = false)
    {
        ArgumentNullException.ThrowIfNull(image);
        if (width <= 0 || height <= 0)
            throw new ArgumentException($"An image cannot be resized to {width} x {height}.");
        if (width == image.Width && height == image.Height)
            return image.Crop(window.Left, window.Top, window.Width, window.Height);
        if (filter == ResizeFilter.Nearest)
            return Nearest(image, width, height, window);
        if (image.Channels == 4)
            return PillowAlpha.Divide(Filter(PillowAlpha.Multiply(image), width, height, filter, window, horizontalFirst));
        return Filter(image, width, height, filter, window, horizontalFirst);
    }

    private static PixelImage Filter(PixelImage image, int width, int height, ResizeFilter filter, ResizeWindow window, bool horizontalFirst)
    {
        ResizeWeights? columns = width == image.Width ? null : new ResizeWeights(filter, image.Width, width, window.Left, window.Width);
        ResizeWeights? rows = height == image.Height ? null : new ResizeWeights(filter, image.Height, height, window.Top, window.Height);
        // Rounding between the passes makes their order visible.
        bool verticalFirst = !horizontalFirst && image.Height > height && image.Height - height > 2L * (image.Width - width);
        return verticalFirst
            ? Horizontally(Vertically(image, rows, window), columns, window, 0, window.Height)
            : HorizontalFirst(image, columns, rows, window);
    }

    // The first pass leaves out the rows that the second one does not read.
    private static PixelImage HorizontalFirst(PixelImage image, ResizeWeights? columns, ResizeWeights? rows, ResizeWindow window)
    {
        if (rows is null)
            return Horizontally(image, columns, window, window.Top, window.Height);
        int first = rows.Starts[0], end = Math.Min(rows.Starts[^1] + rows.Taps, image.Height);
        PixelImage narrow = Horizontally(image, columns, window, first, end - first);
        return Vertically(narrow, rows, window, first);
    }

    private static PixelImage Horizontally(PixelImage image, ResizeWeights? columns, ResizeWindow window, int top, int height)
    {
        if (columns is null)
            return image.Crop(window.Left, top, window.Width, height);
        PixelImage target = PixelImage.Empty(window.Width, height, image.Channels);
        ResizePasses.Horizontal(image, columns, top, target);
        return target;
    }

    private static PixelImage Vertically(PixelImage image, ResizeWeights? rows, ResizeWindow window, int first = 0)
    {
        if (rows is null)
            return image.Crop(0, window.Top, image.Width, window.Height);
        PixelImage target = PixelImage.Empty(image.Width, window.Height, image.Channels);
        ResizePasses.Vertical(image, rows, first, target);
        return target;
    }

    private static PixelImage Nearest(PixelImage image, int width, int height, ResizeWindow window)
    {
        int[] columns = Sources(image.Width, width), rows = Sources(image.Height, height);
        int channels = image.Channels;
        PixelImage target = PixelImage.Empty(window.Width, window.Height, channels);
        for (int y = 0; y < window.Height; y++)
        {
            ReadOnlySpan<byte> from = image.Row(rows[window.Top + y]);
            Span<byte> to = target.Row(y);
            for (int x = 0; x < window.Width; x++)
                from.Slice(columns[window.Left + x] * channels, channels).CopyTo(to[(x * channels)..]);
        }

        return target;
    }

    // The positions are summed up, not multiplied, as rounding decides between neighbours.
    private static int[] Sources(int from, int to)
    {
        int[] sources = new int[to];
        double step = (double)from / to, at = step / 2;
        for (int i = 0; i < to; i++, at += step)
            sources[i] = Math.Min((int)at, from - 1);
        return sources;
    }
}

/// <summary>The part of a resized image that is wanted.</summary>
internal readonly record struct ResizeWindow(int Left, int Top, int Width, int Height);
