// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Numerics;

namespace Microsoft.ML.Data;

/// <summary>
/// Windows bitmaps of 1, 4, 8, 16, 24 and 32 bits a pixel, plain, by bit fields or run-length coded. Alpha counts where the
/// header has a mask for it. Rows that are missing at the end stay empty.
/// </summary>
internal static class BmpDecoder
{
    private const int Plain = 0, RunLength8 = 1, RunLength4 = 2, BitFields = 3, AlphaBitFields = 6;

    internal static bool IsBmp(ReadOnlySpan<byte> data) => data.Length >= 26 && data[0] == 'B' && data[1] == 'M';

    internal static bool TryReadInfo(ReadOnlySpan<byte> data, long maxPixels, out ImageCodecs.Info info)
    {
        info = default;
        if (!TryReadHeader(data, out Header header) || (long)header.Width * header.Height > maxPixels)
            return false;
        info.Width = header.Width;
        info.Height = header.Height;
        return true;
    }

    internal static bool TryDecode(ReadOnlySpan<byte> data, Span<byte> pixels)
    {
        if (!TryReadHeader(data, out Header header))
            return false;
        byte[] palette = Palette(data, header);
        if (header.Compression is RunLength8 or RunLength4)
            DecodeRuns(data[header.Start..], header, palette, pixels);
        else
            DecodeRows(data[header.Start..], header, palette, pixels);
        return true;
    }

    private readonly record struct Header(int Width, int Height, bool TopDown, int Bits, int Compression, int Start)
    {
        internal int PaletteStart { get; init; }

        internal int PaletteEntry { get; init; }

        internal int PaletteCount { get; init; }

        internal Channel Red { get; init; }

        internal Channel Green { get; init; }

        internal Channel Blue { get; init; }

        internal Channel Alpha { get; init; }

        internal int Row(int y) => (TopDown ? y : Height - 1 - y) * Width * 4;
    }

    /// <summary>Some bits of a pixel, stretched to 0..255.</summary>
    private readonly record struct Channel(uint Mask)
    {
        private int Shift => BitOperations.TrailingZeroCount(Mask);

        internal byte Of(uint pixel) => (byte)((ulong)((pixel & Mask) >> Shift) * 255 / (Mask >> Shift));
    }

    private static bool TryReadHeader(ReadOnlySpan<byte> data, out Header header)
    {
        header = default;
        int start = Int(data, 10), size = Int(data, 14);
        bool old = size == 12;
        if ((!old && size is < 40 or > 1024) || data.Length < 14 + size || start < 14 + size || start > data.Length)
            return false;
        int width = old ? Short(data, 18) : Int(data, 18), height = old ? Short(data, 20) : Int(data, 22);
        int bits = Short(data, old ? 24 : 28), compression = old ? Plain : Int(data, 30), colours = old ? 0 : Int(data, 46);
        if (width <= 0 || height is 0 or int.MinValue || bits is not (1 or 4 or 8 or 16 or 24 or 32))
            return false;
        bool fields = compression is BitFields or AlphaBitFields && bits is 16 or 32;
        bool runs = (compression == RunLength8 && bits == 8) || (compression == RunLength4 && bits == 4);
        int masks = !fields ? 0 : compression == AlphaBitFields ? 16 : 12;
        if ((compression != Plain && !fields && !runs) || (fields && data.Length < 54 + masks))
            return false;
        header = new Header(width, Math.Abs(height), height < 0, bits, compression, start)
        {
            PaletteStart = 14 + size,
            PaletteEntry = old ? 3 : 4,
            PaletteCount = bits > 8 ? 0 : colours is > 0 and <= 256 ? colours : 1 << bits,
            Red = new(fields ? (uint)Int(data, 54) : bits == 16 ? 0x7C00u : 0xFF0000u),
            Green = new(fields ? (uint)Int(data, 58) : bits == 16 ? 0x3E0u : 0xFF00u),
            Blue = new(fields ? (uint)Int(data, 62) : bits == 16 ? 0x1Fu : 0xFFu),
            Alpha = new(fields && (size >= 56 || masks == 16) && data.Length >= 70 ? (uint)Int(data, 66) : 0),
        };
        return header.Red.Mask != 0 && header.Green.Mask != 0 && header.Blue.Mask != 0;
    }

