// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.IO.Compression;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>Labelled images of a public data set, as the network reads them.</summary>
/// <param name="Pixels">[images, 3, side, side], scaled to -1 .. 1.</param>
/// <param name="Labels">Class numbers.</param>
internal sealed record ImageSet(float[] Pixels, int[] Labels)
{
    /// <summary>Reads MNIST's format: grey images, laid in the middle of a black square.</summary>
    /// <param name="images">idx3 file, gzipped.</param>
    /// <param name="labels">idx1 file, gzipped.</param>
    /// <param name="side">Width and height wanted, at least the file's.</param>
    /// <param name="most">Images to read at most.</param>
    public static ImageSet Idx(string images, string labels, int side, int most)
    {
        byte[] picture = Unpack(images), label = Unpack(labels);
        int count = Math.Min(most, BinaryPrimitives.ReadInt32BigEndian(picture.AsSpan(4)));
        int height = BinaryPrimitives.ReadInt32BigEndian(picture.AsSpan(8)), width = BinaryPrimitives.ReadInt32BigEndian(picture.AsSpan(12));
        int plane = side * side, left = (side - width) / 2, top = (side - height) / 2;
        var pixels = new float[count * 3 * plane];
        Array.Fill(pixels, -1f);
        for (int i = 0; i < count; i++)
            for (int y = 0; y < height; y++)
                for (int x = 0; x < width; x++)
                    for (int c = 0; c < 3; c++)
                        pixels[(i * 3 + c) * plane + (y + top) * side + x + left] = picture[16 + (i * height + y) * width + x] / 127.5f - 1;
        return new ImageSet(pixels, [.. label.Skip(8).Take(count).Select(b => (int)b)]);
    }

    /// <summary>Reads a zip of pictures in class folders; each is resized to the side wanted.</summary>
    /// <param name="zip">The zip; the folder above a file is its class.</param>
    /// <param name="side">Width and height wanted.</param>
    /// <param name="most">Images to read at most, the same number of each class.</param>
    public static ImageSet Pictures(string zip, int side, int most)
    {
        using ZipArchive archive = ZipFile.OpenRead(zip);
        IGrouping<string, ZipArchiveEntry>[] classes = [.. archive.Entries.Where(e => e.Length > 0).OrderBy(e => e.FullName, StringComparer.Ordinal).GroupBy(e => Path.GetDirectoryName(e.FullName)!)];
        var pixels = new List<float>();
        var labels = new List<int>();
        for (int label = 0; label < classes.Length; label++)
        {
            foreach (ZipArchiveEntry entry in classes[label].Take(most / classes.Length))
            {
                using Stream stream = entry.Open();
                using var memory = new MemoryStream();
                stream.CopyTo(memory);
                PixelImage image = ImageResizer.Resize(ImageReader.Read(memory.ToArray(), entry.FullName), side, side, ResizeFilter.Bilinear);
                for (int c = 0; c < 3; c++)
                    for (int i = 0; i < side * side; i++) pixels.Add(image.Pixels[i * 3 + c] / 127.5f - 1);
                labels.Add(label);
            }
        }
        return new ImageSet([.. pixels], [.. labels]);
    }

    private static byte[] Unpack(string path)
    {
        using var file = new GZipStream(File.OpenRead(path), CompressionMode.Decompress);
        using var memory = new MemoryStream();
        file.CopyTo(memory);
        return memory.ToArray();
    }
}
