// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>From one or four channels to three.</summary>
internal static class PixelChannels
{
    /// <summary>Grey three times; colours with alpha laid on white.</summary>
    public static PixelImage ToRgb(PixelImage image)
    {
        if (image.Channels == 3)
            return image;
        PixelImage rgb = PixelImage.Empty(image.Width, image.Height, 3);
        byte[] from = image.Pixels, to = rgb.Pixels;
        for (int i = 0, at = 0; at < to.Length; i += image.Channels, at += 3)
            for (int c = 0; c < 3; c++)
                to[at + c] = image.Channels == 1 ? from[i] : PngPixels.OnWhite(from[i + c], from[i + 3]);
        return rgb;
    }
}
