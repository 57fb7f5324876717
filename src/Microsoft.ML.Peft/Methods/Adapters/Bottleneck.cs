// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>What a bottleneck's inner residual adds.</summary>
public enum BottleneckResidual
{
    /// <summary>The part's output f, before the frozen norm.</summary>
    BeforeNorm,
    /// <summary>What the bottleneck reads.</summary>
    AfterNorm,
    /// <summary>f plus the residual stream.</summary>
    PostAdd,
}

/// <summary>
/// Bottleneck adapters: <c>B(h) = s · (W_up φ(W_down h + b_down) + b_up)</c> with a residual of their own, at the residual
/// connection of the attention and the feed-forward part. With stream x, part output f and frozen norm LN, the default
/// (Pfeiffer et al. 2020, arXiv 2005.00052, AdapterHub's seq_bn) gives <c>LN(B(LN(f + x)) + f + x)</c> after the feed-forward
/// part. Trained numbers a place: 2 d m + d + m, m = d / reduction. Not mergeable: the bottleneck is not linear. With
/// <see cref="Phm"/> both projections are Compacter's: 2 r (d + m) + d + m a place and one rule of n³ for all.
/// </summary>
public partial class BottleneckOptions : PeftMethod, IAdapterHubMethod
{
    /// <summary>Name of the adapter inside tensor names.</summary>
    public string Name { get; set; } = "default";

    /// <summary>True for a bottleneck after the attention part of each layer.</summary>
    public bool AfterAttention { get; set; }

    /// <summary>True for a bottleneck after the feed-forward part of each layer.</summary>
    public bool AfterFeedForward { get; set; } = true;

    /// <summary>True for a bottleneck after the cross-attention part of each decoder layer.</summary>
    public bool AfterCrossAttention { get; set; }

    /// <summary>Hidden width over bottleneck width; above 0, below 1 for a bottleneck wider than the hidden states.</summary>
    public double ReductionFactor { get; set; } = 16;

    /// <summary>Other reduction factors for some layers, by layer number.</summary>
    public OrderedDictionary<string, double> ReductionFactors { get; set; } = [];

    /// <summary>φ: an activation by its name in config.json, such as relu, swish, gelu, gelu_new, tanh.</summary>
    public string NonLinearity { get; set; } = "relu";

    /// <summary>True to read the part's output behind the frozen norm.</summary>
    public bool OriginalNormBefore { get; set; } = true;

    /// <summary>True to add the stream and run the frozen norm behind the bottleneck.</summary>
    public bool OriginalNormAfter { get; set; } = true;

    /// <summary>What the inner residual adds.</summary>
    public BottleneckResidual Residual { get; set; } = BottleneckResidual.BeforeNorm;

    /// <summary>True to run the bottleneck on the stream x, beside the part, instead of behind it: <c>LN(f + B(x) + x)</c> (He et al. 2022, arXiv 2110.04366).</summary>
    public bool Parallel { get; set; }

    /// <summary>True for a trained norm in front of the down projection.</summary>
    public bool OwnNormBefore { get; set; }

    /// <summary>True for a trained norm behind the up projection.</summary>
    public bool OwnNormAfter { get; set; }

    /// <summary>True to put the inner residual inside the trained norm behind.</summary>
    public bool ResidualInsideOwnNorm { get; set; }

    /// <summary>s: a number, <c>learned</c> (one trained factor) or <c>channel</c> (one a hidden unit).</summary>
    public string Scaling { get; set; } = "1";

    /// <summary>True to multiply by a trained gate, one number a row: the mean over tokens of a sigmoid.</summary>
    public bool Gate { get; set; }

    /// <summary>Share of the bottleneck's output, in [0, 1), that is dropped while training.</summary>
    public double Dropout { get; set; }

    /// <summary>Share of the rows, in [0, 1), whose bottleneck is dropped whole while training, before the scaling.</summary>
    public double StochasticDepth { get; set; }

    /// <summary>Initial values: <c>bert</c> (normal, 0.02), <c>mam_adapter</c> (up projection 0: a fresh adapter changes nothing) or <c>houlsby</c> (normal, 0.01, cut).</summary>
    public string Init { get; set; } = "bert";

