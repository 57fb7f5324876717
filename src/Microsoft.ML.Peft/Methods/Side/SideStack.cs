// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Geometry of a stack of side blocks.</summary>
/// <param name="Path">What stands before its names.</param>
/// <param name="First">The backbone's layer that is its first.</param>
/// <param name="Depth">Layers of the backbone's stack.</param>
/// <param name="Kept">Those with a side block, from 0.</param>
/// <param name="Width">Width of the side states.</param>
/// <param name="Heads">Number of heads.</param>
/// <param name="HeadWidth">Width of a head.</param>
/// <param name="Inner">Width of the feed-forward part.</param>
/// <param name="Cross">True with attention to an encoder.</param>
/// <param name="Biased">True with biases and layer norms, false with root-mean-square norms and none.</param>
/// <param name="PostNorm">True where norms stand behind the residual connections.</param>
/// <param name="Gated">True where the feed-forward part has a gate.</param>
/// <param name="Buckets">Relative positions, or null.</param>
internal sealed record SideShape(
    string Path, int First, int Depth, int[] Kept, long Width, int Heads, int HeadWidth, long Inner, bool Cross, bool Biased, bool PostNorm, bool Gated, RelativeBuckets? Buckets)
{
    public static SideShape Of(Backbone backbone, string path, int first, int end, int[] kept, int reduction)
    {
        AttentionCore core = backbone.Sites.OfType<AttentionCore>().First(c => c.Layer == first);
        bool relative = backbone.Sites.Any(s => s.Role == SiteRole.RelativePosition);
        var read = new ConfigReader(backbone.Config.Raw);
        bool decoder = first > 0;
        return new SideShape(path, first, end - first, kept, backbone.Config.HiddenSize / reduction, core.Heads, core.HeadWidth / reduction, backbone.Config.IntermediateSize / reduction,
            backbone.Sites.Any(s => s.Role == SiteRole.CrossAttentionCore && s.Layer == first),
            backbone.Sites.OfType<Norm>().First().Bias is not null,
            backbone.PostNorm,
            backbone.Sites.Any(s => s.Role == SiteRole.FeedForwardGate && s.Layer == first),
            relative && backbone.Config.DecoderStart is not null ? new(read.Int("relative_attention_num_buckets", 32, 4), read.Int("relative_attention_max_distance", 128), !decoder) : null);
    }

    public long HeadsWidth => (long)Heads * HeadWidth;

    /// <summary>Trained numbers: blocks, ladders, gates, norm, table of relative positions.</summary>
    /// <param name="d">Hidden width of the backbone.</param>
    public long Count(long d)
    {
        long attention = 4 * Width * HeadsWidth + (Biased ? 3 * HeadsWidth + Width : 0), norm = Biased ? 2 * Width : Width;
        long block = (Cross ? 2 : 1) * (attention + norm) + (Gated ? 3 : 2) * Width * Inner + (Biased ? (Gated ? 2 : 1) * Inner + Width : 0) + norm;
        return Kept.Length * (block + 1) + (Kept.Length + 1) * (d * Width + Width) + norm + (Buckets is null ? 0 : (long)Buckets.Buckets * Heads);
    }
}

/// <summary>Side blocks with their ladders and gates.</summary>
internal sealed class SideStack
{
    private sealed record Map(NamedParameter Weight, NamedParameter? Bias)
    {
        public Tensor Of(Tensor x) => nn.functional.linear(x, Weight.Value, Bias?.Value);
    }

    private sealed record Attention(Map Query, Map Key, Map Value, Map Output);

    private sealed record SideBlock(Attention Self, Attention? Cross, Map? Gate, Map Up, Map Down, Map Norm1, Map? NormCross, Map Norm2);

