// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>
/// A category of radial contours (Kataoka et al. 2022, arXiv 2206.09132): a polygon drawn several times inside of itself,
/// each radius perturbed by smooth noise; number of vertices and lines, strength of the noise and the stretch of both
/// axes make the category.
/// </summary>
internal sealed class ContourCategory : IFormulaCategory
{
    private readonly int _vertices, _lines, _waves;
    private readonly double _noise, _stretch, _shrink;

    private ContourCategory(ref Draw draw)
    {
        (_vertices, _lines, _waves) = (3 + draw.Below(28), 1 + draw.Below(9), 1 + draw.Below(6));
        (_noise, _stretch, _shrink) = (draw.Next(0, 0.5), draw.Next(0.4, 1), draw.Next(0.7, 0.95));
    }

    /// <summary>The category of a number.</summary>
    public static ContourCategory Make(ulong seed, int category)
    {
        var draw = new Draw(seed, (ulong)category, 0);
        return new ContourCategory(ref draw);
    }

    /// <summary>Draws an instance: turned, with noise of its own.</summary>
    public void Render(byte[] canvas, int side, ref Draw draw)
    {
        double turn = draw.Next(0, 2 * Math.PI), size = side * draw.Next(0.3, 0.48);
        var phases = new double[_waves];
        for (int i = 0; i < _waves; i++) phases[i] = draw.Next(0, 2 * Math.PI);
        bool across = draw.Chance(0.5);
        for (int line = 0; line < _lines; line++)
        {
            double drift = draw.Next(0, 0.3);
            (double X, double Y) first = default, last = default;
            for (int v = 0; v <= _vertices; v++)
            {
                double angle = 2 * Math.PI * v / _vertices, radius = 1;
                for (int w = 0; w < _waves; w++) radius += _noise / (w + 1) * Math.Sin((w + 2) * angle + phases[w] + drift);
                double x = radius * size * Math.Cos(angle + turn), y = radius * size * Math.Sin(angle + turn);
                (double X, double Y) here = across ? (x * _stretch, y) : (x, y * _stretch);
                if (v == 0) first = here;
                else Line(canvas, side, last, v == _vertices ? first : here);
                last = here;
            }
            size *= _shrink;
        }
    }

    private static void Line(byte[] canvas, int side, (double X, double Y) from, (double X, double Y) to)
    {
        int steps = 1 + (int)(1.5 * Math.Max(Math.Abs(to.X - from.X), Math.Abs(to.Y - from.Y)));
        for (int i = 0; i <= steps; i++)
        {
            double share = (double)i / steps;
            int x = (int)(side / 2.0 + from.X + share * (to.X - from.X)), y = (int)(side / 2.0 + from.Y + share * (to.Y - from.Y));
            if (x >= 0 && y >= 0 && x < side && y < side) canvas[y * side + x] = 255;
        }
    }
}
