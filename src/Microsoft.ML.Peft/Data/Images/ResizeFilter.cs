// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>How samples are weighted when an image is resized. The numbers are Pillow's, which processor files hold as <c>resample</c>.</summary>
public enum ResizeFilter
{
    /// <summary>The nearest sample.</summary>
    Nearest = 0,

    /// <summary>A windowed sinc over six samples.</summary>
    Lanczos = 1,

    /// <summary>A triangle over two samples.</summary>
    Bilinear = 2,

    /// <summary>A cubic over four samples, a = -0.5.</summary>
    Bicubic = 3,

    /// <summary>The mean of the samples that fall into one.</summary>
    Box = 4,

    /// <summary>A narrow windowed sinc.</summary>
    Hamming = 5,
}

/// <summary>The weights of one axis: for each output sample the first input sample, and integer weights of 22 fractional bits.</summary>
internal sealed class ResizeWeights
{
    private const int Bits = 22;

    /// <summary>The weights of a window of output samples.</summary>
    /// <param name="filter">Any but nearest.</param>
    /// <param name="from">Input samples.</param>
    /// <param name="to">Output samples.</param>
    /// <param name="first">The first output sample that is wanted.</param>
    /// <param name="count">How many are.</param>
    public ResizeWeights(ResizeFilter filter, int from, int to, int first, int count)
    {
        double scale = (double)from / to, stretch = Math.Max(scale, 1), reach = Support(filter) * stretch;
        Taps = (int)Math.Ceiling(reach) * 2 + 1;
        Starts = new int[count];
        Values = new int[checked(count * Taps)];
        double[] weights = new double[Taps];
        for (int i = 0; i < count; i++)
        {
            double centre = (first + i + 0.5) * scale;
            int low = Math.Max((int)(centre - reach + 0.5), 0), taps = Math.Min((int)(centre + reach + 0.5), from) - low;
            double sum = 0;
            for (int k = 0; k < taps; k++)
                sum += weights[k] = Weight(filter, (k + low - centre + 0.5) / stretch);
            for (int k = 0; k < taps; k++)
            {
                double weight = (sum == 0 ? weights[k] : weights[k] / sum) * (1 << Bits);
                Values[i * Taps + k] = (int)(weight < 0 ? weight - 0.5 : weight + 0.5);
            }

            Starts[i] = low;
        }
    }

    /// <summary>Weights of an output sample, those that are not needed are 0.</summary>
    public int Taps { get; }

    /// <summary>The input sample of the first weight, of each output sample.</summary>
    public int[] Starts { get; }

    /// <summary>[output samples, taps].</summary>
    public int[] Values { get; }

    private static double Support(ResizeFilter filter) => filter switch
    {
        ResizeFilter.Box => 0.5,
        ResizeFilter.Bilinear or ResizeFilter.Hamming => 1,
        ResizeFilter.Bicubic => 2,
        _ => 3,
    };

    private static double Weight(ResizeFilter filter, double x)
    {
        // Pillow's two constants of this window are single-precision ones, which shows in a weight now and then.
        const double A = -0.5, Middle = 0.54f, Swing = 0.46f;
        double size = Math.Abs(x);
        return filter switch
        {
            ResizeFilter.Box => x is > -0.5 and <= 0.5 ? 1 : 0,
            ResizeFilter.Bilinear => size < 1 ? 1 - size : 0,
            ResizeFilter.Hamming => size >= 1 ? 0 : size == 0 ? 1 : Math.Sin(size * Math.PI) / (size * Math.PI) * (Middle + Swing * Math.Cos(size * Math.PI)),
            ResizeFilter.Bicubic => size < 1 ? ((A + 2) * size - (A + 3)) * size * size + 1 : size < 2 ? (((size - 5) * size + 8) * size - 4) * A : 0,
            _ => x is >= -3 and < 3 ? Sinc(x) * Sinc(x / 3) : 0,
        };
    }

    private static double Sinc(double x) => x == 0 ? 1 : Math.Sin(x * Math.PI) / (x * Math.PI);
}
