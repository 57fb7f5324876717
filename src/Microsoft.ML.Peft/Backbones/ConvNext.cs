// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// ConvNeXt (Liu et al. 2022, arXiv 2201.03545): layers of a depthwise convolution, a norm and a feed-forward part with a factor a
/// channel, <c>x + s ⊙ W₂ gelu(W₁ norm(conv(x)))</c>; a norm and a strided convolution between stages. The norm at the end
/// is that of the mean place, in <see cref="ClassifierFeatures"/>.
/// </summary>
public sealed class ConvNextBackbone : StagedBackbone
{
    private const double FixedEpsilon = 1e-6;
    private const int Kernel = 7, Expansion = 4, Halving = 2;

    private readonly Convolution _patches;
    private readonly Norm _embeddingNorm, _norm;
    private readonly Sequence _sequence;
    private readonly List<Layers> _layers = [];
    private readonly List<(Norm Norm, Convolution Convolution)> _transitions = [];
    private readonly Func<Tensor, Tensor> _activation;
    private readonly double _pathDropout;
    private readonly int _patch;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public ConvNextBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights, Sizes(config.Raw).Depths, Sizes(config.Raw).Widths)
    {
        var read = new ConfigReader(config.Raw);
        _activation = Activations.Get(config.Activation);
        _pathDropout = read.Share("drop_path_rate", 0);
        _patch = read.Int("patch_size", 4);
        _patches = AddConvolution("embeddings.patch_embeddings", SiteRole.PatchEmbedding, -1, [Widths[0], Channels, _patch, _patch], stride: _patch);
        _embeddingNorm = AddNorm("embeddings.layernorm", SiteRole.EmbeddingNorm, -1, Widths[0], epsilon: FixedEpsilon);
        _sequence = AddEmbeddingSequence();
        bool scaled = read.Number("layer_scale_init_value", 1e-6) > 0;
        for (int layer = 0; layer < config.LayerCount; layer++)
        {
            (int stage, int place) = At(layer);
            if (place == 0 && stage > 0) AddTransition(stage, layer);
            _layers.Add(AddLayer($"encoder.stages.{stage}.layers.{place}", layer, Widths[stage], scaled));
        }
        _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, config.HiddenSize);
        Add(new Taps(config.LayerCount));
    }

    private sealed record Layers(
        Block Whole, Sequence Sequence, Convolution Depthwise, Norm Norm, Block FeedForward, Projection Up, Projection Down, Constant? Scale, Residual Residual);

    /// <inheritdoc/>
    public override string Prefix => "convnext";

    private static (int[] Depths, int[] Widths) Sizes(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        int stages = read.Int("num_stages", read.Ints("depths", [3, 3, 9, 3]).Length);
        int[] depths = ReadDepths(read, [3, 3, 9, 3], stages);
        return (depths, read.Stages("hidden_sizes", [96, 192, 384, 768], stages));
    }

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        (int[] depths, int[] widths) = Sizes(raw);
        return new BackboneConfig
        {
            ModelType = "convnext",
            Input = BackboneInput.Images,
            Raw = raw,
            HiddenSize = widths[^1],
            EmbeddingSize = widths[0],
            LayerCount = depths.Sum(),
            HeadCount = 1,
            IntermediateSize = (int)Math.Min(int.MaxValue, (long)Expansion * widths[^1]),
            VocabularySize = 0,
            MaxTokens = int.MaxValue,
            Activation = read.Text("hidden_act", "gelu"),
            NormEpsilon = read.Positive("layer_norm_eps", 1e-12),
            HiddenDropout = 0,
            AttentionDropout = 0,
            ClassifierDropout = 0,
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    private void AddTransition(int stage, int layer)
    {
        string path = $"encoder.stages.{stage}.downsampling_layer";
        _transitions.Add((AddNorm(path + ".0", SiteRole.StageNorm, layer, Widths[stage - 1], epsilon: FixedEpsilon),
            AddConvolution(path + ".1", SiteRole.StageProjection, layer, [Widths[stage], Widths[stage - 1], Halving, Halving], stride: Halving)));
    }

    private Layers AddLayer(string path, int layer, int width, bool scaled) => new(
        Add(new Block(path, SiteRole.LayerBlock, layer)),
        Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer)),
        AddConvolution(path + ".dwconv", SiteRole.DepthwiseConvolution, layer, [width, 1, Kernel, Kernel], padding: Kernel / 2, groups: width),
        AddNorm(path + ".layernorm", SiteRole.FeedForwardNorm, layer, width, epsilon: FixedEpsilon),
        Add(new Block(path + ".feed_forward", SiteRole.FeedForwardBlock, layer)),
        AddProjection(path + ".pwconv1", SiteRole.FeedForwardUp, layer, (long)Expansion * width, width),
        AddProjection(path + ".pwconv2", SiteRole.FeedForwardDown, layer, width, (long)Expansion * width),
        scaled ? AddConstant(path + ".layer_scale_parameter", SiteRole.LayerScale, layer, [width]) : null,
        Add(new Residual(path + ".output_adapters", SiteRole.FeedForwardResidual, layer)));

    private protected override MapGrid Stem(long height, long width) =>
        new(Convolved(height, _patch, _patch, 0), Convolved(width, _patch, _patch, 0));

    private protected override MapGrid Next(int stage, MapGrid before) => stage == 0 ? before
        : before with { Rows = Convolved(before.Rows, Halving, Halving, 0), Columns = Convolved(before.Columns, Halving, Halving, 0) };

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor map = _patches.Forward(batch.Pixels!.to_type(_patches.Weight.dtype), pass);
        return _sequence.Forward(_embeddingNorm.Forward(Tokens(map), pass), pass);
    }

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Layers parts = _layers[layer];
        (int stage, int place) = At(layer);
        if (place == 0 && stage > 0)
        {
            (Norm norm, Convolution convolution) = _transitions[stage - 1];
            Tensor map = Map(norm.Forward(hidden, pass), pass.Layout.Grid!);
            Enter(stage, pass);
            hidden = Tokens(convolution.Forward(map, pass));
        }
        hidden = parts.Sequence.Forward(hidden, pass);
        return parts.Whole.Forward(hidden, x =>
        {
            Tensor output = pass.Scoped(() =>
            {
                Tensor near = Tokens(parts.Depthwise.Forward(Map(x, pass.Layout.Grid!), pass));
                return parts.FeedForward.Forward(parts.Norm.Forward(near, pass), y => DropPath(FeedForward(parts, y, pass), layer, _pathDropout, pass), pass);
            });
            return parts.Residual.Forward(x, output, (stream, y) => stream + y, pass);
        }, pass);
    }

    private Tensor FeedForward(Layers parts, Tensor x, Pass pass)
    {
        Tensor y = parts.Down.Forward(_activation(parts.Up.Forward(x, pass)), pass);
        return parts.Scale is null ? y : (y * parts.Scale.Value(pass)).to_type(y.dtype);
    }

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => _norm.Forward(base.ClassifierFeatures(output, pass), pass);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new ConvNextBackbone(Config, weights);
}
