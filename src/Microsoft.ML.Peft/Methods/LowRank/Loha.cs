// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// LoHa (FedPara: Hyeon-Woo, Ye-Bin and Oh 2022, arXiv 2108.06098): <c>W' = W + α/r · (w1a w1b) ⊙ (w2a w2b)</c>, the entrywise
/// product of two low-rank products, so that rank r gives an update of rank up to r². <c>w1a, w2a [out, r]</c>,
/// <c>w1b, w2b [r, in]</c>; w2b starts at 0, so a fresh adaptation is the base model. Trained numbers a linear map:
/// 2 r (in + out). Merging adds the product.
/// </summary>
public sealed class LohaOptions : LycorisMethod
{
    /// <summary>False to draw w2b too, so that the output does not start as the base model's; for tests.</summary>
    public bool InitWeights { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "loha";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "2 r (in + out) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "LOHA";

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path)
    {
        long rank = RankAt(path), rows = site.Weight.shape[0];
        return CoreKernel(site) is { } kernel
            ? 2 * (rank * (rows + site.Weight.shape[1]) + rank * rank * kernel.Aggregate(1L, (a, b) => a * b))
            : 2 * rank * (rows + Narrow(site));
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long rank = RankAt(path), rows = site.Weight.shape[0];
        long[]? kernel = CoreKernel(site);
        long columns = kernel is null ? Narrow(site) : site.Weight.shape[1];
        double scale = ScaleAt(path);
        NamedParameter Draw(string name, params long[] shape)
        {
            string full = $"{path}.hada_{name}";
            return Add(adaptation, full, name == "w2_b" && InitWeights ? zeros(shape) : new Draws(seed, full).Kaiming(shape));
        }
        NamedParameter A(string name) => kernel is null ? Draw(name, rows, rank) : Draw(name, rank, rows);
        NamedParameter? Core(string name) => kernel is null ? null : Draw(name, [rank, rank, .. kernel]);
        (NamedParameter? t1, NamedParameter? t2) = (Core("t1"), Core("t2"));
        (NamedParameter a1, NamedParameter b1) = (A("w1_a"), Draw("w1_b", rank, columns));
        (NamedParameter a2, NamedParameter b2) = (A("w2_a"), Draw("w2_b", rank, columns));
        static Tensor Factor(NamedParameter? core, NamedParameter a, NamedParameter b) =>
            core is null ? a.Value.matmul(b.Value) : Tucker(core.Value, a.Value, b.Value);
        Attach(adaptation, site, () => Factor(t1, a1, b1) * Factor(t2, a2, b2) * scale, keepMean: true);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        base.ReadHuggingFace(config);
        InitWeights = AdapterConfig.Get(config, "init_weights", true);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        base.WriteHuggingFace(config, backbone);
        config["init_weights"] = InitWeights;
    }
}
