// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// What Swin and its second version share: patches, stages of layers whose attention stays inside of windows (shifted in
/// every second layer), and the merging of two by two places between stages.
/// </summary>
public abstract class WindowedBackbone : StagedBackbone
{
    private protected const double FixedEpsilon = 1e-5;

    private readonly Convolution _patches;
    private readonly Constant? _positions;
    private readonly Norm _embeddingNorm;
    private readonly Sequence _sequence;
    private readonly (int Height, int Width) _image, _patch;

    private protected WindowedBackbone(BackboneConfig config, IWeightSource weights, Shape shape) : base(config, weights, shape.Depths, shape.Widths)
    {
        var read = new ConfigReader(config.Raw);
        Window = shape.Window;
        HeadCounts = shape.Heads;
        Activation = Activations.Get(config.Activation);
        PathDropout = read.Share("drop_path_rate", 0.1);
        (_image, _patch) = ImageSizes(config.Raw);
        _patches = AddConvolution("embeddings.patch_embeddings.projection", SiteRole.PatchEmbedding,
            [_patch.Height, _patch.Width], bias: true, shape.Widths[0], Channels, _patch.Height, _patch.Width);
        _embeddingNorm = AddNorm("embeddings.norm", SiteRole.EmbeddingNorm, -1, shape.Widths[0], epsilon: FixedEpsilon);
        if (read.Flag("use_absolute_embeddings", false))
            _positions = AddConstant("embeddings.position_embeddings", SiteRole.PositionEmbedding, 1, PatchGrid.Places, shape.Widths[0]);
        _sequence = AddEmbeddingSequence();
    }

    /// <inheritdoc/>
    /// <remarks>They go along with every window, and what the windows made of them is averaged.</remarks>
    public override bool TakesTokens => true;

    /// <summary>Geometry of the stages.</summary>
    internal sealed record Shape(int[] Depths, int[] Widths, int[] Heads, int Window);

    /// <summary>Side of the windows, in places.</summary>
    private protected int Window { get; }

    private protected int[] HeadCounts { get; }

    private protected Func<Tensor, Tensor> Activation { get; }

    /// <summary>Share of rows in which the last layer's part is left out while training.</summary>
    private protected double PathDropout { get; }

    /// <summary>The map of an image of the configured size, as position tables count it.</summary>
    private protected MapGrid PatchGrid => new(_image.Height / _patch.Height, _image.Width / _patch.Width);

    /// <summary>Width of the feed-forward part of a stage.</summary>
    private protected int Inner(int stage) => InnerOf(new ConfigReader(Config.Raw), Widths[stage]);

    private static int InnerOf(ConfigReader read, int width)
    {
        double inner = Math.Floor(read.Positive("mlp_ratio", 4.0) * width);
        return inner is >= 1 and <= int.MaxValue ? (int)inner
            : throw new CheckpointFormatException($"config.json: field 'mlp_ratio' makes a feed-forward part of {inner} for {width} channels; expected a width of at least 1.");
    }

    internal static Shape ShapeOf(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        int[] depths = ReadDepths(read, [2, 2, 6, 2]), heads = read.Stages("num_heads", [3, 6, 12, 24], depths.Length);
        long first = read.Int("embed_dim", 96), last = first << (depths.Length - 1);
        if (last > int.MaxValue / 8) throw new CheckpointFormatException($"config.json: embed_dim {first} doubles to {last} in {depths.Length} stages; no network is as wide.");
        int[] widths = [.. depths.Select((_, stage) => (int)first << stage)];
        for (int stage = 0; stage < widths.Length; stage++)
            if (widths[stage] % heads[stage] != 0)
                throw new CheckpointFormatException($"config.json: the {widths[stage]} channels of stage {stage} are not divisible by its {heads[stage]} attention heads.");
        return new Shape(depths, widths, heads, read.Int("window_size", 7));
    }

