// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Base of the methods of weights beside which biases may be trained: the field <c>bias</c> of exchanged files.</summary>
public abstract class BiasedMethod : SiteMethod
{
    /// <summary>Which biases are trained too; what the method does comes after them.</summary>
    public BiasMode BiasMode { get; set; }

    /// <summary>What files call the biases of the adapted modules.</summary>
    private protected virtual string OwnBiases => $"{HuggingFaceType!.ToLowerInvariant()}_only";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (!Enum.IsDefined(BiasMode)) throw Invalid(nameof(BiasMode), BiasMode, string.Join(", ", Enum.GetNames<BiasMode>()));
    }

    private protected sealed override void BeforeSite(PeftAdaptation adaptation, WeightSite site)
    {
        if (BiasMode != BiasMode.None && site.Bias is not null) adaptation.Attach(site, new BiasPatch(TrainedCopies.Bias(adaptation, site, "base_layer.")));
    }

    /// <summary>The trained bias of an adapted site, or null.</summary>
    private protected static NamedParameter? BiasOf(PeftAdaptation adaptation, string path) => adaptation.Find($"{path}.base_layer.bias");

    private protected sealed override void AfterSites(PeftAdaptation adaptation)
    {
        if (BiasMode != BiasMode.All) return;
        foreach (WeightSite site in adaptation.Backbone.Sites.OfType<WeightSite>())
            if (site.Bias is not null && !adaptation.Patches.ContainsKey(site)) adaptation.Attach(site, new BiasPatch(TrainedCopies.Bias(adaptation, site)));
    }

    private protected sealed override long CountBeside(Backbone backbone, IReadOnlyList<WeightSite> sites) => BiasMode switch
    {
        BiasMode.All => backbone.Sites.OfType<WeightSite>().Except(SavedWhole(backbone)).Sum(site => site.Bias?.numel() ?? 0),
        BiasMode.LoraOnly => sites.Sum(site => site.Bias?.numel() ?? 0),
        _ => 0,
    };

    /// <summary>Reads which biases are trained.</summary>
    /// <param name="config">The whole adapter_config.json.</param>
    private protected void ReadBias(JsonObject config) => BiasMode = ConfigFields.Choice(config, "bias", "none",
        ("none", BiasMode.None), ("all", BiasMode.All), (OwnBiases, BiasMode.LoraOnly));

    /// <summary>Writes which biases are trained.</summary>
    /// <param name="config">The object to fill.</param>
    private protected void WriteBias(JsonObject config) =>
        config["bias"] = BiasMode switch { BiasMode.All => "all", BiasMode.LoraOnly => OwnBiases, _ => "none" };
}
