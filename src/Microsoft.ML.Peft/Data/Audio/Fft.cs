// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Numerics;
using System.Runtime.InteropServices;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Discrete Fourier transforms of any length in double precision: mixed radix by Stockham's scheme, which needs no reordering,
/// one signal in each lane of the processor's vectors. Immutable; several threads may use it.
/// </summary>
internal sealed class Fft
{
    private readonly int[] _factors;
    private readonly double[] _cos, _sin;

    /// <summary>Plans transforms.</summary>
    /// <param name="length">Length of the signals; the work grows with the sum of its prime factors.</param>
    public Fft(int length)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(length, 1);
        Length = length;
        _factors = [.. Factors(length)];
        (_cos, _sin) = (new double[length], new double[length]);
        for (int i = 0; i < length; i++) (_sin[i], _cos[i]) = Math.SinCos(-2 * Math.PI * i / length);
    }

    /// <summary>Length of the signals.</summary>
    public int Length { get; }

    /// <summary>Transforms as many signals as a vector has lanes.</summary>
    /// <param name="re">Real parts <c>[length]</c>; overwritten by the result's.</param>
    /// <param name="im">Imaginary parts <c>[length]</c>; overwritten by the result's.</param>
    /// <param name="workRe">Working memory <c>[length]</c>.</param>
    /// <param name="workIm">Working memory <c>[length]</c>.</param>
    public void Run(Vector<double>[] re, Vector<double>[] im, Vector<double>[] workRe, Vector<double>[] workIm)
    {
        (Vector<double>[] fromRe, Vector<double>[] fromIm, Vector<double>[] toRe, Vector<double>[] toIm) = (re, im, workRe, workIm);
        int left = Length, stride = 1;
        foreach (int radix in _factors)
        {
            var stage = new Stage(radix, left / radix, stride);
            switch (radix)
            {
                case 2: Two(stage, fromRe, fromIm, toRe, toIm); break;
                case 4: Four(stage, fromRe, fromIm, toRe, toIm); break;
                default: Any(stage, fromRe, fromIm, toRe, toIm); break;
            }
            (fromRe, fromIm, toRe, toIm) = (toRe, toIm, fromRe, fromIm);
            (left, stride) = (left / radix, stride * radix);
        }
        if (ReferenceEquals(fromRe, re)) return;
        fromRe.AsSpan(0, Length).CopyTo(re);
        fromIm.AsSpan(0, Length).CopyTo(im);
    }

    // Each of `Groups` groups joins `Radix` blocks of `Stride` numbers.
    private readonly record struct Stage(int Radix, int Groups, int Stride);

    private void Two(Stage s, Vector<double>[] fromRe, Vector<double>[] fromIm, Vector<double>[] toRe, Vector<double>[] toIm)
    {
        for (int q = 0; q < s.Groups; q++)
        {
            double c = _cos[q * s.Stride], d = _sin[q * s.Stride];
            for (int k = 0; k < s.Stride; k++)
            {
                int a = k + s.Stride * q, b = a + s.Stride * s.Groups, o = k + s.Stride * 2 * q;
                Vector<double> re = fromRe[a] - fromRe[b], im = fromIm[a] - fromIm[b];
                toRe[o] = fromRe[a] + fromRe[b];
                toIm[o] = fromIm[a] + fromIm[b];
                toRe[o + s.Stride] = re * c - im * d;
                toIm[o + s.Stride] = re * d + im * c;
            }
        }
    }

    private void Four(Stage s, Vector<double>[] fromRe, Vector<double>[] fromIm, Vector<double>[] toRe, Vector<double>[] toIm)
    {
        int block = s.Stride * s.Groups;
        for (int q = 0; q < s.Groups; q++)
        {
            int turn = q * s.Stride;
            for (int k = 0; k < s.Stride; k++)
            {
                int a = k + s.Stride * q, o = k + s.Stride * 4 * q;
                Vector<double> evenRe = fromRe[a] + fromRe[a + 2 * block], evenIm = fromIm[a] + fromIm[a + 2 * block];
                Vector<double> gapRe = fromRe[a] - fromRe[a + 2 * block], gapIm = fromIm[a] - fromIm[a + 2 * block];
                Vector<double> oddRe = fromRe[a + block] + fromRe[a + 3 * block], oddIm = fromIm[a + block] + fromIm[a + 3 * block];
                Vector<double> sideRe = fromIm[a + block] - fromIm[a + 3 * block], sideIm = fromRe[a + 3 * block] - fromRe[a + block];
                toRe[o] = evenRe + oddRe;
                toIm[o] = evenIm + oddIm;
                Turned(gapRe + sideRe, gapIm + sideIm, turn, o + s.Stride, toRe, toIm);
                Turned(evenRe - oddRe, evenIm - oddIm, 2 * turn, o + 2 * s.Stride, toRe, toIm);
                Turned(gapRe - sideRe, gapIm - sideIm, 3 * turn, o + 3 * s.Stride, toRe, toIm);
            }
        }
    }

    private void Turned(Vector<double> re, Vector<double> im, int turn, int at, Vector<double>[] toRe, Vector<double>[] toIm)
    {
        double c = _cos[turn], d = _sin[turn];
        toRe[at] = re * c - im * d;
        toIm[at] = re * d + im * c;
    }

    private void Any(Stage s, Vector<double>[] fromRe, Vector<double>[] fromIm, Vector<double>[] toRe, Vector<double>[] toIm)
    {
        int block = s.Stride * s.Groups, unit = Length / s.Radix;
        for (int q = 0; q < s.Groups; q++)
            for (int k = 0; k < s.Stride; k++)
            {
                int a = k + s.Stride * q, o = k + s.Stride * s.Radix * q;
                for (int r = 0; r < s.Radix; r++)
                {
                    Vector<double> re = fromRe[a], im = fromIm[a];
                    for (int j = 1; j < s.Radix; j++)
                    {
                        int turn = (int)((long)j * r % s.Radix) * unit;
                        double c = _cos[turn], d = _sin[turn];
                        re += fromRe[a + j * block] * c - fromIm[a + j * block] * d;
                        im += fromRe[a + j * block] * d + fromIm[a + j * block] * c;
                    }
                    Turned(re, im, (int)((long)q * r * s.Stride % Length), o + r * s.Stride, toRe, toIm);
                }
            }
    }

    private static IEnumerable<int> Factors(int n)
    {
        for (; n % 4 == 0; n /= 4) yield return 4;
        for (; n % 2 == 0; n /= 2) yield return 2;
        for (int p = 3; (long)p * p <= n; p += 2)
            for (; n % p == 0; n /= p) yield return p;
        if (n > 1) yield return n;
    }
}

