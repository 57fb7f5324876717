// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Security.Cryptography;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Persistence;

/// <summary>
/// The only door to ML.NET's model zip: named binary entries beside a version. Layout of a transformer's folder in the zip:
/// <code>
/// Model.key                    ML.NET's header: signature, versions, loader, assembly; then the SHA-256 of model.json
/// model.json                   task, method with options, labels, columns, where the backbone is, SHA-256 of the entries
/// adapter.safetensors          parameters of adaptation and head
/// backbone.NAME                the backbone's files as they were (config.json, weights, tokenizer), unless by reference
/// </code>
/// </summary>
internal static class ModelEntry
{
    private const string BackbonePrefix = "backbone.";

    /// <summary>Writes the header of a transformer.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="signature">Eight letters that name the kind of transformer.</param>
    /// <param name="loaderSignature">Name under which the loader is registered.</param>
    /// <param name="version">Version that is written now.</param>
    /// <param name="readableSince">Oldest reader that understands it.</param>
    public static void WriteHeader(ModelSaveContext context, string signature, string loaderSignature, uint version, uint readableSince)
    {
        context.CheckAtModel();
        context.SetVersionInfo(Version(signature, loaderSignature, version, readableSince, readableSince));
    }

    /// <summary>Checks the header of a transformer.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="signature">Eight letters that name the kind of transformer.</param>
    /// <param name="loaderSignature">Name under which the loader is registered.</param>
    /// <param name="version">Newest version that this library reads.</param>
    /// <param name="oldest">Oldest version that this library reads.</param>
    /// <exception cref="FormatException">Another kind, or a version of the future.</exception>
    public static void CheckHeader(ModelLoadContext context, string signature, string loaderSignature, uint version, uint oldest)
    {
        context.CheckAtModel();
        try
        {
            context.CheckVersionInfo(Version(signature, loaderSignature, version, version, oldest));
        }
        catch (Exception e) when (e is FormatException or InvalidOperationException)
        {
            throw new CheckpointFormatException(
                $"The model zip holds a {loaderSignature} of another version than this library reads ({oldest:x8} to {version:x8}): {e.Message} Update the Microsoft.ML.Peft package.", e);
        }
    }

    private static VersionInfo Version(string signature, string loader, uint written, uint readable, uint canRead) => new(
        modelSignature: signature,
        verWrittenCur: written,
        verReadableCur: readable,
        verWeCanReadBack: canRead,
        loaderSignature: loader,
        loaderAssemblyName: typeof(ModelEntry).Assembly.FullName);

    /// <summary>Writes an entry and notes its SHA-256: .NET does not check a zip's own checksums.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="name">Name of the entry.</param>
    /// <param name="hashes">Takes the hash under the name.</param>
    /// <param name="write">Writes the content.</param>
    public static void Write(ModelSaveContext context, string name, IDictionary<string, string> hashes, Action<Stream> write) =>
        context.SaveBinaryStream(name, writer =>
        {
            writer.Flush();
            using var sha = SHA256.Create();
            using (var hashed = new CryptoStream(writer.BaseStream, sha, CryptoStreamMode.Write, leaveOpen: true)) write(hashed);
            hashes[name] = Convert.ToHexStringLower(sha.Hash!);
        });

    /// <summary>Reads an entry whole and compares it with the hash that was noted.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="name">Name of the entry.</param>
    /// <param name="hashes">Hashes by name.</param>
    /// <exception cref="CheckpointFormatException">The zip has no such entry, or it was altered.</exception>
    public static byte[] Read(ModelLoadContext context, string name, IReadOnlyDictionary<string, string> hashes)
    {
        byte[] bytes = Read(context, name);
        if (!hashes.TryGetValue(name, out string? expected) || Convert.ToHexStringLower(SHA256.HashData(bytes)) != expected) throw Altered(name);
        return bytes;
    }

    /// <summary>Writes the entry that vouches for all others; its own hash goes behind the header.</summary>
    /// <param name="context">The open zip, its header written.</param>
    /// <param name="name">Name of the entry.</param>
    /// <param name="content">The content.</param>
    public static void WriteSealed(ModelSaveContext context, string name, byte[] content)
    {
        context.SaveBinaryStream(name, writer => writer.Write(content));
        context.Writer.Write(SHA256.HashData(content));
    }

    /// <summary>Reads what <see cref="WriteSealed"/> wrote.</summary>
    /// <param name="context">The open zip, its header read.</param>
    /// <param name="name">Name of the entry.</param>
    /// <exception cref="CheckpointFormatException">The zip has no such entry, or it was altered.</exception>
    public static byte[] ReadSealed(ModelLoadContext context, string name)
    {
        byte[] content = Read(context, name), seal = context.Reader.ReadBytes(SHA256.HashSizeInBytes);
        return seal.AsSpan().SequenceEqual(SHA256.HashData(content)) ? content : throw Altered(name);
    }

    private static byte[] Read(ModelLoadContext context, string name)
    {
        byte[]? bytes = null;
        bool there = context.TryLoadBinaryStream(name, reader =>
        {
            bytes = GC.AllocateUninitializedArray<byte>(checked((int)reader.BaseStream.Length));
            reader.BaseStream.ReadExactly(bytes);
        });
        return there && bytes is not null
            ? bytes
            : throw new CheckpointFormatException($"The model zip lacks the entry '{name}'; it is damaged or was not written by this library.");
    }

    private static CheckpointFormatException Altered(string name) =>
        new($"The model zip's entry '{name}' is not as it was written (SHA-256); the file is damaged or was altered. Save or copy the model anew.");

    /// <summary>Writes the backbone's files as they are.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="files">The files.</param>
    /// <param name="names">Which of them.</param>
    /// <param name="hashes">Takes their hashes.</param>
    public static void WriteFiles(ModelSaveContext context, IFileSet files, IEnumerable<string> names, IDictionary<string, string> hashes)
    {
        foreach (string name in names)
        {
            Write(context, BackbonePrefix + name, hashes, stream =>
            {
                using Stream source = files.Open(name);
                source.CopyTo(stream);
            });
        }
    }

    /// <summary>Reads the backbone's files into memory.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="names">Their names.</param>
    /// <param name="hashes">Hashes by name.</param>
    public static MemoryFileSet ReadFiles(ModelLoadContext context, IEnumerable<string> names, IReadOnlyDictionary<string, string> hashes)
    {
        var files = new MemoryFileSet("the model zip");
        foreach (string name in names) files.Add(name, Read(context, BackbonePrefix + name, hashes));
        return files;
    }

    /// <summary>The GPU that the context asks for, or null; and whether the CPU may stand in.</summary>
    /// <param name="environment">An MLContext or a host of one.</param>
    public static (int? Gpu, bool FallbackToCpu) Gpu(IHostEnvironment environment) =>
        environment is IHostEnvironmentInternal own ? (own.GpuDeviceId, own.FallbackToCpu) : (null, true);

    /// <summary>The seed of the context, or null.</summary>
    /// <param name="environment">An MLContext or a host of one.</param>
    public static int? Seed(IHostEnvironment environment) => (environment as IHostEnvironmentInternal)?.Seed;
}
