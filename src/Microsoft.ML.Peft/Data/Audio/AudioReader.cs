// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Reads sounds from files and from encoded bytes. WAV (8, 16, 24 and 32 bit integers, 32 and 64 bit floating point, plain or
/// extensible, any number of channels) is read by this library; FLAC, Ogg and what else <c>libsndfile</c> knows through it,
/// where the machine has it. Limits hold before anything is allocated.
/// </summary>
public sealed class AudioReader
{
    /// <summary>Samples of all channels together that a clip may have by default: an hour of stereo at 16 kHz.</summary>
    public const long DefaultMostSamples = 16_000L * 3600 * 2;

    private const int MostChannels = 64;

    /// <summary>A reader with the default limits.</summary>
    public static AudioReader Default { get; } = new();

    /// <summary>Samples of all channels together that a clip may have; a longer one is refused before it is read.</summary>
    public long MostSamples { get; init; } = DefaultMostSamples;

    /// <summary>Longest file in bytes: 64 bit samples of that number, and as much again for what else is in a file.</summary>
    private long MostBytes => checked(MostSamples * 16 + (1 << 20));

    /// <summary>Whether FLAC and Ogg can be read here: <c>libsndfile</c> was found.</summary>
    public static bool ReadsCompressed => SoundFile.Found;

    /// <summary>Reads a file.</summary>
    /// <param name="path">Path of the file.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="AudioFormatException">It is damaged, cut off, too long, or of a kind that is not read here.</exception>
    public AudioClip Read(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        var file = new FileInfo(path);
        if (!file.Exists)
            throw new FileNotFoundException(Directory.Exists(path) ? $"'{path}' is a folder; a sound file is expected." : $"There is no file '{path}'.", path);
        long length = LinkedFile.Length(file);
        if (length > MostBytes)
            throw new AudioFormatException($"{path} has {length} bytes; at most {MostBytes} are read. Cut it, or raise MostSamples.");
        return Read(File.ReadAllBytes(path), path);
    }

    /// <summary>Reads encoded bytes: a whole file.</summary>
    /// <param name="bytes">The file.</param>
    /// <param name="source">Where they come from, for messages.</param>
    /// <exception cref="AudioFormatException">They are damaged, cut off, too long, or of a kind that is not read here.</exception>
    public AudioClip Read(ReadOnlySpan<byte> bytes, string source = "the bytes")
    {
        if (bytes.Length == 0) throw new AudioFormatException($"{source} is empty; a sound file is expected.");
        if (WavFile.Is(bytes)) return new WavFile(source, this).Read(bytes);
        string kind = Kind(bytes) ?? throw new AudioFormatException(
            $"{source} begins with {Convert.ToHexString(bytes[..Math.Min(8, bytes.Length)])}, which no sound file does that is read here: WAV, or FLAC and Ogg through libsndfile.");
        if (!SoundFile.Found)
            throw new AudioFormatException($"{source} is {kind}, which is read through libsndfile, and that is not on this machine. Install it (Debian: libsndfile1), or convert the file to WAV.");
        return SoundFile.Read(bytes, source, kind, this);
    }

    internal void Check(string source, long channels, long samples)
    {
        if (channels is < 1 or > MostChannels)
            throw new AudioFormatException($"{source} says that it has {channels} channels; expected 1 to {MostChannels}.");
        if (samples < 1) throw new AudioFormatException($"{source} holds no samples; a sound of at least one is expected.");
        if (samples > MostSamples / channels)
            throw new AudioFormatException($"{source} has {channels} x {samples} samples; at most {MostSamples} are read. Cut it, or raise MostSamples.");
    }

    private static string? Kind(ReadOnlySpan<byte> bytes)
    {
        if (bytes.StartsWith("fLaC"u8)) return "FLAC";
        if (bytes.StartsWith("OggS"u8)) return "Ogg";
        if (bytes.StartsWith("FORM"u8)) return "AIFF";
        if (bytes.StartsWith("ID3"u8) || (bytes.Length > 1 && bytes[0] == 0xFF && (bytes[1] & 0xE0) == 0xE0)) return "MP3";
        if (bytes.StartsWith("RF64"u8) || bytes.StartsWith("RIFX"u8)) return "WAV of the form " + System.Text.Encoding.ASCII.GetString(bytes[..4]);
        return bytes.StartsWith("caff"u8) ? "CAF" : bytes.StartsWith(".snd"u8) ? "AU" : null;
    }
}
