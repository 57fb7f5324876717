// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The function behind a change of hidden states.</summary>
public enum UnifiedFunction
{
    /// <summary><c>W_up W_down x</c>.</summary>
    Linear,
    /// <summary><c>W_up relu(W_down x)</c>.</summary>
    Relu,
    /// <summary><c>W_up gelu(W_down x)</c>.</summary>
    Gelu,
    /// <summary><c>softmax(q P_kᵀ / √d_h) P_v</c>: a prefix.</summary>
    SoftmaxKv,
}

/// <summary>What the function reads.</summary>
public enum UnifiedInsertion
{
    /// <summary>What it changes.</summary>
    Sequential,
    /// <summary>What the part that it changes reads.</summary>
    Parallel,
}

/// <summary>What is changed.</summary>
public enum UnifiedTarget
{
    /// <summary>The attention part: sequential behind the output projection, parallel in front of it.</summary>
    AttentionOutput,
    /// <summary>The feed-forward part's output.</summary>
    FeedForwardOutput,
    /// <summary>Each head's output.</summary>
    HeadAttention,
    /// <summary>The projection to queries.</summary>
    Query,
    /// <summary>The projection to keys.</summary>
    Key,
    /// <summary>The projection to values.</summary>
    Value,
    /// <summary>Both projections of the feed-forward part.</summary>
    FeedForwardWeights,
}

/// <summary>How the change is put in.</summary>
public enum UnifiedComposition
{
    /// <summary><c>h + Δh</c>.</summary>
    Add,
    /// <summary><c>h + s Δh</c>.</summary>
    ScaledAdd,
    /// <summary><c>(1 − λ) h + λ Δh</c>, λ the prefix's share of the attention.</summary>
    Gated,
}

/// <summary>
/// The unified view of parameter-efficient methods (He et al. 2022, arXiv 2110.04366): adapters, prefixes and low-rank updates
/// are one family <c>h ← h + Δh</c>, told apart by function, insertion, target and composition; any legal point can be chosen.
/// Widths d (hidden), r (bottleneck or length). Trained numbers a layer: 2 r d + r + d for a bottleneck, 2 r d for heads
/// (2 d more with a norm), 2 r (in + out) and less for projections. Linear points at projections merge.
/// </summary>
public sealed class UnifiedViewOptions : PeftMethod
{
    /// <summary>The function.</summary>
    public UnifiedFunction Function { get; set; } = UnifiedFunction.Relu;

    /// <summary>What it reads.</summary>
    public UnifiedInsertion Insertion { get; set; } = UnifiedInsertion.Parallel;

    /// <summary>What it changes.</summary>
    public UnifiedTarget Target { get; set; } = UnifiedTarget.FeedForwardOutput;

    /// <summary>How the change is put in.</summary>
    public UnifiedComposition Composition { get; set; }

    /// <summary>r: width of the bottleneck, rank, or length of the prefix; 1 or more.</summary>
    public int Bottleneck { get; set; } = 16;

    /// <summary>s, with <see cref="UnifiedComposition.ScaledAdd"/>.</summary>
    public double Scale { get; set; } = 1;

    /// <summary>True to train s, from 1.</summary>
    public bool LearnedScale { get; set; }

    /// <summary>True for a trained norm in front of the function.</summary>
    public bool NormBefore { get; set; }

    /// <summary>True to let parallel feed-forward points read behind the norm of networks whose norms stand in front, false for the residual stream.</summary>
    public bool ReadsNormed { get; set; }

    /// <summary>True for queries over √d_h at heads, as a softmax has them; false for plain ones.</summary>
    public bool ScaledQueries { get; set; }

    /// <summary>Initial values: <c>lora</c> (the second factor 0: a fresh change is none) or <c>bert</c> (normal, 0.02).</summary>
    public string Init { get; set; } = "lora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "unified-view";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "adapters";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => AtWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => Init == "lora" && Function != UnifiedFunction.SoftmaxKv;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "2 r d + r + d a layer";

