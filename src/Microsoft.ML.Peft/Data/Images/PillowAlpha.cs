// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>Colours multiplied by alpha before resizing, and divided after it, with Pillow's rounding.</summary>
internal static class PillowAlpha
{
    public static PixelImage Multiply(PixelImage image) => Map(image, (colour, alpha) =>
    {
        int t = colour * alpha + 128;
        return (byte)((t + (t >> 8)) >> 8);
    });

    public static PixelImage Divide(PixelImage image) =>
        Map(image, (colour, alpha) => alpha is 0 or 255 ? (byte)colour : (byte)Math.Min(255 * colour / alpha, 255));

    private static PixelImage Map(PixelImage image, Func<int, int, byte> function)
    {
        PixelImage target = PixelImage.Empty(image.Width, image.Height, 4);
        byte[] from = image.Pixels, to = target.Pixels;
        for (int i = 0; i < from.Length; i += 4)
        {
            for (int c = 0; c < 3; c++)
                to[i + c] = function(from[i + c], from[i + 3]);
            to[i + 3] = from[i + 3];
        }

        return target;
    }
}
