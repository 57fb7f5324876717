// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>Hugging Face names of the parts of one pre-norm layer, after the layer's own path.</summary>
internal sealed record PreNormNames(
    string Query, string Key, string Value, string Output, string AttentionNorm, string AttentionBlock, string AttentionResidual,
    string Up, string Down, string FeedForwardNorm, string FeedForwardBlock, string FeedForwardResidual)
{
    /// <summary>ViT, DeiT, BEiT, VideoMAE, AST.</summary>
    public static PreNormNames ViT { get; } = new(
        "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
        "layernorm_before", "attention", "attention_adapters",
        "intermediate.dense", "output.dense", "layernorm_after", "feed_forward", "output.output_adapters");

    /// <summary>CLIP, SigLIP.</summary>
    public static PreNormNames Clip { get; } = new(
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1", "self_attn", "attention_adapters",
        "mlp.fc1", "mlp.fc2", "layer_norm2", "mlp", "output_adapters");

    /// <summary>Tensor of the factors on the attention part's output; null for none.</summary>
    public string? AttentionScale { get; init; }

    /// <summary>Tensor of the factors on the feed-forward part's output; null for none.</summary>
    public string? FeedForwardScale { get; init; }

    /// <summary>True where <see cref="Up"/> makes a gate and what it gates, one above the other.</summary>
    public bool Gated { get; init; }

    /// <summary>Which of queries, keys and values have a bias.</summary>
    public (bool Query, bool Key, bool Value) Biases { get; init; } = (true, true, true);

    /// <summary>Names of the biases of queries and values where they are not the projections' own; null for those.</summary>
    public (string Query, string Value)? BiasNames { get; init; }
}

/// <summary>
/// The pre-norm encoder of ViT and its relatives, in images, texts and sounds: <c>a = x + s₁ · attention(LN x)</c>,
/// <c>x = a + s₂ · down(act(up(LN a)))</c>, with factors s where the family has them. Families differ in names, in what makes
/// the first states, in what is added to attention scores, and in what comes after the last layer.
/// </summary>
public abstract class PreNormEncoder : Backbone
{
    private readonly List<EncoderLayer> _layers = [];
    private readonly Follow _activation;

    private protected PreNormEncoder(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _activation = Follow.By(config.Activation);
        RequireEvenHeads();
    }

    private sealed record EncoderLayer(
        Block Whole, Sequence Sequence, PreNormPart Attention, AttentionParts Parts, Constant? AttentionScale,
        PreNormPart FeedForward, Projection Up, Projection Down, Constant? FeedForwardScale, bool Gated)
    {
        /// <summary>The same as kernels run it at once; null where they do not.</summary>
        public FusedLayer.Parts? Fused { get; init; }
    }

    /// <inheritdoc/>
    public override bool PostNorm => false;

    /// <summary>Dropout behind the feed-forward part while training.</summary>
    private protected virtual double FeedForwardDropout => Config.HiddenDropout;

    /// <summary>Share of rows whose parts of the last layer are left out while training; less in layers before (Huang et al. 2016, arXiv 1603.09382).</summary>
    private protected virtual double DropPath => 0;

    /// <summary>Added to the attention scores of a layer, broadcast to <c>[batch, heads, tokens, tokens]</c>; null for nothing.</summary>
    private protected virtual Tensor? ScoreBias(int layer, ScalarType dtype, Pass pass) => pass.Layout.KeyBias(dtype);

    /// <summary>Adds one layer's sites.</summary>
    private protected void AddLayer(string path, int layer, PreNormNames names)
    {
        long width = Config.HiddenSize, inner = Config.IntermediateSize;
        string Path(string part) => path + "." + part;
        var parts = new EncoderLayer(
            Add(new Block(path, SiteRole.LayerBlock, layer)),
            Add(new Sequence(Path("input"), SiteRole.LayerSequence, layer)),
            new PreNormPart(
                AddNorm(Path(names.AttentionNorm), SiteRole.AttentionNorm, layer, width),
                Add(new Block(Path(names.AttentionBlock), SiteRole.AttentionBlock, layer)),
                Add(new Residual(Path(names.AttentionResidual), SiteRole.AttentionResidual, layer))),
            new AttentionParts(
                AddProjection(Path(names.Query), SiteRole.Query, layer, width, width, names.Biases.Query, biasName: names.BiasNames is { } q ? Path(q.Query) : null),
                AddProjection(Path(names.Key), SiteRole.Key, layer, width, width, names.Biases.Key),
                AddProjection(Path(names.Value), SiteRole.Value, layer, width, width, names.Biases.Value, biasName: names.BiasNames is { } v ? Path(v.Value) : null),
                AddProjection(Path(names.Output), SiteRole.AttentionOutput, layer, width, width),
                Add(new AttentionCore(Path(names.AttentionBlock + ".core"), layer, Config.HeadCount, Config.HiddenSize / Config.HeadCount))),
            AddScale(path, names.AttentionScale, layer),
            new PreNormPart(
                AddNorm(Path(names.FeedForwardNorm), SiteRole.FeedForwardNorm, layer, width),
                Add(new Block(Path(names.FeedForwardBlock), SiteRole.FeedForwardBlock, layer)),
                Add(new Residual(Path(names.FeedForwardResidual), SiteRole.FeedForwardResidual, layer))),
            AddProjection(Path(names.Up), SiteRole.FeedForwardUp, layer, names.Gated ? 2 * inner : inner, width),
            AddProjection(Path(names.Down), SiteRole.FeedForwardDown, layer, width, inner),
            AddScale(path, names.FeedForwardScale, layer),
            names.Gated);
        _layers.Add(parts with { Fused = Fused(parts) });
    }

