// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.IO.Compression;

namespace Microsoft.ML.Data;

/// <summary>Writes pixels as a PNG file of 8-bit colours with alpha.</summary>
internal static class PngWriter
{
    private static readonly uint[] _crcTable = Enumerable.Range(0, 256).Select(Remainder).ToArray();

    internal static void Write(string path, int width, int height, ReadOnlySpan<byte> pixels, bool blueFirst)
    {
        using var file = new FileStream(path, FileMode.Create, FileAccess.Write);
        file.Write([0x89, (byte)'P', (byte)'N', (byte)'G', 13, 10, 26, 10]);
        Span<byte> header = stackalloc byte[13];
        BinaryPrimitives.WriteInt32BigEndian(header, width);
        BinaryPrimitives.WriteInt32BigEndian(header[4..], height);
        header[8] = 8;
        header[9] = 6;
        Chunk(file, "IHDR"u8, header);
        Chunk(file, "IDAT"u8, Compressed(width, height, pixels, blueFirst));
        Chunk(file, "IEND"u8, []);
    }

    private static byte[] Compressed(int width, int height, ReadOnlySpan<byte> pixels, bool blueFirst)
    {
        using var target = new MemoryStream();
        using (var deflate = new ZLibStream(target, CompressionLevel.Optimal))
        {
            byte[] line = new byte[1 + width * 4];
            for (int y = 0; y < height; y++)
            {
                ReadOnlySpan<byte> row = pixels.Slice(y * width * 4, width * 4);
                for (int i = 0; i < row.Length; i += 4)
                    Divided(row.Slice(i, 4), line.AsSpan(1 + i, 4), blueFirst);
                deflate.Write(line);
            }
        }

        return target.ToArray();
    }

    // The file holds colours that are not multiplied by alpha.
    private static void Divided(ReadOnlySpan<byte> from, Span<byte> to, bool blueFirst)
    {
        int alpha = from[3];
        for (int c = 0; c < 3; c++)
            to[c] = alpha == 0 ? (byte)0 : (byte)Math.Min((from[blueFirst ? 2 - c : c] * 255 + alpha / 2) / alpha, 255);
        to[3] = (byte)alpha;
    }

    private static void Chunk(Stream file, ReadOnlySpan<byte> name, ReadOnlySpan<byte> content)
    {
        Span<byte> number = stackalloc byte[4];
        BinaryPrimitives.WriteInt32BigEndian(number, content.Length);
        file.Write(number);
        file.Write(name);
        file.Write(content);
        BinaryPrimitives.WriteUInt32BigEndian(number, ~Crc(Crc(uint.MaxValue, name), content));
        file.Write(number);
    }

    private static uint Crc(uint crc, ReadOnlySpan<byte> bytes)
    {
        foreach (byte b in bytes)
            crc = _crcTable[(byte)crc ^ b] ^ crc >> 8;
        return crc;
    }

    private static uint Remainder(int value)
    {
        uint crc = (uint)value;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 1) != 0 ? 0xEDB88320 ^ crc >> 1 : crc >> 1;
        return crc;
    }
}
