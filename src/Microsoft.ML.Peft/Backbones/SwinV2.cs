// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// Swin v2 (Liu et al. 2022, arXiv 2111.09883): scores are cosines with a learned factor a head, the bias of relative places is
/// made by a small network of their distances, and norms stand behind the parts, before the residual connection.
/// </summary>
public sealed class SwinV2Backbone : WindowedBackbone
{
    private const int BiasWidth = 512;
    private const double LargestLogScale = 4.605170185988092;    // ln 100

    private readonly List<Layers> _layers = [];
    private readonly List<(Projection Reduction, Norm Norm)> _merging = [];
    private readonly Norm _norm;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public SwinV2Backbone(BackboneConfig config, IWeightSource weights) : base(config, weights, ShapeOf(config.Raw))
    {
        var read = new ConfigReader(config.Raw);
        bool bias = read.Flag("qkv_bias", true);
        int[] trained = read.Ints("pretrained_window_sizes", [.. Depths.Select(_ => 0)], least: 0);
        if (trained.Length < Depths.Count)
            throw new Checkpoints.CheckpointFormatException($"config.json: field 'pretrained_window_sizes' has {trained.Length} numbers; expected {Depths.Count}, one a stage.");
        for (int layer = 0; layer < config.LayerCount; layer++)
        {
            (int stage, int place) = At(layer);
            if (place == 0 && stage > 0) AddMerging(stage, layer);
            _layers.Add(AddLayer($"encoder.layers.{stage}.blocks.{place}", layer, stage, place, bias, trained[stage]));
        }
        _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, config.HiddenSize);
        Add(new Taps(config.LayerCount));
    }

    private sealed record Layers(
        Block Whole, Sequence Sequence, Part Attention, AttentionParts Parts, Constant Scale, Projection BiasUp, Projection BiasDown,
        Part FeedForward, Projection Up, Projection Down, int Side, int Shift, int Trained);

    // stream + norm(part(stream))
    private sealed record Part(Block Block, Residual Residual, Norm Norm)
    {
        public Tensor Run(Tensor stream, Func<Tensor, Tensor> part, Func<Tensor, Tensor> behind, Pass pass)
        {
            Tensor output = pass.Scoped(() => Block.Forward(stream, part, pass));
            return Residual.Forward(stream, output, (x, y) => x + behind(Norm.Forward(y, pass)), pass);
        }
    }

    /// <inheritdoc/>
    public override string Prefix => "swinv2";

    private void AddMerging(int stage, int layer)
    {
        string path = $"encoder.layers.{stage - 1}.downsample";
        _merging.Add((AddProjection(path + ".reduction", SiteRole.StageProjection, layer, Widths[stage], 4L * Widths[stage - 1], bias: false),
            AddNorm(path + ".norm", SiteRole.StageNorm, layer, Widths[stage], epsilon: FixedEpsilon)));
    }

    private Layers AddLayer(string path, int layer, int stage, int place, bool bias, int trained)
    {
        long width = Widths[stage];
        string self = path + ".attention.self";
        var whole = Add(new Block(path, SiteRole.LayerBlock, layer));
        var sequence = Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer));
        AttentionParts parts = AddAttention(path, layer, stage, bias, keyBias: false, scale: 1);
        Constant scale = AddConstant(self + ".logit_scale", SiteRole.AttentionScale, layer, [HeadCounts[stage], 1, 1]);
        Projection biasUp = AddProjection(self + ".continuous_position_bias_mlp.0", SiteRole.OtherProjection, layer, BiasWidth, 2);
        Projection biasDown = AddProjection(self + ".continuous_position_bias_mlp.2", SiteRole.OtherProjection, layer, HeadCounts[stage], BiasWidth, bias: false);
        Part attention = AddPart(path, ".attention", ".attention_adapters", ".layernorm_before", SiteRole.AttentionBlock, SiteRole.AttentionResidual, SiteRole.AttentionNorm, layer, width);
        (Projection up, Projection down) = AddFeedForward(path, layer, stage);
        Part feedForward = AddPart(path, ".feed_forward", ".output.output_adapters", ".layernorm_after", SiteRole.FeedForwardBlock, SiteRole.FeedForwardResidual, SiteRole.FeedForwardNorm, layer, width);
        // The configured image decides, whatever is run, by its height: a window as large as the map of a stage is not shifted.
        long map = PatchGrid.Rows >> stage;
        int side = (int)Math.Max(1, Math.Min(Window, map)), shift = map <= Window || place % 2 == 0 ? 0 : Window / 2;
        return new Layers(whole, sequence, attention, parts, scale, biasUp, biasDown, feedForward, up, down, side, shift, trained);
    }

    private Part AddPart(string path, string block, string residual, string norm, SiteRole blockRole, SiteRole residualRole, SiteRole normRole, int layer, long width) => new(
        Add(new Block(path + block, blockRole, layer)),
        Add(new Residual(path + residual, residualRole, layer)),
        AddNorm(path + norm, normRole, layer, width));

    internal static BackboneConfig ReadConfig(JsonObject raw) => ReadConfig(raw, "swinv2");

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Layers parts = _layers[layer];
        (int stage, int place) = At(layer);
        if (place == 0 && stage > 0) hidden = Merge(stage, hidden, pass);
        hidden = parts.Sequence.Forward(hidden, pass);
        Tensor Dropped(Tensor y) => DropPath(y, layer, PathDropout, pass);
        return parts.Whole.Forward(hidden, x =>
        {
            x = parts.Attention.Run(x, y => Attention(parts, y, pass), Dropped, pass);
            return parts.FeedForward.Run(x, y =>
                pass.Dropout(parts.Down.Forward(Activation(parts.Up.Forward(y, pass)), pass), Config.HiddenDropout), Dropped, pass);
        }, pass);
    }

    private Tensor Merge(int stage, Tensor hidden, Pass pass)
    {
        (Projection reduction, Norm norm) = _merging[stage - 1];
        Tensor merged = Windows.Merged(hidden, pass.Layout.Grid!, pass.Layout.Inserted);
        Enter(stage, pass);
        return norm.Forward(reduction.Forward(merged, pass), pass);
    }

    private Tensor Attention(Layers parts, Tensor x, Pass pass)
    {
        var windows = new Windows(pass.Layout.Grid!, parts.Side, parts.Shift);
        return Attend(x, windows, parts.Parts, (query, key, value) =>
        {
            Tensor scale = parts.Scale.Value(pass).clamp(max: LargestLogScale).exp();                        // [heads, 1, 1]
            Tensor relative = windows.Looked(Distances(parts, x, pass), parts.Side, pass).sigmoid() * 16;
            // The reference adds the mask twice, which counts beside scores of up to 100.
            Tensor bias = windows.Bias(relative.to_type(query.dtype), pass.Layout.Inserted, x.shape[0], pass, apart: 2);
            return new AttentionInput((Unit(query) * scale).to_type(query.dtype), Unit(key), value, bias);
        }, pass);
    }

    private static Tensor Unit(Tensor x) => x / x.norm(-1, keepdim: true).clamp(min: 1e-12);

    // What the small network makes of each distance inside of a window, [(2 side - 1)², heads].
    private static Tensor Distances(Layers parts, Tensor x, Pass pass)
    {
        int side = parts.Side, reach = 2 * side - 1;
        double largest = Math.Max(1, (parts.Trained > 0 ? parts.Trained : side) - 1);
        float Scaled(int offset)
        {
            double far = offset / largest * 8;
            return (float)(Math.Sign(far) * Math.Log2(Math.Abs(far) + 1) / 3);
        }
        Tensor table = pass.Once((Key: nameof(Distances), side, largest), () =>
        {
            var numbers = new float[reach * reach * 2];
            for (int i = 0; i < reach * reach; i++)
                (numbers[2 * i], numbers[2 * i + 1]) = (Scaled(i / reach - side + 1), Scaled(i % reach - side + 1));
            return tensor(numbers, [1, (long)reach * reach, 2]).to(x.device).to_type(x.dtype);
        });
        return parts.BiasDown.Forward(parts.BiasUp.Forward(table, pass).relu(), pass).squeeze(0);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm.Forward(hidden, pass);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new SwinV2Backbone(Config, weights);
}
