// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Methods;

/// <summary>AdapterHub's presets by their names there, the old ones included.</summary>
public static class AdapterHubPresets
{
    private static readonly OrderedDictionary<string, Func<PeftMethod>> _presets = new(StringComparer.Ordinal)
    {
        ["seq_bn"] = () => new PfeifferOptions(),
        ["seq_bn_inv"] = () => new PfeifferInvertibleOptions(),
        ["double_seq_bn"] = () => new HoulsbyOptions(),
        ["double_seq_bn_inv"] = () => new HoulsbyInvertibleOptions(),
        ["par_bn"] = () => new ParallelAdapterOptions(),
        ["scaled_par_bn"] = () => new ScaledParallelAdapterOptions(),
        ["adapterplus"] = () => new AdapterPlusOptions(),
        ["compacter"] = () => new CompacterOptions(),
        ["compacter++"] = () => new CompacterPlusPlusOptions(),
        ["lora"] = () => new HubLoraOptions(),
        ["ia3"] = () => new HubLoraOptions { AttentionMatrices = ["k", "v"], Intermediate = true, Rank = 1, Alpha = 1, Composition = HubComposition.Scale, Init = "ia3" },
        ["vera"] = () => new HubLoraOptions { VeraD = 0.1, VeraB = 0, Init = "vera" },
        ["dora"] = () => new HubLoraOptions { UseDora = true },
        ["dvora"] = () => new HubLoraOptions { UseDora = true, VeraD = 0.1, VeraB = 0, Init = "vera" },
        ["mtl_lora"] = () => new MtlLoraOptions(),
        ["prefix_tuning"] = () => PrefixTuningOptions.ForAdapterHub(30, 512),
        ["prefix_tuning_flat"] = () => PrefixTuningOptions.ForAdapterHub(30, null),
        ["prompt_tuning"] = () => PromptTuningOptions.ForAdapterHub(10),
        ["mam"] = () => new MamOptions(),
        ["unipelt"] = () => new UniPeltOptions(),
        ["loreft"] = () => new LoReftOptions(),
        ["noreft"] = () => new NoReftOptions(),
        ["direft"] = () => new DiReftOptions(),
    };

    private static readonly Dictionary<string, string> _older = new(StringComparer.Ordinal)
    {
        ["pfeiffer"] = "seq_bn",
        ["pfeiffer+inv"] = "seq_bn_inv",
        ["houlsby"] = "double_seq_bn",
        ["houlsby+inv"] = "double_seq_bn_inv",
        ["parallel"] = "par_bn",
        ["scaled_parallel"] = "scaled_par_bn",
    };

    /// <summary>Names of all presets.</summary>
    public static IReadOnlyList<string> Names => [.. _presets.Keys];

    /// <summary>Older names of the same presets, and the names they have now.</summary>
    public static IReadOnlyDictionary<string, string> OlderNames => _older;

    /// <summary>Makes the method of a preset with its options.</summary>
    /// <param name="name">Name of the preset, new or old.</param>
    /// <param name="adapter">Name of the adapter inside tensor names.</param>
    /// <exception cref="ArgumentException">No such preset; the message lists near names.</exception>
    public static PeftMethod Create(string name, string adapter = "default")
    {
        if (!_presets.TryGetValue(_older.GetValueOrDefault(name, name), out Func<PeftMethod>? make))
            throw new ArgumentException($"AdapterHub has no preset '{name}'.{NearNames.Hint(name, _presets.Keys.Concat(_older.Keys))} Known: {string.Join(", ", _presets.Keys)}.", nameof(name));
        PeftMethod method = make();
        ((IAdapterHubMethod)method).Name = adapter;
        return method;
    }

    /// <summary>The table <c>config</c> of a preset, as the package writes it.</summary>
    /// <param name="name">Name of the preset, new or old.</param>
    public static JsonObject Configuration(string name) => ((IAdapterHubMethod)Create(name)).WriteAdapterHub();
}
