// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Concurrent;
using System.Numerics;
using System.Runtime.InteropServices;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Resampling by a rational factor: output k = Σ h[half + k · down - n · up] x[n], with a low-pass h of 2 half + 1 taps,
/// half = 10 max(up, down): a sinc under a Kaiser window (β = 5), scaled to sum to <c>up</c>. Outside of the sound is silence.
/// </summary>
internal sealed class Resampler
{
    private const double Beta = 5;
    private const int Crossings = 10, MostKept = 32, LargestKept = 1 << 20;

    private static readonly ConcurrentDictionary<(int From, int To), Resampler> _kept = new();

    private readonly int _up, _down, _half;

    // For each of `up` phases the taps that meet samples, in the order of the samples.
    private readonly double[][] _phases;

    private Resampler(int up, int down)
    {
        (_up, _down) = (up, down);
        int most = Math.Max(up, down);
        _half = Crossings * most;
        double[] taps = Taps(most, _half);
        double scale = up / taps.Sum();
        _phases = new double[up][];
        for (int phase = 0; phase < up; phase++)
        {
            int count = (taps.Length - phase + up - 1) / up;
            double[] mine = _phases[phase] = new double[Math.Max(count, 0)];
            for (int j = 0; j < mine.Length; j++) mine[mine.Length - 1 - j] = taps[phase + j * up] * scale;
        }
    }

    /// <summary>The resampler between two rates; small ones are kept.</summary>
    public static Resampler Between(int from, int to)
    {
        if (_kept.TryGetValue((from, to), out Resampler? kept)) return kept;
        int common = (int)BigInteger.GreatestCommonDivisor(from, to);
        var made = new Resampler(to / common, from / common);
        if (_kept.Count < MostKept && made._half < LargestKept) _kept[(from, to)] = made;
        return made;
    }

    /// <summary>Samples that come of a number of samples.</summary>
    public long LengthOf(long samples) => (samples * _up + _down - 1) / _down;

    /// <summary>Resamples one channel.</summary>
    public float[] Run(float[] samples)
    {
        int longest = _phases[0].Length;
        var padded = new double[samples.Length + 2 * longest];
        for (int i = 0; i < samples.Length; i++) padded[longest + i] = samples[i];
        var output = new float[LengthOf(samples.Length)];
        for (long k = 0; k < output.Length; k++)
        {
            long at = _half + k * _down;
            double[] taps = _phases[at % _up];
            long last = at / _up, first = last - taps.Length + 1 + longest;
            // Taps before and after the sound meet zeros, or nothing.
            int skip = (int)Math.Max(0, -first), count = (int)Math.Min(taps.Length, padded.Length - first) - skip;
            output[k] = count <= 0 ? 0 : (float)Dot(taps.AsSpan(skip, count), padded.AsSpan((int)(first + skip), count));
        }
        return output;
    }

    private static double Dot(ReadOnlySpan<double> a, ReadOnlySpan<double> b)
    {
        ReadOnlySpan<Vector<double>> wideA = MemoryMarshal.Cast<double, Vector<double>>(a), wideB = MemoryMarshal.Cast<double, Vector<double>>(b);
        Vector<double> sums = Vector<double>.Zero;
        for (int i = 0; i < wideA.Length; i++) sums += wideA[i] * wideB[i];
        double sum = Vector.Sum(sums);
        for (int i = wideA.Length * Vector<double>.Count; i < a.Length; i++) sum += a[i] * b[i];
        return sum;
    }

    private static double[] Taps(int most, int half)
    {
        var taps = new double[2 * half + 1];
        double whole = Bessel(Beta);
        for (int n = 0; n < taps.Length; n++)
        {
            double x = Math.PI * (n - half) / most, across = (double)(n - half) / half;
            double sinc = n == half ? 1 : Math.Sin(x) / x;
            taps[n] = sinc * Bessel(Beta * Math.Sqrt(Math.Max(0, 1 - across * across))) / whole;
        }
        double sum = taps.Sum();
        for (int n = 0; n < taps.Length; n++) taps[n] /= sum;
        return taps;
    }

    // The modified Bessel function I0 by its series.
    private static double Bessel(double x)
    {
        double term = 1, sum = 1, quarter = x * x / 4;
        for (int k = 1; term > sum * 1e-17; k++)
        {
            term *= quarter / ((double)k * k);
            sum += term;
        }
        return sum;
    }
}
