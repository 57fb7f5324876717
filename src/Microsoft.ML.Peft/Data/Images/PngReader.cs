// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.IO.Compression;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// The samples of a PNG file as they are stored: <see cref="Samples"/> holds a byte for each sample of up to 8 bits (not
/// scaled: palette indices stay indices), two, the high one first, for one of 16.
/// </summary>
/// <remarks>
/// PNG is read here and not through <c>MLImage</c>, which hands out colours that are multiplied by alpha and palettes that
/// are applied: neither the colours under transparency nor the indices of a label map can be had from it.
/// </remarks>
internal sealed class PngReader
{
    private const int Grey = 0, Rgb = 2, Indexed = 3, GreyAlpha = 4, Rgba = 6;

    private static readonly (int X, int Y, int StepX, int StepY)[] Passes =
        [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)];

    private readonly string _name;
    private readonly bool _interlaced;
    private readonly List<(int Start, int Length)> _parts = [];

    private PngReader(byte[] data, string name, ImageLimits limits)
    {
        _name = name;
        var bytes = new ImageBytes(data, name);
        Header = PngStructure.Read(bytes, limits);
        Depth = bytes[24];
        ColorType = bytes[25];
        _interlaced = bytes[28] == 1;
        bool known = ColorType switch
        {
            Grey => Depth is 1 or 2 or 4 or 8 or 16,
            Indexed => Depth is 1 or 2 or 4 or 8,
            Rgb or GreyAlpha or Rgba => Depth is 8 or 16,
            _ => false,
        };
        if (!known || bytes[26] != 0 || bytes[27] != 0 || bytes[28] > 1)
            throw bytes.Corrupt($"a PNG header of colour type {ColorType}, depth {Depth}, methods {bytes[26]}, {bytes[27]}, {bytes[28]}");
        FindChunks(bytes);
        Samples = new byte[checked(Width * Height * Channels * SampleBytes)];
        using Stream pixels = Inflated(data);
        Decode(pixels);
    }

    public ImageHeader Header { get; }

    public int Width => Header.Width;

    public int Height => Header.Height;

    /// <summary>Bits of a sample: 1, 2, 4, 8 or 16.</summary>
    public int Depth { get; }

    /// <summary>PNG's number of what a pixel is made of.</summary>
    public int ColorType { get; }

    /// <summary>Samples of a pixel: 1 (grey, index), 2 (grey, alpha), 3, 4.</summary>
    public int Channels => ColorType switch { Rgb => 3, GreyAlpha => 2, Rgba => 4, _ => 1 };

    public bool IsIndexed => ColorType == Indexed;

    /// <summary>Bytes of a sample in <see cref="Samples"/>: 1 or 2.</summary>
    public int SampleBytes => Depth == 16 ? 2 : 1;

    /// <summary>[height, width, channels, bytes of a sample].</summary>
    public byte[] Samples { get; }

    /// <summary>Red, green, blue of each index; empty where there are none.</summary>
    public byte[] Palette { get; private set; } = [];

    /// <summary>The chunk of transparency: alpha of each index, or the one colour that is transparent; null where there is none.</summary>
    public byte[]? Transparency { get; private set; }

    /// <summary>Reads a file.</summary>
    /// <exception cref="ImageFormatException">It is damaged, incomplete, or beyond the limits.</exception>
    public static PngReader Read(byte[] data, string name, ImageLimits limits) => new(data, name, limits);

    private void FindChunks(ImageBytes bytes)
    {
        CheckSum(bytes, 8, 13);
        for (long at = 33; ;)
        {
            int length = (int)bytes.Big32(at);
            ReadOnlySpan<byte> type = bytes.Part(at + 4, 4);
            if (type.SequenceEqual("IEND"u8))
                break;
            if (type.SequenceEqual("IDAT"u8))
            {
                // The sum over all of these is part of what is inflated.
                if (length > 0)
                    _parts.Add(((int)at + 8, length));
            }
            else if (type.SequenceEqual("PLTE"u8) && IsIndexed)
            {
                CheckSum(bytes, at, length);
                Palette = bytes.Part(at + 8, length).ToArray();
            }
            else if (type.SequenceEqual("tRNS"u8) && ColorType <= Indexed)
            {
                CheckSum(bytes, at, length);
                Transparency = bytes.Part(at + 8, length).ToArray();
            }
            else if (type[0] is >= (byte)'A' and <= (byte)'Z' && !type.SequenceEqual("PLTE"u8))
            {
                throw bytes.Corrupt("a chunk of an unknown kind that may not be passed over");
            }

            at += 12L + length;
        }

        if (_parts.Count == 0)
            throw bytes.Corrupt("a PNG file without image data");
        if (IsIndexed && Palette.Length < 3)
            throw bytes.Corrupt("a PNG file of palette colours without a palette");
        if (Transparency is not null && !IsIndexed && Transparency.Length < 2 * Channels)
            Transparency = null;
    }

    private static void CheckSum(ImageBytes bytes, long at, int length)
    {
        if (Crc32.Of(bytes.Part(at + 4, length + 4L)) != bytes.Big32(at + 8 + length))
            throw bytes.Corrupt($"the check sum of a PNG chunk at {at} is wrong");
    }

    private Stream Inflated(byte[] data)
    {
        Stream packed;
        if (_parts is [var only])
        {
            packed = new MemoryStream(data, only.Start, only.Length, writable: false);
        }
        else
        {
            byte[] all = new byte[_parts.Sum(part => part.Length)];
            int to = 0;
            foreach (var (start, length) in _parts)
            {
                data.AsSpan(start, length).CopyTo(all.AsSpan(to));
                to += length;
            }

            packed = new MemoryStream(all, writable: false);
        }

        return new ZLibStream(packed, CompressionMode.Decompress);
    }

    private void Decode(Stream pixels)
    {
        try
        {
            if (_interlaced)
            {
                foreach (var (x, y, stepX, stepY) in Passes)
                    DecodePass(pixels, x, y, stepX, stepY);
            }
            else
            {
                DecodePass(pixels, 0, 0, 1, 1);
            }

            // Reading on to the end checks the sum over everything.
            pixels.ReadByte();
        }
        catch (InvalidDataException e)
        {
            throw new ImageFormatException(_name, $"the file is damaged: its pixels cannot be unpacked ({e.Message.TrimEnd('.')}).", e);
        }
    }

    private void DecodePass(Stream pixels, int left, int top, int stepX, int stepY)
    {
        int width = (Width - left + stepX - 1) / stepX, height = (Height - top + stepY - 1) / stepY;
        if (width <= 0 || height <= 0)
            return;
        int bits = Channels * Depth, length = checked((int)(((long)width * bits + 7) / 8));
        byte[] line = new byte[1 + length], above = new byte[1 + length];
        for (int y = 0; y < height; y++)
        {
            if (pixels.ReadAtLeast(line, line.Length, throwOnEndOfStream: false) < line.Length)
                throw new ImageFormatException(_name, $"the file is truncated: its pixels end in row {top + y * stepY} of {Height}.");
            if (!PngFilter.Undo(line[0], line.AsSpan(1), above.AsSpan(1), Math.Max(bits / 8, 1)))
                throw new ImageFormatException(_name, $"the file is damaged: a PNG row filter of the kind {line[0]}.");
            Place(line.AsSpan(1), width, (top + y * stepY) * Width + left, stepX);
            (line, above) = (above, line);
        }
    }

    // A row's samples to their places, unpacked where several share a byte.
    private void Place(ReadOnlySpan<byte> line, int width, int first, int step)
    {
        int size = Channels * SampleBytes;
        if (Depth < 8)
        {
            int mask = (1 << Depth) - 1;
            for (int x = 0, bit = 0; x < width; x++, bit += Depth)
                Samples[first + x * step] = (byte)(line[bit >> 3] >> (8 - Depth - (bit & 7)) & mask);
        }
        else if (step == 1)
        {
            line.CopyTo(Samples.AsSpan(first * size));
        }
        else
        {
            for (int x = 0; x < width; x++)
                line.Slice(x * size, size).CopyTo(Samples.AsSpan((first + x * step) * size));
        }
    }
}
