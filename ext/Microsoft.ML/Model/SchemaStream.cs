// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.IO.Compression;
using System.Text;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>
/// A schema as a binary data file without rows, which is how model zips keep it: 256 bytes of header, the columns'
/// annotations, a table of the columns, a tail mark. Offsets count from the stream's start.
/// </summary>
internal static class SchemaStream
{
    private const int HeaderSize = 256;
    private const ulong SignatureValue = 0x00425644004C4D43; // "CML", 0, "DVB", 0
    private const ulong TailValue = 0x434D4C0044564200;
    private const ulong FormatVersion = 0x0001000100010006;
    private const byte Uncompressed = 0;
    private const byte Deflated = 1;

    internal static void Save(IHostEnvironment env, DataViewSchema schema, Stream stream)
    {
        // Registered for nothing but the seeds that the real saver and its empty view draw from the environment.
        env.Register("BinarySaver");
        env.Register(nameof(EmptyDataView));
        using var writer = new BinaryWriter(stream, Encoding.UTF8, leaveOpen: true);
        writer.Write(new byte[HeaderSize]);
        long blocks = HeaderSize; // no rows, hence no blocks: every column's table of blocks is empty, and here
        foreach (var column in schema)
            if (!ValueCodec.Knows(column.Type))
                throw env.Except($"Could not get codec for requested column {column.Name} of type {column.Type}");
        long[] annotations = [.. schema.Select(column => SaveAnnotations(env, writer, column))];

        long table = Position(writer);
        foreach (var column in schema)
        {
            writer.Write(column.Name);
            ValueCodec.WriteType(writer, column.Type);
            writer.Write(Deflated);
            writer.Write7BitEncodedInt64(1); // rows in a block
            writer.Write(blocks);
            writer.Write(annotations[column.Index]);
        }
        long tail = Position(writer);
        writer.Write(TailValue);
        long end = Position(writer);

        stream.Position = 0;
        writer.Write(SignatureValue);
        writer.Write(FormatVersion);
        writer.Write(FormatVersion);
        writer.Write(table);
        writer.Write(tail);
        writer.Write(0L); // rows
        writer.Write(schema.Count);
        writer.Flush();
        stream.Position = end;
    }

    // The values first, then a table of them; returns where the table is, 0 where there is none.
    private static long SaveAnnotations(IHostEnvironment env, BinaryWriter writer, DataViewSchema.Column column)
    {
        var saved = new List<(string Kind, DataViewType Type, byte Compression, long Offset, long Size)>();
        foreach (var annotation in column.Annotations.Schema)
        {
            if (!ValueCodec.Knows(annotation.Type))
            {
                using var channel = env.Start("Saving Schema");
                channel.Warning(MessageSensitivity.Schema, $"Could not get codec for type {annotation.Type}, dropping column '{column.Name}' index {column.Index} metadata kind '{annotation.Name}'");
                continue;
            }
            var plain = ValueCodec.Encode(annotation.Type, column.Annotations, annotation);
            var deflated = Deflate(plain);
            bool smaller = deflated.Length < plain.Length;
            long offset = Position(writer);
            writer.Write(smaller ? deflated : plain);
            saved.Add((annotation.Name, annotation.Type, smaller ? Deflated : Uncompressed, offset, Position(writer) - offset));
        }
        if (saved.Count == 0)
            return 0;
        long table = Position(writer);
        writer.Write7BitEncodedInt64(saved.Count);
        foreach (var (kind, type, compression, offset, size) in saved)
        {
            writer.Write(kind);
            ValueCodec.WriteType(writer, type);
            writer.Write(compression);
            writer.Write(offset);
            writer.Write7BitEncodedInt64(size);
        }
        return table;
    }

    internal static DataViewSchema Load(IHostEnvironment env, Stream stream)
    {
        env.Register("BinaryLoader");
        using var reader = new BinaryReader(stream, Encoding.UTF8, leaveOpen: true);
        try
        {
            env.CheckDecode(stream.Length >= HeaderSize && reader.ReadUInt64() == SignatureValue, "This does not look like a binary dataview file");
            reader.ReadUInt64();
            env.CheckDecode(reader.ReadUInt64() <= FormatVersion, "The schema was written by a newer version");
            long table = reader.ReadInt64();
            long tail = reader.ReadInt64();
            reader.ReadInt64();
            int count = reader.ReadInt32();
            env.CheckDecode(HeaderSize <= table && table <= tail && tail <= stream.Length - sizeof(ulong) && count >= 0, "Corrupt schema header");
            stream.Position = tail;
            env.CheckDecode(reader.ReadUInt64() == TailValue, "Corrupt schema tail");

            var builder = new DataViewSchema.Builder();
            stream.Position = table;
            for (int i = 0; i < count; i++)
            {
                string name = reader.ReadString();
                var type = ValueCodec.ReadType(reader);
                reader.ReadByte();
                reader.Read7BitEncodedInt64();
                reader.ReadInt64();
                long annotations = reader.ReadInt64();
                long next = stream.Position;
                builder.AddColumn(name, type, annotations == 0 ? null : LoadAnnotations(reader, annotations));
                stream.Position = next;
            }
            return builder.ToSchema();
        }
        catch (EndOfStreamException ex)
        {
            throw env.ExceptDecode(ex, "The schema is truncated");
        }
    }

    private static DataViewSchema.Annotations LoadAnnotations(BinaryReader reader, long table)
    {
        var builder = new DataViewSchema.Annotations.Builder();
        reader.BaseStream.Position = table;
        long count = reader.Read7BitEncodedInt64();
        for (long i = 0; i < count; i++)
        {
            string kind = reader.ReadString();
            var type = ValueCodec.ReadType(reader);
            byte compression = reader.ReadByte();
            long offset = reader.ReadInt64();
            long size = reader.Read7BitEncodedInt64();
            long next = reader.BaseStream.Position;
            Contracts.CheckDecode(0 <= offset && 0 <= size && offset <= reader.BaseStream.Length - size && size <= int.MaxValue, "Corrupt annotation table");
            reader.BaseStream.Position = offset;
            var bytes = reader.ReadBytes((int)size);
            builder.Add(kind, type, ValueCodec.Decode(type, compression == Deflated ? Inflate(bytes) : bytes));
            reader.BaseStream.Position = next;
        }
        return builder.ToAnnotations();
    }

    private static byte[] Deflate(byte[] bytes)
    {
        using var target = new MemoryStream();
        using (var deflate = new DeflateStream(target, CompressionMode.Compress, leaveOpen: true))
            deflate.Write(bytes);
        return target.ToArray();
    }

    private static byte[] Inflate(byte[] bytes)
    {
        using var target = new MemoryStream();
        using (var inflate = new DeflateStream(new MemoryStream(bytes), CompressionMode.Decompress))
            inflate.CopyTo(target);
        return target.ToArray();
    }

    private static long Position(BinaryWriter writer)
    {
        writer.Flush();
        return writer.BaseStream.Position;
    }
}
