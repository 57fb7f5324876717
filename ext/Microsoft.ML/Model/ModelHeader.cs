// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using System.Text;
using Microsoft.ML.Internal.Utilities;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>
/// The frame of a model stream: 256 bytes of header, the component's own bytes, a table of string ends and the
/// strings (UTF-16), the loader's assembly name, a tail mark. Offsets count from the header's first byte.
/// </summary>
[StructLayout(LayoutKind.Sequential, Pack = 1, Size = Size)]
internal struct ModelHeader
{
    /// <summary>"ML", 0, "MODEL", least byte first; the tail is its mirror image.</summary>
    public const ulong SignatureValue = 0x4C45444F4D004C4DUL;
    public const ulong TailSignatureValue = 0x4D4C004D4F44454CUL;
    public const int Size = 0x100;

    private const uint VersionWithAssemblyName = 0x00010002;
    private const uint OldestReadable = 0x00010001;

    public ulong Signature;
    public uint VerWritten;
    public uint VerReadable;
    public long FpModel;
    public long CbModel;
    public long FpStringTable;
    public long CbStringTable;
    public long FpStringChars;
    public long CbStringChars;
    public ulong ModelSignature;
    public uint ModelVerWritten;
    public uint ModelVerReadable;
    public ulong LoaderSignature0;
    public ulong LoaderSignature1;
    public ulong LoaderSignature2;
    public ulong LoaderSignatureAlt0;
    public ulong LoaderSignatureAlt1;
    public ulong LoaderSignatureAlt2;
    public long FpTail;
    public long FpLim;
    public long FpAssemblyName;
    public uint CbAssemblyName;

    /// <summary>Up to 24 Latin-1 characters as three words, the first character in the lowest byte.</summary>
    internal static ulong[] Pack(string text)
    {
        var words = new ulong[3];
        Contracts.Check(text == null || text.Length <= 24);
        for (int i = 0; i < (text?.Length ?? 0); i++)
        {
            Contracts.Check(text[i] <= 0xFF);
            words[i / 8] |= (ulong)text[i] << i % 8 * 8;
        }
        return words;
    }

    private static string Unpack(params ulong[] words)
    {
        var chars = new char[24];
        for (int i = 0; i < chars.Length; i++)
            chars[i] = (char)(words[i / 8] >> i % 8 * 8 & 0xFF);
        return new string(chars).TrimEnd('\0');
    }

    public static string GetLoaderSig(ref ModelHeader header) => Unpack(header.LoaderSignature0, header.LoaderSignature1, header.LoaderSignature2);

    public static string GetLoaderSigAlt(ref ModelHeader header) => Unpack(header.LoaderSignatureAlt0, header.LoaderSignatureAlt1, header.LoaderSignatureAlt2);

    public static void SetVersionInfo(ref ModelHeader header, VersionInfo ver)
    {
        header.ModelSignature = ver.ModelSignature;
        header.ModelVerWritten = ver.VerWrittenCur;
        header.ModelVerReadable = ver.VerReadableCur;
        (header.LoaderSignature0, header.LoaderSignature1, header.LoaderSignature2) = Words(ver.LoaderSignature);
        (header.LoaderSignatureAlt0, header.LoaderSignatureAlt1, header.LoaderSignatureAlt2) = Words(ver.LoaderSignatureAlt);

        static (ulong, ulong, ulong) Words(string text) => Pack(text) is var words ? (words[0], words[1], words[2]) : default;
    }

    public static void CheckVersionInfo(ref ModelHeader header, VersionInfo ver)
    {
        Contracts.CheckDecode(header.ModelSignature == ver.ModelSignature, "Unknown file type");
        Contracts.CheckDecode(header.ModelVerReadable <= header.ModelVerWritten, "Corrupt file header");
        if (header.ModelVerReadable > ver.VerWrittenCur)
            throw Contracts.ExceptDecode($"Component '{ver.LoaderSignature}' of the model is too new: this version reads up to {ver.VerWrittenCur:x8}, the model needs {header.ModelVerReadable:x8}. Load it with the version that wrote it.");
        if (header.ModelVerWritten < ver.VerWeCanReadBack)
            throw Contracts.ExceptDecode($"Component '{ver.LoaderSignature}' of the model is too old: this version reads back to {ver.VerWeCanReadBack:x8}, the model was written as {header.ModelVerWritten:x8}. Load it with an older version.");
    }

    public static void BeginWrite(BinaryWriter writer, out long fpMin, out ModelHeader header)
    {
        Contracts.CheckValue(writer, nameof(writer));
        fpMin = Position(writer);
        header = new ModelHeader { Signature = SignatureValue, VerWritten = VersionWithAssemblyName, VerReadable = VersionWithAssemblyName, FpModel = Size };
        writer.Write(new byte[Size]);
    }

