// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

[TestClass]
public sealed class ImageReaderTests
{
    public static IEnumerable<object[]> Names => ImageSamples.Files.Keys.Select(name => new object[] { name });

    [TestMethod]
    [DynamicData(nameof(Names))]
    public void EveryKindIsReadWithItsColours(string name)
    {
        PixelImage image = ImageReader.Read(ImageSamples.Files[name], name, AlphaTreatment.Drop);
        Assert.AreEqual((24, 16, 3), (image.Width, image.Height, image.Channels));
        bool fields = name.StartsWith("gif", StringComparison.Ordinal) || name is "png palette" or "bmp";
        bool exact = fields || name is "png" or "png alpha" or "webp animated";
        double most = 0;
        for (int y = 0; y < image.Height; y++)
            for (int x = 0; x < image.Width; x++)
            {
                int[] wanted = fields ? ImageSamples.Field(x, y) : ImageSamples.Smooth(x, y);
                if (name == "jpeg grey") wanted = [.. Enumerable.Repeat((int)Math.Round(0.299 * wanted[0] + 0.587 * wanted[1] + 0.114 * wanted[2]), 3)];
                if (name == "png 16") wanted = [.. Enumerable.Repeat((x * 2500 + y) >> 8, 3)];
                // Under alpha, a decoder that multiplies leaves a colour that is off by one or two; or nothing.
                bool hidden = (name == "webp lossless alpha" && ImageSamples.Alpha(x, y) < 255) || (name == "gif interlaced transparent" && wanted[0] == 5 * 16);
                if (hidden) continue;
                most = Math.Max(most, Enumerable.Range(0, 3).Max(c => Math.Abs(image.Row(y)[x * 3 + c] - wanted[c])));
            }

        Assert.IsLessThanOrEqualTo(exact ? 0 : name == "webp" ? 24 : 12, most, $"{name}: off by {most}");
    }

    [TestMethod]
    public void TransparencyIsLaidOnWhiteDroppedOrKept()
    {
        foreach (string name in (string[])["png alpha", "webp lossless alpha"])
        {
            byte[] file = ImageSamples.Files[name];
            PixelImage white = ImageReader.Read(file, name), kept = ImageReader.Read(file, name, AlphaTreatment.Keep);
            Assert.AreEqual(4, kept.Channels);
            for (int y = 0; y < 16; y++)
                for (int x = 0; x < 24; x++)
                {
                    int alpha = ImageSamples.Alpha(x, y);
                    Assert.AreEqual(alpha, kept.Row(y)[x * 4 + 3]);
                    for (int c = 0; c < 3; c++)
                    {
                        double wanted = (alpha * ImageSamples.Smooth(x, y)[c] + (255 - alpha) * 255) / 255.0;
                        Assert.IsLessThanOrEqualTo(1.01, Math.Abs(white.Row(y)[x * 3 + c] - wanted), $"{name} ({x}, {y})");
                    }
                }
        }

        PixelImage gif = ImageReader.Read(ImageSamples.Files["gif interlaced transparent"], "gif");
        CollectionAssert.AreEqual(new byte[] { 255, 255, 255 }, gif.Row(5)[(7 * 3)..(8 * 3)].ToArray());
    }

    [TestMethod]
    [DataRow(1, false, false)]
    [DataRow(4, false, false)]
    [DataRow(4, true, false)]
    [DataRow(8, false, false)]
    [DataRow(8, false, true)]
    [DataRow(16, false, false)]
    [DataRow(24, false, false)]
    [DataRow(24, true, false)]
    [DataRow(32, false, false)]
    public void BitmapsOfEveryDepthAreRead(int bits, bool topDown, bool runs)
    {
        PixelImage image = ImageReader.Read(ImageSamples.Bitmap(bits, topDown, runs), "bitmap");
        for (int y = 0; y < 16; y++)
            for (int x = 0; x < 24; x++)
            {
                int index = ((x / 6) + (y / 4 * 4)) & 1;
                int[] wanted = bits == 1 ? [index * 16, 255 - index * 16, index * 8] : bits <= 8 ? ImageSamples.Field(x, y) : ImageSamples.Smooth(x, y);
                if (bits == 16) wanted = [.. wanted.Select(value => (value >> 3) * 255 / 31)];
                for (int c = 0; c < 3; c++) Assert.AreEqual(wanted[c], image.Row(y)[x * 3 + c], $"({x}, {y}) {c}");
            }
    }

