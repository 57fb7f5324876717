// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.IO.Compression;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

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
        BinaryPrimitives.WriteUInt32BigEndian(number, Crc32.Of(body));
        file.Write(number);
    }
}

/// <summary>Letters of three by five dots; small ones look like capitals.</summary>
internal static class TinyFont
{
    // A letter and its five rows of three bits, as digits.
    private const string Shapes =
        "A25755 B65656 C34443 D65556 E74647 F74644 G34553 H55755 I72227 J11152 K55655 L44447 M57755 N65555 " +
        "O25552 P65644 Q25573 R65655 S34216 T72222 U55557 V55522 W55775 X55255 Y55222 Z71247 075557 126227 " +
        "271747 371717 455711 574717 674757 771122 875757 975717 .00002 ,00024 -00700 _00007 %51245 :02020 " +
        "/11244 (12221 )42224 +02720 =07070 ?71202 !22202 '22000 #57575 <12421 >42124";

    private static readonly Dictionary<char, string> _letters = Shapes.Split(' ').Append(" 00000").ToDictionary(shape => shape[0], shape => shape[1..]);

    // What has no letter here is a box.
    private const string Box = "77777";

    /// <summary>True where a letter has ink.</summary>
    public static bool Dot(char letter, int x, int y) =>
        ((_letters.GetValueOrDefault(char.ToUpperInvariant(letter), Box)[y] - '0') >> (2 - x) & 1) == 1;
}