    // Four bytes an entry, as pixels are; entries that the file lacks are black.
    private static byte[] Palette(ReadOnlySpan<byte> data, Header header)
    {
        byte[] palette = new byte[256 * 4];
        for (int i = 0; i < 256; i++)
        {
            palette[i * 4 + 3] = 255;
            int at = header.PaletteStart + i * header.PaletteEntry;
            if (i >= header.PaletteCount || at + 3 > header.Start)
                continue;
            for (int c = 0; c < 3; c++)
                palette[i * 4 + c] = data[at + 2 - c];
        }

        return palette;
    }

    private static void DecodeRows(ReadOnlySpan<byte> data, Header header, byte[] palette, Span<byte> pixels)
    {
        long stride = ((long)header.Width * header.Bits + 31) / 32 * 4, used = ((long)header.Width * header.Bits + 7) / 8;
        for (int y = 0; y < header.Height && y * stride + used <= data.Length; y++)
        {
            ReadOnlySpan<byte> row = data.Slice((int)(y * stride), (int)used);
            Span<byte> target = pixels.Slice(header.Row(y), header.Width * 4);
            if (header.Bits <= 8)
                FromPalette(row, header.Bits, palette, target);
            else if (header.Bits == 24)
                FromBytes(row, target);
            else
                FromFields(row, header, target);
        }
    }

    private static void FromPalette(ReadOnlySpan<byte> row, int bits, byte[] palette, Span<byte> target)
    {
        int mask = (1 << bits) - 1;
        for (int x = 0, bit = 0; x < target.Length; x += 4, bit += bits)
            palette.AsSpan((row[bit >> 3] >> (8 - bits - (bit & 7)) & mask) * 4, 4).CopyTo(target[x..]);
    }

    private static void FromBytes(ReadOnlySpan<byte> row, Span<byte> target)
    {
        for (int x = 0, from = 0; x < target.Length; x += 4, from += 3)
        {
            target[x + 3] = 255;
            target[x + 2] = row[from];
            target[x + 1] = row[from + 1];
            target[x] = row[from + 2];
        }
    }

    private static void FromFields(ReadOnlySpan<byte> row, Header header, Span<byte> target)
    {
        int size = header.Bits / 8;
        for (int x = 0, from = 0; x < target.Length; x += 4, from += size)
        {
            uint pixel = size == 2 ? (uint)Short(row, from) : (uint)Int(row, from);
            int alpha = header.Alpha.Mask == 0 ? 255 : header.Alpha.Of(pixel);
            target[x] = Multiplied(header.Red.Of(pixel), alpha);
            target[x + 1] = Multiplied(header.Green.Of(pixel), alpha);
            target[x + 2] = Multiplied(header.Blue.Of(pixel), alpha);
            target[x + 3] = (byte)alpha;
        }
    }

    private static byte Multiplied(int colour, int alpha) => (byte)((colour * alpha + 127) / 255);

    // Pairs of (count, index); count 0 is an escape: end of line, end of picture, a jump, or that many plain indices.
    private static void DecodeRuns(ReadOnlySpan<byte> data, Header header, byte[] palette, Span<byte> pixels)
    {
        bool half = header.Compression == RunLength4;
        int x = 0, y = 0, at = 0;
        while (at + 1 < data.Length && y < header.Height)
        {
            int count = data[at], value = data[at + 1];
            at += 2;
            if (count > 0)
            {
                for (int i = 0; i < count; i++)
                    Put(half ? ((i & 1) == 0 ? value >> 4 : value & 15) : value, pixels);
            }
            else if (value == 0)
            {
                (x, y) = (0, y + 1);
            }
            else if (value == 1)
            {
                break;
            }
            else if (value == 2)
            {
                if (at + 1 >= data.Length)
                    break;
                x = Math.Min(x + data[at], header.Width);
                y += data[at + 1];
                at += 2;
            }
            else
            {
                int bytes = half ? (value + 1) / 2 : value;
                if (at + bytes > data.Length)
                    break;
                for (int i = 0; i < value; i++)
                    Put(half ? ((i & 1) == 0 ? data[at + i / 2] >> 4 : data[at + i / 2] & 15) : data[at + i], pixels);
                at += bytes + (bytes & 1);
            }
        }

        void Put(int index, Span<byte> target)
        {
            if (x < header.Width)
                palette.AsSpan(index * 4, 4).CopyTo(target[(header.Row(y) + x++ * 4)..]);
        }
    }

    private static int Int(ReadOnlySpan<byte> data, int at) => BinaryPrimitives.ReadInt32LittleEndian(data[at..]);

    private static int Short(ReadOnlySpan<byte> data, int at) => BinaryPrimitives.ReadUInt16LittleEndian(data[at..]);
}
