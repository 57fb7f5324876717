// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Which biases are trained beside the low-rank factors.</summary>
public enum BiasMode
{
    /// <summary>None.</summary>
    None,
    /// <summary>Every bias of the backbone, norms included.</summary>
    All,
    /// <summary>The biases of the adapted modules.</summary>
    LoraOnly,
}

/// <summary>LoRA-FA (Zhang et al. 2023, arXiv 2308.03303): the first factor stays as it was drawn.</summary>
public enum LoraFaMode
{
    /// <summary>Both factors are trained.</summary>
    Off,
    /// <summary>A is frozen.</summary>
    Freeze,
    /// <summary>A is frozen, and B's gradient is projected so that the step on B follows full fine-tuning's: <c>g ← g (A Aᵀ)⁺ / s²</c>.</summary>
    Project,
}

/// <summary>
/// LoRA (Hu et al. 2022, arXiv 2106.09685): <c>y = W x + b + s · B A drop(x)</c>, A <c>[r, in]</c>, B <c>[out, r]</c>, s = α/r.
/// A fresh B is 0, so the output starts as the base model's. Trained numbers a site: r (in + out). Merging: W + s B A.
/// Options turn it into rsLoRA (2312.03732), DoRA (2402.09353), PiSSA (2404.02948), OLoRA (2406.01775), LoRA+ (2402.12354)
/// and LoRA-FA (2308.03303); they combine.
/// </summary>
public sealed partial class LoraOptions : TargetedMethod
{
    /// <summary>Rank r of the update, 1 to 4096; higher learns more and costs more. May be changed by <see cref="RankPattern"/>.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>α: the update is scaled by α/r. Above 0.</summary>
    public double Alpha { get; set; } = 16;

    /// <summary>Share of the entries of x, in [0, 1), that the update does not see while training.</summary>
    public double Dropout { get; set; } = 0.05;

    /// <summary>True to scale by α/√r (rsLoRA), so that large ranks keep learning.</summary>
    public bool UseRsLora { get; set; }

    /// <summary>True to train the length of each row of the weight apart from its direction (DoRA).</summary>
    public bool UseDora { get; set; }

    /// <summary>Which biases are trained too.</summary>
    public BiasMode BiasMode { get; set; }

    /// <summary>True to give B a trained bias of its own.</summary>
    public bool LoraBias { get; set; }

    /// <summary>
    /// Initial values: <c>default</c> (A uniform, B 0), <c>gaussian</c> (A normal, B 0), <c>orthogonal</c>, <c>mica</c> (B
    /// the weight's least directions, only A trained), <c>pissa</c>, <c>pissa_niter_4</c> (4 rounds of a randomised
    /// decomposition), <c>olora</c>, or <c>false</c> (A and B uniform: the
    /// output does not start as the base model's; for tests).
    /// </summary>
    public string Init { get; set; } = "default";

    /// <summary>Other ranks for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, int> RankPattern { get; set; } = [];

    /// <summary>Other α for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, double> AlphaPattern { get; set; } = [];

    /// <summary>LoRA+: B (and all biases and magnitudes) learn at this multiple of the rate, 1 or more, usually 16; null for one rate.</summary>
    public double? LoraPlusRatio { get; set; }

    /// <summary>LoRA+: learning rate of the factors at embedding tables, whatever the run's rate is.</summary>
    public double LoraPlusEmbeddingRate { get; set; } = 1e-6;

    /// <summary>LoRA-FA: whether A is trained.</summary>
    public LoraFaMode LoraFa { get; set; }

    /// <summary>
    /// Another form of the update: <see cref="KasaVariant"/>, <see cref="BlockDiagonalVariant"/>, <see cref="ActivatedVariant"/>,
    /// <see cref="VeloraVariant"/>, <see cref="MonteCloraVariant"/>, <see cref="QaLoraVariant"/>; null for the plain one.
    /// </summary>
    public LoraVariant? Variant { get; set; }

    /// <summary>
    /// A start that is made from the first training batches: <see cref="EvaStart"/>, <see cref="LoraGaStart"/>,
    /// <see cref="CordaStart"/>; null for <see cref="Init"/>'s.
    /// </summary>
    public LoraStart? DataStart { get; set; }

