// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Samples.ImageClassification;

/// <summary>
/// Draws a data set that needs no download and no licence: eight patterns of cloth in noise, of any two colours, width and place, a
/// little askew, so that nothing but the pattern tells them apart.
/// </summary>
internal static class Cloth
{
    private const int Side = 48;

    // The first colour where the value is above 0, the second elsewhere; a thread is 2 pi wide and high.
    private static readonly (string Name, Func<double, double, double> Value)[] _patterns =
    [
        ("bands", (x, y) => Math.Sin(y)),
        ("checks", (x, y) => Math.Sin(x) * Math.Sin(y)),
        ("dots", (x, y) => Math.Sin(x) + Math.Sin(y) - 0.8),
        ("grid", (x, y) => Math.Max(Math.Sin(x), Math.Sin(y)) - 0.5),
        ("stripes", (x, y) => Math.Sin(x)),
        ("twill-left", (x, y) => Math.Sin(0.8 * (x - y))),
        ("twill-right", (x, y) => Math.Sin(0.8 * (x + y))),
        ("zigzag", (x, y) => Math.Sin(y + Math.Asin(Math.Sin(x)))),
    ];

    /// <summary>Writes FOLDER/train/PATTERN/NUMBER.png and FOLDER/test/PATTERN/NUMBER.png, the same ones on each call.</summary>
    /// <param name="folder">Where to.</param>
    /// <param name="train">Pictures to learn from, all patterns together.</param>
    /// <param name="test">Pictures to ask about.</param>
    /// <returns>The folder.</returns>
    public static string Draw(string folder, int train, int test)
    {
        foreach ((string part, int count, int seed) in new[] { ("train", train, 1), ("test", test, 2) })
        {
            var random = new Random(seed);
            for (int i = 0; i < count; i++)
            {
                (string name, Func<double, double, double> value) = _patterns[i % _patterns.Length];
                string path = Path.Combine(Directory.CreateDirectory(Path.Combine(folder, part, name)).FullName, $"{i / _patterns.Length:0000}.png");
                using MLImage image = MLImage.CreateFromPixels(Side, Side, MLPixelFormat.Rgba32, Pixels(value, random));
                image.Save(path);
            }
        }
        return folder;
    }

    private static byte[] Pixels(Func<double, double, double> value, Random random)
    {
        byte[] first = new byte[3], second = new byte[3], pixels = new byte[Side * Side * 4];
        do
        {
            random.NextBytes(first);
            random.NextBytes(second);
        }
        while (first.Zip(second, (a, b) => Math.Abs(a - b)).Sum() < 150);   // can be told apart
        double pitch = 2 * Math.PI / (8 + (8 * random.NextDouble())), turn = 0.3 * (random.NextDouble() - 0.5);
        double cos = pitch * Math.Cos(turn), sin = pitch * Math.Sin(turn), left = 7 * random.NextDouble(), top = 7 * random.NextDouble();
        for (int i = 0; i < Side * Side; i++)
        {
            int x = i % Side, y = i / Side;
            byte[] colour = value((cos * x) + (sin * y) + left, (cos * y) - (sin * x) + top) > 0 ? first : second;
            for (int c = 0; c < 3; c++) pixels[(4 * i) + c] = (byte)Math.Clamp(colour[c] + random.Next(-50, 51), 0, 255);
            pixels[(4 * i) + 3] = 255;
        }
        return pixels;
    }
}
