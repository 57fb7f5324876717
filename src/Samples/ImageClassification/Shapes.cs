// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Samples.ImageClassification;

/// <summary>
/// Draws a data set that needs no download and no licence: eight shapes anywhere in noise, of any colour, size and turn, so that
/// nothing but the outline tells them apart.
/// </summary>
internal static class Shapes
{
    private const int Side = 48;

    // Is a point inside? Each shape fills about the circle of radius 1 around the origin.
    private static readonly (string Name, Func<double, double, bool> Inside)[] _shapes =
    [
        ("circle", (x, y) => Length(x, y) < 0.9),
        ("cross", (x, y) => Math.Min(Math.Abs(x), Math.Abs(y)) < 0.28 && Math.Max(Math.Abs(x), Math.Abs(y)) < 0.95),
        ("heart", (x, y) => Math.Pow((1.4 * x * x) + (1.4 * y * y) - 1, 3) < 2.4 * x * x * y * y * y),
        ("moon", (x, y) => Length(x, y) < 1 && Length(x - 0.5, y) > 0.8),
        ("ring", (x, y) => Length(x, y) is < 1 and > 0.55),
        ("square", (x, y) => Star(x, y, 4, Math.Sqrt(0.5))),
        ("star", (x, y) => Star(x, y, 5, 0.45)),
        ("triangle", (x, y) => Star(x, y, 3, 0.5)),
    ];

    /// <summary>Writes FOLDER/train/SHAPE/NUMBER.png and FOLDER/test/SHAPE/NUMBER.png, the same ones on each call.</summary>
    /// <param name="folder">Where to.</param>
    /// <param name="train">Pictures to learn from, all shapes together.</param>
    /// <param name="test">Pictures to be asked about.</param>
    /// <returns>The folder.</returns>
    public static string Draw(string folder, int train, int test)
    {
        foreach ((string part, int count, int seed) in new[] { ("train", train, 1), ("test", test, 2) })
        {
            var random = new Random(seed);
            for (int i = 0; i < count; i++)
            {
                (string name, Func<double, double, bool> inside) = _shapes[i % _shapes.Length];
                string path = Path.Combine(Directory.CreateDirectory(Path.Combine(folder, part, name)).FullName, $"{i / _shapes.Length:0000}.png");
                using MLImage image = MLImage.CreateFromPixels(Side, Side, MLPixelFormat.Rgba32, Pixels(inside, random));
                image.Save(path);
            }
        }
        return folder;
    }

    private static byte[] Pixels(Func<double, double, bool> inside, Random random)
    {
        byte[] back = new byte[3], front = new byte[3], pixels = new byte[Side * Side * 4];
        do
        {
            random.NextBytes(back);
            random.NextBytes(front);
        }
        while (back.Zip(front, (b, f) => Math.Abs(b - f)).Sum() < 150);   // can be seen
        double radius = Side * (0.2 + (0.2 * random.NextDouble())), turn = 2 * Math.PI * random.NextDouble(), cos = Math.Cos(turn), sin = Math.Sin(turn);
        double left = radius + (random.NextDouble() * (Side - (2 * radius))), top = radius + (random.NextDouble() * (Side - (2 * radius)));
        for (int i = 0; i < Side * Side; i++)
        {
            double x = ((i % Side) - left) / radius, y = ((i / Side) - top) / radius;
            byte[] colour = inside((cos * x) + (sin * y), (cos * y) - (sin * x)) ? front : back;
            for (int c = 0; c < 3; c++) pixels[(4 * i) + c] = (byte)Math.Clamp(colour[c] + random.Next(-60, 61), 0, 255);
            pixels[(4 * i) + 3] = 255;
        }
        return pixels;
    }

    private static double Length(double x, double y) => Math.Sqrt((x * x) + (y * y));

    // Tips at distance 1, the corners between them at another: a polygon where that is cos(pi / tips).
    private static bool Star(double x, double y, int tips, double between)
    {
        double half = Math.PI / tips, angle = Math.Abs(Math.IEEERemainder(Math.Atan2(y, x), 2 * half)), length = Length(x, y);
        double px = length * Math.Cos(angle), py = length * Math.Sin(angle);   // in the half sector between a tip and the next corner
        return ((between * Math.Cos(half)) - 1) * py > between * Math.Sin(half) * (px - 1);
    }
}
