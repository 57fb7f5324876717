// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;

namespace Microsoft.ML.Peft.Data;

/// <summary>The kinds of files that are read.</summary>
internal enum ImageFormat
{
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
}

/// <summary>
/// What a file's own structure says before anything is decoded: kind, size, orientation, and that it is whole. Decoders
/// take files that end early and give empty rows; here they are refused.
/// </summary>
/// <param name="Format">The kind.</param>
/// <param name="Width">Stored pixels in a row.</param>
/// <param name="Height">Stored rows.</param>
/// <param name="Orientation">The EXIF orientation, 1 to 8; 1 where the file says nothing.</param>
internal readonly record struct ImageHeader(ImageFormat Format, int Width, int Height, int Orientation)
{
    /// <summary>Reads the structure of a file.</summary>
    /// <param name="data">The whole file.</param>
    /// <param name="name">Where it came from, for messages.</param>
    /// <param name="limits">How large it may be.</param>
    /// <exception cref="ImageFormatException">Not an image, damaged, incomplete, empty or too large.</exception>
    public static ImageHeader Read(ReadOnlySpan<byte> data, string name, ImageLimits limits)
    {
        limits.CheckBytes(data.Length, name);
        var bytes = new ImageBytes(data, name);
        if (data.StartsWith((ReadOnlySpan<byte>)[0x89, (byte)'P', (byte)'N', (byte)'G']))
            return PngStructure.Read(bytes, limits);
        if (data.StartsWith((ReadOnlySpan<byte>)[0xFF, 0xD8, 0xFF]))
            return JpegStructure.Read(bytes, limits);
        if (data.StartsWith("RIFF"u8) && data.Length >= 12 && data[8..].StartsWith("WEBP"u8))
            return WebPStructure.Read(bytes, limits);
        if (data.StartsWith("GIF87a"u8) || data.StartsWith("GIF89a"u8))
            return GifStructure.Read(bytes, limits);
        if (data.StartsWith("BM"u8))
            return BmpStructure.Read(bytes, limits);
        throw new ImageFormatException(name, $"{Describe(data)}; images are read as PNG, JPEG, WebP, GIF or BMP, whatever the name ends with.");
    }

    private static string Describe(ReadOnlySpan<byte> data)
    {
        foreach (var (start, at, kind) in Others)
            if (data.Length >= at + start.Length && data[at..].StartsWith(Encoding.Latin1.GetBytes(start)))
                return $"the content is {kind}";
        ReadOnlySpan<byte> first = data[..Math.Min(data.Length, 8)];
        if (first.IndexOfAnyExceptInRange((byte)' ', (byte)'~') < 0)
            return $"the content is no image: it begins with '{Encoding.ASCII.GetString(first)}'";
        return $"the content is no image: it begins with the bytes {Convert.ToHexString(first)}";
    }

    private static readonly (string Start, int At, string Kind)[] Others =
    [
        ("II*\0", 0, "a TIFF image, which is not read"), ("MM\0*", 0, "a TIFF image, which is not read"),
        ("ftypavif", 4, "an AVIF image, which is not read"), ("ftyphei", 4, "a HEIC image, which is not read"), ("ftypmif1", 4, "a HEIF image, which is not read"),
        ("\0\0\x01\0", 0, "an icon, which is not read"), ("8BPS", 0, "a Photoshop file, which is not read"), ("\0\0\0\x0CjP  ", 0, "a JPEG 2000 image, which is not read"),
        ("\xFF\x0A", 0, "a JPEG XL image, which is not read"), ("<svg", 0, "an SVG drawing, which is not read"), ("<?xml", 0, "XML text, no image"),
        ("<!DOCTYPE", 0, "a web page, no image"), ("<html", 0, "a web page, no image"), ("%PDF", 0, "a PDF document, no image"), ("PK\x03\x04", 0, "a zip archive, no image"),
        ("\x1F\x8B", 0, "gzip-compressed data, no image"), ("version https://git-lfs", 0, "a Git LFS pointer, no image: fetch the file itself"),
    ];
}

/// <summary>A file's bytes with checked access: what lies beyond the end is a complaint that names the file.</summary>
internal readonly ref struct ImageBytes(ReadOnlySpan<byte> data, string name)
{
    public ReadOnlySpan<byte> Data { get; } = data;

    public string Name { get; } = name;

    public int Length => Data.Length;

    public byte this[long at] => Part(at, 1)[0];

    public ReadOnlySpan<byte> Part(long at, long count)
    {
        if (at < 0 || count < 0 || at + count > Data.Length)
            throw Truncated($"{count} bytes from {at} on are missing");
        return Data.Slice((int)at, (int)count);
    }

    public uint Big32(long at) => System.Buffers.Binary.BinaryPrimitives.ReadUInt32BigEndian(Part(at, 4));

    public int Big16(long at) => System.Buffers.Binary.BinaryPrimitives.ReadUInt16BigEndian(Part(at, 2));

    public uint Little32(long at) => System.Buffers.Binary.BinaryPrimitives.ReadUInt32LittleEndian(Part(at, 4));

    public int Little16(long at) => System.Buffers.Binary.BinaryPrimitives.ReadUInt16LittleEndian(Part(at, 2));

    public int Little24(long at) => Little16(at) | this[at + 2] << 16;

    public ImageFormatException Truncated(string what) => new(Name, $"the file is truncated: it has {Length} bytes, {what}.");

    public ImageFormatException Corrupt(string what) => new(Name, $"the file is damaged: {what}.");
}
