// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.IO.Compression;
using System.Text;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Small pictures and sounds of three kinds, written by this class alone, in a folder that all tests of the process read.</summary>
internal static class TinyMedia
{
    private const int Variants = 20, Rate = 16_000;

    private static readonly Lazy<string> _folder = new(() =>
    {
        string folder = Directory.CreateTempSubdirectory("tiny-media").FullName;
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Directory.Delete(folder, recursive: true);
        return folder;
    });

    private static readonly ConcurrentDictionary<string, bool> _written = new();

    public static string Folder => _folder.Value;

    /// <summary>Path of a picture: mostly red, green or blue, with noise.</summary>
    public static string Picture(int kind, int variant) => File($"{kind}-{variant % Variants}.png", path => System.IO.File.WriteAllBytes(path, Png(kind, variant % Variants)));

    /// <summary>Path of a sound: a low tone, a high tone, or noise.</summary>
    public static string Sound(int kind, int variant) => File($"{kind}-{variant % Variants}.wav", path => System.IO.File.WriteAllBytes(path, Wav(Samples(kind, variant % Variants))));

    private static string File(string name, Action<string> write)
    {
        string path = Path.Combine(Folder, name);
        lock (_written)
            if (_written.TryAdd(name, true)) write(path);
        return path;
    }

    /// <summary>A PNG file of a kind, a little larger than high or the other way round.</summary>
    public static byte[] Png(int kind, int variant)
    {
        var random = new Random(100 * kind + variant);
        int width = 16 + random.Next(12), height = 16 + random.Next(12);
        byte[] pixels = new byte[width * height * 3];
        for (int i = 0; i < pixels.Length; i++) pixels[i] = (byte)(random.Next(110) + (i % 3 == kind ? 120 : 0));
        return Png(width, height, pixels);
    }

    /// <summary>A PNG file of red, green and blue samples.</summary>
    public static byte[] Png(int width, int height, byte[] pixels)
    {
        using var file = new MemoryStream();
        file.Write([0x89, (byte)'P', (byte)'N', (byte)'G', 13, 10, 26, 10]);
        byte[] header = new byte[13];
        BinaryPrimitives.WriteInt32BigEndian(header, width);
        BinaryPrimitives.WriteInt32BigEndian(header.AsSpan(4), height);
        (header[8], header[9]) = (8, 2);
        Chunk(file, "IHDR", header);
        using var packed = new MemoryStream();
        using (var zlib = new ZLibStream(packed, CompressionLevel.Fastest))
        {
            for (int y = 0; y < height; y++)
            {
                zlib.WriteByte(0);
                zlib.Write(pixels, y * width * 3, width * 3);
            }
        }
        Chunk(file, "IDAT", packed.ToArray());
        Chunk(file, "IEND", []);
        return file.ToArray();
    }

    private static void Chunk(Stream file, string name, byte[] content)
    {
        byte[] body = [.. Encoding.ASCII.GetBytes(name), .. content], number = new byte[4];
        BinaryPrimitives.WriteInt32BigEndian(number, content.Length);
        file.Write(number);
        file.Write(body);
        BinaryPrimitives.WriteUInt32BigEndian(number, Crc(body));
        file.Write(number);
    }

    private static uint Crc(byte[] bytes)
    {
        uint crc = uint.MaxValue;
        foreach (byte value in bytes)
        {
            crc ^= value;
            for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) * 0xEDB88320u);
        }
        return ~crc;
    }

    /// <summary>Samples of a kind, a third of a second and more.</summary>
    public static float[] Samples(int kind, int variant)
    {
        var random = new Random(100 * kind + variant);
        float[] samples = new float[5200 + random.Next(2000)];
        double turn = 2 * Math.PI * (kind == 0 ? 250 + random.Next(60) : 2200 + random.Next(300)) / Rate;
        for (int i = 0; i < samples.Length; i++)
            samples[i] = (float)(kind == 2 ? random.NextDouble() - 0.5 : (0.5 * Math.Sin(turn * i)) + (0.02 * (random.NextDouble() - 0.5)));
        return samples;
    }

    /// <summary>A WAV file of 16-bit samples.</summary>
    public static byte[] Wav(float[] samples, int rate = Rate)
    {
        using var file = new MemoryStream();
        using var writer = new BinaryWriter(file);
        writer.Write("RIFF"u8);
        writer.Write(36 + (2 * samples.Length));
        writer.Write("WAVEfmt "u8);
        writer.Write(16);
        writer.Write((short)1);
        writer.Write((short)1);
        writer.Write(rate);
        writer.Write(2 * rate);
        writer.Write((short)2);
        writer.Write((short)16);
        writer.Write("data"u8);
        writer.Write(2 * samples.Length);
        foreach (float sample in samples) writer.Write((short)Math.Clamp(MathF.Round(sample * 32767), -32768, 32767));
        writer.Flush();
        return file.ToArray();
    }
}
