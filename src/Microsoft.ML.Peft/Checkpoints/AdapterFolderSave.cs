// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>What is written beside the adapter.</summary>
public sealed record AdapterSaveOptions
{
    /// <summary>
    /// <c>SEQ_CLS</c>, <c>TOKEN_CLS</c>, <c>QUESTION_ANS</c>, <c>CAUSAL_LM</c>, <c>SEQ_2_SEQ_LM</c>, <c>FEATURE_EXTRACTION</c>; null for
    /// SEQ_CLS where there is a head, FEATURE_EXTRACTION where there is none; empty for none, as classifiers of images have it.
    /// </summary>
    public string? TaskType { get; init; }

    /// <summary>Name or path of the base model, for the reader's information.</summary>
    public string? BaseModel { get; init; }

    /// <summary>The configuration of the folder that the adapter was loaded from: its fields are carried on where they still hold.</summary>
    public JsonObject? LoadedFrom { get; init; }

    /// <summary>
    /// True to write an adapter that started from a part of the base weights (PiSSA, OLoRA) as it is, for readers that
    /// repeat its start; false to write it as plain LoRA on the unchanged base model.
    /// </summary>
    public bool KeepInitialisation { get; init; }
}

public sealed partial class AdapterFolder
{
    private static readonly JsonObject _common = new()
    {
        ["auto_mapping"] = null,
        ["base_model_name_or_path"] = null,
        ["inference_mode"] = true,
        ["peft_type"] = null,
        ["peft_version"] = "0.21.2",
        ["revision"] = null,
        ["task_type"] = null,
    };

    /// <summary>Writes an adapter folder; nothing is merged. Each file is there whole or not at all.</summary>
    /// <param name="folder">Path of the folder; made where it is missing.</param>
    /// <param name="adaptation">The adapter.</param>
    /// <param name="head">The trained head, or null.</param>
    /// <param name="options">What else is written; null for the default.</param>
    public static void Save(string folder, PeftAdaptation adaptation, Head? head = null, AdapterSaveOptions? options = null)
    {
        Directory.CreateDirectory(folder);
        (byte[] config, SafetensorsWriter weights) = Write(adaptation, head, options);
        weights.Save(Path.Combine(folder, WeightsFile));
        AtomicFile.Write(Path.Combine(folder, ConfigFile), stream => stream.Write(config));
    }

    /// <summary>The two files of an adapter folder, for writing them elsewhere than into a folder.</summary>
    /// <param name="adaptation">The adapter.</param>
    /// <param name="head">The trained head, or null.</param>
    /// <param name="options">What else is written; null for the default.</param>
    /// <returns>The bytes of adapter_config.json, and the tensors.</returns>
    public static (byte[] Config, SafetensorsWriter Weights) Write(PeftAdaptation adaptation, Head? head = null, AdapterSaveOptions? options = null)
    {
        options ??= new AdapterSaveOptions();
        PeftAdaptation exchanged = options.KeepInitialisation ? adaptation : adaptation.Method.ToExchange(adaptation);
        try
        {
            JsonObject config = MakeConfig(exchanged, head, options);
            bool bare = AdapterConfig.Get<string?>(config, "task_type", null) == "FEATURE_EXTRACTION" && head is null;
            var writer = new SafetensorsWriter();
            writer.Metadata["format"] = "pt";
            bool memory = exchanged.Method.FitsHuggingFace(adaptation.Backbone) && exchanged.Method.NamesOfMemory(adaptation.Backbone);
            string Named(string name) => AdapterKeys.KeyOf(
                memory ? ModuleNames.ToMemory(adaptation.Backbone.Config.ModelType, name) : name, adaptation.Backbone, bare, exchanged.Method.FilePrefix);
            string KeyOf(NamedParameter p) => p.FileKey ?? Named(p.Name);
            using var scope = TorchSharp.torch.NewDisposeScope();
            foreach (IGrouping<string, NamedParameter> tensor in exchanged.Parameters.Where(p => p.Exchanged).Concat(head?.Parameters ?? []).Where(p => p.Saved).GroupBy(KeyOf))
                AdapterTensors.Add(writer, tensor.Key, tensor.Count() == 1 ? tensor.First().Value : TorchSharp.torch.cat([.. tensor.Select(p => p.Value.detach())]));
            foreach (NamedParameter shared in exchanged.Parameters.Where(p => p.Exchanged && p.Saved))
            {
                foreach (string copy in shared.Copies) AdapterTensors.Add(writer, Named(copy), shared.Value);
                foreach (string copy in shared.TurnedCopies) AdapterTensors.Add(writer, Named(copy), shared.Value.detach().t());
            }
            foreach (WeightSite table in StoredTables(exchanged, config))
                AdapterTensors.Add(writer, Named(adaptation.Backbone.PathOf(table) + BaseWeight), table.Weight);
            return (Encoding.ASCII.GetBytes(AdapterConfig.ToText(config)), writer);
        }
        finally
        {
            if (!ReferenceEquals(exchanged, adaptation)) exchanged.Dispose();
        }
    }