    [TestMethod]
    [DataRow(1, "12/34/56")]
    [DataRow(2, "21/43/65")]
    [DataRow(3, "65/43/21")]
    [DataRow(4, "56/34/12")]
    [DataRow(5, "135/246")]
    [DataRow(6, "531/642")]
    [DataRow(7, "642/531")]
    [DataRow(8, "246/135")]
    public void OrientationTurnsThePictureUpright(int orientation, string wanted)
    {
        // Two columns, three rows; the number of a pixel is its red.
        PixelImage turned = Orientation.Apply(new PixelImage(2, 3, 1, [1, 2, 3, 4, 5, 6]), orientation);
        Assert.AreEqual(wanted, string.Join('/', Enumerable.Range(0, turned.Height).Select(y => string.Concat(turned.Row(y).ToArray()))));
        foreach (bool little in (bool[])[true, false])
        {
            byte[] exif = Exif(orientation, little);
            byte[] jpeg = ImageSamples.Files["jpeg 4:4:4"], plain = ImageReader.Read(jpeg, "jpeg").Pixels;
            byte[] length = [(byte)((exif.Length + 8) >> 8), (byte)(exif.Length + 8)];
            byte[] marked = [.. jpeg[..2], 0xFF, 0xE1, .. length, .. "Exif\0\0"u8, .. exif, .. jpeg[2..]];
            PixelImage found = ImageReader.Read(marked, "marked jpeg");
            CollectionAssert.AreEqual(Orientation.Apply(new PixelImage(24, 16, 3, plain), orientation).Pixels, found.Pixels);
            Assert.AreEqual(orientation >= 5 ? 16 : 24, found.Width);

            byte[] png = ImageSamples.Files["png"];
            byte[] chunk = [0, 0, 0, (byte)exif.Length, .. "eXIf"u8, .. exif, 0, 0, 0, 0];
            Assert.AreEqual(orientation >= 5 ? 16 : 24, ImageReader.Read([.. png[..33], .. chunk, .. png[33..]], "marked png").Width);

            byte[] webp = ImageSamples.Files["webp lossless alpha"];
            byte[] parts = webp[12..20].AsSpan().StartsWith("VP8X"u8) ? webp[30..] : webp[12..];
            byte[] extended = [.. "VP8X"u8, 10, 0, 0, 0, 0x18, 0, 0, 0, 23, 0, 0, 15, 0, 0, .. parts, .. "EXIF"u8, (byte)exif.Length, 0, 0, 0, .. exif];
            byte[] size = new byte[4];
            BinaryPrimitives.WriteInt32LittleEndian(size, extended.Length + 4);
            Assert.AreEqual(orientation >= 5 ? 16 : 24, ImageReader.Read([.. "RIFF"u8, .. size, .. "WEBP"u8, .. extended], "marked webp").Width);
        }
    }

    private static byte[] Exif(int orientation, bool little) => little
        ? [.. "II*\0"u8, 8, 0, 0, 0, 2, 0, 0x0F, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, (byte)orientation, 0, 0, 0, 0, 0, 0, 0]
        : [.. "MM\0*"u8, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, (byte)orientation, 0, 0, 0, 0, 0, 0, 0, 0];