    public static void EndWrite(BinaryWriter writer, long fpMin, ref ModelHeader header, NormStr.Pool pool = null, string loaderAssemblyName = null)
    {
        long At() => Position(writer) - fpMin;

        header.CbModel = At() - header.FpModel;
        if (pool is { Count: > 0 })
        {
            header.FpStringTable = At();
            long end = 0;
            foreach (var text in pool)
                writer.Write(end += text.Value.Length * sizeof(char));
            header.CbStringTable = At() - header.FpStringTable;
            header.FpStringChars = At();
            foreach (var text in pool)
                writer.Write(MemoryMarshal.AsBytes(text.Value.Span));
            header.CbStringChars = At() - header.FpStringChars;
        }
        if (!string.IsNullOrEmpty(loaderAssemblyName))
        {
            header.FpAssemblyName = At();
            writer.Write(MemoryMarshal.AsBytes(loaderAssemblyName.AsSpan()));
            header.CbAssemblyName = (uint)(At() - header.FpAssemblyName);
        }
        header.FpTail = At();
        writer.Write(TailSignatureValue);
        header.FpLim = At();

        writer.BaseStream.Position = fpMin;
        writer.Write(MemoryMarshal.AsBytes(new ReadOnlySpan<ModelHeader>(in header)));
        writer.Flush();
        writer.BaseStream.Position = fpMin + header.FpLim;
    }

    public static void BeginRead(out long fpMin, out ModelHeader header, out string[] strings, out string loaderAssemblyName, BinaryReader reader)
    {
        fpMin = reader.BaseStream.Position;
        var bytes = reader.ReadBytes(Size);
        Contracts.CheckDecode(bytes.Length == Size, "Truncated model header");
        header = MemoryMarshal.Read<ModelHeader>(bytes);
        header.Validate(reader.BaseStream.Length - fpMin);
        strings = header.ReadStrings(reader, fpMin);
        loaderAssemblyName = header.FpAssemblyName == 0 ? null : Encoding.Unicode.GetString(Bytes(reader, fpMin + header.FpAssemblyName, header.CbAssemblyName));
        ulong tail = BitConverter.ToUInt64(Bytes(reader, fpMin + header.FpTail, sizeof(ulong)));
        Contracts.CheckDecode(tail == TailSignatureValue, "Corrupt model file tail");
        reader.BaseStream.Position = fpMin + header.FpModel;
    }

    public static void EndRead(long fpMin, ref ModelHeader header, BinaryReader reader)
    {
        Contracts.CheckDecode(header.FpModel + header.CbModel == reader.BaseStream.Position - fpMin, "The component did not read all of its model");
        reader.BaseStream.Position = fpMin + header.FpLim;
    }

    // Each part begins where the one before it ends; nothing overlaps, nothing lies outside the stream.
    private readonly void Validate(long size)
    {
        Contracts.CheckDecode(Signature == SignatureValue, "Wrong file type");
        Contracts.CheckDecode(VerReadable <= VerWritten, "Corrupt file header");
        Contracts.CheckDecode(VerReadable <= VersionWithAssemblyName, "File is too new");
        Contracts.CheckDecode(VerWritten >= OldestReadable, "File is too old");
        bool fits = FpModel == Size && CbModel >= 0;
        long at = FpModel + CbModel;
        if (FpStringTable != 0)
        {
            fits &= FpStringTable == at && CbStringTable > 0 && CbStringTable % sizeof(long) == 0 && FpStringChars == at + CbStringTable;
            fits &= CbStringChars >= 0 && CbStringChars % sizeof(char) == 0;
            at = FpStringChars + CbStringChars;
        }
        else
            fits &= CbStringTable == 0 && FpStringChars == 0 && CbStringChars == 0;
        if (VerWritten >= VersionWithAssemblyName && FpAssemblyName != 0)
        {
            fits &= FpAssemblyName == at && CbAssemblyName % sizeof(char) == 0;
            at = FpAssemblyName + CbAssemblyName;
        }
        Contracts.CheckDecode(fits && FpTail == at && FpLim == at + sizeof(ulong) && FpLim <= size, "Corrupt file header");
    }

    private readonly string[] ReadStrings(BinaryReader reader, long fpMin)
    {
        if (FpStringTable == 0)
            return null;
        var ends = MemoryMarshal.Cast<byte, long>(Bytes(reader, fpMin + FpStringTable, CbStringTable));
        var text = MemoryMarshal.Cast<byte, char>(Bytes(reader, fpMin + FpStringChars, CbStringChars));
        var strings = new string[ends.Length];
        long start = 0;
        for (int i = 0; i < strings.Length; i++)
        {
            Contracts.CheckDecode(start <= ends[i] && ends[i] <= CbStringChars && ends[i] % sizeof(char) == 0, "Corrupt string table");
            strings[i] = text[(int)(start / sizeof(char))..(int)(ends[i] / sizeof(char))].ToString();
            start = ends[i];
        }
        Contracts.CheckDecode(start == CbStringChars, "Corrupt string table");
        return strings;
    }

    private static byte[] Bytes(BinaryReader reader, long position, long count)
    {
        Contracts.CheckDecode(count <= int.MaxValue, "Corrupt file header");
        reader.BaseStream.Position = position;
        var bytes = reader.ReadBytes((int)count);
        Contracts.CheckDecode(bytes.Length == count, "Truncated model file");
        return bytes;
    }

    private static long Position(BinaryWriter writer)
    {
        writer.Flush();
        return writer.BaseStream.Position;
    }
}
