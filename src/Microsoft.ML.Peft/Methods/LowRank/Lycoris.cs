// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// What LoHa and LoKr share: an addend to the weight that is a product of small factors, at linear maps and convolutions,
/// with ranks and scalings by site, and dropout of rows of the addend or of whole modules.
/// </summary>
public abstract class LycorisMethod : SiteMethod
{
    /// <summary>Rank r of the factors, 1 to 4096. May be changed by <see cref="RankPattern"/>.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>α: the addend is scaled by α/r. Above 0.</summary>
    public double Alpha { get; set; } = 8;

    /// <summary>Share of the addend's rows that are dropped while training, in [0, 1).</summary>
    public double RankDropout { get; set; }

    /// <summary>Probability that a whole module's addend is left out of a training pass, in [0, 1).</summary>
    public double ModuleDropout { get; set; }

    /// <summary>True to give convolutions with a kernel above 1 a small core tensor (Tucker) in place of flat factors.</summary>
    public bool UseEffectiveConv2d { get; set; }

    /// <summary>Other ranks for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, int> RankPattern { get; set; } = [];

    /// <summary>Other α for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, double> AlphaPattern { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (!(Alpha > 0) || !double.IsFinite(Alpha)) throw Invalid(nameof(Alpha), Alpha, "a finite number above 0");
        CheckShare(nameof(RankDropout), RankDropout);
        CheckShare(nameof(ModuleDropout), ModuleDropout);
        foreach ((string key, int rank) in RankPattern)
            if (rank is < 1 or > 4096) throw Invalid($"{nameof(RankPattern)}['{key}']", rank, "1 to 4096");
        foreach ((string key, double alpha) in AlphaPattern)
            if (!(alpha > 0) || !double.IsFinite(alpha)) throw Invalid($"{nameof(AlphaPattern)}['{key}']", alpha, "a finite number above 0");
    }

    /// <summary>Rank of a site.</summary>
    /// <param name="path">Full module path.</param>
    public int RankAt(string path) => TargetMatcher.FirstKey(RankPattern.Keys, path) is { } key ? RankPattern[key] : Rank;

    /// <summary>Scaling of a site: its α over its rank.</summary>
    /// <param name="path">Full module path.</param>
    public double ScaleAt(string path) => (TargetMatcher.FirstKey(AlphaPattern.Keys, path) is { } key ? AlphaPattern[key] : Alpha) / RankAt(path);

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Convolution;

    /// <summary>The kernel of a site where it gets a core tensor of its own, else null.</summary>
    /// <param name="site">The site.</param>
    protected long[]? CoreKernel(WeightSite site) =>
        UseEffectiveConv2d && site is Convolution c && c.Kernel.Any(k => k > 1) ? c.Kernel : null;

    /// <summary><c>Σ core[p, q, ·] a[p, o] b[q, i]</c>: <c>[o, i, kernel...]</c>.</summary>
    /// <param name="core">Core tensor <c>[rank, rank, kernel...]</c>.</param>
    /// <param name="a">Factor of the outputs <c>[rank, o]</c>.</param>
    /// <param name="b">Factor of the inputs <c>[rank, i]</c>.</param>
    protected static Tensor Tucker(Tensor core, Tensor a, Tensor b)
    {
        long rank = core.shape[0];
        Tensor left = a.t().matmul(core.reshape(rank, -1)).reshape(a.shape[1], rank, -1);              // [o, rank, kernel]
        Tensor both = b.t().matmul(left);                                                              // [o, i, kernel]
        return both.reshape((long[])[a.shape[1], b.shape[1], .. core.shape.Skip(2)]);
    }

    /// <summary>Puts an addend on a site, with the two kinds of dropout around it.</summary>
    /// <param name="adaptation">The adaptation that is made.</param>
    /// <param name="site">The site.</param>
    /// <param name="delta">Makes the scaled addend, of as many numbers as the weight.</param>
    /// <param name="keepMean">True to enlarge the rows that stay, so that their mean stays what it was.</param>
    protected void Attach(PeftAdaptation adaptation, WeightSite site, Func<Tensor> delta, bool keepMean) =>
        adaptation.Attach(site, new DeltaPatch(pass =>
        {
            Tensor made = delta();
            if (pass is not { Training: true }) return made;
            if (RankDropout > 0)
            {
                long rows = site.Weight.shape[0];
                Tensor kept = pass.Dropout(ones([rows, 1], device: made.device), RankDropout) * (1 - RankDropout);
                if (keepMean) kept = kept / kept.mean().clamp(min: 1.0 / rows);
                made = made.reshape(rows, -1) * kept;
            }
            return ModuleDropout > 0 ? made * (pass.Dropout(ones([1], device: made.device), ModuleDropout) * (1 - ModuleDropout)) : made;
        }));

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 8);
        Alpha = AdapterConfig.Get(config, "alpha", 8.0);
        RankDropout = AdapterConfig.Get(config, "rank_dropout", 0.0);
        ModuleDropout = AdapterConfig.Get(config, "module_dropout", 0.0);
        UseEffectiveConv2d = AdapterConfig.Get(config, "use_effective_conv2d", false);
        RankPattern = new OrderedDictionary<string, int>(AdapterConfig.Table(config, "rank_pattern").Select(p => KeyValuePair.Create(p.Key, (int)p.Value)));
        AlphaPattern = AdapterConfig.Table(config, "alpha_pattern");
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config["r"] = Rank;
        config["alpha"] = AdapterConfig.Number(Alpha);
        config["rank_dropout"] = RankDropout;
        config["module_dropout"] = ModuleDropout;
        config["use_effective_conv2d"] = UseEffectiveConv2d;
        config["rank_pattern"] = new JsonObject(RankPattern.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)p.Value)));
        config["alpha_pattern"] = new JsonObject(AlphaPattern.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)AdapterConfig.Number(p.Value))));
    }
}
