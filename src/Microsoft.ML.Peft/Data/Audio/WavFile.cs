// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Text;

namespace Microsoft.ML.Peft.Data;

/// <summary>WAV: a RIFF file with a <c>fmt </c> chunk and a <c>data</c> chunk among others. Nothing that the file says is believed unchecked.</summary>
/// <param name="source">Where the bytes come from, for messages.</param>
/// <param name="reader">The limits.</param>
internal readonly struct WavFile(string source, AudioReader reader)
{
    private const int Integers = 1, Floats = 3, Extensible = 0xFFFE;

    // A writer to a pipe cannot know the length: the samples go on to the end.
    private const uint Unknown = 0xFFFFFFFF;

    private readonly record struct Format(int Tag, int Channels, int Rate, int Bits)
    {
        public int BytesASample => Bits / 8;

        public int BytesAFrame => BytesASample * Channels;
    }

    /// <summary>True where bytes begin as a WAV file does, or as the start of one.</summary>
    public static bool Is(ReadOnlySpan<byte> bytes) =>
        bytes.StartsWith("RIFF"u8) && (bytes.Length < 12 || bytes[8..].StartsWith("WAVE"u8));

    public AudioClip Read(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length < 12) throw Bad($"ends after {bytes.Length} bytes, inside of its first header");
        Format? format = null;
        int at = 12;
        while (bytes.Length - at >= 8)
        {
            ReadOnlySpan<byte> id = bytes.Slice(at, 4);
            uint length = BinaryPrimitives.ReadUInt32LittleEndian(bytes[(at + 4)..]);
            at += 8;
            long rest = bytes.Length - at;
            if (id.SequenceEqual("data"u8))
                return Samples(format ?? throw Bad("has its samples before their format: no 'fmt ' chunk stands in front of 'data'"), bytes[at..], length);
            if (length > rest) throw Bad($"is cut off: its chunk '{Name(id)}' says {length} bytes, and {rest} are there");
            if (id.SequenceEqual("fmt "u8)) format = ReadFormat(bytes.Slice(at, (int)length));
            at += (int)Math.Min(length + (length & 1), (ulong)rest);
        }
        throw Bad(format is null ? "has neither a 'fmt ' nor a 'data' chunk" : "has no 'data' chunk: it is cut off, or holds no samples");
    }

    private Format ReadFormat(ReadOnlySpan<byte> chunk)
    {
        if (chunk.Length < 16) throw Bad($"has a 'fmt ' chunk of {chunk.Length} bytes; at least 16 are expected");
        int tag = BinaryPrimitives.ReadUInt16LittleEndian(chunk);
        uint rate = BinaryPrimitives.ReadUInt32LittleEndian(chunk[4..]);
        if (tag == Extensible)
        {
            if (chunk.Length < 40) throw Bad($"has an extensible 'fmt ' chunk of {chunk.Length} bytes; 40 are expected");
            tag = BinaryPrimitives.ReadUInt16LittleEndian(chunk[24..]);
        }
        if (rate is < AudioClip.LowestRate or > AudioClip.HighestRate)
            throw Bad($"has a rate of {rate} samples a second; expected {AudioClip.LowestRate} to {AudioClip.HighestRate}");
        var format = new Format(tag, BinaryPrimitives.ReadUInt16LittleEndian(chunk[2..]), (int)rate, BinaryPrimitives.ReadUInt16LittleEndian(chunk[14..]));
        if (tag is not (Integers or Floats))
            throw Bad($"holds samples of format {tag} ({FormatName(tag)}); read are integers (1) and floating-point numbers (3). Convert it to plain WAV");
        if (!(tag == Integers ? format.Bits is 8 or 16 or 24 or 32 : format.Bits is 32 or 64))
            throw Bad($"holds {(tag == Integers ? "integers" : "floating-point numbers")} of {format.Bits} bits; read are {(tag == Integers ? "8, 16, 24 and 32" : "32 and 64")}");
        int block = BinaryPrimitives.ReadUInt16LittleEndian(chunk[12..]);
        if (format.Channels == 0) throw Bad("says that it has no channels");
        if (block != format.BytesAFrame)
            throw Bad($"says that the samples of one moment take {block} bytes, but {format.Channels} channels of {format.Bits} bits take {format.BytesAFrame}");
        return format;
    }

    private AudioClip Samples(Format format, ReadOnlySpan<byte> data, uint length)
    {
        if (length != Unknown && length > (uint)data.Length) throw Bad($"is cut off: its chunk 'data' says {length} bytes, and {data.Length} are there");
        if (length != Unknown) data = data[..(int)length];
        // What is left of a moment at the end of an unfinished recording is no sample.
        int count = data.Length / format.BytesAFrame;
        reader.Check(source, format.Channels, count);
        var channels = new float[format.Channels][];
        for (int c = 0; c < channels.Length; c++) channels[c] = Decode(format, data[(c * format.BytesASample)..], count);
        return new AudioClip(channels, format.Rate, source);
    }

    // `data` begins at the channel's first sample; the next one lies a frame on.
    private static float[] Decode(Format format, ReadOnlySpan<byte> data, int count)
    {
        var samples = new float[count];
        int step = format.BytesAFrame;
        switch (format.Tag, format.Bits)
        {
            case (Integers, 8):
                for (int i = 0; i < count; i++) samples[i] = (data[i * step] - 128) / 128f;
                break;
            case (Integers, 16):
                for (int i = 0; i < count; i++) samples[i] = BinaryPrimitives.ReadInt16LittleEndian(data[(i * step)..]) / 32768f;
                break;
            case (Integers, 24):
                for (int i = 0; i < count; i++)
                {
                    ReadOnlySpan<byte> three = data.Slice(i * step, 3);
                    samples[i] = ((three[0] << 8 | three[1] << 16 | three[2] << 24) >> 8) / 8388608f;
                }
                break;
            case (Integers, _):
                for (int i = 0; i < count; i++) samples[i] = (float)(BinaryPrimitives.ReadInt32LittleEndian(data[(i * step)..]) / 2147483648.0);
                break;
            case (_, 32):
                for (int i = 0; i < count; i++) samples[i] = BinaryPrimitives.ReadSingleLittleEndian(data[(i * step)..]);
                break;
            default:
                for (int i = 0; i < count; i++) samples[i] = (float)BinaryPrimitives.ReadDoubleLittleEndian(data[(i * step)..]);
                break;
        }
        return samples;
    }

    private static string FormatName(int tag) => tag switch
    {
        2 or 17 => "ADPCM",
        6 => "A-law",
        7 => "µ-law",
        49 => "GSM",
        80 or 85 => "MPEG",
        _ => "not known here",
    };

    private static string Name(ReadOnlySpan<byte> id)
    {
        var name = new StringBuilder();
        foreach (byte b in id) name.Append(b is >= 32 and < 127 ? (char)b : '?');
        return name.ToString();
    }

    private AudioFormatException Bad(string what) => new($"{source}: this WAV file {what}.");
}
