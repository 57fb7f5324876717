// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>What is read of the query tokens.</summary>
public enum QueryReading
{
    /// <summary>Added to the final states, with a trained weight each that starts at 0: for any head.</summary>
    Sum,
    /// <summary>Given beside the first token's final state, <c>[batch, 1 + layers · T, hidden]</c>: for <see cref="VisualQueryHead"/>.</summary>
    Tokens,
}

/// <summary>
/// Visual query tuning (Tu et al. 2023, arXiv 2212.03220): in every layer T learned tokens ask the layer's ordinary tokens and are
/// never asked, so those stay exactly the frozen model's: <c>u = P + W_o attend(LN₁ P, LN₁ Z)</c>, <c>Z' = u + MLP(LN₂ u)</c> with
/// the frozen weights. What they found out in all layers is read at the end. No graph enters the backbone. Trained numbers:
/// layers · T · d, and layers · T weights with <see cref="QueryReading.Sum"/>. Not mergeable.
/// </summary>
public sealed class VisualQueryOptions : PeftMethod
{
    /// <summary>T: query tokens a layer, 1 or more.</summary>
    public int Tokens { get; set; } = 1;

    /// <summary>Share of the prompts' entries, in [0, 1), that is dropped while training.</summary>
    public double Dropout { get; set; } = 0.1;

    /// <summary>What is read of the query tokens.</summary>
    public QueryReading Reading { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "vqt";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "side networks";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => Reading == QueryReading.Sum;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-2;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "layers · T · d";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Tokens < 1) throw Invalid(nameof(Tokens), Tokens, "1 or more");
        CheckShare(nameof(Dropout), Dropout);
        if (!Enum.IsDefined(Reading)) throw Invalid(nameof(Reading), Reading, string.Join(", ", Enum.GetNames<QueryReading>()));
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        Check(backbone);
        return (long)backbone.Config.LayerCount * Tokens * (backbone.Config.HiddenSize + (Reading == QueryReading.Sum ? 1L : 0));
    }

    private void Check(Backbone backbone)
    {
        NeedsOneWidth(backbone);
        Site[] sites = [.. backbone.Sites];
        if (backbone.Config.DecoderStart is not null || backbone.Causal || sites.Any(s => s.Role is SiteRole.FeedForwardGate or SiteRole.RelativePosition) || Gated(sites)
            || sites.OfType<AttentionCore>().Count() != backbone.Config.LayerCount)
            throw new ArgumentException($"vqt asks the layers of encoders whose tokens see each other (vit, bert, roberta); this backbone is {backbone.Config.ModelType}.");
    }

    // One map makes a gate and what it gates.
    private static bool Gated(Site[] sites) =>
        sites.OfType<Projection>().FirstOrDefault(s => s.Role == SiteRole.FeedForwardUp)?.Out != sites.OfType<Projection>().FirstOrDefault(s => s.Role == SiteRole.FeedForwardDown)?.In;

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        Check(backbone);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        long d = backbone.Config.HiddenSize, layers = backbone.Config.LayerCount;
        // 3 patch² is what a patch of an image has; a text's token counts as one number.
        long[] kernel = backbone.Sites.OfType<Convolution>().FirstOrDefault(s => s.Role == SiteRole.PatchEmbedding)?.Weight.shape ?? [1, 1];
        double bound = Math.Sqrt(6.0 / (kernel.Skip(1).Aggregate(1L, (a, b) => a * b) + d));
        var adaptation = new PeftAdaptation(this, backbone);
        NamedParameter prompts = adaptation.Add("vqt.prompt", new Draws(seed, "vqt.prompt").Uniform(bound, layers, Tokens, d).to(backbone.Device));
        NamedParameter? mix = Reading == QueryReading.Sum ? adaptation.Add("vqt.mix", zeros([layers, Tokens], device: backbone.Device)) : null;
        adaptation.Attach(backbone.Taps, new VisualQueryPatch(backbone, prompts, mix, Dropout));
        return adaptation;
    }
}

