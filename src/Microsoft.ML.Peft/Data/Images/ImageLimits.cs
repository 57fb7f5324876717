// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>How large an image may be. Checked by the header, before anything of that size is allocated.</summary>
public sealed record ImageLimits
{
    /// <summary>The limits where none are given.</summary>
    public static ImageLimits Default { get; } = new();

    /// <summary>Most pixels; 178,956,970 as in Pillow.</summary>
    public long MaxPixels { get; init; } = 178_956_970;

    /// <summary>Most bytes of a file; 1 GiB.</summary>
    public long MaxBytes { get; init; } = 1 << 30;

    internal void CheckPixels(long width, long height, string name)
    {
        if (width <= 0 || height <= 0)
            throw new ImageFormatException(name, $"the image is empty: {width} x {height} pixels.");
        if (width > MaxPixels / height)
            throw new ImageFormatException(name, $"the image is {width} x {height} pixels large; at most {MaxPixels} pixels are decoded (a small file may ask for any size).");
    }

    internal void CheckBytes(long length, string name)
    {
        if (length == 0)
            throw new ImageFormatException(name, "the file is empty.");
        if (length > MaxBytes)
            throw new ImageFormatException(name, $"the file has {length} bytes; at most {MaxBytes} are read.");
    }
}
