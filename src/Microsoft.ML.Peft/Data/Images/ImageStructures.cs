// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>The chunks of a PNG file. What is in them is checked by <see cref="PngReader"/>.</summary>
internal static class PngStructure
{
    public static ImageHeader Read(ImageBytes bytes, ImageLimits limits)
    {
        if (!bytes.Part(0, 8).SequenceEqual((ReadOnlySpan<byte>)[0x89, (byte)'P', (byte)'N', (byte)'G', 13, 10, 26, 10]))
            throw bytes.Corrupt("its first 8 bytes are not PNG's (changed by a transfer as text?)");
        if (!bytes.Part(12, 4).SequenceEqual("IHDR"u8) || bytes.Big32(8) != 13)
            throw bytes.Corrupt("PNG header chunk missing");
        uint width = bytes.Big32(16), height = bytes.Big32(20);
        limits.CheckPixels(width, height, bytes.Name);
        int orientation = 1;
        for (long at = 33; ;)
        {
            uint length = bytes.Big32(at);
            ReadOnlySpan<byte> type = bytes.Part(at + 4, 4), content = bytes.Part(at + 8, length + 4L)[..^4];
            if (type.SequenceEqual("IEND"u8))
                return new ImageHeader(ImageFormat.Png, (int)width, (int)height, orientation);
            if (type.SequenceEqual("eXIf"u8))
                orientation = Orientation.FromTiff(content);
            at += 12L + length;
        }
    }
}

/// <summary>The segments of a JPEG file, to its end marker.</summary>
internal static class JpegStructure
{
    public static ImageHeader Read(ImageBytes bytes, ImageLimits limits)
    {
        int orientation = 1, width = 0, height = 0;
        bool scanned = false;
        for (long at = 2; ;)
        {
            int marker = NextMarker(bytes, ref at);
            if (marker == 0xD9)
                break;
            if (marker is 0x01 or 0xD8 or (>= 0xD0 and <= 0xD7))
                continue;
            int length = bytes.Big16(at);
            if (length < 2)
                throw bytes.Corrupt($"a JPEG segment of length {length} at {at}");
            ReadOnlySpan<byte> content = bytes.Part(at + 2, length - 2);
            if (marker is >= 0xC0 and <= 0xCF and not (0xC4 or 0xC8 or 0xCC) && width == 0)
            {
                (width, height) = Frame(bytes, content);
                limits.CheckPixels(width, height, bytes.Name);
            }
            else if (marker == 0xE1 && content.StartsWith("Exif\0"u8) && content.Length > 6 && orientation == 1)
            {
                orientation = Orientation.FromTiff(content[6..]);
            }

            scanned |= marker == 0xDA;
            at += length;
        }

        if (width == 0 || !scanned)
            throw bytes.Corrupt(width == 0 ? "a JPEG file without a frame header" : "a JPEG file without image data");
        return new ImageHeader(ImageFormat.Jpeg, width, height, orientation);
    }

    private static (int Width, int Height) Frame(ImageBytes bytes, ReadOnlySpan<byte> content)
    {
        if (content.Length < 6)
            throw bytes.Corrupt("a JPEG frame header that is too short");
        if (content[0] != 8)
            throw new ImageFormatException(bytes.Name, $"a JPEG image of {content[0]} bits a sample; 8 are read.");
        return (content[3] << 8 | content[4], content[1] << 8 | content[2]);
    }

    // Skips what is no marker: image data (in which FF is followed by 0 or a restart), and filling.
    private static int NextMarker(ImageBytes bytes, ref long at)
    {
        while (true)
        {
            ReadOnlySpan<byte> rest = bytes.Data[(int)Math.Min(at, bytes.Length)..];
            int found = rest.IndexOf((byte)0xFF);
            if (found < 0 || found + 1 >= rest.Length)
                throw bytes.Truncated("no JPEG end marker among them");
            at += found + 1;
            int marker = rest[found + 1];
            if (marker is 0xFF)
                continue;
            at++;
            if (marker is not (0 or (>= 0xD0 and <= 0xD7)))
                return marker;
        }
    }
}

