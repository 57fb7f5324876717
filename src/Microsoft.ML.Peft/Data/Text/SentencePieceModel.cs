// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

internal enum PieceKind
{
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// <summary>What a SentencePiece model file says: its pieces, and how text is normalised.</summary>
internal sealed class SentencePieceModel
{
    private static readonly UTF8Encoding Strict = new(false, throwOnInvalidBytes: true);
    private readonly string file;

    private SentencePieceModel(string file) => this.file = file;

    public List<(string Piece, double Score, PieceKind Kind)> Pieces { get; } = [];

    /// <summary>Whether the pieces are merged as in BPE; else they are those of a unigram model.</summary>
    public bool IsBpe { get; private set; }

    public byte[] CharacterMap { get; private set; } = [];

    public bool AddDummyPrefix { get; private set; } = true;

    public bool RemoveExtraBlanks { get; private set; } = true;

    public static SentencePieceModel Read(IFileSet files, string name)
    {
        using var stream = files.Open(name);
        using var memory = new MemoryStream();
        stream.CopyTo(memory);
        var model = new SentencePieceModel(name);
        model.ReadModel(memory.GetBuffer().AsSpan(0, (int)memory.Length));
        return model.Pieces.Count > 0 ? model : throw Malformed.In(name, "no pieces", "a SentencePiece model");
    }

    private void ReadModel(ReadOnlySpan<byte> bytes)
    {
        var reader = new ProtoReader(bytes, file);
        int type = 1;
        while (reader.Next(out int field, out var value, out _))
        {
            switch (field)
            {
                case 1:
                    ReadPiece(value);
                    break;
                case 2:
                    var trainer = new ProtoReader(value, file);
                    while (trainer.Next(out int name, out _, out ulong number))
                        type = name == 3 ? (int)number : type;
                    break;
                case 3:
                    ReadNormalizer(value);
                    break;
            }
        }
        IsBpe = type switch
        {
            1 => false,
            2 => true,
            _ => throw Malformed.In(file, $"a model of type {type}", "1 (unigram) or 2 (BPE)"),
        };
    }

    private void ReadPiece(ReadOnlySpan<byte> bytes)
    {
        var reader = new ProtoReader(bytes, file);
        string? piece = null;
        double score = 0;
        var kind = PieceKind.Normal;
        while (reader.Next(out int field, out var value, out ulong number))
        {
            if (field == 1)
                piece = Text(value);
            else if (field == 2)
                score = BitConverter.UInt32BitsToSingle((uint)number);
            else if (field == 3)
                kind = (PieceKind)(int)number;
        }
        if (piece is null || !double.IsFinite(score))
            throw Malformed.In(file, $"piece {Pieces.Count} without text or with the score {score}", "a text and a finite score");
        Pieces.Add((piece, score, kind));
    }

    private void ReadNormalizer(ReadOnlySpan<byte> bytes)
    {
        var reader = new ProtoReader(bytes, file);
        while (reader.Next(out int field, out var value, out ulong number))
        {
            if (field == 2)
                CharacterMap = value.ToArray();
            else if (field == 3)
                AddDummyPrefix = number != 0;
            else if (field == 4)
                RemoveExtraBlanks = number != 0;
        }
    }

    private string Text(ReadOnlySpan<byte> utf8)
    {
        try
        {
            return Strict.GetString(utf8);
        }
        catch (DecoderFallbackException e)
        {
            throw Malformed.In(file, $"piece {Pieces.Count} that is not UTF-8", "text in UTF-8", e);
        }
    }
}

/// <summary>Reads the fields of a protocol-buffer message one by one.</summary>
internal ref struct ProtoReader(ReadOnlySpan<byte> bytes, string file)
{
    private readonly ReadOnlySpan<byte> bytes = bytes;
    private int at;

    /// <summary>The next field: a stretch of bytes, or a number (the bits of one, for floats).</summary>
    public bool Next(out int field, out ReadOnlySpan<byte> value, out ulong number)
    {
        value = default;
        number = 0;
        field = 0;
        if (at >= bytes.Length)
            return false;
        ulong tag = Varint();
        field = (int)Math.Min(tag >> 3, int.MaxValue);
        switch (tag & 7)
        {
            case 0:
                number = Varint();
                break;
            case 1:
                number = BinaryPrimitives.ReadUInt64LittleEndian(Take(8));
                break;
            case 2:
                ulong length = Varint();
                value = Take(length > int.MaxValue ? int.MaxValue : (int)length);
                break;
            case 5:
                number = BinaryPrimitives.ReadUInt32LittleEndian(Take(4));
                break;
            default:
                throw Broken();
        }
        return true;
    }

    private ReadOnlySpan<byte> Take(int count)
    {
        if (count > bytes.Length - at)
            throw Broken();
        at += count;
        return bytes.Slice(at - count, count);
    }

    private ulong Varint()
    {
        ulong value = 0;
        for (int shift = 0; shift < 64; shift += 7)
        {
            byte b = Take(1)[0];
            value |= (ulong)(b & 0x7F) << shift;
            if (b < 0x80)
                return value;
        }
        throw Broken();
    }

    private readonly CheckpointFormatException Broken() =>
        Malformed.In(file, $"bytes at {at} that are no protocol-buffer message", "a whole SentencePiece model");
}
