// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>How an adapter folder is read.</summary>
public sealed record AdapterLoadOptions
{
    /// <summary>
    /// True to refuse a file that lacks tensors of the adapter or has others. False to do as Python PEFT: what is missing
    /// keeps its fresh value, what is too much is left aside, and <see cref="AdapterFolder.Warnings"/> tells.
    /// </summary>
    public bool Strict { get; init; } = true;

    /// <summary>
    /// The folder of the adapter as it was before training, for an adapter that began with a part of the base weights (PiSSA,
    /// OLoRA, LoRA-GA, CorDA): that part is then taken from there. Needed where it was made from data. Null for none.
    /// </summary>
    public string? Initial { get; init; }

    /// <summary>True to let tensors of another shape keep their fresh value, with a warning.</summary>
    public bool IgnoreMismatchedShapes { get; init; }
}

/// <summary>
/// A folder with an adapter as Hugging Face PEFT writes it: <c>adapter_config.json</c> and
/// <c>adapter_model.safetensors</c>. Methods that do not exist there are kept in the same two files, under a name of ours.
/// </summary>
public sealed partial class AdapterFolder : IDisposable
{
    /// <summary>Name of the configuration.</summary>
    public const string ConfigFile = "adapter_config.json";

    /// <summary>Name of the file of tensors.</summary>
    public const string WeightsFile = "adapter_model.safetensors";

    private const string OwnField = "microsoft_ml_peft";
    private const string KeyPrefix = "base_model.model.";

    private readonly SafetensorsFile _file;
    private readonly List<string> _warnings = [];

    private AdapterFolder(string description, JsonObject config, PeftMethod method, SafetensorsFile file)
    {
        Description = description;
        Config = config;
        Method = method;
        _file = file;
    }

    /// <summary>Where the adapter lies, for messages.</summary>
    public string Description { get; }

    /// <summary>The whole configuration, unknown fields included.</summary>
    public JsonObject Config { get; }

    /// <summary>The method, with its options read from the configuration.</summary>
    public PeftMethod Method { get; }

    /// <summary>What the adapter was trained for (<c>SEQ_CLS</c>, ...), or null.</summary>
    public string? TaskType => AdapterConfig.Get<string?>(Config, "task_type", null);

    /// <summary>Names of the tensors in the file.</summary>
    public IReadOnlyList<string> Names => _file.Names;

    /// <summary>What was left aside in reading.</summary>
    public IReadOnlyList<string> Warnings => _warnings;

    /// <summary>Opens an adapter folder.</summary>
    /// <param name="folder">Path of the folder that holds adapter_config.json.</param>
    /// <exception cref="DirectoryNotFoundException">There is no such folder.</exception>
    /// <exception cref="CheckpointFormatException">A file is missing or damaged, or the method is not known.</exception>
    public static AdapterFolder Open(string folder) => Open(new FolderFileSet(folder));

    /// <summary>Opens an adapter wherever its files lie.</summary>
    /// <param name="files">Files with the names of an adapter folder.</param>
    /// <exception cref="CheckpointFormatException">A file is missing or damaged, or the method is not known.</exception>
    public static AdapterFolder Open(IFileSet files)
    {
        JsonObject config = ReadConfig(files, ConfigFile);
        PeftMethod method = ReadMethod(files.Description, config);
        if (!files.Exists(WeightsFile))
            throw new CheckpointFormatException(
                $"{files.Description} has no {WeightsFile}; it holds: {NearNames.List(files.Names)}."
                + (files.Exists("adapter_model.bin") ? " Pickled weights (.bin) are not read: save the adapter again with safe_serialization=True." : ""));
        SafetensorsFile file = SafetensorsFile.Open(files, WeightsFile);
        try
        {
            method.ReadTensors(file.Names.ToDictionary(name => name, name => file.Info(name).Shape.AsSpan().ToArray()));
            return new AdapterFolder(files.Description, config, method, file);
        }
        catch (ArgumentException e)
        {
            file.Dispose();
            throw new CheckpointFormatException($"{files.Description}/{WeightsFile}: {e.Message}", e);
        }
    }

