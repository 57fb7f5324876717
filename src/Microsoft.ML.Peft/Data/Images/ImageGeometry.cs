// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>The arithmetic of target sizes and centre crops.</summary>
internal static class ImageGeometry
{
    /// <summary>The size at which the short side is <paramref name="shortest"/>, and, where asked, the long one at most <paramref name="longest"/>.</summary>
    public static (int Width, int Height) ShortestEdge(int width, int height, int shortest, int? longest = null)
    {
        int low = Math.Min(width, height), high = Math.Max(width, height);
        double bounded = shortest;
        if (longest is { } most && (double)high / low * shortest > most)
        {
            bounded = (double)most * low / high;
            shortest = (int)Math.Round(bounded, MidpointRounding.ToEven);
        }

        if (low == shortest)
            return (width, height);
        // The bound counts before it is rounded; without one the product is a whole number.
        double product = longest is null || bounded == shortest ? (double)((long)shortest * high) : bounded * high;
        int other = (int)Math.Min(product / low, int.MaxValue);
        return width < height ? (shortest, other) : (other, shortest);
    }

    /// <summary>A centre crop: which pixels are taken, and where they land; the rest of the target is empty.</summary>
    public static CentreCrop Centre(int width, int height, int cropWidth, int cropHeight)
    {
        var (left, x, columns) = Axis(width, cropWidth);
        var (top, y, rows) = Axis(height, cropHeight);
        return new CentreCrop(left, top, columns, rows, x, y);
    }

    // A smaller picture is first put on a larger empty one, and that is cropped.
    private static (int Source, int Target, int Count) Axis(int size, int crop)
    {
        if (size >= crop)
            return ((size - crop) / 2, 0, crop);
        int offset = (crop - size + 1) / 2;
        return (0, offset, size);
    }
}

/// <summary>The part of a picture at (Left, Top) that lands at (TargetLeft, TargetTop).</summary>
internal readonly record struct CentreCrop(int Left, int Top, int Width, int Height, int TargetLeft, int TargetTop);
