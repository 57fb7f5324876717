// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>A set of parameters of a formula; its renderings are the images of one class.</summary>
internal interface IFormulaCategory
{
    /// <summary>Draws an instance, white on black.</summary>
    /// <param name="canvas">Rows of <c>side</c> bytes, all 0.</param>
    /// <param name="side">Width and height.</param>
    /// <param name="draw">Random numbers of the instance.</param>
    void Render(byte[] canvas, int side, ref Draw draw);
}

/// <summary>
/// Labelled images out of formulas: half of the categories are fractals, half radial contours. An image depends on seed,
/// category and draw alone, so any number of threads may make them.
/// </summary>
internal sealed class FormulaImages
{
    private readonly IFormulaCategory[] _categories;
    private readonly ulong _seed;
    private readonly int _side, _canvas;

    /// <summary>Chooses the categories.</summary>
    /// <param name="categories">Number of classes, 2 or more.</param>
    /// <param name="side">Width and height of the images, 8 or more; drawn at twice that size.</param>
    /// <param name="seed">Seed of everything.</param>
    public FormulaImages(int categories, int side, ulong seed)
    {
        if (categories < 2) throw new ArgumentOutOfRangeException(nameof(categories), categories, "At least two categories are needed to tell apart.");
        if (side < 8) throw new ArgumentOutOfRangeException(nameof(side), side, "Images must be at least 8 pixels wide.");
        (_seed, _side, _canvas) = (seed, side, 2 * side);
        _categories = new IFormulaCategory[categories];
        Parallel.For(0, categories, c => _categories[c] = c % 2 == 0 ? FractalCategory.Make(seed, c, _canvas) : ContourCategory.Make(seed, c));
    }

    /// <summary>Number of classes.</summary>
    public int Categories => _categories.Length;

    /// <summary>Numbers of an image: three channels.</summary>
    public int Length => 3 * _side * _side;

    /// <summary>Draws an image: rendering, random resized crop, flips, colours of its own, texture, random erasing.</summary>
    /// <param name="category">Class.</param>
    /// <param name="number">Which draw of the class.</param>
    /// <param name="pixels">Receives [3, side, side], scaled to -1 .. 1.</param>
    public void Make(int category, long number, Span<float> pixels)
    {
        var draw = new Draw(_seed, (ulong)category, (ulong)(number + 1) << 20);
        var canvas = new byte[_canvas * _canvas];
        _categories[category].Render(canvas, _canvas, ref draw);
        var grey = new float[_side * _side];
        Crop(canvas, grey, ref draw);
        Colour(grey, pixels, ref draw);
        if (draw.Chance(0.25)) Erase(pixels, ref draw);
    }

    // A part of the canvas of any place, size and ratio, averaged down, perhaps mirrored.
    private void Crop(byte[] canvas, float[] grey, ref Draw draw)
    {
        double area = draw.Next(0.25, 1) * _canvas * _canvas, ratio = Math.Exp(draw.Next(Math.Log(3.0 / 4), Math.Log(4.0 / 3)));
        double width = Math.Min(_canvas, Math.Sqrt(area * ratio)), height = Math.Min(_canvas, Math.Sqrt(area / ratio));
        double left = draw.Next(0, _canvas - width), top = draw.Next(0, _canvas - height);
        bool across = draw.Chance(0.5), down = draw.Chance(0.5);
        for (int y = 0; y < _side; y++)
        {
            for (int x = 0; x < _side; x++)
            {
                float sum = 0;
                for (int part = 0; part < 4; part++)
                {
                    double fromX = left + (x + 0.25 + 0.5 * (part & 1)) * width / _side, fromY = top + (y + 0.25 + 0.5 * (part >> 1)) * height / _side;
                    sum += canvas[Math.Min(_canvas - 1, (int)fromY) * _canvas + Math.Min(_canvas - 1, (int)fromX)];
                }
                grey[(down ? _side - 1 - y : y) * _side + (across ? _side - 1 - x : x)] = sum / (4 * 255);
            }
        }
    }

    // Figure and ground have colours of their own, in half of the images with a texture over them.
    private void Colour(float[] grey, Span<float> pixels, ref Draw draw)
    {
        Span<double> figure = stackalloc double[3], ground = stackalloc double[3];
        bool coloured = draw.Chance(0.6);
        double light = draw.Next(0.4, 1), dark = draw.Next(0, 0.3);
        for (int c = 0; c < 3; c++)
        {
            figure[c] = coloured ? draw.Next() : light;
            ground[c] = coloured ? draw.Next() : dark;
        }
        if (draw.Chance(0.3)) (figure[0], figure[1], figure[2], ground[0], ground[1], ground[2]) = (ground[0], ground[1], ground[2], figure[0], figure[1], figure[2]);
        double waves = draw.Chance(0.5) ? draw.Next(0, 0.25) : 0, noise = draw.Next(0, 0.08);
        double fx = draw.Next(-1, 1), fy = draw.Next(-1, 1), phase = draw.Next(0, 6.28);
        int plane = _side * _side;
        for (int i = 0; i < plane; i++)
        {
            double texture = waves * Math.Sin(fx * (i % _side) + fy * (i / _side) + phase) + noise * (draw.Next() - 0.5) * 2;
            for (int c = 0; c < 3; c++)
            {
                double value = ground[c] + (figure[c] - ground[c]) * grey[i] + texture;
                pixels[c * plane + i] = (float)(Math.Clamp(value, 0, 1) * 2 - 1);
            }
        }
    }

    private void Erase(Span<float> pixels, ref Draw draw)
    {
        int width = 2 + draw.Below(_side / 2), height = 2 + draw.Below(_side / 2);
        int left = draw.Below(_side - width), top = draw.Below(_side - height);
        for (int c = 0; c < 3; c++)
        {
            float value = (float)draw.Next(-1, 1);
            for (int y = top; y < top + height; y++) pixels.Slice((c * _side + y) * _side + left, width).Fill(value);
        }
    }
}
