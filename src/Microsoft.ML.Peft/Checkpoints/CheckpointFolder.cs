// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Security.Cryptography;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// A Hugging Face checkpoint: <c>config.json</c> and <c>model.safetensors</c>, the latter single or in shards by
/// <c>model.safetensors.index.json</c>. Weights stay in the mapped files until they are loaded. Reading is thread-safe.
/// </summary>
public sealed partial class CheckpointFolder : IDisposable
{
    private readonly CheckpointWeights _weights;
    private string? _sha256;

    private CheckpointFolder(IFileSet files, CheckpointConfig config, CheckpointWeights weights)
    {
        Files = files;
        Config = config;
        _weights = weights;
    }

    /// <summary>The folder's files: weights, settings, tokenizer; for copying them into a model zip as they are.</summary>
    public IFileSet Files { get; }

    /// <summary>The fields of <c>config.json</c>.</summary>
    public CheckpointConfig Config { get; }

    /// <summary>Where the checkpoint lies, for messages.</summary>
    public string Description => Files.Description;

    /// <summary>Names of the files that hold weights, the shards' index included, in ordinal order.</summary>
    public IReadOnlyList<string> WeightFiles => _weights.FileNames;

    /// <summary>All tensors in the order of their names; scales of int8 rows belong to their tensors.</summary>
    public IReadOnlyList<CheckpointTensor> Tensors => _weights.Tensors;

    /// <summary>
    /// The family's prefix (<c>bert.</c>), given by the backbone: tensors are found with and without it, because both
    /// kinds of files are published.
    /// </summary>
    public string Prefix { get; set; } = string.Empty;

    /// <summary>Opens a folder.</summary>
    /// <param name="folder">Path of a folder with config.json and safetensors weights.</param>
    /// <exception cref="DirectoryNotFoundException">There is no such folder.</exception>
    /// <exception cref="CheckpointFormatException">A file is missing, damaged, or of a kind that is not read.</exception>
    public static CheckpointFolder Open(string folder) => Open(new FolderFileSet(folder));

    /// <summary>Opens a checkpoint wherever its files lie.</summary>
    /// <param name="files">Files with the names of a Hugging Face folder.</param>
    /// <exception cref="CheckpointFormatException">A file is missing, damaged, or of a kind that is not read.</exception>
    public static CheckpointFolder Open(IFileSet files)
    {
        ArgumentNullException.ThrowIfNull(files);
        if (!files.Exists("config.json") && files.Exists("adapter_config.json"))
        {
            throw new CheckpointFormatException($"{files.Description} is an adapter folder (adapter_config.json), not a "
                + "backbone. Open the folder of the base model that the adapter was trained on.");
        }

        CheckpointConfig config = CheckpointConfig.Read(files);
        if (config.Section("quantization_config") is CheckpointConfig quantization)
        {
            string method = quantization.Has("quant_method") ? quantization.String("quant_method") : "unknown method";
            throw new CheckpointFormatException($"{config.Source}: the weights are quantised ({method}), which is not "
                + "read. Use the original checkpoint in float32, float16 or bfloat16.");
        }

        return new CheckpointFolder(files, config, CheckpointWeights.Open(files));
    }

    /// <summary>Finds a tensor by its name, by prefix and name, or by the name without the prefix.</summary>
    /// <param name="name">The name with or without <see cref="Prefix"/>.</param>
    /// <returns>The tensor; null where there is none.</returns>
    public CheckpointTensor? Find(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        if (_weights.ByName.TryGetValue(name, out CheckpointTensor? tensor) || Prefix.Length == 0)
            return tensor;
        string other = name.StartsWith(Prefix, StringComparison.Ordinal) ? name[Prefix.Length..] : Prefix + name;
        return _weights.ByName.GetValueOrDefault(other);
    }

    /// <summary>Whether there is a tensor of that name, with or without the prefix.</summary>
    /// <param name="name">The name with or without <see cref="Prefix"/>.</param>
    public bool Contains(string name) => Find(name) is not null;

    /// <summary>The tensor of that name.</summary>
    /// <param name="name">The name with or without <see cref="Prefix"/>.</param>
    /// <exception cref="CheckpointFormatException">There is none; the message lists near names.</exception>
    public CheckpointTensor Get(string name) => Find(name) ?? throw new CheckpointFormatException(
        $"{Description}: {WeightsText} no tensor {NearNames.Quote(name)}.{NearNames.Hint(name, TensorNames)}");

