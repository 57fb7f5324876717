// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// BEFT: a trained vector is added to the output of chosen projections, <c>y = W x + b + β</c>, whether they have a bias of
/// their own or not. Only values by default: BERT-base 9,216 numbers. β starts at 0; merging adds it to the bias. BitFit
/// (Ben Zaken et al. 2022, arXiv 2106.10199) trains the biases that are there.
/// </summary>
public sealed class BeftOptions : SiteMethod
{
    /// <summary>False to start from normal random numbers in place of 0; for tests.</summary>
    public bool InitWeights { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "beft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "scale";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, false);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "out a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "BEFT";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override IReadOnlyList<SiteRole> DefaultRoles => [SiteRole.Value, SiteRole.QueryKeyValue];

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        string name = $"{path}.beft_bias";
        NamedParameter shift = Add(adaptation, name, InitWeights ? zeros(1, Wide(site)) : new Draws(seed, name).Normal(1, 1, Wide(site)));
        shift.Decay = false;
        adaptation.Attach(site, new ShiftPatch(site.Weight.dtype, shift));
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => Wide(site);

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        InitWeights = AdapterConfig.Get(config, "init_weights", true);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config["init_weights"] = InitWeights;
    }

    // A bias and no low-rank term: the cheapest path that a projection has.
    private sealed class ShiftPatch(ScalarType type, NamedParameter shift) : WeightPatch
    {
        public override PatchForm Form => PatchForm.LowRank;

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass) =>
            (bias is null ? shift.Value.reshape(-1) : bias + shift.Value.reshape(-1)).to_type(type);
    }
}
