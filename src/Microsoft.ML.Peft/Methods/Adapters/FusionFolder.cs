// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// A folder with a fusion as AdapterHub's package writes it: <c>adapter_fusion_config.json</c> and
/// <c>model_adapter_fusion.safetensors</c>.
/// </summary>
public static class FusionFolder
{
    /// <summary>Name of the configuration.</summary>
    public const string ConfigFile = "adapter_fusion_config.json";

    /// <summary>Name of the file of tensors.</summary>
    public const string WeightsFile = "model_adapter_fusion.safetensors";

    /// <summary>Adds the folder's fusion to a set that holds its adapters.</summary>
    /// <param name="folder">Path of the folder.</param>
    /// <param name="set">Takes the fusion.</param>
    /// <returns>The fusion's parameters; the set owns them.</returns>
    /// <exception cref="CheckpointFormatException">A file is missing or damaged, or a tensor is missing, too many or of another shape.</exception>
    public static PeftAdaptation Load(string folder, AdapterSet set)
    {
        var files = new FolderFileSet(folder);
        JsonObject root = AdapterFolder.ReadConfig(files, ConfigFile);
        if (!files.Exists(WeightsFile)) throw new CheckpointFormatException($"{folder} has no {WeightsFile}; it holds: {NearNames.List(files.Names)}.");
        PeftAdaptation made;
        try
        {
            made = set.AddFusion(Read(root["config"] as JsonObject ?? throw new ArgumentException("the table 'config' is missing.")), [.. AdapterConfig.List<string>(root, "adapter_names")]);
        }
        catch (ArgumentException e)
        {
            throw new CheckpointFormatException($"{folder}/{ConfigFile}: {e.Message}", e);
        }
        using SafetensorsFile file = SafetensorsFile.Open(files, WeightsFile);
        using var scope = NewDisposeScope();
        // The package writes along what fusions hold whose names begin like this one's.
        string own = $".adapter_fusion_layer.{AdapterConfig.Get(root, "name", string.Join(',', AdapterConfig.List<string>(root, "adapter_names")))}.";
        string[] extra = [.. file.Names.Where(n => (n.Contains(own, StringComparison.Ordinal) || !n.Contains(".adapter_fusion_layer.", StringComparison.Ordinal)) && made.Find(n) is null && !Prefixed(n, set.Backbone, made))];
        if (extra.Length > 0) throw new CheckpointFormatException($"{folder}/{WeightsFile}: Unexpected tensors: {NearNames.List(extra)}.");
        foreach (NamedParameter parameter in made.Parameters)
        {
            string key = file.Contains(parameter.Name) ? parameter.Name : Bare(parameter.Name, set.Backbone);
            if (!file.Contains(key)) throw new CheckpointFormatException($"{folder}/{WeightsFile}: Missing tensors: {parameter.Name}.");
            parameter.Load(AdapterTensors.Read(file, key));
        }
        return made;
    }

    private static string Bare(string name, Backbone backbone) => name.StartsWith(backbone.Prefix + ".", StringComparison.Ordinal) ? name[(backbone.Prefix.Length + 1)..] : name;

    private static bool Prefixed(string key, Backbone backbone, PeftAdaptation made) => made.Find($"{backbone.Prefix}.{key}") is not null;

    /// <summary>Writes a fusion folder. Each file is there whole or not at all.</summary>
    /// <param name="folder">Path of the folder; made where it is missing.</param>
    /// <param name="fusion">What <see cref="AdapterSet.AddFusion"/> or <see cref="Load"/> gave.</param>
    /// <param name="names">The adapters' names, in order.</param>
    /// <param name="modelClass">Name of the package's model class, for its readers.</param>
    /// <param name="modelName">Name of the base model, for its readers.</param>
    /// <exception cref="ArgumentException">The adaptation is no fusion.</exception>
    public static void Save(string folder, PeftAdaptation fusion, IReadOnlyList<string> names, string? modelClass = null, string? modelName = null)
    {
        if (fusion is not FusionAdaptation made) throw new ArgumentException("This adaptation is no fusion; AdapterFolder and AdapterHubFolder write adapters.", nameof(fusion));
        Directory.CreateDirectory(folder);
        var config = new JsonObject
        {
            ["adapter_names"] = new JsonArray([.. names.Select(n => (JsonNode?)n)]),
            ["config"] = Write(made.Options),
            ["hidden_size"] = made.Backbone.Config.HiddenSize,
            ["model_class"] = modelClass,
            ["model_name"] = modelName,
            ["model_type"] = made.Backbone.Config.ModelType,
            ["name"] = string.Join(',', names),
            ["version"] = "adapters.1.3.0",
        };
        var writer = new SafetensorsWriter();
        foreach (NamedParameter parameter in made.Parameters) AdapterTensors.Add(writer, parameter.Name, parameter.Value);
        writer.Save(Path.Combine(folder, WeightsFile));
        AtomicFile.Write(Path.Combine(folder, ConfigFile), stream => stream.Write(Encoding.ASCII.GetBytes(AdapterConfig.ToText(config))));
    }

    internal static FusionOptions Read(JsonObject config) => new()
    {
        Query = AdapterConfig.Get(config, "query", true),
        Key = AdapterConfig.Get(config, "key", true),
        Value = AdapterConfig.Get(config, "value", true),
        QueryBeforeNorm = AdapterConfig.Get(config, "query_before_ln", false),
        Regularization = AdapterConfig.Get(config, "regularization", true),
        ResidualBefore = AdapterConfig.Get(config, "residual_before", false),
        Temperature = AdapterConfig.Get(config, "temperature", false),
        ValueBeforeSoftmax = AdapterConfig.Get(config, "value_before_softmax", true),
        ValueInitialized = AdapterConfig.Get(config, "value_initialized", true),
        Dropout = AdapterConfig.IsEmpty(config, "dropout_prob") ? 0 : AdapterConfig.Get(config, "dropout_prob", 0.0),
    };

    private static JsonObject Write(FusionOptions options) => new()
    {
        ["dropout_prob"] = options.Dropout == 0 ? null : options.Dropout,
        ["key"] = options.Key,
        ["query"] = options.Query,
        ["query_before_ln"] = options.QueryBeforeNorm,
        ["regularization"] = options.Regularization,
        ["residual_before"] = options.ResidualBefore,
        ["temperature"] = options.Temperature,
        ["value"] = options.Value,
        ["value_before_softmax"] = options.ValueBeforeSoftmax,
        ["value_initialized"] = options.ValueInitialized,
    };
}
