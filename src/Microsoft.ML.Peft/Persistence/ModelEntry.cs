// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Persistence;

/// <summary>
/// The only door to ML.NET's model zip: named binary entries beside a version. Layout of a transformer's folder in the zip:
/// <code>
/// Model.key                    ML.NET's header: signature, versions, loader, assembly
/// model.json                   task, method with options, labels, columns, where the backbone is
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

    /// <summary>Writes an entry.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="name">Name of the entry.</param>
    /// <param name="write">Writes the content.</param>
    public static void Write(ModelSaveContext context, string name, Action<Stream> write) =>
        context.SaveBinaryStream(name, writer =>
        {
            writer.Flush();
            write(writer.BaseStream);
        });

    /// <summary>Reads an entry whole.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="name">Name of the entry.</param>
    /// <exception cref="CheckpointFormatException">The zip has no such entry.</exception>
    public static byte[] Read(ModelLoadContext context, string name)
    {
        byte[]? bytes = null;
        bool there = context.TryLoadBinaryStream(name, reader =>
        {
            using var memory = new MemoryStream();
            reader.BaseStream.CopyTo(memory);
            bytes = memory.ToArray();
        });
        return there && bytes is not null
            ? bytes
            : throw new CheckpointFormatException($"The model zip lacks the entry '{name}'; it is damaged or was not written by this library.");
    }

    /// <summary>Writes the backbone's files as they are.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="files">The files.</param>
    /// <param name="names">Which of them.</param>
    public static void WriteFiles(ModelSaveContext context, IFileSet files, IEnumerable<string> names)
    {
        foreach (string name in names)
        {
            Write(context, BackbonePrefix + name, stream =>
            {
                using Stream source = files.Open(name);
                source.CopyTo(stream);
            });
        }
    }

    /// <summary>Reads the backbone's files into memory.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="names">Their names.</param>
    public static MemoryFileSet ReadFiles(ModelLoadContext context, IEnumerable<string> names)
    {
        var files = new MemoryFileSet("the model zip");
        foreach (string name in names) files.Add(name, Read(context, BackbonePrefix + name));
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
