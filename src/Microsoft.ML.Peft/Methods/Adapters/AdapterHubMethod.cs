// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// A method that AdapterHub's package knows too. Its parameters are named as in that package's files
/// (<see cref="HubNames"/>), and its options read from and write to the table <c>config</c> of its adapter_config.json.
/// </summary>
public interface IAdapterHubMethod
{
    /// <summary>Name of the adapter inside tensor names.</summary>
    string Name { get; set; }

    /// <summary>The field <c>architecture</c>; null for bottleneck adapters, which have none.</summary>
    string? Architecture { get; }

    /// <summary>Reads the table <c>config</c> into this instance.</summary>
    /// <param name="config">The table.</param>
    /// <exception cref="ArgumentException">A field changes the maths and is not supported; the message names it.</exception>
    void ReadAdapterHub(JsonObject config);

    /// <summary>The table <c>config</c> with every field of the package, in any order.</summary>
    JsonObject WriteAdapterHub();
}

/// <summary>Tensor names of AdapterHub's package: what stands in front of an adapter's name, family by family.</summary>
public static class HubNames
{
    /// <summary>The base model's name inside the package's models: <c>bert</c>, <c>transformer</c> (GPT-2, T5), <c>model</c> (LLaMA).</summary>
    /// <param name="backbone">A backbone.</param>
    public static string Prefix(Backbone backbone) => backbone.Config.ModelType switch
    {
        "gpt2" or "t5" or "mt5" => "transformer",
        "llama" or "mistral" or "bart" or "mbart" or "whisper" => "model",
        var family => backbone.Prefix.Length > 0 ? backbone.Prefix : family.Replace('-', '_'),
    };

    /// <summary>The full path of a module of the base model.</summary>
    /// <param name="backbone">A backbone.</param>
    /// <param name="name">Path inside the base model, as sites have it.</param>
    public static string Path(Backbone backbone, string name) => $"{Prefix(backbone)}.{name}";

    /// <summary>The field <c>leave_out</c> and its kin: whole numbers.</summary>
    internal static int[] Numbers(JsonObject config, string field) => [.. AdapterConfig.List<int>(config, field)];

    /// <summary>Refuses a field whose value changes what is computed.</summary>
    /// <param name="config">The table.</param>
    /// <param name="field">Name of the field.</param>
    /// <param name="supported">What is computed here, in words.</param>
    /// <param name="allowed">Texts of allowed values, as JSON.</param>
    /// <exception cref="ArgumentException">The field holds something else.</exception>
    internal static void Require(JsonObject config, string field, string supported, params string[] allowed)
    {
        if (!config.ContainsKey(field)) return;
        string found = config[field]?.ToJsonString() ?? "null";
        if (!allowed.Contains(found)) throw new ArgumentException($"the field '{field}' is {found}; supported is {supported}.", field);
    }

    /// <summary>A number or null.</summary>
    internal static double? OptionalNumber(JsonObject config, string field) =>
        config[field] is null ? null : AdapterConfig.Get(config, field, 0.0);

    /// <summary>A seed of the package's own random start, kept for the file only.</summary>
    internal static JsonNode? Seed(long? seed) => seed is { } s ? JsonValue.Create(s) : null;

    /// <summary>Reads the seed of the package's own random start.</summary>
    internal static long? ReadSeed(JsonObject config) =>
        config["init_weights_seed"] is JsonValue value && value.GetValueKind() == JsonValueKind.Number ? (long)AdapterConfig.Get(config, "init_weights_seed", 0.0) : null;
}
