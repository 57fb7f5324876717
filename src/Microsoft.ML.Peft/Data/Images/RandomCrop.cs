// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>A part of an image.</summary>
/// <param name="Left">Its first column.</param>
/// <param name="Top">Its first row.</param>
/// <param name="Width">Its columns.</param>
/// <param name="Height">Its rows.</param>
public readonly record struct ImageBox(int Left, int Top, int Width, int Height);

/// <summary>Boxes of random size and shape (Szegedy et al. 2015), by the rule that torchvision made usual.</summary>
internal static class RandomCrop
{
    private const int Trials = 10;

    /// <summary>A box of a random share of the area, with a random ratio of its sides; the largest central one of an allowed ratio where ten do not fit.</summary>
    /// <param name="width">The image's width.</param>
    /// <param name="height">Its height.</param>
    /// <param name="scale">Least and largest share of the area.</param>
    /// <param name="ratio">Least and largest width / height.</param>
    /// <param name="next">Uniform numbers in [0, 1): four a trial.</param>
    public static ImageBox Box(int width, int height, (double Low, double High) scale, (double Low, double High) ratio, Func<double> next)
    {
        double low = Math.Log(ratio.Low), high = Math.Log(ratio.High);
        for (int trial = 0; trial < Trials; trial++)
        {
            double area = (double)height * width * (scale.Low + next() * (scale.High - scale.Low));
            double aspect = Math.Exp(low + next() * (high - low)), down = next(), right = next();
            double w = Math.Round(Math.Sqrt(area * aspect), MidpointRounding.ToEven), h = Math.Round(Math.Sqrt(area / aspect), MidpointRounding.ToEven);
            if (w > 0 && w <= width && h > 0 && h <= height)
                return new ImageBox((int)(right * (width - w + 1)), (int)(down * (height - h + 1)), (int)w, (int)h);
        }

        return Central(width, height, ratio);
    }

    private static ImageBox Central(int width, int height, (double Low, double High) ratio)
    {
        double found = (double)width / height;
        int w = width, h = height;
        if (found < ratio.Low)
            h = Math.Clamp((int)Math.Round(width / ratio.Low, MidpointRounding.ToEven), 1, height);
        else if (found > ratio.High)
            w = Math.Clamp((int)Math.Round(height * ratio.High, MidpointRounding.ToEven), 1, width);
        return new ImageBox((width - w) / 2, (height - h) / 2, w, h);
    }
}
