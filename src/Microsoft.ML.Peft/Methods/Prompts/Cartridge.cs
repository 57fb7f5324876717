// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Cartridge (Eyuboglu et al. 2025, arXiv 2506.06266): a trained key-value cache <c>[P, 2 L H d_h]</c> in front of every
/// self-attention, whose first rows stay frozen so that the attention sink they hold survives. It starts best from the keys
/// and values of the text that it is to stand for. Trained numbers: (P − frozen) 2 L H d_h.
/// </summary>
public sealed class CartridgeOptions : PrefixMethod
{
    /// <summary>Number of rows, from the first, that are not trained; below P.</summary>
    public int FrozenTokens { get; set; } = 1;

    /// <summary>Token ids whose keys and values in the frozen network the cache starts from, repeated or cut to P; empty for standard normal numbers.</summary>
    public int[] InitTokenIds { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "cartridge";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "2 L (P − frozen) d";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "CARTRIDGE";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (FrozenTokens < 0 || FrozenTokens >= Length) throw Invalid(nameof(FrozenTokens), FrozenTokens, $"0 to {Length - 1}, below Length");
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Groups(backbone).Sum(group => (Length - FrozenTokens) * group.Width);

    /// <inheritdoc/>
    private protected override PromptRows AddTable(PeftAdaptation adaptation, Group group, long seed)
    {
        string root = group.Name == "self" ? "prompt_encoder" : $"prompt_encoder.{group.Name}", name = root + ".trainable_embedding";
        string key = group.Name == "self" ? TableKey : $"{TableKey}.{group.Name}";
        Tensor start = InitTokenIds.Length > 0
            ? PrefixStart.Rows(adaptation.Backbone, InitTokenIds, Length, group.Cores)
            : new Draws(seed, name).Normal(1, Length, group.Width);
        NamedParameter? frozen = FrozenTokens == 0 ? null
            : Add(adaptation, root + ".frozen_embedding", start.narrow(0, 0, FrozenTokens).clone(), trainable: false, key: key);
        NamedParameter trained = Add(adaptation, name, start.narrow(0, FrozenTokens, Length - FrozenTokens).clone(), key: key);
        return _ => frozen is null ? trained.Value : cat([frozen.Value, trained.Value]);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadLength(config);
        AsHuggingFace();
        FrozenTokens = AdapterConfig.Get(config, "num_frozen_tokens", 1);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WritePrefix(config, backbone);
        config["num_frozen_tokens"] = FrozenTokens;
    }
}
