// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>Changes of brightness, contrast, saturation and hue: an image is drawn towards black, its mean grey, or its own grey by a factor.</summary>
internal static class ColorJitter
{
    public static PixelImage Brightness(PixelImage image, double factor) => Map(image, (value, _) => value * factor);

    public static PixelImage Contrast(PixelImage image, double factor)
    {
        long sum = 0;
        for (int i = 0; i < image.Pixels.Length; i += 3)
            sum += Grey(image.Pixels.AsSpan(i, 3));
        double mean = Math.Floor(sum / (image.Pixels.Length / 3.0) + 0.5);
        return Map(image, (value, _) => mean + (value - mean) * factor);
    }

    public static PixelImage Saturation(PixelImage image, double factor) => Map(image, (value, grey) => grey + (value - grey) * factor);

    /// <summary>Turns the circle of hues.</summary>
    /// <param name="image">The image, in three channels.</param>
    /// <param name="shift">The share of a full turn.</param>
    public static PixelImage Hue(PixelImage image, double shift)
    {
        PixelImage target = PixelImage.Empty(image.Width, image.Height, 3);
        for (int i = 0; i < image.Pixels.Length; i += 3)
            TurnHue(image.Pixels.AsSpan(i, 3), target.Pixels.AsSpan(i, 3), shift);
        return target;
    }

    private static int Grey(ReadOnlySpan<byte> pixel) => (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;

    private static PixelImage Map(PixelImage image, Func<double, double, double> change)
    {
        PixelImage target = PixelImage.Empty(image.Width, image.Height, 3);
        for (int i = 0; i < image.Pixels.Length; i += 3)
        {
            int grey = Grey(image.Pixels.AsSpan(i, 3));
            for (int c = 0; c < 3; c++)
                target.Pixels[i + c] = (byte)Math.Clamp(change(image.Pixels[i + c], grey), 0, 255);
        }

        return target;
    }

    // Value and saturation stay: the hue's place on the circle decides how much of each channel is taken away.
    private static void TurnHue(ReadOnlySpan<byte> from, Span<byte> to, double shift)
    {
        int most = Math.Max(from[0], Math.Max(from[1], from[2])), least = Math.Min(from[0], Math.Min(from[1], from[2]));
        double range = most - least;
        if (range == 0)
        {
            from.CopyTo(to);
            return;
        }

        double hue = most == from[0] ? (from[1] - from[2]) / range : most == from[1] ? 2 + (from[2] - from[0]) / range : 4 + (from[0] - from[1]) / range;
        hue += 6 * shift + 12;
        for (int c = 0; c < 3; c++)
        {
            double place = (hue + 5 - 2 * c) % 6;
            to[c] = (byte)(most - range * Math.Clamp(Math.Min(place, 4 - place), 0, 1) + 0.5);
        }
    }
}
