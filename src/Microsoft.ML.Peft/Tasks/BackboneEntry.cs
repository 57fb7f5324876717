// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Security.Cryptography;
using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Persistence;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A backbone in a model zip: its files, or a folder by path and hash.</summary>
internal static class BackboneEntry
{
    /// <summary>Writes the files, or notes the hashes of what a reference must find again.</summary>
    /// <param name="context">The open zip.</param>
    /// <param name="source">Where the backbone is.</param>
    /// <param name="byReference">True to name its folder, false to hold its files.</param>
    /// <param name="hashes">Takes the hashes.</param>
    /// <param name="inputFiles">Files beside configuration and weights that decide what a row is for the network.</param>
    /// <returns>What the model's description says of it.</returns>
    /// <exception cref="InvalidOperationException">The embedded backbone by reference.</exception>
    public static JsonObject Save(ModelSaveContext context, BackboneSource source, bool byReference, SortedDictionary<string, string> hashes, Func<IFileSet, IEnumerable<string>> inputFiles)
    {
        if (byReference && source.Folder is null)
            throw new InvalidOperationException("The embedded backbone cannot be saved by reference; name a backbone folder, or save the model self-contained.");
        if (byReference) HashSmallFiles(source.Files, inputFiles, hashes);
        else ModelEntry.WriteFiles(context, source.Files, source.Needed, hashes);
        return source.ToJson(byReference);
    }

    /// <summary>Opens what <see cref="Save"/> wrote.</summary>
    public static CheckpointFolder Open(ModelLoadContext context, JsonObject backbone, Dictionary<string, string> hashes, Func<IFileSet, IEnumerable<string>> inputFiles) => backbone.ContainsKey("folder")
        ? OpenReference(backbone, hashes, inputFiles)
        : CheckpointFolder.Open(ModelEntry.ReadFiles(context, backbone["files"]!.AsArray().Select(n => (string)n!), hashes));

    // Beside the weights, these decide what the network computes of a row.
    private static void HashSmallFiles(IFileSet files, Func<IFileSet, IEnumerable<string>> inputFiles, SortedDictionary<string, string> hashes)
    {
        foreach (string name in inputFiles(files).Prepend("config.json"))
        {
            using Stream stream = files.Open(name);
            hashes[name] = Convert.ToHexStringLower(SHA256.HashData(stream));
        }
    }

    // The parameters of adapters are vouched for beside the backbone's files.
    private static bool IsSmall(string name) => !name.EndsWith(".safetensors", StringComparison.Ordinal);

    private static CheckpointFolder OpenReference(JsonObject backbone, Dictionary<string, string> hashes, Func<IFileSet, IEnumerable<string>> inputFiles)
    {
        string folder = (string)backbone["folder"]!, expected = (string)backbone["sha256"]!;
        if (!Directory.Exists(folder))
            throw new DirectoryNotFoundException(
                $"The model refers to the backbone folder '{folder}', which does not exist here. Put the same backbone there, or save the model self-contained.");
        CheckpointFolder checkpoint = CheckpointFolder.Open(folder);
        var small = new SortedDictionary<string, string>(StringComparer.Ordinal);
        HashSmallFiles(checkpoint.Files, inputFiles, small);
        string found = checkpoint.Sha256();
        string[] others = [.. small.Keys.Union(hashes.Keys).Where(n => IsSmall(n) && small.GetValueOrDefault(n) != hashes.GetValueOrDefault(n))];
        if (found == expected && others.Length == 0) return checkpoint;
        checkpoint.Dispose();
        throw new CheckpointFormatException(
            $"The backbone in '{folder}' is not the one that the model was trained on: "
            + (found == expected ? $"changed are {NearNames.List(others)}." : $"SHA-256 {found}, expected {expected}."));
    }

    /// <summary>Turns what a damaged description throws into a clear exception.</summary>
    public static T Guard<T>(Func<T> load)
    {
        try
        {
            return load();
        }
        catch (Exception e) when (e is JsonException or NullReferenceException or InvalidOperationException or ArgumentException or FormatException
            or KeyNotFoundException or OverflowException && e is not (CheckpointFormatException or MissingDeviceException))
        {
            throw new CheckpointFormatException($"The model zip's entry 'model.json' or one that it describes is damaged: {e.Message}", e);
        }
    }
}
