// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Security.Cryptography;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A row's image or sound, decoded when a batch needs it.</summary>
/// <typeparam name="T">What it is decoded to.</typeparam>
internal sealed class MediaInput<T>(MediaEncoder<T> encoder, MediaRow<T> row) : ExampleInput where T : class
{
    private byte[] _fingerprint = [];
    private T? _kept;
    private int? _tokens;

    /// <summary>Tokens of a row whose length is known only by its content; 1 where it cannot be read, which is told later.</summary>
    public override int Tokens => _tokens ??= encoder.FixedTokens ?? Measured();

    public override IReadOnlyList<int>? Shape => encoder.Shape;

    public override bool Masked => encoder.Masked;

    public override bool StandsAlone => encoder.StandsAlone;

    public override float Padding => encoder.Padding;

    public override bool FitsPositions => encoder.FitsPositions;

    public override bool MasksFrames => encoder.MasksFrames;

    public override bool Varies => encoder.Augments;

    public override string Settings => encoder.Settings;

    public override ReadOnlyMemory<byte> Fingerprint => _fingerprint;

    private int Measured()
    {
        try
        {
            return encoder.Tokens(_kept = Read());
        }
        catch (UnreadableInputException)
        {
            return 1;
        }
    }

    /// <summary>Reads the row through, and keeps what it was decoded to where there is room.</summary>
    /// <exception cref="UnreadableInputException">It cannot be read.</exception>
    public void Prepare(MediaRoom room)
    {
        T media = Guarded(() =>
        {
            byte[]? encoded = row.Decoded is null ? Encoded() : null;
            T found = row.Decoded ?? encoder.Decode(encoded!, Source);
            _fingerprint = encoded is not null ? SHA256.HashData(encoded) : encoder.Fingerprint(found);
            encoder.Check(found);
            return found;
        });
        _tokens = encoder.FixedTokens ?? encoder.Tokens(media);
        if (row.Decoded is null && room.Take(encoder.SizeOf(media))) _kept = media;
    }

    public override float[]? Mix(Span<float> values, IReadOnlyList<long> shape, ulong draw) => encoder.Mix(values, shape, draw);

    public override void Make(ulong? draw, InputPlace place)
    {
        T media = Read();
        Guarded(() =>
        {
            encoder.Make(media, draw, place);
            return media;
        });
    }

    /// <summary>What the row is decoded to.</summary>
    /// <exception cref="UnreadableInputException">It cannot be read.</exception>
    public T Read() => row.Decoded ?? _kept ?? Guarded(() => encoder.Decode(Encoded(), Source));

    private string Source => row.Path is { } path ? $"'{path}'" : "the bytes";

    private byte[] Encoded()
    {
        if (row.Problem is { } problem) throw problem;
        if (row.Path is not { } path) return row.Bytes!;
        if (path.Length == 0) throw new FormatException("the path is empty.");
        var file = new FileInfo(path);
        if (!file.Exists) throw new FileNotFoundException(Directory.Exists(path) ? $"'{path}' is a folder." : $"there is no file '{path}'.");
        long length = LinkedFile.Length(file);
        if (length > MediaRoom.LargestFile) throw new FormatException($"'{path}' has {length} bytes; at most {MediaRoom.LargestFile} are read.");
        return File.ReadAllBytes(path);
    }

    private T Guarded(Func<T> read)
    {
        try
        {
            return read();
        }
        catch (Exception e) when (e is FormatException or IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException)
        {
            string where = row.Number >= 0 ? $"Row {row.Number}: " : "";
            throw new UnreadableInputException(where + e.Message.TrimEnd('.') + ". " + encoder.Advice, row.Number, e);
        }
    }
}

/// <summary>Memory for decoded rows; what comes when it is full is decoded again each time.</summary>
/// <param name="bytes">How much of it there is.</param>
internal sealed class MediaRoom(long bytes)
{
    private long _taken;

    /// <summary>Largest file that is read, in bytes.</summary>
    public const long LargestFile = 1 << 30;

    /// <summary>Bytes that are taken.</summary>
    public long Taken => Interlocked.Read(ref _taken);

    /// <summary>Takes room for a row; false where there is not enough left.</summary>
    /// <param name="size">Bytes of the row.</param>
    public bool Take(long size)
    {
        if (Interlocked.Add(ref _taken, size) <= bytes) return true;
        Interlocked.Add(ref _taken, -size);
        return false;
    }
}