    /// <summary>Riemannian preconditioning (Zhang and Pilanci 2024, arXiv 2402.02347): the damping λ; gradients become <c>(BᵀB + λI)⁻¹ g_A</c> and <c>g_B (A Aᵀ + λI)⁻¹</c>. Null for none.</summary>
    public double? RiemannianDamping { get; set; }

    /// <summary>
    /// Tokens whose rows of an embedding table are trained beside the update: end of the table's name to token ids. An empty
    /// name stands for the table of words. Where the output layer shares the table, it shares the rows.
    /// </summary>
    public OrderedDictionary<string, int[]> TrainableTokens { get; set; } = [];

    /// <summary>
    /// Tensors that are adapted as they lie, whatever their modules do with them: ends of full parameter names
    /// (<c>experts.down_proj</c>), of two axes or, stacked experts, of three. With these and no <see cref="TargetedMethod.Targets"/>, no module is
    /// adapted.
    /// </summary>
    public string[] TargetParameters { get; set; } = [];

    /// <summary>
    /// True to adapt a table and the output layer that shares it as one, with one update: where a target is called
    /// <c>embed_tokens</c> or <c>lm_head</c>, is a role, or is the table's whole path. The same for <see cref="TargetedMethod.ModulesToSave"/>.
    /// </summary>
    public bool EnsureWeightTying { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "lora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => Variant?.Mergeable ?? true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r (in + out) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => LoraInit.Parse(Init).Exact && (Variant?.ExactAtStart ?? true);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (!(Alpha > 0) || !double.IsFinite(Alpha)) throw Invalid(nameof(Alpha), Alpha, "a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
        if (!Enum.IsDefined(BiasMode)) throw Invalid(nameof(BiasMode), BiasMode, string.Join(", ", Enum.GetNames<BiasMode>()));
        if (!Enum.IsDefined(LoraFa)) throw Invalid(nameof(LoraFa), LoraFa, string.Join(", ", Enum.GetNames<LoraFaMode>()));
        if (LoraPlusRatio is { } ratio && !(ratio >= 1 && double.IsFinite(ratio))) throw Invalid(nameof(LoraPlusRatio), ratio, "null, or 1 or more");
        if (!(LoraPlusEmbeddingRate > 0)) throw Invalid(nameof(LoraPlusEmbeddingRate), LoraPlusEmbeddingRate, "above 0");
        LoraInit init = LoraInit.Parse(Init);
        if (LoraBias && UseDora) throw Invalid(nameof(LoraBias), LoraBias, "false with UseDora");
        if (LoraBias && !init.Plain) throw Invalid(nameof(LoraBias), LoraBias, $"false with Init = '{Init}'");
        if (init.FreezesB && LoraFa != LoraFaMode.Off) throw Invalid(nameof(LoraFa), LoraFa, $"Off with Init = '{Init}', or nothing would be trained");
        if (init.NeedsEvenRank && Rank % 2 != 0) throw Invalid(nameof(Rank), Rank, $"an even number with Init = '{Init}'");
        CheckVariant();
        CheckReplication();
        CheckParameters();
        foreach ((string key, int rank) in RankPattern)
            if (rank is < 1 or > 4096) throw Invalid($"{nameof(RankPattern)}['{key}']", rank, "1 to 4096");
        foreach ((string key, double alpha) in AlphaPattern)
            if (!(alpha > 0) || !double.IsFinite(alpha)) throw Invalid($"{nameof(AlphaPattern)}['{key}']", alpha, "a finite number above 0");
    }

    /// <summary>Rank of a site.</summary>
    /// <param name="path">Full module path.</param>
    public int RankAt(string path) => TargetMatcher.FirstKey(RankPattern.Keys, path) is { } key ? RankPattern[key] : Rank;

    /// <summary>α of a site.</summary>
    /// <param name="path">Full module path.</param>
    public double AlphaAt(string path) => TargetMatcher.FirstKey(AlphaPattern.Keys, path) is { } key ? AlphaPattern[key] : Alpha;

    /// <summary>Scaling s of a site: its α over its rank, or over the root of its rank (rsLoRA).</summary>
    /// <param name="path">Full module path.</param>
    public double ScaleAt(string path) => AlphaAt(path) / (UseRsLora ? Math.Sqrt(RankAt(path)) : RankAt(path));

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Embedding or Convolution;
}
