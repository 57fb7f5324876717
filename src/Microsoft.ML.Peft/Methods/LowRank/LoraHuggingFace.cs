// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

// The exchange with Hugging Face PEFT.
public sealed partial class LoraOptions
{
    // Fields that change what is computed, and what to do about them.
    private static readonly string[] _unsupported =
    [
        "arrow_config", "megatron_config",
    ];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "LORA";

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        foreach (string field in _unsupported)
            if (!AdapterConfig.IsEmpty(config, field))
                throw new ArgumentException(
                    $"adapter_config.json: the field '{field}' is {config[field]!.ToJsonString()}; it changes what LoRA computes and is not supported. Supported is null.", field);
        ReadTargets(config);
        LayerReplication = ReadReplication(config["layer_replication"]);
        Variant = LoraVariant.Read(config);
        DataStart = LoraStart.Read(config);
        TrainableTokens = ReadTokens(config["trainable_token_indices"]);
        TargetParameters = [.. AdapterConfig.List<string>(config, "target_parameters")];
        EnsureWeightTying = AdapterConfig.Get(config, "ensure_weight_tying", false);
        Rank = AdapterConfig.Get(config, "r", 8);
        Alpha = AdapterConfig.Get(config, "lora_alpha", 8.0);
        Dropout = AdapterConfig.Get(config, "lora_dropout", 0.0);
        UseRsLora = AdapterConfig.Get(config, "use_rslora", false);
        UseDora = AdapterConfig.Get(config, "use_dora", false);
        LoraBias = AdapterConfig.Get(config, "lora_bias", false);
        BiasMode = AdapterConfig.Get(config, "bias", "none") switch
        {
            "none" => BiasMode.None,
            "all" => BiasMode.All,
            "lora_only" => BiasMode.LoraOnly,
            var other => throw new ArgumentException($"adapter_config.json: the field 'bias' is '{other}'; expected is none, all or lora_only.", "bias"),
        };
        Init = ReadInit(config["init_lora_weights"]);
        RankPattern = new OrderedDictionary<string, int>(AdapterConfig.Table(config, "rank_pattern").Select(p => KeyValuePair.Create(p.Key, (int)p.Value)));
        AlphaPattern = AdapterConfig.Table(config, "alpha_pattern");
        Validate();
    }

    private static string ReadInit(JsonNode? field)
    {
        switch (field)
        {
            case null: return "default";
            case JsonValue flag when flag.TryGetValue(out bool on): return on ? "default" : "false";
            case JsonValue text when text.TryGetValue(out string? name):
                // EVA's start leaves the base as it is: once trained it is a plain LoRA.
                if (name is "eva") return "default";
                if (name is "corda" or "lora_ga") return "default";                      // see DataStart
                if (name is "loftq")
                    throw new ArgumentException(
                        "adapter_config.json: the field 'init_lora_weights' is 'loftq': such an adapter belongs to a quantised base model. "
                        + "Convert it to plain LoRA first (save_pretrained with path_initial_model_for_weight_conversion).", "init_lora_weights");
                if (LoraInit.IsKnown(name)) return name;
                break;
        }
        throw new ArgumentException($"adapter_config.json: the field 'init_lora_weights' is {field.ToJsonString()}; expected is true, false or one of {LoraInit.Allowed}.", "init_lora_weights");
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        foreach (string field in (string[])["alora_invocation_tokens", "arrow_config", "corda_config", "eva_config", "kasa_config",
            "lora_ga_config", "megatron_config", "monteclora_config", "trainable_token_indices", "use_bdlora", "velora_config"])
            config[field] = null;
        WriteTargets(config, backbone);
        NameTied(config, backbone);
        config["r"] = Rank;
        config["lora_alpha"] = AdapterConfig.Number(Alpha);
        config["lora_dropout"] = Dropout;
        config["use_rslora"] = UseRsLora;
        config["use_dora"] = UseDora;
        config["lora_bias"] = LoraBias;
        config["bias"] = BiasMode switch { BiasMode.All => "all", BiasMode.LoraOnly => "lora_only", _ => "none" };
        config["init_lora_weights"] = Init switch { "default" => true, "false" => false, _ => Init };
        config["rank_pattern"] = new JsonObject(Ordered(RankPattern, RankAt, backbone).Select(p => KeyValuePair.Create(p.Key, (JsonNode?)p.Value)));
        config["alpha_pattern"] = new JsonObject(Ordered(AlphaPattern, AlphaAt, backbone).Select(p => KeyValuePair.Create(p.Key, (JsonNode?)AdapterConfig.Number(p.Value))));
        config["fan_in_fan_out"] = TiedHead(backbone) is null && StoresTransposed(backbone);
        config["ensure_weight_tying"] = EnsureWeightTying;
        config["target_parameters"] = TargetParameters.Length == 0 ? null : AdapterConfig.Array(TargetParameters);
        config["loftq_config"] = new JsonObject();
        config["megatron_core"] = "megatron.core";
        config["qalora_group_size"] = 16;
        config["use_qalora"] = false;
        config["trainable_token_indices"] = WriteTokens();
        config["layer_replication"] = WriteReplication();
        Variant?.Write(config);
        DataStart?.Write(config);
    }

    // Files sort their keys, and the first match wins: where sorting would change the winner, every site gets a key of its own.
    private IEnumerable<KeyValuePair<string, T>> Ordered<T>(OrderedDictionary<string, T> pattern, Func<string, T> at, Backbone backbone) where T : notnull
    {
        if (pattern.Count < 2) return pattern;
        string[] sorted = [.. pattern.Keys.Order(StringComparer.Ordinal)];
        string[] paths = [.. SelectSites(backbone).Select(backbone.PathOf)];
        if (paths.All(path => TargetMatcher.FirstKey(sorted, path) == TargetMatcher.FirstKey(pattern.Keys, path))) return pattern;
        return paths.Where(path => TargetMatcher.FirstKey(pattern.Keys, path) is not null)
            .Select(path => KeyValuePair.Create($"^{path.Replace(".", @"\.", StringComparison.Ordinal)}", at(path)));
    }

    /// <summary>
    /// A plain LoRA on the unchanged base model, where PiSSA or OLoRA started from a part of it:
    /// <c>A' = [A; A₀]</c>, <c>B' = [B, −B₀]</c>, twice the rank, the same scaling.
    /// </summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        var lora = (LoraAdaptation)adaptation;
        if (lora.Factors.All(f => f.Start is null)) return adaptation;
        if (UseDora)
            throw new NotSupportedException("DoRA that started from PiSSA or OLoRA has no form on the unchanged base model; merge it, or keep the initialisation when saving.");
        double growth = UseRsLora ? Math.Sqrt(2) : 2;
        LoraOptions plain = Copy();
        plain.Rank = 2 * Rank;
        plain.Alpha = growth * Alpha;
        plain.Init = "default";
        plain.DataStart = null;
        plain.RankPattern = new(RankPattern.Select(p => KeyValuePair.Create(p.Key, 2 * p.Value)));
        plain.AlphaPattern = new(AlphaPattern.Select(p => KeyValuePair.Create(p.Key, growth * p.Value)));
        // Tables have no start to subtract: theirs is filled up with zeros by the doubled rank.
        using var scope = NewDisposeScope();
        using var off = no_grad();
        PeftAdaptation made = plain.Attach(adaptation.Backbone, 0);
        foreach (NamedParameter parameter in made.Parameters) parameter.Load(lora.Find(parameter.Name) is { } same && Same(same, parameter) ? same.Value : zeros_like(parameter.Value));
        foreach (LoraFactors f in lora.Factors)
        {
            if (f.Start is not { } start) { Pad(made.Find(f.A.Name)!, f.A.Value, 0); Pad(made.Find(f.B.Name)!, f.B.Value, 1); continue; }
            made.Find(f.A.Name)!.Load(cat([f.A.Value, start.A.Value], 0));
            made.Find(f.B.Name)!.Load(cat([f.B.Value, -start.B.Value], 1));
        }
        return made;
    }

    internal LoraOptions Copy() => (LoraOptions)MemberwiseClone();

    private static bool Same(NamedParameter a, NamedParameter b) => a.Value.shape.AsSpan().SequenceEqual(b.Value.shape);

    private static void Pad(NamedParameter target, Tensor value, int axis) => target.Load(cat([value, zeros_like(value)], axis));
}
