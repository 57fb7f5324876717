// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>Mirroring, and rotation about the centre, as Pillow does them.</summary>
internal static class ImageTurns
{
    public static PixelImage Mirror(PixelImage image) => Orientation.Apply(image, 2);

    public static PixelImage Flip(PixelImage image) => Orientation.Apply(image, 4);

    /// <summary>Turns an image about its centre; the size stays, what comes from outside is 0.</summary>
    /// <param name="image">The image.</param>
    /// <param name="degrees">The angle, counter-clockwise.</param>
    /// <param name="bilinear">Between four pixels; else the nearest one.</param>
    public static PixelImage Rotate(PixelImage image, double degrees, bool bilinear)
    {
        double turn = ((degrees % 360) + 360) % 360;
        switch (turn)
        {
            case 0:
                return image;
            case 180:
                return Orientation.Apply(image, 3);
            // These keep the size of a square alone.
            case 90 when image.Width == image.Height:
                return Orientation.Apply(image, 8);
            case 270 when image.Width == image.Height:
                return Orientation.Apply(image, 6);
        }

        double angle = -turn * (Math.PI / 180);
        double a = Math.Round(Math.Cos(angle), 15), b = Math.Round(Math.Sin(angle), 15);
        double centreX = image.Width / 2.0, centreY = image.Height / 2.0;
        var target = new PixelImage(image.Width, image.Height, image.Channels, new byte[image.Pixels.Length]);
        for (int y = 0; y < image.Height; y++)
        {
            Span<byte> row = target.Row(y);
            for (int x = 0; x < image.Width; x++)
            {
                double right = x + 0.5 - centreX, down = y + 0.5 - centreY;
                double fromX = a * right + b * down + centreX, fromY = -b * right + a * down + centreY;
                if (!(fromX >= 0 && fromX < image.Width && fromY >= 0 && fromY < image.Height))
                    continue;
                Span<byte> pixel = row.Slice(x * image.Channels, image.Channels);
                if (bilinear)
                    Between(image, fromX - 0.5, fromY - 0.5, pixel);
                else
                    image.Row((int)fromY).Slice((int)fromX * image.Channels, image.Channels).CopyTo(pixel);
            }
        }

        return target;
    }

    // Along x, then along y; cut off, not rounded. Neighbours outside are those at the edge.
    private static void Between(PixelImage image, double x, double y, Span<byte> pixel)
    {
        double left = Math.Floor(x), top = Math.Floor(y), dx = x - left, dy = y - top;
        ReadOnlySpan<byte> upper = image.Row(Math.Clamp((int)top, 0, image.Height - 1)), lower = image.Row(Math.Clamp((int)top + 1, 0, image.Height - 1));
        int first = Math.Clamp((int)left, 0, image.Width - 1) * image.Channels, second = Math.Clamp((int)left + 1, 0, image.Width - 1) * image.Channels;
        for (int c = 0; c < pixel.Length; c++)
        {
            double above = upper[first + c] * (1 - dx) + upper[second + c] * dx, below = lower[first + c] * (1 - dx) + lower[second + c] * dx;
            pixel[c] = (byte)(above * (1 - dy) + below * dy);
        }
    }
}
