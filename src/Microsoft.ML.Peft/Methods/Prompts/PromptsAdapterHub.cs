// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Methods;

// The fields of AdapterHub's configuration of a prefix.
public partial class PrefixTuningOptions : IAdapterHubMethod
{
    /// <summary>A prefix as AdapterHub's package has it: no positions of its own, in every attention of encoder and decoder.</summary>
    /// <param name="length">P.</param>
    /// <param name="width">Hidden width of the projection; null for a flat table.</param>
    /// <param name="gate">Gates.</param>
    internal static PrefixTuningOptions ForAdapterHub(int length, int? width, PrefixGate gate = PrefixGate.None) => new()
    {
        Name = "default",
        Length = length,
        Projection = width is not null,
        HiddenSize = width ?? 512,
        Gate = gate,
        ShiftPositions = false,
        Distance = PrefixDistance.Offset,
    };

    string IAdapterHubMethod.Name { get => Name ?? "default"; set => Name = value; }

    string IAdapterHubMethod.Architecture => "prefix_tuning";

    void IAdapterHubMethod.ReadAdapterHub(JsonObject config)
    {
        Length = AdapterConfig.Get(config, "prefix_length", 30);
        Projection = !AdapterConfig.Get(config, "flat", false);
        HiddenSize = AdapterConfig.Get(config, "bottleneck_size", 512);
        NonLinearity = AdapterConfig.Get(config, "non_linearity", "tanh");
        Dropout = AdapterConfig.Get(config, "dropout", 0.0);
        InEncoder = AdapterConfig.Get(config, "encoder_prefix", true);
        InCross = AdapterConfig.Get(config, "cross_prefix", true);
        LeaveOut = HubNames.Numbers(config, "leave_out");
        Gate = !AdapterConfig.Get(config, "use_gating", false) ? PrefixGate.None
            : AdapterConfig.Get(config, "shared_gating", true) ? PrefixGate.Shared : PrefixGate.Separate;
        (ShiftPositions, Distance, DoubledSlots) = (false, PrefixDistance.Offset, false);
        Name ??= "default";
    }

    JsonObject IAdapterHubMethod.WriteAdapterHub() => new()
    {
        ["architecture"] = "prefix_tuning",
        ["bottleneck_size"] = HiddenSize,
        ["cross_prefix"] = InCross,
        ["dropout"] = Dropout,
        ["encoder_prefix"] = InEncoder,
        ["flat"] = !Projection || Folded,
        ["init_weights_seed"] = null,
        ["leave_out"] = AdapterConfig.Array(LeaveOut),
        ["non_linearity"] = NonLinearity,
        ["prefix_length"] = Length,
        ["shared_gating"] = Gate != PrefixGate.Separate,
        ["use_gating"] = Gate != PrefixGate.None,
    };
}

// The fields of AdapterHub's configuration of a prompt.
public sealed partial class PromptTuningOptions : IAdapterHubMethod
{
    /// <summary>A prompt as AdapterHub's package has it: behind the embeddings, read by heads that read the first place.</summary>
    /// <param name="length">P.</param>
    internal static PromptTuningOptions ForAdapterHub(int length) => new()
    {
        Name = "default",
        Length = length,
        Init = PromptInit.Uniform,
        Insertion = PromptInsertion.PostEmbedding,
        HeadReadsPrompt = true,
    };

    string IAdapterHubMethod.Name { get => Name ?? "default"; set => Name = value; }

    string IAdapterHubMethod.Architecture => "prompt_tuning";

    void IAdapterHubMethod.ReadAdapterHub(JsonObject config)
    {
        Length = AdapterConfig.Get(config, "prompt_length", 10);
        Order = AdapterConfig.Get(config, "combine", "prefix") switch
        {
            "prefix" => PromptOrder.Front,
            "prefix_after_bos" => PromptOrder.AfterFirst,
            var other => throw new ArgumentException($"the field 'combine' is '{other}'; expected is 'prefix' or 'prefix_after_bos'.", "combine"),
        };
        InitText = AdapterConfig.Get<string?>(config, "prompt_init_text", null);
        Init = AdapterConfig.Get(config, "prompt_init", "random_uniform") switch
        {
            "random_uniform" => PromptInit.Uniform,
            "from_string" => PromptInit.Text,
            var other => throw new ArgumentException($"the field 'prompt_init' is '{other}'; expected is 'random_uniform' or 'from_string'.", "prompt_init"),
        };
        (Insertion, HeadReadsPrompt, _fromFile) = (PromptInsertion.PostEmbedding, true, true);
        Name ??= "default";
    }

    JsonObject IAdapterHubMethod.WriteAdapterHub() => new()
    {
        ["architecture"] = "prompt_tuning",
        ["combine"] = Order == PromptOrder.Front ? "prefix" : "prefix_after_bos",
        ["init_weights_seed"] = null,
        ["prompt_init"] = Init == PromptInit.Text ? "from_string" : "random_uniform",
        ["prompt_init_text"] = InitText,
        ["prompt_length"] = Length,
    };
}
