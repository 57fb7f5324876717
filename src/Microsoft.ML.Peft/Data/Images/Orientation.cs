// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;

namespace Microsoft.ML.Peft.Data;

/// <summary>The EXIF orientation: how a camera was held. Read from the file, and applied to its pixels.</summary>
internal static class Orientation
{
    private const int Tag = 0x0112, ShortType = 3, LongType = 4;

    /// <summary>The orientation in an EXIF block (a TIFF directory), 1 to 8; 1 where there is none, or where it is damaged.</summary>
    public static int FromTiff(ReadOnlySpan<byte> tiff)
    {
        bool little = tiff.StartsWith("II*\0"u8);
        if (!little && !tiff.StartsWith("MM\0*"u8))
            return 1;
        long directory = Number(tiff, 4, 4, little);
        long entries = Number(tiff, directory, 2, little);
        for (long i = 0; i < entries; i++)
        {
            long at = directory + 2 + 12 * i;
            if (Number(tiff, at, 2, little) != Tag)
                continue;
            long type = Number(tiff, at + 2, 2, little);
            long value = type is ShortType ? Number(tiff, at + 8, 2, little) : type is LongType ? Number(tiff, at + 8, 4, little) : 1;
            return value is >= 1 and <= 8 ? (int)value : 1;
        }

        return 1;
    }

    /// <summary>The picture as it is to be seen.</summary>
    public static PixelImage Apply(PixelImage image, int orientation)
    {
        if (orientation <= 1)
            return image;
        bool turned = orientation >= 5;
        int width = turned ? image.Height : image.Width, height = turned ? image.Width : image.Height, channels = image.Channels;
        PixelImage upright = PixelImage.Empty(width, height, channels);
        // Where the stored pixel of (x, y) lies: the first one, and the steps to the right and downwards.
        bool fromRight = orientation is 2 or 3 or 7 or 8, fromBottom = orientation is 3 or 4 or 6 or 7;
        int column = channels * (fromRight ? -1 : 1), row = image.Width * channels * (fromBottom ? -1 : 1);
        int first = (fromRight ? (image.Width - 1) * channels : 0) + (fromBottom ? (image.Height - 1) * image.Width * channels : 0);
        int right = turned ? row : column, down = turned ? column : row;
        byte[] from = image.Pixels, to = upright.Pixels;
        for (int y = 0, target = 0; y < height; y++)
            for (int x = 0, source = first + y * down; x < width; x++, source += right)
                for (int c = 0; c < channels; c++)
                    to[target++] = from[source + c];
        return upright;
    }

    // 0 where it lies outside.
    private static long Number(ReadOnlySpan<byte> data, long at, int size, bool little)
    {
        if (at < 0 || at + size > data.Length)
            return 0;
        ReadOnlySpan<byte> part = data.Slice((int)at, size);
        return size == 2
            ? little ? BinaryPrimitives.ReadUInt16LittleEndian(part) : BinaryPrimitives.ReadUInt16BigEndian(part)
            : little ? BinaryPrimitives.ReadUInt32LittleEndian(part) : BinaryPrimitives.ReadUInt32BigEndian(part);
    }
}
