// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>Random numbers of one image: the same ones for the same seed, category and draw, on every machine and thread.</summary>
internal struct Draw(ulong seed, ulong category, ulong number)
{
    private ulong _state = Pass.Mix(Pass.Mix(Pass.Mix(seed) ^ category) ^ number);

    /// <summary>Uniform in [0, 1).</summary>
    public double Next()
    {
        _state += 0x9E3779B97F4A7C15UL;
        return (Pass.Mix(_state) >> 11) * (1.0 / (1UL << 53));
    }

    /// <summary>Uniform in [low, high).</summary>
    public double Next(double low, double high) => low + (high - low) * Next();

    /// <summary>A whole number of 0 .. below - 1.</summary>
    public int Below(int below) => (int)(Next() * below);

    /// <summary>True with a probability.</summary>
    public bool Chance(double probability) => Next() < probability;

    /// <summary>From a gamma distribution of shape <paramref name="shape"/> in (0, 1], by Ahrens and Dieter.</summary>
    // The library's AugmentationDraws go another way to the same distributions; this one stays, or the published run could not be repeated.
    public double Gamma(double shape)
    {
        double b = (Math.E + shape) / Math.E;
        while (true)
        {
            double p = b * Next();
            if (p <= 1)
            {
                double x = Math.Pow(p, 1 / shape);
                if (Next() <= Math.Exp(-x)) return x;
            }
            else
            {
                double x = -Math.Log((b - p) / shape);
                if (Next() <= Math.Pow(x, shape - 1)) return x;
            }
        }
    }

    /// <summary>From Beta(a, a), a in (0, 1].</summary>
    public double Beta(double a)
    {
        double x = Gamma(a), y = Gamma(a);
        return x + y > 0 ? x / (x + y) : 0.5;
    }
}