    /// <summary>
    /// Compares what a network wants with what is there, before anything is loaded: everything that is missing or of
    /// another shape is told at once.
    /// </summary>
    /// <param name="required">Names, with or without <see cref="Prefix"/>, and shapes that must be there.</param>
    /// <param name="optional">Names and shapes that may be missing (a head that is trained anew).</param>
    /// <param name="ignored">Says of a stored name whether it is no matter (buffers such as <c>position_ids</c>).</param>
    /// <exception cref="CheckpointFormatException">Required tensors are missing, or shapes differ.</exception>
    public CheckpointCheck Check(
        IEnumerable<KeyValuePair<string, long[]>> required,
        IEnumerable<KeyValuePair<string, long[]>>? optional = null,
        Func<string, bool>? ignored = null)
    {
        ArgumentNullException.ThrowIfNull(required);
        var used = new HashSet<CheckpointTensor>();
        var missing = new List<KeyValuePair<string, long[]>>();
        var wrong = new List<string>();
        var absent = new List<string>();
        foreach (KeyValuePair<string, long[]> wanted in required)
        {
            if (!Fits(wanted, used, wrong))
                missing.Add(wanted);
        }

        foreach (KeyValuePair<string, long[]> wanted in optional ?? [])
        {
            if (!Fits(wanted, used, wrong))
                absent.Add(wanted.Key);
        }

        if (missing.Count + wrong.Count > 0)
            throw new CheckpointFormatException(Complaint(missing, wrong));
        string[] extra = Tensors.Where(t => !used.Contains(t) && ignored?.Invoke(t.Name) != true)
            .Select(t => t.Name).ToArray();
        return new CheckpointCheck(absent, extra);
    }

    /// <summary>
    /// SHA-256 of the weights in lower-case hexadecimal: that of <c>model.safetensors</c> itself, or for shards that of
    /// the lines <c>HASH  NAME</c>, one a file in ordinal order of names. Computed once.
    /// </summary>
    public string Sha256()
    {
        if (_sha256 is string known)
            return known;
        if (WeightFiles.Count == 1)
            return _sha256 = Sha256Of(WeightFiles[0]);
        string lines = string.Concat(WeightFiles.Select(name => $"{Sha256Of(name)}  {name}\n"));
        return _sha256 = Convert.ToHexStringLower(SHA256.HashData(System.Text.Encoding.UTF8.GetBytes(lines)));
    }

    /// <summary>Frees the maps; tensors that were loaded stay valid.</summary>
    public void Dispose() => _weights.Dispose();

    private IEnumerable<string> TensorNames => Tensors.Select(t => t.Name);

    private string WeightsText => WeightFiles.Count == 1 ? $"{WeightFiles[0]} has" : "the shards of the weights have";

    private string Sha256Of(string name)
    {
        using Stream stream = Files.Open(name);
        return Convert.ToHexStringLower(SHA256.HashData(stream));
    }

    private bool Fits(KeyValuePair<string, long[]> wanted, HashSet<CheckpointTensor> used, List<string> wrong)
    {
        if (Find(wanted.Key) is not CheckpointTensor tensor)
            return false;
        used.Add(tensor);
        if (!tensor.Shape.AsSpan().SequenceEqual(wanted.Value))
            wrong.Add(WrongShape(tensor, wanted.Value));
        return true;
    }

    private static string WrongShape(CheckpointTensor tensor, ReadOnlySpan<long> expected) =>
        $"{NearNames.Quote(tensor.Stored.Name)} has the shape {SafetensorsInfo.ShapeText(tensor.Shape.AsSpan())}, but "
        + $"{SafetensorsInfo.ShapeText(expected)} is expected";

    private string Complaint(List<KeyValuePair<string, long[]>> missing, List<string> wrong)
    {
        const int most = 20;
        var parts = new List<string>();
        if (missing.Count > 0)
        {
            // Names as this file would have them, so that one can look for them there.
            bool prefixed = Prefix.Length > 0 && TensorNames.Any(n => n.StartsWith(Prefix, StringComparison.Ordinal));
            IEnumerable<string> listed = missing.Take(most).Select(m =>
                $"{(prefixed && !m.Key.StartsWith(Prefix, StringComparison.Ordinal) ? Prefix : "")}{m.Key} "
                + SafetensorsInfo.ShapeText(m.Value));
            string more = missing.Count > most ? $" and {missing.Count - most} more" : "";
            parts.Add($"{WeightsText} not the {missing.Count} tensor{(missing.Count == 1 ? "" : "s")} "
                + $"{string.Join(", ", listed)}{more}.{NearNames.Hint(missing[0].Key, TensorNames)}");
        }

        if (wrong.Count > 0)
            parts.Add(string.Join("; ", wrong.Take(most)) + (wrong.Count > most ? $" and {wrong.Count - most} more." : "."));
        return $"{Description}: {string.Join(" ", parts)} Does config.json belong to these weights?";
    }
}