    /// <summary>Shape of a tensor in the file.</summary>
    /// <param name="name">One of <see cref="Names"/>.</param>
    public ReadOnlySpan<long> Shape(string name) => _file.Info(name).Shape.AsSpan();

    internal static JsonObject ReadConfig(IFileSet files, string name)
    {
        if (!files.Exists(name))
        {
            string[] below = [.. files.Names.Where(n => n.EndsWith("/" + name, StringComparison.Ordinal))];
            throw new CheckpointFormatException(
                $"{files.Description} has no {name}; it holds: {NearNames.List(files.Names)}."
                + (below.Length > 0 ? $" Adapters lie in its sub-folders: open one of {NearNames.List(below.Select(n => n[..n.LastIndexOf('/')]))}." : ""));
        }
        ReadOnlyMemory<byte> text = SmallFile.WithoutMark(SmallFile.Read(files, name, 1 << 24));
        return AdapterConfig.Parse(Encoding.UTF8.GetString(text.Span), $"{files.Description}/{name}");
    }

    private static PeftMethod ReadMethod(string description, JsonObject config)
    {
        try
        {
            if (config[OwnField] is JsonObject own) return PeftMethods.FromJson(own.ToJsonString());
            string? type = AdapterConfig.Get<string?>(config, "peft_type", null);
            PeftMethod[] known = [.. PeftMethods.Ids.Select(PeftMethods.Create).Where(m => m.HuggingFaceType is not null)];
            string names = string.Join(", ", known.Select(m => m.HuggingFaceType));
            if (type is null)
                throw new ArgumentException($"the field 'peft_type' is missing; expected is one of {names}.");
            PeftMethod method = known.FirstOrDefault(m => m.HuggingFaceType == type)
                ?? throw new ArgumentException(
                    $"the field 'peft_type' is {NearNames.Quote(type)}; known are {names}.{NearNames.Hint(type, known.Select(m => m.HuggingFaceType!))}");
            method.ReadHuggingFace(config);
            return method;
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException)
        {
            throw new CheckpointFormatException($"{description}/{ConfigFile}: {e.Message}", e);
        }
    }

