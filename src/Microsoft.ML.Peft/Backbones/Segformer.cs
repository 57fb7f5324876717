// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// SegFormer's encoder (Xie et al. 2021, arXiv 2105.15203): stages of overlapping patches and pre-norm layers, whose keys and values
/// come from a map shrunk by a convolution, and whose feed-forward part has a depthwise convolution inside. No positions; a
/// norm ends each stage. <see cref="Backbone.StageMaps"/> are what a segmentation head reads.
/// </summary>
public sealed class SegformerBackbone : StagedBackbone
{
    // Whatever config.json says.
    private const double FixedEpsilon = 1e-5;

    private readonly Geometry _geometry;
    private readonly List<(Convolution Projection, Norm Norm)> _patches = [];
    private readonly List<Norm> _ends = [];
    private readonly List<Layers> _layers = [];
    private readonly Sequence _sequence;
    private readonly Func<Tensor, Tensor> _activation;
    private readonly double _pathDropout;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public SegformerBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights, GeometryOf(config.Raw).Depths, GeometryOf(config.Raw).Widths)
    {
        _geometry = GeometryOf(config.Raw);
        _activation = Activations.Get(config.Activation);
        _pathDropout = new ConfigReader(config.Raw).Share("drop_path_rate", 0.1);
        AddPatches(0, -1, Channels);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++)
        {
            (int stage, int place) = At(layer);
            if (place == 0 && stage > 0) AddPatches(stage, layer, Widths[stage - 1]);
            _layers.Add(AddLayer($"encoder.block.{stage}.{place}", layer, stage));
            if (place == Depths[stage] - 1) _ends.Add(AddNorm($"encoder.layer_norm.{stage}", SiteRole.StageNorm, layer, Widths[stage], epsilon: FixedEpsilon));
        }
        Add(new Taps(config.LayerCount));
    }

    private sealed record Geometry(int[] Depths, int[] Widths, int[] Heads, int[] Shrinking, int[] Patches, int[] Strides, int[] Inner);

    private sealed record Layers(
        Block Whole, Sequence Sequence, PreNormPart Attention, AttentionParts Parts, Convolution? Shrink, Norm? ShrinkNorm,
        PreNormPart FeedForward, Projection Up, Convolution Depthwise, Projection Down);

    /// <inheritdoc/>
    public override string Prefix => "segformer";

    private static Geometry GeometryOf(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        int stages = read.Int("num_encoder_blocks", read.Ints("depths", [2, 2, 2, 2]).Length);
        int[] depths = ReadDepths(read, [2, 2, 2, 2], stages), widths = read.Stages("hidden_sizes", [32, 64, 160, 256], stages);
        int[] heads = read.Stages("num_attention_heads", [1, 2, 5, 8], stages);
        for (int stage = 0; stage < stages; stage++)
            if (widths[stage] % heads[stage] != 0)
                throw new CheckpointFormatException($"config.json: the {widths[stage]} channels of stage {stage} are not divisible by its {heads[stage]} attention heads.");
        int[] inner = [.. read.Stages("mlp_ratios", [4, 4, 4, 4], stages).Zip(widths, (ratio, width) => (int)Math.Min(int.MaxValue, (long)ratio * width))];
        return new Geometry(depths, widths, heads, read.Stages("sr_ratios", [8, 4, 2, 1], stages),
            read.Stages("patch_sizes", [7, 3, 3, 3], stages), read.Stages("strides", [4, 2, 2, 2], stages), inner);
    }

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        Geometry geometry = GeometryOf(raw);
        return new BackboneConfig
        {
            ModelType = "segformer",
            Input = BackboneInput.Images,
            Raw = raw,
            HiddenSize = geometry.Widths[^1],
            EmbeddingSize = geometry.Widths[0],
            LayerCount = geometry.Depths.Sum(),
            HeadCount = geometry.Heads[^1],
            IntermediateSize = geometry.Inner[^1],
            VocabularySize = 0,
            MaxTokens = int.MaxValue,
            Activation = read.Text("hidden_act", "gelu"),
            NormEpsilon = FixedEpsilon,
            HiddenDropout = read.Share("hidden_dropout_prob", 0),
            AttentionDropout = read.Share("attention_probs_dropout_prob", 0),
            ClassifierDropout = 0,
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    private void AddPatches(int stage, int layer, long input)
    {
        string path = $"encoder.patch_embeddings.{stage}";
        (int patch, int stride) = (_geometry.Patches[stage], _geometry.Strides[stage]);
        bool first = stage == 0;
        _patches.Add((
            AddConvolution(path + ".proj", first ? SiteRole.PatchEmbedding : SiteRole.StageProjection, layer, [Widths[stage], input, patch, patch], stride, patch / 2),
            AddNorm(path + ".layer_norm", first ? SiteRole.EmbeddingNorm : SiteRole.StageNorm, layer, Widths[stage], epsilon: FixedEpsilon)));
    }

    private Layers AddLayer(string path, int layer, int stage)
    {
        (long width, int heads, int shrinking, int inner) = (Widths[stage], _geometry.Heads[stage], _geometry.Shrinking[stage], _geometry.Inner[stage]);
        string self = path + ".attention.self";
        var whole = Add(new Block(path, SiteRole.LayerBlock, layer));
        var sequence = Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer));
        var attention = new PreNormPart(
            AddNorm(path + ".layer_norm_1", SiteRole.AttentionNorm, layer, width, epsilon: FixedEpsilon),
            Add(new Block(path + ".attention", SiteRole.AttentionBlock, layer)),
            Add(new Residual(path + ".attention_adapters", SiteRole.AttentionResidual, layer)));
        var parts = new AttentionParts(
            AddProjection(self + ".query", SiteRole.Query, layer, width, width),
            AddProjection(self + ".key", SiteRole.Key, layer, width, width),
            AddProjection(self + ".value", SiteRole.Value, layer, width, width),
            AddProjection(path + ".attention.output.dense", SiteRole.AttentionOutput, layer, width, width),
            Add(new AttentionCore(path + ".attention.core", layer, heads, (int)width / heads)));
        Convolution? shrink = shrinking == 1 ? null : AddConvolution(self + ".sr", SiteRole.OtherConvolution, layer, [width, width, shrinking, shrinking], shrinking);
        Norm? shrinkNorm = shrinking == 1 ? null : AddNorm(self + ".layer_norm", SiteRole.OtherNorm, layer, width, epsilon: FixedEpsilon);
        var feedForward = new PreNormPart(
            AddNorm(path + ".layer_norm_2", SiteRole.FeedForwardNorm, layer, width, epsilon: FixedEpsilon),
            Add(new Block(path + ".mlp", SiteRole.FeedForwardBlock, layer)),
            Add(new Residual(path + ".output_adapters", SiteRole.FeedForwardResidual, layer)));
        return new Layers(whole, sequence, attention, parts, shrink, shrinkNorm, feedForward,
            AddProjection(path + ".mlp.dense1", SiteRole.FeedForwardUp, layer, inner, width),
            AddConvolution(path + ".mlp.dwconv.dwconv", SiteRole.DepthwiseConvolution, layer, [inner, 1, 3, 3], padding: 1, groups: inner),
            AddProjection(path + ".mlp.dense2", SiteRole.FeedForwardDown, layer, width, inner));
    }

    private protected override MapGrid Stem(long height, long width) => Patched(0, new MapGrid(height, width));

    private protected override MapGrid Next(int stage, MapGrid before)
    {
        MapGrid grid = stage == 0 ? before : Patched(stage, before);
        // A map smaller than the shrinking convolution has no keys at all.
        return Math.Min(grid.Rows, grid.Columns) < _geometry.Shrinking[stage] ? grid with { Rows = 0 } : grid;
    }

    private MapGrid Patched(int stage, MapGrid before)
    {
        (int patch, int stride) = (_geometry.Patches[stage], _geometry.Strides[stage]);
        return before with { Rows = Convolved(before.Rows, patch, stride, patch / 2), Columns = Convolved(before.Columns, patch, stride, patch / 2) };
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        (Convolution projection, Norm norm) = _patches[0];
        Tensor map = projection.Forward(batch.Pixels!.to_type(projection.Weight.dtype), pass);
        return _sequence.Forward(norm.Forward(Tokens(map), pass), pass);
    }

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Layers parts = _layers[layer];
        (int stage, int place) = At(layer);
        if (place == 0 && stage > 0)
        {
            (Convolution projection, Norm norm) = _patches[stage];
            Tensor map = Map(hidden, pass.Layout.Grid!);
            Enter(stage, pass);
            hidden = norm.Forward(Tokens(projection.Forward(map, pass)), pass);
        }
        hidden = parts.Sequence.Forward(hidden, pass);
        hidden = parts.Whole.Forward(hidden, x =>
        {
            x = parts.Attention.Run(x, y => DropPath(Attention(parts, y, pass), layer, _pathDropout, pass), pass);
            return parts.FeedForward.Run(x, y => DropPath(FeedForward(parts, y, pass), layer, _pathDropout, pass), pass);
        }, pass);
        return place == Depths[stage] - 1 ? _ends[stage].Forward(hidden, pass) : hidden;
    }

    private Tensor Attention(Layers parts, Tensor x, Pass pass)
    {
        Tensor answering = x;
        if (parts.Shrink is { } shrink)
            answering = parts.ShrinkNorm!.Forward(Tokens(shrink.Forward(Map(x, pass.Layout.Grid!), pass)), pass);
        else
            pass.Share(x, parts.Parts.Query, parts.Parts.Key, parts.Parts.Value);
        (Tensor key, Tensor value) = parts.Parts.KeyValue(answering, pass);
        return pass.Dropout(parts.Parts.Run(x, key, value, null, null, Config.AttentionDropout, pass), Config.HiddenDropout);
    }

    private Tensor FeedForward(Layers parts, Tensor x, Pass pass)
    {
        Tensor wide = parts.Up.Forward(x, pass);
        Tensor near = Tokens(parts.Depthwise.Forward(Map(wide, pass.Layout.Grid!), pass));
        Tensor active = pass.Dropout(_activation(near), Config.HiddenDropout);
        return pass.Dropout(parts.Down.Forward(active, pass), Config.HiddenDropout);
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new SegformerBackbone(Config, weights);
}
