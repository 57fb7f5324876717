// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.IO.Compression;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Cli;

/// <summary>A colour.</summary>
internal readonly record struct Colour(byte Red, byte Green, byte Blue);

/// <summary>A picture that is drawn on, and written as PNG.</summary>
internal sealed class Canvas
{
    private readonly byte[] _pixels;

    public Canvas(int width, int height, Colour background)
    {
        (Width, Height) = (width, height);
        _pixels = new byte[checked(width * height * 3)];
        Fill(0, 0, width, height, background);
    }

    public int Width { get; }

    public int Height { get; }

    public void Set(int x, int y, Colour colour)
    {
        if ((uint)x >= (uint)Width || (uint)y >= (uint)Height) return;
        int at = (y * Width + x) * 3;
        (_pixels[at], _pixels[at + 1], _pixels[at + 2]) = (colour.Red, colour.Green, colour.Blue);
    }

    public Colour At(int x, int y)
    {
        int at = (y * Width + x) * 3;
        return new Colour(_pixels[at], _pixels[at + 1], _pixels[at + 2]);
    }

    public void Fill(int left, int top, int width, int height, Colour colour)
    {
        for (int y = top; y < top + height; y++)
            for (int x = left; x < left + width; x++) Set(x, y, colour);
    }

    /// <summary>Writes a line of small capitals, cut at a width.</summary>
    public void Text(int left, int top, string text, Colour colour, int width, int scale = 2)
    {
        foreach (char letter in text[..Math.Min(text.Length, Math.Max(0, width / (4 * scale)))])
        {
            for (int y = 0; y < 5; y++)
                for (int x = 0; x < 3; x++)
                    if (TinyFont.Dot(letter, x, y)) Fill(left + x * scale, top + y * scale, scale, scale, colour);
            left += 4 * scale;
        }
    }

    /// <summary>Writes the picture beside its place and renames it.</summary>
    public void Save(string path) => AtomicFile.Write(path, file =>
    {
        file.Write([0x89, (byte)'P', (byte)'N', (byte)'G', 13, 10, 26, 10]);
        byte[] header = new byte[13];
        BinaryPrimitives.WriteInt32BigEndian(header, Width);
        BinaryPrimitives.WriteInt32BigEndian(header.AsSpan(4), Height);
        (header[8], header[9]) = (8, 2);   // 8 bits, red, green and blue
        Chunk(file, "IHDR", header);
        using var packed = new MemoryStream();
        using (var zlib = new ZLibStream(packed, CompressionLevel.Optimal))
        {
            for (int y = 0; y < Height; y++)
            {
                zlib.WriteByte(0);   // rows are stored as they are
                zlib.Write(_pixels, y * Width * 3, Width * 3);
            }
        }
        Chunk(file, "IDAT", packed.ToArray());
        Chunk(file, "IEND", []);
    });

    private static void Chunk(Stream file, string name, byte[] content)
    {
        byte[] body = [.. Encoding.ASCII.GetBytes(name), .. content], number = new byte[4];
        BinaryPrimitives.WriteInt32BigEndian(number, content.Length);
        file.Write(number);
        file.Write(body);
        BinaryPrimitives.WriteUInt32BigEndian(number, Checksum(body));
        file.Write(number);
    }

    private static uint Checksum(byte[] bytes)
    {
        uint crc = uint.MaxValue;
        foreach (byte value in bytes)
        {
            crc ^= value;
            for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) * 0xEDB88320u);
        }
        return ~crc;
    }
}

/// <summary>Letters of three by five dots; small ones look like capitals.</summary>
internal static class TinyFont
{
    // Five rows of three bits, as digits.
    private static readonly Dictionary<char, string> _letters = new()
    {
        ['A'] = "25755", ['B'] = "65656", ['C'] = "34443", ['D'] = "65556", ['E'] = "74647", ['F'] = "74644", ['G'] = "34553", ['H'] = "55755",
        ['I'] = "72227", ['J'] = "11152", ['K'] = "55655", ['L'] = "44447", ['M'] = "57755", ['N'] = "65555", ['O'] = "25552", ['P'] = "65644",
        ['Q'] = "25573", ['R'] = "65655", ['S'] = "34216", ['T'] = "72222", ['U'] = "55557", ['V'] = "55522", ['W'] = "55775", ['X'] = "55255",
        ['Y'] = "55222", ['Z'] = "71247", ['0'] = "75557", ['1'] = "26227", ['2'] = "71747", ['3'] = "71717", ['4'] = "55711", ['5'] = "74717",
        ['6'] = "74757", ['7'] = "71122", ['8'] = "75757", ['9'] = "75717", [' '] = "00000", ['.'] = "00002", [','] = "00024", ['-'] = "00700",
        ['_'] = "00007", ['%'] = "51245", [':'] = "02020", ['/'] = "11244", ['('] = "12221", [')'] = "42224", ['+'] = "02720", ['='] = "07070",
        ['?'] = "71202", ['!'] = "22202", ['\''] = "22000", ['#'] = "57575", ['<'] = "12421", ['>'] = "42124",
    };

    // What has no letter here is a box.
    private const string Box = "77777";

    /// <summary>True where a letter has ink.</summary>
    public static bool Dot(char letter, int x, int y) =>
        ((_letters.GetValueOrDefault(char.ToUpperInvariant(letter), Box)[y] - '0') >> (2 - x) & 1) == 1;
}
