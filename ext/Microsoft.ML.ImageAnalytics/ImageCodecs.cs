// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;

namespace Microsoft.ML.Data;

/// <summary>The decoders: BMP here, the others in the C library beside this assembly (see native/).</summary>
internal static unsafe partial class ImageCodecs
{
    private const string Library = "PeftImages";
    private const int Ok = 0, Incomplete = 1;

    /// <summary>Beyond it nothing is decoded: the bytes of a picture must fit into one span.</summary>
    private const long MaxPixels = int.MaxValue / 4;

    [StructLayout(LayoutKind.Sequential)]
    internal struct Info
    {
        public int Width, Height, Grey;
    }

    /// <summary>Whether it is a picture that can be decoded, by its header.</summary>
    internal static bool TryReadInfo(ReadOnlySpan<byte> encoded, out Info info)
    {
        if (BmpDecoder.IsBmp(encoded))
            return BmpDecoder.TryReadInfo(encoded, MaxPixels, out info);
        fixed (byte* data = encoded)
            return ReadInfo(data, (nuint)encoded.Length, MaxPixels, out info) == Ok;
    }

    /// <summary>Decodes into zeroed pixels (four bytes each, RGBA, multiplied by alpha); data that end early are no failure.</summary>
    internal static bool TryDecode(ReadOnlySpan<byte> encoded, Info info, Span<byte> pixels)
    {
        if (BmpDecoder.IsBmp(encoded))
            return BmpDecoder.TryDecode(encoded, pixels);
        fixed (byte* data = encoded, target = pixels)
            return Decode(data, (nuint)encoded.Length, in info, target) is Ok or Incomplete;
    }

    [LibraryImport(Library, EntryPoint = "peft_image_info")]
    private static partial int ReadInfo(byte* data, nuint size, long maxPixels, out Info info);

    [LibraryImport(Library, EntryPoint = "peft_image_decode")]
    private static partial int Decode(byte* data, nuint size, in Info info, byte* pixels);
}
