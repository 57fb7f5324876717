// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Reads images: PNG (every kind), JPEG, WebP, GIF (the first picture) and BMP, recognised by their content whatever the
/// name ends with. Size, completeness and EXIF orientation are read from the file before anything is decoded; the picture
/// comes out upright, in red, green and blue.
/// </summary>
public static class ImageReader
{
    /// <summary>Reads a file.</summary>
    /// <param name="path">The file.</param>
    /// <param name="alpha">What becomes of transparency.</param>
    /// <param name="limits">How large it may be; <see cref="ImageLimits.Default"/> where null.</param>
    /// <exception cref="ImageFormatException">The file cannot be read, or is no image, damaged, incomplete, empty or too large; the message names it.</exception>
    public static PixelImage Read(string path, AlphaTreatment alpha = AlphaTreatment.White, ImageLimits? limits = null) =>
        Read(ReadFile(path, limits ?? ImageLimits.Default), path, alpha, limits);

    /// <summary>Reads the bytes of a file.</summary>
    /// <param name="encoded">The whole file.</param>
    /// <param name="name">What to call it in messages: a path, a row and column.</param>
    /// <param name="alpha">What becomes of transparency.</param>
    /// <param name="limits">How large it may be; <see cref="ImageLimits.Default"/> where null.</param>
    /// <exception cref="ImageFormatException">No image, damaged, incomplete, empty or too large.</exception>
    public static PixelImage Read(ReadOnlySpan<byte> encoded, string name, AlphaTreatment alpha = AlphaTreatment.White, ImageLimits? limits = null) =>
        Read(encoded.ToArray(), name, alpha, limits);

    /// <inheritdoc cref="Read(ReadOnlySpan{byte}, string, AlphaTreatment, ImageLimits?)"/>
    public static PixelImage Read(byte[] encoded, string name, AlphaTreatment alpha = AlphaTreatment.White, ImageLimits? limits = null)
    {
        ArgumentNullException.ThrowIfNull(encoded);
        ArgumentNullException.ThrowIfNull(name);
        limits ??= ImageLimits.Default;
        ImageHeader header = ImageHeader.Read(encoded, name, limits);
        PixelImage image = header.Format == ImageFormat.Png
            ? PngPixels.ToImage(PngReader.Read(encoded, name, limits), alpha)
            : Decode(encoded, name, alpha);
        return Orientation.Apply(image, header.Orientation);
    }

    /// <summary>
    /// Takes a decoded image over. Its pixels are taken to be multiplied by alpha, as an <see cref="MLImage"/> that was read
    /// from a file holds them; what a file said of its orientation is lost by then.
    /// </summary>
    /// <param name="image">The image; it stays with its owner.</param>
    /// <param name="name">What to call it in messages: a row and column.</param>
    /// <param name="alpha">What becomes of transparency.</param>
    /// <exception cref="ImageFormatException">It has another format than four bytes a pixel, or is disposed.</exception>
    public static PixelImage Read(MLImage image, string name, AlphaTreatment alpha = AlphaTreatment.White)
    {
        ArgumentNullException.ThrowIfNull(image);
        ArgumentNullException.ThrowIfNull(name);
        try
        {
            if (image.PixelFormat is not (MLPixelFormat.Rgba32 or MLPixelFormat.Bgra32) || image.BitsPerPixel != 32)
                throw new ImageFormatException(name, $"pixels in the format {image.PixelFormat} of {image.BitsPerPixel} bits; Rgba32 and Bgra32 are read.");
            return PremultipliedPixels.ToImage(image.Pixels, image.Width, image.Height, image.PixelFormat == MLPixelFormat.Bgra32, alpha);
        }
        catch (InvalidOperationException e)
        {
            throw new ImageFormatException(name, "the image was disposed before it was read.", e);
        }
    }

    /// <summary>
    /// Reads a label map: one channel, in which each value is a class. PNG alone, as other formats do not keep values
    /// exactly; palette indices are not turned into colours.
    /// </summary>
    /// <param name="path">The file.</param>
    /// <param name="limits">How large it may be; <see cref="ImageLimits.Default"/> where null.</param>
    /// <exception cref="ImageFormatException">Not such a file.</exception>
    public static PixelImage ReadLabels(string path, ImageLimits? limits = null)
    {
        limits ??= ImageLimits.Default;
        byte[] encoded = ReadFile(path, limits);
        ImageHeader header = ImageHeader.Read(encoded, path, limits);
        if (header.Format != ImageFormat.Png)
            throw new ImageFormatException(path, $"a label map is a PNG file, not {header.Format}, which does not keep values exactly.");
        return Orientation.Apply(PngPixels.ToIndices(PngReader.Read(encoded, path, limits), path), header.Orientation);
    }

    private static byte[] ReadFile(string path, ImageLimits limits)
    {
        ArgumentNullException.ThrowIfNull(path);
        try
        {
            limits.CheckBytes(LinkedFile.Length(new FileInfo(path)), path);
            return File.ReadAllBytes(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException)
        {
            throw new ImageFormatException(path, e is FileNotFoundException or DirectoryNotFoundException ? "there is no such file." : e.Message, e);
        }
    }

    private static PixelImage Decode(byte[] encoded, string name, AlphaTreatment alpha)
    {
        MLImage image;
        try
        {
            using var stream = new MemoryStream(encoded, 0, encoded.Length, writable: false, publiclyVisible: true);
            image = MLImage.CreateFromStream(stream);
        }
        catch (Exception e) when (e is ArgumentException or InvalidOperationException or FormatException or ExternalException or OverflowException)
        {
            throw new ImageFormatException(name, "the file is damaged: its pixels cannot be decoded.", e);
        }

        using (image)
            return Read(image, name, alpha);
    }
}