    private readonly Backbone _backbone;
    private readonly double _temperature, _epsilon, _dropout, _scale;
    private readonly Map _first, _norm;
    private readonly Dictionary<int, (Map Ladder, NamedParameter Alpha, SideBlock Block)> _layers = [];
    private readonly NamedParameter? _relative;
    private readonly Func<Tensor, Tensor> _activation;

    public SideStack(SideShape shape, Backbone backbone, double temperature, SideStart? start, Func<string, Func<Draws, Tensor>, NamedParameter> add)
    {
        (Shape, _backbone, _temperature) = (shape, backbone, temperature);
        BackboneConfig config = backbone.Config;
        (_epsilon, _dropout) = (config.NormEpsilon, config.HiddenDropout);
        // T5 has no factor on its products.
        _scale = shape.Buckets is not null ? 1 : 1 / Math.Sqrt(shape.HeadWidth);
        _activation = Activations.Get(config.DecoderStart is null ? config.Activation : Bend(new ConfigReader(config.Raw).Text("feed_forward_proj", "relu")));
        long d = config.HiddenSize, width = shape.Width;
        Map Linear(string name, long outputs, long inputs, bool biased, Tensor? from = null, Tensor? bias = null) => new(
            add($"{shape.Path}{name}.weight", draws => from ?? draws.Uniform(1 / Math.Sqrt(inputs), outputs, inputs)),
            biased ? add($"{shape.Path}{name}.bias", draws => bias ?? (from is null ? draws.Uniform(1 / Math.Sqrt(inputs), outputs) : zeros([outputs]))) : null);
        Map Norm(string name, (Tensor Weight, Tensor? Bias)? from) => new(
            add($"{shape.Path}{name}.weight", _ => from?.Weight ?? ones([width])), shape.Biased ? add($"{shape.Path}{name}.bias", _ => from?.Bias ?? zeros([width])) : null);

        _first = Linear("ladder.embeddings", width, d, true);
        if (shape.Buckets is { } buckets)
            _relative = add($"{shape.Path}relative", draws => start?.Relative(shape.First) ?? draws.Normal(0.02, buckets.Buckets, shape.Heads));
        start?.Begin();
        for (int layer = 0; layer < shape.Depth; layer++)
        {
            SidePruned? pruned = start?.Layer(shape.First + layer);
            if (!shape.Kept.Contains(layer)) continue;
            string path = $"block.{layer}.";
            Attention Attend(string prefix, SidePruned.Maps? from) => new(
                Linear($"{path}{prefix}q", shape.HeadsWidth, width, shape.Biased, from?.Query.Weight, from?.Query.Bias),
                Linear($"{path}{prefix}k", shape.HeadsWidth, width, shape.Biased, from?.Key.Weight, from?.Key.Bias),
                Linear($"{path}{prefix}v", shape.HeadsWidth, width, shape.Biased, from?.Value.Weight, from?.Value.Bias),
                Linear($"{path}{prefix}o", width, shape.HeadsWidth, shape.Biased, from?.Output.Weight, from?.Output.Bias));
            var block = new SideBlock(Attend("", pruned?.Self), shape.Cross ? Attend("cross_", pruned?.Cross) : null,
                shape.Gated ? Linear(path + "gate", shape.Inner, width, shape.Biased, pruned?.Gate?.Weight, pruned?.Gate?.Bias) : null,
                Linear(path + "fc1", shape.Inner, width, shape.Biased, pruned?.Up.Weight, pruned?.Up.Bias), Linear(path + "fc2", width, shape.Inner, shape.Biased, pruned?.Down.Weight, pruned?.Down.Bias),
                Norm(path + "norm1", pruned?.Norm1), shape.Cross ? Norm(path + "norm_cross", pruned?.NormCross) : null, Norm(path + "norm2", pruned?.Norm2));
            _layers[layer] = (Linear($"ladder.{layer}", width, d, true), add($"{shape.Path}alpha.{layer}", _ => zeros([1])), block);
        }
        _norm = Norm("norm", start?.FinalNorm(shape.First + shape.Depth));
    }