    /// <summary>Makes the adaptation and fills it, and the head, from the file.</summary>
    /// <param name="backbone">The base model that the adapter was trained on.</param>
    /// <param name="head">The task's head, filled where the file holds it; null for none.</param>
    /// <param name="options">How to read; null for the default.</param>
    /// <returns>The adaptation; the caller owns it.</returns>
    /// <exception cref="CheckpointFormatException">Tensors are missing, too many, or of another shape; the message names them.</exception>
    public PeftAdaptation Attach(Backbone backbone, Head? head = null, AdapterLoadOptions? options = null)
    {
        _warnings.Clear();
        PeftAdaptation adaptation;
        try
        {
            adaptation = Method.Attach(backbone, seed: 0);
        }
        catch (ArgumentException e)
        {
            throw new CheckpointFormatException($"{Description}/{ConfigFile}: {e.Message}", e);
        }
        try
        {
            NoteUnknownFields(backbone);
            Fill(adaptation, backbone, head, options ?? new AdapterLoadOptions());
            FillInitial(adaptation, backbone, options?.Initial);
            adaptation.Filled();
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    // What an adapter began with, where that was a part of the base weights.
    private void FillInitial(PeftAdaptation adaptation, Backbone backbone, string? folder)
    {
        if (folder is null)
        {
            if (adaptation.NeedsInitial)
                throw new CheckpointFormatException(
                    $"{Description}: this adapter began with a part of the base weights that was made from data, so it belongs to a changed base model. Name the folder of "
                    + "the untrained adapter (AdapterLoadOptions.Initial), or convert it to plain LoRA first (save_pretrained with path_initial_model_for_weight_conversion).");
            return;
        }
        using SafetensorsFile file = SafetensorsFile.Open(new FolderFileSet(folder), WeightsFile);
        var keys = new AdapterKeys(file.Names, backbone);
        foreach (NamedParameter start in adaptation.Parameters.Where(p => p.InitialOf is not null))
        {
            string key = file.Names.FirstOrDefault(name => keys.Canonical(name, known => known == start.InitialOf) == start.InitialOf)
                ?? throw new CheckpointFormatException($"{folder}/{WeightsFile}: the tensor of {start.InitialOf} is missing; this is not the folder of the untrained adapter.");
            using TorchSharp.torch.Tensor value = AdapterTensors.Read(file, key);
            if (!value.shape.AsSpan().SequenceEqual(start.Value.shape))
                throw new CheckpointFormatException($"{folder}/{WeightsFile}: {NearNames.Quote(key)}: found [{string.Join(", ", value.shape)}], expected [{string.Join(", ", start.Value.shape)}].");
            start.Load(value);
        }
    }

    private void Fill(PeftAdaptation adaptation, Backbone backbone, Head? head, AdapterLoadOptions options)
    {
        Dictionary<string, NamedParameter> open = adaptation.Parameters.Where(p => p.Exchanged && p.Saved).ToDictionary(p => p.Name);
        Dictionary<string, NamedParameter> copies = open.Values.SelectMany(p => p.Copies.Concat(p.TurnedCopies).Select(name => (name, p))).ToDictionary(c => c.name, c => c.p);
        List<(string Key, string Name, NamedParameter First)> seconds = [];
        Dictionary<string, NamedParameter> headOpen = head?.Parameters.Where(p => p.Saved).ToDictionary(p => p.Name) ?? [];
        var keys = new AdapterKeys(_file.Names, backbone);
        Dictionary<string, NamedParameter[]> byKey = open.Values.Where(p => p.FileKey is not null).GroupBy(p => p.FileKey!).ToDictionary(g => g.Key, g => g.ToArray());
        string KeyOf(NamedParameter parameter) => parameter.FileKey ?? keys.KeyOf(parameter.Name);
        if (keys.NoneHasPrefix && !_file.Names.Any(byKey.ContainsKey))
            throw new CheckpointFormatException(
                $"{Description}/{WeightsFile}: no tensor's name begins with '{KeyPrefix}' (the first is {NearNames.Quote(_file.Names[0])}); expected are the names that save_pretrained writes.");
        List<string> extra = [], wrong = [], oldBiases = [];
        foreach (string key in _file.Names)
        {
            if (byKey.TryGetValue(key, out NamedParameter[]? parts) && parts.Length > 1)
            {
                foreach (NamedParameter part in parts) open.Remove(part.Name);
                LoadParts(key, parts, wrong);
                continue;
            }
            string? name = parts is not null ? parts[0].Name
                : keys.Canonical(key, n => open.ContainsKey(n) || headOpen.ContainsKey(n) || copies.ContainsKey(n));
            if (name is null) continue;                                          // a second copy
            if (Take(copies, name, out NamedParameter? first))
            {
                seconds.Add((key, name, first!));
                continue;
            }
            if (!Take(open, name, out NamedParameter? target) && !Take(headOpen, name, out target))
            {
                if (IsStoredTable(key, name, backbone)) continue;
                // Old versions wrote the trained bias of an adapted module under the module's own name.
                string now = name.EndsWith(".bias", StringComparison.Ordinal) ? name[..^5] + ".base_layer.bias" : name;
                if (!Take(open, now, out target))
                {
                    extra.Add(key);
                    continue;
                }
                oldBiases.Add(key);
            }
            ReadOnlySpan<long> found = Shape(key);
            if (!found.SequenceEqual(target!.Value.shape))
            {
                wrong.Add($"{NearNames.Quote(key)}: found [{string.Join(", ", found.ToArray())}], expected [{string.Join(", ", target.Value.shape)}]");
                continue;
            }
            using TorchSharp.torch.Tensor value = AdapterTensors.Read(_file, key);
            target.Load(value);
        }
        CheckCopies(seconds);
        if (oldBiases.Count > 0) _warnings.Add($"Biases under their old names were read: {NearNames.List(oldBiases)}.");
        Report(wrong, "Tensors of another shape: ", !options.IgnoreMismatchedShapes, "; ");
        string[] lost = [.. headOpen.Keys.Where(name => RequiredOfHead(name, head!, headOpen))];
        Report(lost, "Missing tensors of the trained head: ", always: true);
        Report([.. open.Values.Select(KeyOf), .. copies.Keys.Select(keys.KeyOf)], "Missing tensors: ", options.Strict);
        Report(extra, "Unexpected tensors: ", options.Strict, hint: extra.Count == 1 ? NearNames.Hint(extra[0], open.Values.Select(KeyOf)) : "");
    }

    private void LoadParts(string key, NamedParameter[] parts, List<string> wrong)
    {
        long[] expected = [parts.Sum(p => p.Value.shape[0]), .. parts[0].Value.shape[1..]];
        if (!Shape(key).SequenceEqual(expected))
        {
            wrong.Add($"{NearNames.Quote(key)}: found [{string.Join(", ", Shape(key).ToArray())}], expected [{string.Join(", ", expected)}]");
            return;
        }
        using var scope = TorchSharp.torch.NewDisposeScope();
        TorchSharp.torch.Tensor whole = AdapterTensors.Read(_file, key);
        long at = 0;
        foreach (NamedParameter part in parts)
        {
            part.Load(whole.narrow(0, at, part.Value.shape[0]));
            at += part.Value.shape[0];
        }
    }

    // A tensor that modules share stands in the file once a module.
    private void CheckCopies(List<(string Key, string Name, NamedParameter First)> copies)
    {
        using var scope = TorchSharp.torch.NewDisposeScope();
        using var off = TorchSharp.torch.no_grad();
        foreach ((string key, string name, NamedParameter first) in copies)
        {
            TorchSharp.torch.Tensor held = first.TurnedCopies.Contains(name) ? first.Value.t() : first.Value;
            TorchSharp.torch.Tensor value = AdapterTensors.Read(_file, key);
            if (!value.shape.AsSpan().SequenceEqual(held.shape) || !value.eq(held.cpu()).all().item<bool>())
                throw new CheckpointFormatException(
                    $"{Description}/{WeightsFile}: {NearNames.Quote(key)} differs from {NearNames.Quote(first.Name)}, but the modules share one tensor; the file is damaged or was made with other options.");
        }
    }

    private static bool Take(Dictionary<string, NamedParameter> open, string name, out NamedParameter? target) => open.Remove(name, out target);

    // A head that the configuration says was trained must be there; so must the rest of one that is there in part.
    private bool RequiredOfHead(string name, Head head, Dictionary<string, NamedParameter> stillOpen)
    {
        IReadOnlyList<string> saved = AdapterConfig.List<string>(Config, "modules_to_save");
        string module = name.Contains('.') ? name[..name.LastIndexOf('.')] : name;
        return stillOpen.Count < head.Parameters.Count
            || saved.Any(s => TargetMatcher.Names(s, module) || module.StartsWith(s + ".", StringComparison.Ordinal));
    }

    private void Report(IReadOnlyList<string> names, string what, bool always, string separator = "", string hint = "")
    {
        if (names.Count == 0) return;
        string list = separator.Length > 0 ? string.Join(separator, names.Take(20)) : NearNames.List(names);
        if (always) throw new CheckpointFormatException($"{Description}/{WeightsFile}: {what}{list}.{hint}");
        _warnings.Add($"{what}{list}.");
    }

    private void NoteUnknownFields(Backbone backbone)
    {
        if (Method.HuggingFaceType is null || Config[OwnField] is JsonObject) return;
        var known = new JsonObject();
        Method.WriteHuggingFace(known, backbone);
        string[] unknown = [.. Config.Select(p => p.Key).Where(k => !known.ContainsKey(k) && !_common.ContainsKey(k))];
        if (unknown.Length > 0) _warnings.Add($"Unknown fields of {ConfigFile} were ignored: {NearNames.List(unknown)}.");
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();
}