/// <summary>Query tokens beside the frozen layers.</summary>
internal sealed class VisualQueryPatch : TapPatch
{
    private sealed record Parts(Projection Query, Projection Key, Projection Value, Projection Output, Projection Up, Projection Down, Norm Norm1, Norm Norm2, AttentionCore Core, Constant[] Scales);

    private readonly List<Parts> _layers = [];
    private readonly NamedParameter _prompts;
    private readonly NamedParameter? _mix;
    private readonly Func<Tensor, Tensor> _activation;
    private readonly double _dropout;
    private readonly bool _postNorm;

    public VisualQueryPatch(Backbone backbone, NamedParameter prompts, NamedParameter? mix, double dropout)
    {
        (_prompts, _mix, _dropout) = (prompts, mix, dropout);
        _activation = Activations.Get(backbone.Config.Activation);
        _postNorm = backbone.PostNorm;
        for (int layer = 0; layer < backbone.Config.LayerCount; layer++)
        {
            T One<T>(SiteRole role) where T : Site => backbone.Sites.OfType<T>().First(s => s.Role == role && s.Layer == layer);
            _layers.Add(new Parts(One<Projection>(SiteRole.Query), One<Projection>(SiteRole.Key), One<Projection>(SiteRole.Value), One<Projection>(SiteRole.AttentionOutput),
                One<Projection>(SiteRole.FeedForwardUp), One<Projection>(SiteRole.FeedForwardDown), One<Norm>(SiteRole.AttentionNorm), One<Norm>(SiteRole.FeedForwardNorm),
                One<AttentionCore>(SiteRole.AttentionCore), [.. backbone.Sites.OfType<Constant>().Where(s => s.Role == SiteRole.LayerScale && s.Layer == layer)]));
        }
    }

    public override Tensor Read(IReadOnlyList<Tensor> states, Func<Tensor, Tensor> finish, Pass pass)
    {
        Tensor last = finish(states[^1]).detach();
        Tensor[] queries = [.. _layers.Select((parts, layer) => Ask(parts, states[layer].detach(), _prompts.Value[layer], pass))];
        if (_mix is null) return cat([last.narrow(1, pass.Layout.First, 1), .. queries], 1);
        Tensor sum = last;
        for (int layer = 0; layer < queries.Length; layer++)
            sum = sum + (queries[layer].to_type(ScalarType.Float32) * _mix.Value[layer].view(1, -1, 1)).sum([1], keepdim: true).to_type(last.dtype);
        return sum;
    }

    // [batch, T, hidden]: what the prompts make of the tokens that enter a layer.
    private Tensor Ask(Parts parts, Tensor tokens, Tensor prompt, Pass pass)
    {
        Tensor asking = pass.Dropout(prompt, _dropout).to_type(tokens.dtype).unsqueeze(0).expand(tokens.shape[0], -1, -1);
        Tensor answering = _postNorm ? tokens : parts.Norm1.Forward(tokens, pass);
        Tensor key, value;
        using (no_grad()) (key, value) = (Heads.Split(parts.Key.Forward(answering, pass), parts.Core), Heads.Split(parts.Value.Forward(answering, pass), parts.Core));
        Tensor query = Heads.Split(parts.Query.Forward(_postNorm ? asking : parts.Norm1.Forward(asking, pass), pass), parts.Core);
        Tensor context = Heads.Attend(new AttentionInput(query, key, value, pass.Layout.KeyBias(tokens.dtype)), parts.Core.Scale, 0, pass);
        Tensor found = parts.Output.Forward(Heads.Join(context), pass);
        Tensor Scaled(Tensor x, int part) => parts.Scales.Length == 0 ? x : x * parts.Scales[part].Value(pass).to_type(x.dtype);
        Tensor Feed(Tensor x) => parts.Down.Forward(_activation(parts.Up.Forward(x, pass)), pass);
        if (!_postNorm)
        {
            Tensor u = asking + Scaled(found, 0);
            return u + Scaled(Feed(parts.Norm2.Forward(u, pass)), 1);
        }
        Tensor a = parts.Norm1.Forward(asking + found, pass);
        return parts.Norm2.Forward(a + Feed(a), pass);
    }
}
