// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>Triangular filters over the bins of a spectrum, each kept as the run of bins where it is not zero.</summary>
internal sealed class MelFilters
{
    private readonly int[] _first;
    private readonly double[][] _weights;

    /// <summary>Filters of given numbers.</summary>
    /// <param name="weights">Weight of each bin, a filter; zeros at either end are dropped.</param>
    public MelFilters(IReadOnlyList<double[]> weights)
    {
        _first = new int[weights.Count];
        _weights = new double[weights.Count][];
        for (int f = 0; f < weights.Count; f++)
        {
            int first = Array.FindIndex(weights[f], w => w != 0), last = Array.FindLastIndex(weights[f], w => w != 0);
            (_first[f], _weights[f]) = first < 0 ? (0, []) : (first, weights[f][first..(last + 1)]);
        }
    }

    /// <summary>Number of filters.</summary>
    public int Count => _weights.Length;

    /// <summary>First bin that a filter reads; 0 for one that reads none.</summary>
    public IReadOnlyList<int> First => _first;

    /// <summary>Weights from that bin on.</summary>
    public IReadOnlyList<double[]> Weights => _weights;

    /// <summary>What a filter lets through of a spectrum.</summary>
    public double Apply(int filter, ReadOnlySpan<double> spectrum)
    {
        double[] weights = _weights[filter];
        ReadOnlySpan<double> run = spectrum.Slice(_first[filter], weights.Length);
        double sum = 0;
        for (int i = 0; i < weights.Length; i++) sum += weights[i] * run[i];
        return sum;
    }

    /// <summary>Kaldi's filters: points equally spaced in 1127 ln(1 + f / 700), triangles in mel, heights of 1.</summary>
    /// <param name="count">Number of filters.</param>
    /// <param name="bins">Bins of the spectrum.</param>
    /// <param name="step">Hertz from bin to bin.</param>
    /// <param name="low">Lowest frequency in hertz.</param>
    /// <param name="high">Highest frequency in hertz.</param>
    public static MelFilters Kaldi(int count, int bins, double step, double low, double high)
    {
        static double Mel(double f) => 1127 * Math.Log(1 + f / 700);
        return Triangles(count, bins, Mel(low), Mel(high), bin => Mel(step * bin), point => point, (_, _) => 1);
    }

    /// <summary>Slaney's filters: linear below 1 kHz, logarithmic above, triangles in hertz, areas of 1.</summary>
    /// <param name="count">Number of filters.</param>
    /// <param name="bins">Bins of the spectrum.</param>
    /// <param name="step">Hertz from bin to bin.</param>
    /// <param name="low">Lowest frequency in hertz.</param>
    /// <param name="high">Highest frequency in hertz.</param>
    public static MelFilters Slaney(int count, int bins, double step, double low, double high)
    {
        double logs = 27 / Math.Log(6.4);
        double Mel(double f) => f < 1000 ? 3 * f / 200 : 15 + logs * Math.Log(f / 1000);
        double Hertz(double mel) => mel < 15 ? 200 * mel / 3 : 1000 * Math.Exp((mel - 15) / logs);
        return Triangles(count, bins, Mel(low), Mel(high), bin => step * bin, Hertz, (left, right) => 2 / (right - left));
    }

    private static MelFilters Triangles(
        int count, int bins, double low, double high, Func<int, double> place, Func<double, double> corner, Func<double, double, double> height)
    {
        double[] corners = [.. Enumerable.Range(0, count + 2).Select(i => corner(low + (high - low) * i / (count + 1)))];
        var weights = new double[count][];
        for (int f = 0; f < count; f++)
        {
            (double left, double centre, double right) = (corners[f], corners[f + 1], corners[f + 2]);
            weights[f] = [.. Enumerable.Range(0, bins).Select(bin => Math.Max(0, Math.Min((place(bin) - left) / (centre - left), (right - place(bin)) / (right - centre))) * height(left, right))];
        }
        return new MelFilters(weights);
    }
}
