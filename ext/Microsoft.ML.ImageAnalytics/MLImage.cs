// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;

namespace Microsoft.ML.Data;

/// <summary>
/// A decoded picture: four bytes a pixel, rows from the top, colours multiplied by alpha. Data that end early give the rows
/// that are there, and nothing (zeros) below them.
/// </summary>
public sealed class MLImage : IDisposable
{
    private static readonly HashSet<string> _extensions = new(StringComparer.OrdinalIgnoreCase)
    {
        ".bmp", ".png", ".jpg", ".jpeg", ".gif", ".ico", ".astc", ".avif", ".dng", ".heif", ".ktx", ".pkm", ".wbmp", ".webp",
    };

    private readonly int _width, _height;
    private readonly MLPixelFormat _format;
    private PixelMemory _pixels;
    private string _tag;

    private MLImage(PixelMemory pixels, int width, int height, MLPixelFormat format)
    {
        _pixels = pixels;
        _width = width;
        _height = height;
        _format = format;
    }

    public int Width => Alive(_width);

    public int Height => Alive(_height);

    public int BitsPerPixel => Alive(32);

    public MLPixelFormat PixelFormat => Alive(_format);

    public ReadOnlySpan<byte> Pixels => Alive(_pixels).Span;

    public string Tag
    {
        get => Alive(_tag);
        set => _tag = Alive(value);
    }

    public byte[] GetBGRPixels
    {
        get
        {
            ReadOnlySpan<byte> pixels = Pixels;
            byte[] bgr = new byte[pixels.Length / 4 * 3];
            int blue = _format == MLPixelFormat.Bgra32 ? 0 : 2;
            for (int from = 0, to = 0; from < pixels.Length; from += 4, to += 3)
            {
                // Colours are handed out as they were before they were multiplied by alpha.
                int alpha = pixels[from + 3];
                bgr[to] = Divided(pixels[from + blue], alpha);
                bgr[to + 1] = Divided(pixels[from + 1], alpha);
                bgr[to + 2] = Divided(pixels[from + 2 - blue], alpha);
            }

            return bgr;
        }
    }

    public static MLImage CreateFromFile(string imagePath)
    {
        ArgumentNullException.ThrowIfNull(imagePath);
        byte[] encoded;
        try
        {
            encoded = File.ReadAllBytes(imagePath);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new ArgumentException("Invalid path", nameof(imagePath));
        }

        return Decode(encoded) ?? throw new ArgumentException("Invalid path", nameof(imagePath));
    }

    public static MLImage CreateFromStream(Stream imageStream)
    {
        ArgumentNullException.ThrowIfNull(imageStream);
        return Decode(ReadAll(imageStream)) ?? throw new ArgumentException("Invalid input stream contents", nameof(imageStream));
    }

    public static MLImage CreateFromPixels(int width, int height, MLPixelFormat pixelFormat, ReadOnlySpan<byte> imagePixelData)
    {
        if (pixelFormat is not (MLPixelFormat.Bgra32 or MLPixelFormat.Rgba32))
            throw new ArgumentException("Unsupported pixel format", nameof(pixelFormat));
        if (width <= 0)
            throw new ArgumentException("Invalid width value.", nameof(width));
        if (height <= 0)
            throw new ArgumentException("Invalid height value.", nameof(height));
        if (imagePixelData.Length != (long)width * height * 4)
            throw new ArgumentException($"Invalid {nameof(imagePixelData)} buffer size.");
        var pixels = new PixelMemory(imagePixelData.Length);
        imagePixelData.CopyTo(pixels.Span);
        return new MLImage(pixels, width, height, pixelFormat);
    }

    public void Save(string imagePath)
    {
        Alive(this);
        string extension = Path.GetExtension(imagePath);
        if (!_extensions.Contains(extension))
            throw new ArgumentException("Path has invalid image file extension.", nameof(imagePath));
        if (!extension.Equals(".png", StringComparison.OrdinalIgnoreCase))
            throw new NotSupportedException($"This stand-in saves '.png' alone, not '{extension}'; the package Microsoft.ML.ImageAnalytics saves JPEG and WebP too.");
        PngWriter.Write(imagePath, _width, _height, _pixels.Span, _format == MLPixelFormat.Bgra32);
    }

    public void Dispose()
    {
        _pixels?.Dispose();
        _pixels = null;
    }

    private static MLImage Decode(ReadOnlySpan<byte> encoded)
    {
        if (!ImageCodecs.TryReadInfo(encoded, out var info))
            return null;
        var pixels = new PixelMemory((nint)info.Width * info.Height * 4);
        if (!ImageCodecs.TryDecode(encoded, info, pixels.Span))
        {
            pixels.Dispose();
            return null;
        }

        // The real one decodes grey files to one channel and copies those to Bgra32.
        return new MLImage(pixels, info.Width, info.Height, info.Grey != 0 ? MLPixelFormat.Bgra32 : MLPixelFormat.Rgba32);
    }

    private static ReadOnlySpan<byte> ReadAll(Stream stream)
    {
        if (stream is MemoryStream memory && memory.TryGetBuffer(out ArraySegment<byte> buffer))
        {
            var rest = buffer.AsSpan((int)Math.Min(memory.Position, buffer.Count));
            memory.Position = memory.Length;
            return rest;
        }

        using var copy = new MemoryStream();
        stream.CopyTo(copy);
        return copy.GetBuffer().AsSpan(0, (int)copy.Length);
    }

    private static byte Divided(int colour, int alpha) => alpha is 0 ? (byte)0 : (byte)Math.Min((colour * 255 + alpha / 2) / alpha, 255);

    private T Alive<T>(T value) => _pixels is null ? throw new InvalidOperationException("Object is disposed.") : value;
}