    private bool AtWeights => Target is UnifiedTarget.Query or UnifiedTarget.Key or UnifiedTarget.Value or UnifiedTarget.FeedForwardWeights;

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Bottleneck < 1) throw Invalid(nameof(Bottleneck), Bottleneck, "1 or more");
        if (!double.IsFinite(Scale)) throw Invalid(nameof(Scale), Scale, "a finite number");
        if (Init is not ("lora" or "bert")) throw Invalid(nameof(Init), $"'{Init}'", "lora or bert");
        if (Composition == UnifiedComposition.Gated && Function != UnifiedFunction.SoftmaxKv) throw Invalid(nameof(Composition), Composition, $"Add or ScaledAdd with Function = {Function}; a gate is a softmax's");
        if (Function == UnifiedFunction.SoftmaxKv && Target != UnifiedTarget.HeadAttention) throw Invalid(nameof(Target), Target, "HeadAttention with Function = SoftmaxKv");
        if (Insertion == UnifiedInsertion.Sequential && Target is not (UnifiedTarget.AttentionOutput or UnifiedTarget.FeedForwardOutput))
            throw Invalid(nameof(Insertion), Insertion, $"Parallel with Target = {Target}");
        if (AtWeights && Function != UnifiedFunction.Linear) throw Invalid(nameof(Function), Function, $"Linear with Target = {Target}");
        if (LearnedScale && Scale != 1) throw Invalid(nameof(Scale), Scale, "1 with LearnedScale: a trained scale starts there");
        if (Composition != UnifiedComposition.ScaledAdd && (LearnedScale || Scale != 1)) throw Invalid(nameof(Composition), Composition, "ScaledAdd with a Scale or LearnedScale");
        if (AtWeights && (NormBefore || LearnedScale)) throw Invalid(nameof(NormBefore), true, $"false, and no LearnedScale, with Target = {Target}");
        if (ReadsNormed && (Insertion != UnifiedInsertion.Parallel || Target != UnifiedTarget.FeedForwardOutput)) throw Invalid(nameof(ReadsNormed), true, "false unless Parallel at FeedForwardOutput");
    }

    /// <summary>Sets <see cref="Bottleneck"/> to the largest that trains no more than a share of the backbone's numbers.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="fraction">The share, above 0.</param>
    /// <returns>The share that is trained.</returns>
    /// <exception cref="ArgumentException">Even a bottleneck of 1 trains more; the message says how much.</exception>
    public double Fit(Backbone backbone, double fraction)
    {
        double budget = fraction * backbone.ParameterCount;
        Bottleneck = 1;
        long one = CountTrainable(backbone);
        if (!(one <= budget))
            throw new ArgumentException($"A share of {fraction:g3} is too small: with Bottleneck = 1 this point trains {one} numbers, {(double)one / backbone.ParameterCount:g3} of the backbone's.", nameof(fraction));
        Bottleneck = 2;
        long more = CountTrainable(backbone) - one;                              // the count is a line in r
        Bottleneck = 1 + (int)((budget - one) / more);
        return (double)CountTrainable(backbone) / backbone.ParameterCount;
    }

    private IEnumerable<(SiteRole Role, Projection Site)> Weights(Backbone backbone)
    {
        SiteRole[] roles = Target switch
        {
            UnifiedTarget.Query => [SiteRole.Query],
            UnifiedTarget.Key => [SiteRole.Key],
            UnifiedTarget.Value => [SiteRole.Value],
            _ => [SiteRole.FeedForwardUp, SiteRole.FeedForwardDown],
        };
        List<(SiteRole, Projection)> sites = [.. backbone.Sites.OfType<Projection>().Where(p => roles.Contains(p.Role)).Select(p => (p.Role, p))];
        return sites.Count > 0 ? sites : throw Invalid(nameof(Target), Target, $"a target that this {backbone.Config.ModelType} backbone has; its queries, keys and values are one projection");
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        Validate();
        long r = Bottleneck;
        if (AtWeights) return Weights(backbone).Sum(w => r * ((long)w.Site.In + w.Site.Out));
        long Extra(long d) => (NormBefore ? 2 * d : 0) + (LearnedScale ? 1 : 0);
        if (Target == UnifiedTarget.HeadAttention) return UnifiedPlaces.Cores(backbone).Sum(c => 2 * r * c.Heads * c.HeadWidth + Extra(backbone.WidthAt(c.Layer)));
        return UnifiedPlaces.Blocks(backbone, Target).Sum(block =>
        {
            (long d, long wide) = (backbone.WidthAt(block.Layer), Wide(backbone, block.Layer));
            return r * d + r + wide * r + wide + Extra(d);
        });
    }

    // In front of the output projection all heads lie side by side, which need not be as wide as the hidden states.
    internal long Wide(Backbone backbone, int layer) => Target == UnifiedTarget.AttentionOutput && Insertion == UnifiedInsertion.Parallel
        && UnifiedPlaces.Cores(backbone).FirstOrDefault(c => c.Layer == layer) is { } core ? core.Heads * (long)core.HeadWidth : backbone.WidthAt(layer);

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new PeftAdaptation(this, backbone);
        NamedParameter Add(string name, Func<Draws, Tensor> draw) => adaptation.Add(name, draw(new Draws(seed, name)).to(backbone.Device));
        try
        {
            if (AtWeights) AttachWeights(adaptation, Add);
            else if (Target == UnifiedTarget.HeadAttention) UnifiedPlaces.AttachHeads(this, adaptation, Add);
            else UnifiedPlaces.AttachBottlenecks(this, adaptation, Add);
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    private void AttachWeights(PeftAdaptation adaptation, Func<string, Func<Draws, Tensor>, NamedParameter> add)
    {
        foreach ((_, Projection site) in Weights(adaptation.Backbone))
        {
            string path = $"{adaptation.Backbone.PathOf(site)}.unified";
            NamedParameter a = add($"{path}.down.weight", draws => First(draws, Bottleneck, site.In)), b = add($"{path}.up.weight", draws => Second(draws, site.Out, Bottleneck));
            adaptation.Attach(site, new TermsPatch(_ => [new LowRankTerm(a.Value, b.Value, Scale)]));
        }
    }

    internal Tensor First(Draws draws, params long[] shape) => Init == "lora" ? draws.Uniform(1 / Math.Sqrt(shape[^1]), shape) : draws.Normal(0.02, shape);

    // A prefix of zeros would still take its share of the attention.
    internal Tensor Second(Draws draws, params long[] shape) => Init == "lora" && Function != UnifiedFunction.SoftmaxKv ? zeros(shape) : draws.Normal(0.02, shape);
}