    [TestMethod]
    [DynamicData(nameof(Names))]
    public void TruncatedFilesAreRefusedByName(string name)
    {
        byte[] file = ImageSamples.Files[name];
        foreach (int length in (int[])[file.Length - 2, file.Length * 3 / 4, file.Length / 2, 30, 12, 5, 1, 0])
        {
            // What ends a GIF, and what follows its first picture, is not needed.
            if (name.StartsWith("gif", StringComparison.Ordinal) && length > file.Length / 3) continue;
            var error = Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(file[..length], "row 7: cat.img"), $"{name} cut to {length}");
            StringAssert.StartsWith(error.Message, "row 7: cat.img: ");
        }
    }

    [TestMethod]
    public void WhatIsNoImageIsCalledByItsName()
    {
        string folder = Directory.CreateTempSubdirectory("peft-images-").FullName;
        try
        {
            var files = new (string Name, byte[] Content, string Says)[]
            {
                ("text.png", "hello world"u8.ToArray(), "begins with 'hello wo'"),
                ("page.jpg", "<!DOCTYPE html>"u8.ToArray(), "web page"),
                ("book.jpg", "%PDF-1.7"u8.ToArray(), "PDF"),
                ("scan.tif", "II*\0xxxxxx"u8.ToArray(), "TIFF"),
                ("pointer.png", "version https://git-lfs.github.com/spec/v1"u8.ToArray(), "Git LFS"),
                ("empty.png", [], "empty"),
                ("zeros.bmp", new byte[100], "0000000000000000"),
            };
            foreach (var (name, content, says) in files)
            {
                string path = Path.Combine(folder, name);
                File.WriteAllBytes(path, content);
                var error = Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(path));
                StringAssert.Contains(error.Message, says);
                StringAssert.Contains(error.Message, path);
                StringAssert.Contains(error.InRow(12).Message, "row 12: ");
            }

            StringAssert.Contains(Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(Path.Combine(folder, "none.png"))).Message, "no such file");
            Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(folder));
            // An image under another kind's name is read as what it is.
            File.WriteAllBytes(Path.Combine(folder, "really-a-png.jpg"), ImageSamples.Files["png"]);
            Assert.AreEqual(24, ImageReader.Read(Path.Combine(folder, "really-a-png.jpg")).Width);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [TestMethod]
    public void HugeAndEmptySizesAreRefusedBeforeDecoding()
    {
        byte[] png = [.. ImageSamples.Files["png"]], gif = [.. ImageSamples.Files["gif"]], bmp = ImageSamples.Bitmap(24), jpeg = [.. ImageSamples.Files["jpeg"]];
        long before = GC.GetAllocatedBytesForCurrentThread();
        BinaryPrimitives.WriteInt32BigEndian(png.AsSpan(16), 1_000_000);
        BinaryPrimitives.WriteInt32BigEndian(png.AsSpan(20), 1_000_000);
        BinaryPrimitives.WriteInt32LittleEndian(bmp.AsSpan(18), 500_000_000);
        gif.AsSpan(6, 4).Fill(255);
        int frame = jpeg.AsSpan().IndexOf((ReadOnlySpan<byte>)[0xFF, 0xC0]);
        jpeg.AsSpan(frame + 5, 4).Fill(255);
        foreach (byte[] file in (byte[][])[png, bmp, gif, jpeg])
            StringAssert.Contains(Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(file, "huge")).Message, "pixels");
        Assert.IsLessThan(1 << 20, GC.GetAllocatedBytesForCurrentThread() - before);
        jpeg.AsSpan(frame + 5, 4).Clear();
        BinaryPrimitives.WriteInt32BigEndian(png.AsSpan(16), 0);
        foreach (byte[] file in (byte[][])[png, jpeg])
            StringAssert.Contains(Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(file, "nothing")).Message, "empty");
        var small = new ImageLimits { MaxPixels = 100, MaxBytes = 50 };
        Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(ImageSamples.Files["png"], "small", limits: small));
        Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(ImageSamples.Files["webp"], "small", limits: small with { MaxBytes = 500 }));
    }

    [TestMethod]
    public void DecodedImagesAreTakenOverInBothOrders()
    {
        byte[] pixels = [10, 20, 30, 255, 40, 50, 60, 255, 5, 10, 15, 128];
        foreach (MLPixelFormat format in (MLPixelFormat[])[MLPixelFormat.Rgba32, MLPixelFormat.Bgra32])
        {
            MLImage image = MLImage.CreateFromPixels(3, 1, format, pixels);
            byte[] found = ImageReader.Read(image, "row 1", AlphaTreatment.Keep).Pixels;
            byte[] wanted = [10, 20, 30, 255, 40, 50, 60, 255, 10, 20, 30, 128];
            if (format == MLPixelFormat.Bgra32) wanted = [30, 20, 10, 255, 60, 50, 40, 255, 30, 20, 10, 128];
            CollectionAssert.AreEqual(wanted, found);
            Assert.AreEqual(5 + 127, ImageReader.Read(image, "row 1").Pixels[format == MLPixelFormat.Rgba32 ? 6 : 8]);
            image.Dispose();
            Assert.ThrowsExactly<ImageFormatException>(() => ImageReader.Read(image, "row 1"));
        }

        // Opaque ones take another way: every length, every alignment.
        for (int width = 1; width < 40; width++)
        {
            byte[] random = new byte[width * 3 * 4];
            new Random(width).NextBytes(random);
            for (int i = 3; i < random.Length; i += 4) random[i] = 255;
            using MLImage image = MLImage.CreateFromPixels(width, 3, MLPixelFormat.Bgra32, random);
            PixelImage found = ImageReader.Read(image, "random");
            for (int i = 0; i < width * 9; i++) Assert.AreEqual(random[i / 3 * 4 + 2 - i % 3], found.Pixels[i]);
        }
    }

    [TestMethod]
    public void FastResizingEqualsTheSumsWrittenOut()
    {
        var random = new Random(11);
        for (int i = 0; i < 60; i++)
        {
            int width = random.Next(1, 90), height = random.Next(1, 90), newWidth = random.Next(1, 90), newHeight = random.Next(1, 90);
            byte[] pixels = new byte[width * height * 3];
            random.NextBytes(pixels);
            var image = new PixelImage(width, height, 3, pixels);
            ResizeFilter filter = (ResizeFilter)random.Next(1, 6);
            PixelImage whole = ImageResizer.Resize(image, newWidth, newHeight, filter);
            // One channel goes through the plain loops.
            for (int c = 0; c < 3; c++)
            {
                var plane = new PixelImage(width, height, 1, [.. Enumerable.Range(0, width * height).Select(p => pixels[p * 3 + c])]);
                byte[] slow = ImageResizer.Resize(plane, newWidth, newHeight, filter).Pixels;
                for (int p = 0; p < slow.Length; p++) Assert.AreEqual(slow[p], whole.Pixels[p * 3 + c], $"{width}x{height} to {newWidth}x{newHeight} {filter}");
            }

            int left = random.Next(newWidth), top = random.Next(newHeight), w = random.Next(1, newWidth - left + 1), h = random.Next(1, newHeight - top + 1);
            PixelImage part = ImageResizer.Resize(image, newWidth, newHeight, filter, new ResizeWindow(left, top, w, h));
            CollectionAssert.AreEqual(whole.Crop(left, top, w, h).Pixels, part.Pixels);
        }
    }
}
