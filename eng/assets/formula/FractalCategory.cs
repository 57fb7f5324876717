// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>
/// A category of FractalDB (Kataoka et al. 2020, arXiv 2101.08515): two to seven affine maps with coefficients in
/// (-1, 1), whose attractor a chaos game draws. Maps are chosen in proportion to |ad - bc|.
/// </summary>
internal sealed class FractalCategory : IFormulaCategory
{
    private const int Points = 3000, Coefficients = 6, Tries = 10_000;
    private const double FillRate = 0.2;

    private readonly double[] _maps;

    private FractalCategory(double[] maps) => _maps = maps;

    /// <summary>Draws coefficients until an attractor covers enough of the canvas.</summary>
    /// <exception cref="InvalidOperationException">None did.</exception>
    public static FractalCategory Make(ulong seed, int category, int side)
    {
        var canvas = new byte[side * side];
        double best = 0;
        for (int attempt = 0; attempt < Tries; attempt++)
        {
            var draw = new Draw(seed, (ulong)category, (ulong)attempt);
            var maps = new double[(2 + draw.Below(6)) * Coefficients];
            for (int i = 0; i < maps.Length; i++) maps[i] = draw.Next(-1, 1);
            Array.Clear(canvas);
            Play(maps, canvas, side, ref draw, stamp: false);
            double filled = canvas.Count(p => p != 0) / (double)canvas.Length;
            if (filled >= FillRate) return new FractalCategory(maps);
            best = Math.Max(best, filled);
        }
        throw new InvalidOperationException($"None of {Tries} draws for category {category} fills {FillRate:P0} of a canvas of {side}x{side}; the best filled {best:P1}.");
    }

    /// <summary>Draws an instance: one kind of coefficient scaled by 0.8 to 1.2, a new patch a point.</summary>
    public void Render(byte[] canvas, int side, ref Draw draw)
    {
        double[] maps = [.. _maps];
        int which = draw.Below(Coefficients);
        double factor = 0.8 + 0.1 * draw.Below(5);
        for (int i = which; i < maps.Length; i += Coefficients) maps[i] *= factor;
        Play(maps, canvas, side, ref draw, stamp: true);
    }

    private static void Play(double[] maps, byte[] canvas, int side, ref Draw draw, bool stamp)
    {
        Span<double> at = stackalloc double[2 * Points];
        int count = Orbit(maps, at, ref draw);
        if (count < Points / 10) return;
        (double left, double right, double top, double bottom) = (double.MaxValue, double.MinValue, double.MaxValue, double.MinValue);
        for (int i = 0; i < count; i++)
        {
            (left, right) = (Math.Min(left, at[2 * i]), Math.Max(right, at[2 * i]));
            (top, bottom) = (Math.Min(top, at[2 * i + 1]), Math.Max(bottom, at[2 * i + 1]));
        }
        double wide = right - left, high = bottom - top, room = side - 3;
        if (!(wide > 1e-9) || !(high > 1e-9) || !double.IsFinite(wide) || !double.IsFinite(high)) return;
        int patch = 1 + draw.Below(511);   // one 3x3 pattern an image
        for (int i = 0; i < count; i++)
        {
            int x = 1 + (int)((at[2 * i] - left) / wide * room), y = 1 + (int)((at[2 * i + 1] - top) / high * room);
            if (stamp) Stamp(canvas, side, x, y, patch);
            else canvas[y * side + x] = 255;
        }
    }

    private static int Orbit(double[] maps, Span<double> at, ref Draw draw)
    {
        int count = maps.Length / Coefficients;
        Span<double> ends = stackalloc double[count];
        double total = 0;
        for (int m = 0; m < count; m++)
            ends[m] = total += Math.Abs(maps[m * Coefficients] * maps[m * Coefficients + 3] - maps[m * Coefficients + 1] * maps[m * Coefficients + 2]);
        double x = 0, y = 0;
        for (int i = 0; i < Points; i++)
        {
            double chosen = draw.Next() * total;
            int map = 0;
            while (map < count - 1 && ends[map] < chosen) map++;
            ReadOnlySpan<double> m = maps.AsSpan(map * Coefficients, Coefficients);
            (x, y) = (m[0] * x + m[1] * y + m[4], m[2] * x + m[3] * y + m[5]);
            // Maps that expand run away: what was drawn before counts.
            if (!double.IsFinite(x) || !double.IsFinite(y)) return i;
            (at[2 * i], at[2 * i + 1]) = (x, y);
        }
        return Points;
    }

    private static void Stamp(byte[] canvas, int side, int x, int y, int patch)
    {
        for (int bit = 0; bit < 9; bit++)
            if ((patch >> bit & 1) != 0) canvas[(y + bit / 3 - 1) * side + x + bit % 3 - 1] = 255;
    }
}
