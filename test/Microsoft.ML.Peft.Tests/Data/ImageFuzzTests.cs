// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>Damaged files of every kind give an image or an <see cref="ImageFormatException"/>: no other error, no crash, no waiting.</summary>
[TestClass]
public sealed class ImageFuzzTests
{
    private static readonly ImageLimits s_limits = new() { MaxPixels = 1 << 22 };

    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    public void AlteredFilesAreReadOrRefused()
    {
        // PEFT_ALTERATIONS asks for more of them than every build can wait for.
        int count = int.Parse(Environment.GetEnvironmentVariable("PEFT_ALTERATIONS") ?? "1200", CultureInfo.InvariantCulture);
        var random = new Random(20);
        List<byte[]> files = [.. ImageSamples.Files.Values, .. ((int[])[1, 4, 8, 16, 24, 32]).Select(bits => ImageSamples.Bitmap(bits)), ImageSamples.Bitmap(8, runs: true)];
        int read = 0, refused = 0;
        var problems = new HashSet<string>();
        for (int i = 0; i < count; i++)
        {
            byte[] file = Altered(files, i, random);
            var watch = Stopwatch.StartNew();
            try
            {
                PixelImage image = ImageReader.Read(file, "altered", (AlphaTreatment)(i % 3), s_limits);
                Assert.HasCount(image.Width * image.Height * image.Channels, image.Pixels);
                read++;
            }
            catch (ImageFormatException e)
            {
                refused++;
                problems.Add(new string([.. e.Problem.Where(c => !char.IsAsciiDigit(c))]));
            }

            // Pictures as users' own pipelines load them.
            DecodeAlone(file);
            Assert.IsLessThan(20_000, watch.ElapsedMilliseconds, $"alteration {i} of {file.Length} bytes");
        }

        TestContext.WriteLine($"{count} altered files: {read} read, {refused} refused for {problems.Count} reasons");
        Assert.IsGreaterThan(count / 20, read);
        Assert.IsGreaterThan(count / 5, refused);
    }

    private static void DecodeAlone(byte[] file)
    {
        try
        {
            ImageHeader.Read(file, "altered", s_limits);
            using var stream = new MemoryStream(file);
            MLImage.CreateFromStream(stream).Dispose();
        }
        catch (Exception e) when (e is ImageFormatException or ArgumentException)
        {
        }
    }

    private static byte[] Altered(List<byte[]> files, int i, Random random)
    {
        byte[] source = files[i % files.Count];
        List<byte> file = [.. source];
        switch (random.Next(8))
        {
            case 0:
                file = file[..random.Next(file.Count)];
                break;
            case 1:
                int from = random.Next(file.Count);
                file.RemoveRange(from, random.Next(Math.Min(file.Count - from, 40)));
                break;
            case 2:
                int at = random.Next(file.Count);
                file.InsertRange(at, source[random.Next(source.Length)..].Take(random.Next(60)));
                break;
            case 3:
                // The head of one file, the rest of another.
                byte[] other = files[random.Next(files.Count)];
                int cut = random.Next(Math.Min(source.Length, other.Length));
                file = [.. source[..cut], .. other[cut..]];
                break;
        }

        int changes = random.Next(3) == 0 ? 0 : random.Next(1, 9);
        int reach = random.Next(2) == 0 ? Math.Min(64, file.Count) : file.Count;
        for (int c = 0; c < changes && file.Count > 0; c++)
            file[random.Next(reach)] = random.Next(4) switch { 0 => 255, 1 => 0, _ => (byte)random.Next(256) };
        byte[] altered = [.. file];
        if (random.Next(2) == 0) MendPngSums(altered);
        return altered;
    }

    // So that altered chunks are not refused for their check sum alone.
    private static void MendPngSums(byte[] file)
    {
        if (file.Length < 8 || file[0] != 0x89) return;
        for (long at = 8; at + 12 <= file.Length;)
        {
            long length = BinaryPrimitives.ReadUInt32BigEndian(file.AsSpan((int)at));
            if (at + 12 + length > file.Length) return;
            BinaryPrimitives.WriteUInt32BigEndian(file.AsSpan((int)(at + 8 + length)), Crc32.Of(file.AsSpan((int)at + 4, (int)length + 4)));
            at += 12 + length;
        }
    }
}