/// <summary>The chunks of a WebP file.</summary>
internal static class WebPStructure
{
    public static ImageHeader Read(ImageBytes bytes, ImageLimits limits)
    {
        long end = 8L + bytes.Little32(4);
        if (end > bytes.Length)
            throw bytes.Truncated($"WebP's header says {end}");
        int width = 0, height = 0, orientation = 1;
        for (long at = 12; at + 8 <= end;)
        {
            ReadOnlySpan<byte> type = bytes.Part(at, 4);
            long length = bytes.Little32(at + 4);
            ReadOnlySpan<byte> content = bytes.Part(at + 8, length);
            if (width == 0 && Size(type, new ImageBytes(content, bytes.Name)) is { } size)
            {
                (width, height) = size;
                limits.CheckPixels(width, height, bytes.Name);
            }
            else if (type.SequenceEqual("EXIF"u8))
            {
                orientation = Orientation.FromTiff(content.StartsWith("Exif\0\0"u8) ? content[6..] : content);
            }

            at += 8 + length + (length & 1);
        }

        if (width == 0)
            throw bytes.Corrupt("a WebP file without an image");
        return new ImageHeader(ImageFormat.WebP, width, height, orientation);
    }

    private static (int Width, int Height)? Size(ReadOnlySpan<byte> type, ImageBytes content)
    {
        if (type.SequenceEqual("VP8X"u8))
            return (content.Little24(4) + 1, content.Little24(7) + 1);
        if (type.SequenceEqual("VP8L"u8))
            return ((int)(content.Little32(1) & 0x3FFF) + 1, (int)(content.Little32(1) >> 14 & 0x3FFF) + 1);
        if (type.SequenceEqual("VP8 "u8))
            return (content.Little16(6) & 0x3FFF, content.Little16(8) & 0x3FFF);
        return null;
    }
}

/// <summary>The blocks of a GIF file, to the end of its first picture.</summary>
internal static class GifStructure
{
    public static ImageHeader Read(ImageBytes bytes, ImageLimits limits)
    {
        int width = bytes.Little16(6), height = bytes.Little16(8);
        long at = 13 + Table(bytes[10]);
        while (true)
        {
            switch (bytes[at])
            {
                case 0x21:
                    at = SkipBlocks(bytes, at + 2);
                    break;
                case 0x2C:
                    if (bytes.Little16(at + 5) == 0 || bytes.Little16(at + 7) == 0)
                        limits.CheckPixels(bytes.Little16(at + 5), bytes.Little16(at + 7), bytes.Name);
                    width = Math.Max(width, bytes.Little16(at + 1) + bytes.Little16(at + 5));
                    height = Math.Max(height, bytes.Little16(at + 3) + bytes.Little16(at + 7));
                    limits.CheckPixels(width, height, bytes.Name);
                    SkipBlocks(bytes, at + 11 + Table(bytes[at + 9]));
                    return new ImageHeader(ImageFormat.Gif, width, height, 1);
                case 0x3B:
                    throw bytes.Corrupt("a GIF file without a picture");
                default:
                    throw bytes.Corrupt($"a GIF block of the unknown kind {bytes[at]}");
            }
        }
    }

    private static int Table(byte flags) => (flags & 0x80) != 0 ? 3 << ((flags & 7) + 1) : 0;

    private static long SkipBlocks(ImageBytes bytes, long at)
    {
        for (int length; (length = bytes[at]) != 0; at += length + 1)
            bytes.Part(at + 1, length);
        return at + 1;
    }
}

/// <summary>The header of a Windows bitmap.</summary>
internal static class BmpStructure
{
    public static ImageHeader Read(ImageBytes bytes, ImageLimits limits)
    {
        long start = bytes.Little32(10);
        bool old = bytes.Little32(14) == 12;
        long width = old ? bytes.Little16(18) : (int)bytes.Little32(18);
        long height = old ? bytes.Little16(20) : Math.Abs((long)(int)bytes.Little32(22));
        int bits = bytes.Little16(old ? 24 : 28);
        uint compression = old ? 0 : bytes.Little32(30);
        limits.CheckPixels(width, height, bytes.Name);
        long needed = start + (width * bits + 31) / 32 * 4 * height;
        // Run-length coded pixels have no length that could be known before.
        if (compression is not (1 or 2) && needed > bytes.Length)
            throw bytes.Truncated($"its pixels need {needed}");
        return new ImageHeader(ImageFormat.Bmp, (int)width, (int)height, 1);
    }
}