/// <summary>Power spectra of the frames of a signal, bins 0 to length / 2: two frames in each lane, one as the imaginary part.</summary>
/// <param name="length">Length of the transform; shorter frames are followed by zeros.</param>
internal sealed class PowerSpectra(int length)
{
    private readonly Fft _fft = new(length);

    /// <summary>Length of the transform.</summary>
    public int Length => length;

    /// <summary>Bins of a spectrum.</summary>
    public int Bins => length / 2 + 1;

    /// <summary>Writes one frame; what it leaves is zero.</summary>
    public delegate void Fill(int frame, Span<double> samples);

    /// <summary>Reads the power of one frame in each bin.</summary>
    public delegate void Take(int frame, ReadOnlySpan<double> power);

    /// <summary>Runs all frames, in order.</summary>
    /// <param name="frames">Number of frames.</param>
    /// <param name="fill">Writes a frame.</param>
    /// <param name="take">Reads its power.</param>
    public void Run(int frames, Fill fill, Take take)
    {
        int lanes = Vector<double>.Count;
        Vector<double>[] re = new Vector<double>[length], im = new Vector<double>[length], workRe = new Vector<double>[length], workIm = new Vector<double>[length];
        double[] frame = new double[length], power = new double[2 * lanes * Bins];
        for (int first = 0; first < frames; first += 2 * lanes)
        {
            int count = Math.Min(2 * lanes, frames - first);
            Array.Clear(re);
            Array.Clear(im);
            for (int i = 0; i < count; i++)
            {
                Array.Clear(frame);
                fill(first + i, frame);
                Span<double> lane = MemoryMarshal.Cast<Vector<double>, double>((i < lanes ? re : im).AsSpan());
                for (int t = 0, at = i % lanes; t < length; t++, at += lanes) lane[at] = frame[t];
            }
            _fft.Run(re, im, workRe, workIm);
            Powers(re, im, power);
            for (int i = 0; i < count; i++) take(first + i, power.AsSpan(i * Bins, Bins));
        }
    }

    // A spectrum of re + i · im falls into those of re and im by symmetry.
    private void Powers(Vector<double>[] re, Vector<double>[] im, double[] power)
    {
        int lanes = Vector<double>.Count;
        for (int bin = 0; bin < Bins; bin++)
        {
            int mirror = (length - bin) % length;
            Vector<double> a = re[bin] + re[mirror], b = im[bin] - im[mirror], c = im[bin] + im[mirror], d = re[mirror] - re[bin];
            Vector<double> front = (a * a + b * b) * 0.25, back = (c * c + d * d) * 0.25;
            for (int lane = 0; lane < lanes; lane++)
            {
                power[lane * Bins + bin] = front[lane];
                power[(lanes + lane) * Bins + bin] = back[lane];
            }
        }
    }
}