    /// <summary>A seed that AdapterHub's files may hold; kept for them, the seed of <see cref="Attach"/> draws.</summary>
    public long? InitSeed { get; set; }

    /// <summary>Layers without a bottleneck, numbered from 0; in networks with a decoder through both stacks.</summary>
    public int[] LeaveOut { get; set; } = [];

    /// <summary>Null, or <c>nice</c> for an invertible block on the embeddings (language adapters of MAD-X), which a language-model head undoes.</summary>
    public string? Invertible { get; set; }

    /// <summary>Half the hidden width over the inner width of the invertible block; above 0.</summary>
    public double InvertibleReductionFactor { get; set; } = 2;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "bottleneck";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Family => "adapters";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override bool Mergeable => false;

    /// <inheritdoc/>
    /// <remarks>The gate's mean counts padding, as AdapterHub's does, and a row's padding depends on its batch.</remarks>
    [JsonIgnore]
    public sealed override bool RowsAreIndependent => !Gate;

    /// <inheritdoc/>
    /// <remarks>A shared rule starts so small that the output is the base model's down to rounding.</remarks>
    [JsonIgnore]
    public sealed override bool ExactAtStart => Residual == BottleneckResidual.BeforeNorm && OriginalNormAfter && !OwnNormAfter && Invertible is null
        && (Phm ? SharedPhmRule && PhmRuleRange <= 1e-4 : Init == "mam_adapter");

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Formula => Phm ? "2 r (d + m) + d + m a place, n³ once" : "2 d m + d + m a place";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override double DefaultLearningRate => Phm ? 1e-3 : Parallel ? 1e-4 : 3e-4;

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Name.Length == 0 || Name.Contains('.')) throw Invalid(nameof(Name), $"'{Name}'", "a name without dots");
        if (!AfterAttention && !AfterFeedForward && !AfterCrossAttention) throw Invalid(nameof(AfterFeedForward), false, "true here, at AfterAttention or at AfterCrossAttention: no place is chosen");
        foreach (double factor in ReductionFactors.Values.Append(ReductionFactor))
            if (!(factor > 0) || !double.IsFinite(factor)) throw Invalid(nameof(ReductionFactor), factor, "above 0");
        foreach (string key in ReductionFactors.Keys)
            if (!int.TryParse(key, NumberStyles.None, CultureInfo.InvariantCulture, out _)) throw Invalid(nameof(ReductionFactors), $"'{key}'", "layer numbers as keys; the rest has ReductionFactor");
        try
        {
            Activations.Get(Activation);
        }
        catch (NotSupportedException e)
        {
            throw Invalid(nameof(NonLinearity), $"'{NonLinearity}'", e.Message);
        }
        if (Init is not ("bert" or "mam_adapter" or "houlsby")) throw Invalid(nameof(Init), $"'{Init}'", "bert, mam_adapter or houlsby");
        if (Scaling is not ("learned" or "channel") && Constant is null) throw Invalid(nameof(Scaling), $"'{Scaling}'", "a finite number, learned or channel");
        CheckShare(nameof(Dropout), Dropout);
        CheckShare(nameof(StochasticDepth), StochasticDepth);
        if (Invertible is not (null or "nice")) throw Invalid(nameof(Invertible), $"'{Invertible}'", "null or nice");
        if (!(InvertibleReductionFactor > 0) || !double.IsFinite(InvertibleReductionFactor)) throw Invalid(nameof(InvertibleReductionFactor), InvertibleReductionFactor, "above 0");
        if (Phm) ValidatePhm();
        if (!Enum.IsDefined(Residual)) throw Invalid(nameof(Residual), Residual, string.Join(", ", Enum.GetNames<BottleneckResidual>()));
    }

    /// <summary>The constant scaling, or null where it is trained.</summary>
    internal double? Constant => double.TryParse(Scaling, NumberStyles.Float, CultureInfo.InvariantCulture, out double s) && double.IsFinite(s) ? s : null;

    /// <summary>The activation's name in config.json's spelling.</summary>
    internal string Activation => NonLinearity == "leakyrelu" ? "leaky_relu" : NonLinearity;

    /// <summary>Bottleneck width m of a layer: hidden width over the reduction factor, rounded down, at least 1.</summary>
    /// <param name="hidden">Hidden width d.</param>
    /// <param name="layer">Layer number.</param>
    public int Width(int hidden, int layer)
    {
        double factor = ReductionFactors.TryGetValue(layer.ToString(CultureInfo.InvariantCulture), out double own) ? own : ReductionFactor;
        // Floor division as Python's: by the remainder of the factor's exact binary value (32 // 0.8 is 39).
        return Math.Max(1, (int)Math.Round((hidden - hidden % factor) / factor));
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        int d = backbone.Config.HiddenSize;
        if (Invertible is not null) Embeddings(backbone);
        return Places(backbone).Sum(place => CountPlace(backbone.WidthAt(place.Layer), place.Layer))
            + (Phm ? PhmLayers.CountShared(this, d, Width(d, 0)) : 0)
            + (Invertible is null ? 0 : NicePatch.Count(d, InvertibleReductionFactor));
    }

    private long CountPlace(long d, int layer)
    {
        long m = CheckedWidth((int)d, layer);
        long extra = (OwnNormBefore ? 2 * d : 0) + (OwnNormAfter ? 2 * d : 0) + (Gate ? d + 1 : 0)
            + (Scaling == "channel" ? d : Scaling == "learned" ? 1 : 0);
        return extra + (Phm ? PhmLayers.CountOwn(this, d, m) + PhmLayers.CountOwn(this, m, d) : 2 * d * m + d + m);
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        List<Residual> places = Places(backbone);
        int d = backbone.Config.HiddenSize;
        foreach (Residual place in places) CheckedWidth(backbone.WidthAt(place.Layer), place.Layer);
        Sequence? embeddings = Invertible is null ? null : Embeddings(backbone);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new PeftAdaptation(this, backbone);
        NamedParameter Make(string name, bool trainable, bool decays, Func<Draws, Tensor> draw)
        {
            NamedParameter parameter = adaptation.Add(name, draw(new Draws(seed, name)).to(backbone.Device), trainable);
            parameter.Decay &= decays;
            return parameter;
        }
        NamedParameter Add(string name, Func<Draws, Tensor> draw) => Make(name, true, true, draw);
        PhmLayers? phm = Phm ? new PhmLayers(this, HubNames.Path(backbone, $"shared_parameters.{Name}"), Make) : null;
        if (embeddings is not null)
            adaptation.Attach(embeddings, new NicePatch(d, InvertibleReductionFactor, Activations.Get(Activation), InvertiblePath(backbone), Add));
        foreach (Residual place in places)
        {
            int own = backbone.WidthAt(place.Layer);
            adaptation.Attach(place, new BottleneckPatch(this, $"{HubNames.Path(backbone, place.Name)}.adapters.{Name}", own, Width(own, place.Layer), phm, Add));
        }
        return adaptation;
    }

    // Encoder and decoder share an invertible block on the encoder's side alone.
    private string InvertiblePath(Backbone backbone) =>
        HubNames.Path(backbone, $"{(backbone.Config.ModelType is "t5" or "mt5" ? "encoder." : "")}invertible_adapters.{Name}");

    private static Sequence Embeddings(Backbone backbone) =>
        (backbone.Sites.Any(s => s.Role == SiteRole.WordEmbedding) ? backbone.Sites.OfType<Sequence>().FirstOrDefault(s => s.Role == SiteRole.EmbeddingSequence) : null)
        ?? throw new ArgumentException($"This {backbone.Config.ModelType} backbone has no token embeddings for an invertible block; leave Invertible null.", nameof(Invertible));

    private List<Residual> Places(Backbone backbone)
    {
        if (Phm && SharedPhmWeights) NeedsOneWidth(backbone);
        List<Residual> places = [.. backbone.Sites.OfType<Residual>().Where(r => !LeaveOut.Contains(r.Layer)
            && (r.Role switch { SiteRole.AttentionResidual => AfterAttention, SiteRole.FeedForwardResidual => AfterFeedForward, _ => AfterCrossAttention }))];
        return places.Count > 0 ? places : throw new ArgumentException(
            $"No place for a bottleneck is left: LeaveOut is [{string.Join(", ", LeaveOut)}] and this {backbone.Config.ModelType} backbone has {backbone.Config.LayerCount} layers.", nameof(LeaveOut));
    }
}