    // gated-gelu is T5's own word for the tanh form.
    private static string Bend(string name) => name == "gated-gelu" ? "gelu_new" : name[(name.LastIndexOf('-') + 1)..];

    public SideShape Shape { get; }

    /// <summary>The normed side state behind the last block.</summary>
    /// <param name="states">Embedding output and each layer's output of the backbone's stack.</param>
    /// <param name="layout">Which tokens are real.</param>
    /// <param name="causal">True where no token sees a later one.</param>
    /// <param name="encoded">The encoder's side state, or null.</param>
    /// <param name="encodedLayout">Which of its tokens are real.</param>
    /// <param name="pass">The running forward pass.</param>
    public Tensor Run(IReadOnlyList<Tensor> states, Layout layout, bool causal, Tensor? encoded, Layout? encodedLayout, Pass pass)
    {
        // Nothing of what the backbone made is asked for a gradient.
        Tensor Read(int index) => states[index].detach().to_type(ScalarType.Float32);
        Tensor s = _first.Of(Read(0));
        Tensor? bias = causal ? layout.CausalBias(s.dtype) : layout.KeyBias(s.dtype), cross = encodedLayout?.KeyBias(s.dtype);
        if (Relative(s.shape[1]) is { } relative) bias = bias is null ? relative : bias + relative;
        foreach ((int layer, (Map ladder, NamedParameter alpha, SideBlock block)) in _layers.OrderBy(l => l.Key))
        {
            Tensor mu = (alpha.Value / _temperature).sigmoid();
            Tensor z = mu * s + (1 - mu) * ladder.Of(Read(layer + 1));
            s = Run(block, z, bias, encoded, cross, pass);
        }
        return Normed(s, _norm);
    }

    private Tensor? Relative(long tokens)
    {
        if (_relative is null) return null;
        Tensor buckets = tensor(Shape.Buckets!.Table(0, tokens, tokens), ScalarType.Int64, _relative.Value.device);
        return _relative.Value.index_select(0, buckets).view(tokens, tokens, Shape.Heads).permute(2, 0, 1).unsqueeze(0);
    }

    private Tensor Run(SideBlock block, Tensor z, Tensor? bias, Tensor? encoded, Tensor? crossBias, Pass pass)
    {
        z = Joined(z, block.Norm1, x => Attend(block.Self, x, x, bias, pass), pass);
        if (block.Cross is { } cross) z = Joined(z, block.NormCross!, x => Attend(cross, x, encoded!, crossBias, pass), pass);
        return Joined(z, block.Norm2, x => block.Down.Of(block.Gate is { } gate ? _activation(gate.Of(x)) * block.Up.Of(x) : _activation(block.Up.Of(x))), pass);
    }

    private Tensor Joined(Tensor z, Map norm, Func<Tensor, Tensor> part, Pass pass) => Shape.PostNorm
        ? Normed(z + pass.Dropout(part(z), _dropout), norm)
        : z + pass.Dropout(part(Normed(z, norm)), _dropout);

    private Tensor Attend(Attention maps, Tensor asking, Tensor answering, Tensor? bias, Pass pass)
    {
        Tensor Split(Tensor y) => Heads.Split(y, Shape.HeadWidth);
        var input = new AttentionInput(Split(maps.Query.Of(asking)), Split(maps.Key.Of(answering)), Split(maps.Value.Of(answering)), bias);
        return maps.Output.Of(Heads.Join(Heads.Attend(input, _scale, _backbone.Config.AttentionDropout, pass)));
    }

    private Tensor Normed(Tensor x, Map norm) => norm.Bias is null
        ? x * (x.square().mean([-1], keepdim: true) + _epsilon).rsqrt() * norm.Weight.Value
        : nn.functional.layer_norm(x, [x.shape[^1]], norm.Weight.Value, norm.Bias.Value, _epsilon);
}