    private static JsonObject MakeConfig(PeftAdaptation adaptation, Head? head, AdapterSaveOptions options)
    {
        if (options.LoadedFrom is { } loaded && StillHolds(loaded, adaptation)) return loaded.DeepClone().AsObject();
        var config = _common.DeepClone().AsObject();
        foreach (string field in (string[])["auto_mapping", "base_model_name_or_path", "revision", "task_type"])
            if (options.LoadedFrom?[field] is { } kept) config[field] = kept.DeepClone();
        config["task_type"] = options.TaskType is "" ? null : options.TaskType ?? (options.LoadedFrom is { } from ? from["task_type"]?.DeepClone() : head is null ? "FEATURE_EXTRACTION" : "SEQ_CLS");
        if (options.BaseModel is not null) config["base_model_name_or_path"] = options.BaseModel;
        if (adaptation.Method.FitsHuggingFace(adaptation.Backbone))
        {
            config["peft_type"] = adaptation.Method.HuggingFaceType;
            adaptation.Method.WriteHuggingFace(config, adaptation.Backbone);
            if (config.ContainsKey("modules_to_save")) AddHeadModules(config, adaptation.Backbone, head);
        }
        else
        {
            config["peft_type"] = adaptation.Method.Id.ToUpperInvariant().Replace('-', '_');
            config["peft_version"] = null;
            config[OwnField] = JsonNode.Parse(PeftMethods.ToJson(adaptation.Method));
        }
        return config;
    }

    // Byte for byte what was loaded, as long as it says the same as the method now does.
    private static bool StillHolds(JsonObject loaded, PeftAdaptation adaptation)
    {
        try
        {
            PeftMethod read = ReadMethod("", loaded);
            read.ReadTensors(adaptation.Parameters.Where(p => p.Exchanged && p.Saved)
                .SelectMany(p => p.Copies.Prepend(p.Name).Select(name => (Key: p.FileKey ?? adaptation.Method.FilePrefix + name, p.Value.shape)))
                .GroupBy(t => t.Key).ToDictionary(g => g.Key, g => g.First().shape));
            return PeftMethods.ToJson(read) == PeftMethods.ToJson(adaptation.Method);
        }
        catch (Exception e) when (e is CheckpointFormatException or ArgumentException)
        {
            return false;
        }
    }

    private static void AddHeadModules(JsonObject config, Backbone backbone, Head? head)
    {
        List<string> modules = [.. AdapterConfig.List<string>(config, "modules_to_save")];
        string[] usual = AdapterConfig.Get<string?>(config, "task_type", null) switch
        {
            "SEQ_CLS" or "TOKEN_CLS" => ["classifier", "score"],
            "QUESTION_ANS" => ["qa_outputs"],
            _ => [],
        };
        // A head's part inside the backbone's name space (bert.pooler) is named without the prefix.
        IEnumerable<string> parts = (head?.Parameters ?? []).Select(p =>
            p.Name.StartsWith(backbone.Prefix + ".", StringComparison.Ordinal) ? p.Name[(backbone.Prefix.Length + 1)..] : p.Name)
            .Where(name => name.Contains('.')).Select(name => name[..name.IndexOf('.')]);       // a parameter of no module has none to name
        foreach (string module in usual.Concat(parts))
            if (!modules.Contains(module)) modules.Add(module);
        config["modules_to_save"] = modules.Count == 0 ? null : AdapterConfig.Array(modules);
    }
}