    internal static BackboneConfig ReadConfig(JsonObject raw, string type)
    {
        var read = new ConfigReader(raw);
        Shape shape = ShapeOf(raw);
        ((int height, int width), (int patchHeight, int patchWidth)) = ImageSizes(raw);
        return new BackboneConfig
        {
            ModelType = type,
            Input = BackboneInput.Images,
            Raw = raw,
            HiddenSize = shape.Widths[^1],
            EmbeddingSize = shape.Widths[0],
            LayerCount = shape.Depths.Sum(),
            HeadCount = shape.Heads[^1],
            IntermediateSize = InnerOf(read, shape.Widths[^1]),
            VocabularySize = 0,
            MaxTokens = (int)Math.Min(int.MaxValue, (long)(height / patchHeight) * (width / patchWidth)),
            Activation = read.Text("hidden_act", "gelu"),
            NormEpsilon = read.Positive("layer_norm_eps", 1e-5),
            HiddenDropout = read.Share("hidden_dropout_prob", 0),
            AttentionDropout = read.Share("attention_probs_dropout_prob", 0),
            ClassifierDropout = 0,
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    private static ((int Height, int Width) Image, (int Height, int Width) Patch) ImageSizes(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        (int Height, int Width) Pair(string name, int missing)
        {
            if (raw[name] is not JsonArray) return (read.Int(name, missing), read.Int(name, missing));
            int[] sides = read.Ints(name, []);
            return sides.Length == 2 ? (sides[0], sides[1])
                : throw new CheckpointFormatException($"config.json: field '{name}' has {sides.Length} numbers; expected one, or two: height and width.");
        }
        ((int Height, int Width) image, (int Height, int Width) patch) = (Pair("image_size", 224), Pair("patch_size", 4));
        if (image.Height < patch.Height || image.Width < patch.Width)
            throw new CheckpointFormatException($"config.json: image_size {image.Height}x{image.Width} is smaller than patch_size {patch.Height}x{patch.Width} (height x width).");
        return (image, patch);
    }

    // What is left of an image beyond whole patches is padded.
    private protected override MapGrid Stem(long height, long width) =>
        new((height + _patch.Height - 1) / _patch.Height, (width + _patch.Width - 1) / _patch.Width);

    private protected override MapGrid Next(int stage, MapGrid before) =>
        stage == 0 ? before : before with { Rows = (before.Rows + 1) / 2, Columns = (before.Columns + 1) / 2 };

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor pixels = batch.Pixels!.to_type(_patches.Weight.dtype);
        (long height, long width) = (pixels.shape[2], pixels.shape[3]);
        MapGrid grid = pass.Layout.Grid!;
        if (grid.Rows * _patch.Height > height || grid.Columns * _patch.Width > width)
            pixels = nn.functional.pad(pixels, [0, grid.Columns * _patch.Width - width, 0, grid.Rows * _patch.Height - height]);
        Tensor hidden = _embeddingNorm.Forward(Tokens(_patches.Forward(pixels, pass)), pass);
        if (_positions is not null)
        {
            if ((grid.Rows, grid.Columns) != (PatchGrid.Rows, PatchGrid.Columns))
                throw new ArgumentException(
                    $"Images are {height}x{width} (height x width), but this backbone has positions for {_image.Height}x{_image.Width}; resize them.");
            hidden = _positions.Forward(hidden, pass);
        }
        return _sequence.Forward(pass.Dropout(hidden, Config.HiddenDropout), pass);
    }

    /// <summary>Attention inside of windows.</summary>
    /// <param name="x"><c>[batch, inserted + places, channels]</c>.</param>
    /// <param name="windows">How the map is cut.</param>
    /// <param name="parts">The sites.</param>
    /// <param name="prepare">What the attention reads, from queries, keys and values of the windows.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>The same shape as x.</returns>
    private protected Tensor Attend(Tensor x, Windows windows, AttentionParts parts, Func<Tensor, Tensor, Tensor, AttentionInput> prepare, Pass pass)
    {
        Tensor cut = windows.Cut(x, pass.Layout.Inserted);
        pass.Share(cut, parts.Query, parts.Key, parts.Value);
        Tensor Heads(Projection map) => windows.Split(map.Forward(cut, pass), parts.Core);
        AttentionInput input = prepare(Heads(parts.Query), Heads(parts.Key), Heads(parts.Value));
        Tensor context = parts.Core.Forward(input, a => Backbones.Heads.Attend(a, parts.Core.Scale, Config.AttentionDropout, pass), pass);
        Tensor output = parts.Output.Forward(windows.Joined(context), pass);
        return windows.Join(pass.Dropout(output, Config.AttentionDropout), pass.Layout.Inserted);
    }

    private protected AttentionParts AddAttention(string path, int layer, int stage, bool bias, bool keyBias, double? scale = null)
    {
        (long width, int heads) = (Widths[stage], HeadCounts[stage]);
        string self = path + ".attention.self";
        int headWidth = Widths[stage] / heads;
        return new AttentionParts(
            AddProjection(self + ".query", SiteRole.Query, layer, width, width, bias),
            AddProjection(self + ".key", SiteRole.Key, layer, width, width, keyBias),
            AddProjection(self + ".value", SiteRole.Value, layer, width, width, bias),
            AddProjection(path + ".attention.output.dense", SiteRole.AttentionOutput, layer, width, width),
            Add(new AttentionCore(path + ".attention.core", layer, heads, headWidth) { Windowed = true, Scale = scale ?? 1 / Math.Sqrt(headWidth) }));
    }

    private protected (Projection Up, Projection Down) AddFeedForward(string path, int layer, int stage) => (
        AddProjection(path + ".intermediate.dense", SiteRole.FeedForwardUp, layer, Inner(stage), Widths[stage]),
        AddProjection(path + ".output.dense", SiteRole.FeedForwardDown, layer, Widths[stage], Inner(stage)));
}

/// <summary>
/// Swin (Liu et al. 2021, arXiv 2103.14030): pre-norm layers with attention in windows and a bias by relative places. A map that is not
/// larger than a window is one window without shift, unless <see cref="TokenBatch.WholeWindows"/>.
/// </summary>
public sealed class SwinBackbone : WindowedBackbone
{
    private readonly List<Layers> _layers = [];
    private readonly List<(Norm Norm, Projection Reduction)> _merging = [];
    private readonly Norm _norm;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public SwinBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights, ShapeOf(config.Raw))
    {
        bool bias = new ConfigReader(config.Raw).Flag("qkv_bias", true);
        for (int layer = 0; layer < config.LayerCount; layer++)
        {
            (int stage, int place) = At(layer);
            if (place == 0 && stage > 0) AddMerging(stage, layer);
            _layers.Add(AddLayer($"encoder.layers.{stage}.blocks.{place}", layer, stage, bias));
        }
        _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, config.HiddenSize);
        Add(new Taps(config.LayerCount));
    }

    private sealed record Layers(
        Block Whole, Sequence Sequence, PreNormPart Attention, AttentionParts Parts, Constant Relative, PreNormPart FeedForward, Projection Up, Projection Down);

    /// <inheritdoc/>
    public override string Prefix => "swin";

    private void AddMerging(int stage, int layer)
    {
        string path = $"encoder.layers.{stage - 1}.downsample";
        long width = Widths[stage - 1];
        _merging.Add((AddNorm(path + ".norm", SiteRole.StageNorm, layer, 4 * width, epsilon: FixedEpsilon),
            AddProjection(path + ".reduction", SiteRole.StageProjection, layer, Widths[stage], 4 * width, bias: false)));
    }

    private Layers AddLayer(string path, int layer, int stage, bool bias)
    {
        long width = Widths[stage], table = 2L * Window - 1;
        var whole = Add(new Block(path, SiteRole.LayerBlock, layer));
        var sequence = Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer));
        var attention = new PreNormPart(
            AddNorm(path + ".layernorm_before", SiteRole.AttentionNorm, layer, width),
            Add(new Block(path + ".attention", SiteRole.AttentionBlock, layer)),
            Add(new Residual(path + ".attention_adapters", SiteRole.AttentionResidual, layer)));
        AttentionParts parts = AddAttention(path, layer, stage, bias, bias);
        Constant relative = AddConstant(path + ".attention.self.relative_position_bias_table", SiteRole.RelativePosition, layer, [table * table, HeadCounts[stage]]);
        var feedForward = new PreNormPart(
            AddNorm(path + ".layernorm_after", SiteRole.FeedForwardNorm, layer, width),
            Add(new Block(path + ".feed_forward", SiteRole.FeedForwardBlock, layer)),
            Add(new Residual(path + ".output.output_adapters", SiteRole.FeedForwardResidual, layer)));
        (Projection up, Projection down) = AddFeedForward(path, layer, stage);
        return new Layers(whole, sequence, attention, parts, relative, feedForward, up, down);
    }

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Layers parts = _layers[layer];
        (int stage, int place) = At(layer);
        if (place == 0 && stage > 0) hidden = Merge(stage, hidden, pass);
        hidden = parts.Sequence.Forward(hidden, pass);
        return parts.Whole.Forward(hidden, x =>
        {
            x = parts.Attention.Run(x, y => DropPath(Attention(parts, place, y, pass), layer, PathDropout, pass), pass);
            return parts.FeedForward.Run(x, y =>
                pass.Dropout(parts.Down.Forward(Activation(parts.Up.Forward(y, pass)), pass), Config.HiddenDropout), pass);
        }, pass);
    }

    private Tensor Merge(int stage, Tensor hidden, Pass pass)
    {
        (Norm norm, Projection reduction) = _merging[stage - 1];
        Tensor merged = Windows.Merged(hidden, pass.Layout.Grid!, pass.Layout.Inserted);
        Enter(stage, pass);
        return reduction.Forward(norm.Forward(merged, pass), pass);
    }

    private Tensor Attention(Layers parts, int place, Tensor x, Pass pass)
    {
        MapGrid grid = pass.Layout.Grid!;
        int side = Window, shift = place % 2 == 0 ? 0 : Window / 2;
        if (!grid.WholeWindows && Math.Min(grid.Rows, grid.Columns) <= Window) (side, shift) = ((int)Math.Min(grid.Rows, grid.Columns), 0);
        var windows = new Windows(grid, side, shift);
        return Attend(x, windows, parts.Parts, (query, key, value) =>
        {
            Tensor relative = windows.Looked(parts.Relative.Value(pass), Window, pass).to_type(query.dtype);
            return new AttentionInput(query, key, value, windows.Bias(relative, pass.Layout.Inserted, x.shape[0], pass));
        }, pass);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm.Forward(hidden, pass);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new SwinBackbone(Config, weights);
}
