// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

[TestClass]
public sealed class ImageAugmentationTests
{
    private static readonly ImageAugmentation s_all = new()
    {
        VerticalFlip = 0.5,
        Rotation = 20,
        Brightness = 0.3,
        Contrast = 0.3,
        Saturation = 0.3,
        Hue = 0.1,
        Erasing = 0.5,
    };

    [TestMethod]
    public void ARowsChangesDependOnSeedEpochAndRowAlone()
    {
        PixelImage image = Noise(60, 47);
        byte[] Of(ulong seed, int epoch, long row) => s_all.Apply(image, 32, 28, seed, epoch, row).Pixels;
        byte[] first = Of(3, 1, 17);
        // In any order, from many threads.
        var together = new byte[64][];
        Parallel.For(0, together.Length, i => together[i] = Of(3, 1, 17 + i % 8));
        for (int i = 0; i < together.Length; i++) CollectionAssert.AreEqual(Of(3, 1, 17 + i % 8), together[i]);
        foreach (byte[] other in (byte[][])[Of(4, 1, 17), Of(3, 2, 17), Of(3, 1, 18)]) CollectionAssert.AreNotEqual(first, other);
        Assert.HasCount(32 * 28 * 3, first);
    }

    [TestMethod]
    public void NothingOnIsThePlainPicture()
    {
        PixelImage image = Noise(40, 30);
        CollectionAssert.AreEqual(ImageResizer.Resize(image, 20, 16, ResizeFilter.Bicubic).Pixels, ImageAugmentation.None.Apply(image, 20, 16, 1, 0, 0).Pixels);
        var processor = new ImageProcessor(new() { Type = "ViTImageProcessor", Size = new(20, 16) });
        CollectionAssert.AreEqual(processor.Bytes(image).Pixels, ImageAugmentation.None.Apply(image, processor, 1, 0, 0).Pixels);
    }

    [TestMethod]
    public void ColoursKeepTheirMeaning()
    {
        var image = new PixelImage(2, 1, 3, [200, 100, 50, 7, 7, 7]);
        CollectionAssert.AreEqual(new byte[] { 100, 50, 25, 3, 3, 3 }, ColorJitter.Brightness(image, 0.5).Pixels);
        CollectionAssert.AreEqual(image.Pixels, ColorJitter.Hue(image, 0).Pixels);
        // A third of a turn: red's place is taken by green's.
        CollectionAssert.AreEqual(new byte[] { 50, 200, 100, 7, 7, 7 }, ColorJitter.Hue(image, 1 / 3.0).Pixels);
        byte[] grey = ColorJitter.Saturation(image, 0).Pixels;
        Assert.IsTrue(grey[0] == grey[1] && grey[1] == grey[2]);
        byte[] flat = ColorJitter.Contrast(image, 0).Pixels;
        Assert.HasCount(1, flat.Distinct().ToList());
    }

    [TestMethod]
    public void BatchesAreMixedDeterministicallyAndTargetsFollow()
    {
        var mixing = new ImageMixing { MixupAlpha = 0.8, CutMixAlpha = 1 };
        int cut = 0, mixed = 0;
        for (int batch = 0; batch < 200; batch++)
        {
            float[] images = [.. Enumerable.Range(0, 4).SelectMany(row => Enumerable.Repeat((float)row, 3 * 6 * 8))], again = [.. images];
            float[] targets = ImageMixing.Targets([0, 1, 2, 3], 4, 0), targetsAgain = [.. targets];
            double own = mixing.Apply(images, 4, 6, 8, targets, 5, 2, batch);
            Assert.AreEqual(own, mixing.Apply(again, 4, 6, 8, targetsAgain, 5, 2, batch));
            CollectionAssert.AreEqual(images, again);
            Assert.IsTrue(own is >= 0 and <= 1);
            for (int row = 0; row < 4; row++)
            {
                // Rows hold their numbers, so the mean of the mixed row is the mean of the mixed targets.
                double seen = images.Skip(row * 144).Take(144).Average(), said = Enumerable.Range(0, 4).Sum(c => c * (double)targets[row * 4 + c]);
                Assert.AreEqual(seen, said, 1e-4);
                Assert.AreEqual(1, targets.Skip(row * 4).Take(4).Sum(), 1e-6);
            }

            if (images.All(value => value == (int)value)) cut++;
            else mixed++;
        }

        Assert.IsGreaterThan(50, cut);
        Assert.IsGreaterThan(50, mixed);
    }

    [TestMethod]
    public void BetaNumbersHaveTheirMoments()
    {
        foreach (double alpha in (double[])[0.2, 1, 3])
        {
            var draws = new AugmentationDraws(1, 0, 0);
            double[] numbers = [.. Enumerable.Range(0, 20000).Select(_ => draws.Beta(alpha))];
            Assert.AreEqual(0.5, numbers.Average(), 0.01);
            Assert.AreEqual(1 / (4 * (2 * alpha + 1)), numbers.Average(value => (value - 0.5) * (value - 0.5)), 0.005);
        }
    }

    [TestMethod]
    public void WrongNumbersAreNamed()
    {
        var image = Noise(8, 8);
        ImageAugmentation[] wrong =
        [
            new() { HorizontalFlip = 1.5 }, new() { Hue = 0.6 }, new() { Rotation = double.NaN }, new() { CropScale = (0, 1) },
            new() { CropRatio = (2, 1) }, new() { Erasing = -1 }, new() { Filter = (ResizeFilter)9 },
        ];
        string[] names = ["HorizontalFlip", "Hue", "Rotation", "CropScale", "CropRatio", "Erasing", "Filter"];
        for (int i = 0; i < wrong.Length; i++)
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => wrong[i].Apply(image, 4, 4, 0, 0, 0)).Message, names[i]);
        Assert.ThrowsExactly<ArgumentException>(() => new ImageMixing { MixupAlpha = -1 }.Validate());
        Assert.ThrowsExactly<ArgumentException>(() => ImageMixing.Targets([4], 4, 0));
    }

    private static PixelImage Noise(int width, int height)
    {
        byte[] pixels = new byte[width * height * 3];
        new Random(5).NextBytes(pixels);
        return new PixelImage(width, height, 3, pixels);
    }
}