    // Factors and gates are the parts' own; so is dropout behind a part.
    private FusedLayer.Parts? Fused(EncoderLayer layer)
    {
        if (layer.Gated || layer.AttentionScale is not null || layer.FeedForwardScale is not null) return null;
        (AttentionParts parts, PreNormPart attention, PreNormPart fed) = (layer.Parts, layer.Attention, layer.FeedForward);
        return new(
            [parts.Query, parts.Key, parts.Value, parts.Output, layer.Up, layer.Down], attention.Norm, fed.Norm, parts.Core,
            _activation.Kind, Config.AttentionDropout, HiddenDropout: 0,
            [parts.Core, attention.Block, fed.Block, layer.Whole, attention.Norm, fed.Norm, attention.Residual, fed.Residual], NormFirst: true);
    }

    private Constant? AddScale(string path, string? name, int layer) =>
        name is null ? null : AddConstant($"{path}.{name}", SiteRole.LayerScale, layer, [Config.HiddenSize]);

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        EncoderLayer parts = _layers[layer];
        hidden = parts.Sequence.Forward(hidden, pass);
        bool first = pass.FirstTokenOnly && layer == Config.LayerCount - 1 && pass.Patches[parts.Whole] is null
            && parts.Attention.TokenByToken(pass) && parts.Parts.TokenByToken(pass) && parts.FeedForward.TokenByToken(pass);
        bool leaves = pass.Training && (Config.HiddenDropout > 0 || FeedForwardDropout > 0 || (DropPath > 0 && layer > 0));
        if (parts.Fused is { } fused && !leaves && ReferenceEquals(ScoreBias(layer, hidden.dtype, pass), pass.Layout.KeyBias(hidden.dtype))
            && FusedLayer.Apply(fused, hidden, first, pass) is { } output) return output;
        return parts.Whole.Forward(hidden, x =>
        {
            x = parts.Attention.Run(x, y => Leave(Scaled(Attention(parts, layer, y, first, pass), parts.AttentionScale, pass), layer, pass), pass);
            return parts.FeedForward.Run(x, y => Leave(Scaled(FeedForward(parts, y, pass), parts.FeedForwardScale, pass), layer, pass), pass);
        }, pass);
    }

    // With `first`, only each row's own first token asks; all tokens answer.
    private Tensor Attention(EncoderLayer layer, int number, Tensor x, bool first, Pass pass)
    {
        AttentionParts parts = layer.Parts;
        Tensor asking = first ? x.narrow(1, pass.Layout.First, 1) : x;
        Tensor? bias = ScoreBias(number, x.dtype, pass);
        if (first && bias is not null && bias.shape[2] > 1) bias = bias.narrow(2, pass.Layout.First, 1);
        pass.Share(x, parts.Query, parts.Key, parts.Value);
        (Tensor key, Tensor value) = parts.KeyValue(x, pass);
        return pass.Dropout(parts.Run(asking, key, value, bias, null, Config.AttentionDropout, pass), Config.HiddenDropout);
    }

    private Tensor FeedForward(EncoderLayer layer, Tensor x, Pass pass)
    {
        Tensor inner;
        if (layer.Gated)
        {
            Tensor[] halves = layer.Up.Forward(x, pass).chunk(2, -1);
            inner = _activation.Activation!(halves[0]) * halves[1];
        }
        else
        {
            inner = layer.Up.Forward(x, _activation, pass);
        }
        return layer.Down.Forward(inner, Follow.ByDropout(FeedForwardDropout), pass);
    }

    private static Tensor Scaled(Tensor x, Constant? scale, Pass pass) => scale is null ? x : x * scale.Value(pass).to_type(x.dtype);

    private Tensor Leave(Tensor x, int layer, Pass pass)
    {
        if (!pass.Training || DropPath == 0 || layer == 0) return x;
        double share = DropPath * layer / (Config.LayerCount - 1);
        return x * pass.Dropout(ones([x.shape[0], 1, 1], dtype: x.dtype, device: x.device), share);
    }
}
