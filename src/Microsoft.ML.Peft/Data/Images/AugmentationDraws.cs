// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Data;

/// <summary>The random numbers of one row in one epoch: the same ones whatever was drawn before, in whatever order rows come.</summary>
internal sealed class AugmentationDraws
{
    private ulong _state;

    /// <summary>Starts the stream.</summary>
    /// <param name="seed">The run's seed.</param>
    /// <param name="epoch">The epoch, from 0.</param>
    /// <param name="row">The row of the data, from 0.</param>
    public AugmentationDraws(ulong seed, int epoch, long row) =>
        _state = Pass.Mix(Pass.Mix(Pass.Mix(seed) + unchecked((ulong)epoch)) + unchecked((ulong)row));

    /// <summary>The next number, uniform in [0, 1).</summary>
    public double Next()
    {
        _state += 0x9E3779B97F4A7C15UL;
        return (Pass.Mix(_state) >> 11) * (1.0 / (1UL << 53));
    }

    /// <summary>The next number, uniform in [low, high).</summary>
    public double Between(double low, double high) => low + Next() * (high - low);

    /// <summary>The next number of a beta distribution with both parameters alpha: the share of one of two gamma numbers in their sum.</summary>
    public double Beta(double alpha)
    {
        // As logarithms: for small alpha both numbers would be 0.
        double a = LogGamma(alpha), b = LogGamma(alpha);
        return 1 / (1 + Math.Exp(b - a));
    }

    // Marsaglia and Tsang 2000; below 1 by the number for alpha + 1.
    private double LogGamma(double alpha)
    {
        if (alpha < 1)
            return LogGamma(alpha + 1) + Math.Log(1 - Next()) / alpha;
        double d = alpha - 1.0 / 3, c = 1 / Math.Sqrt(9 * d);
        while (true)
        {
            double x = Math.Sqrt(-2 * Math.Log(1 - Next())) * Math.Cos(2 * Math.PI * Next()), v = Math.Pow(1 + c * x, 3);
            if (v > 0 && Math.Log(1 - Next()) < 0.5 * x * x + d - d * v + d * Math.Log(v))
                return Math.Log(d) + Math.Log(v);
        }
    }
}
