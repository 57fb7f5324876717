// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// ResNet (He et al. 2016, arXiv 1512.03385): layers of two (basic) or three (bottleneck) convolutions with batch norms, added to
/// their input or, where shape or step change, to a convolution of it. The norms' statistics are frozen unless a method
/// trains the norms whole: <see cref="BatchNorm"/>.
/// </summary>
public sealed class ResNetBackbone : StagedBackbone
{
    private const int Reduction = 4;

    private readonly Unit _stem;
    private readonly Sequence _sequence;
    private readonly List<Layers> _layers = [];
    private readonly Func<Tensor, Tensor> _activation;
    private readonly int _stemWidth;
    private readonly bool _halvesFirst;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public ResNetBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights, Sizes(config.Raw).Depths, Sizes(config.Raw).Widths)
    {
        var read = new ConfigReader(config.Raw);
        // The gradient arrives in the order of maps, which libtorch 1.13's own GELU takes wrong.
        _activation = config.Activation is "gelu" or "gelu_python" ? x => x * 0.5 * (1 + (x * Math.Sqrt(0.5)).erf()) : Activations.Get(config.Activation);
        _halvesFirst = read.Flag("downsample_in_first_stage", false);
        _stemWidth = config.EmbeddingSize;
        string type = read.Text("layer_type", "bottleneck");
        if (type is not ("basic" or "bottleneck"))
            throw new CheckpointFormatException($"config.json: field 'layer_type' is {NearNames.Quote(type)}; expected basic or bottleneck.");
        bool early = read.Flag("downsample_in_bottleneck", false);
        _stem = AddUnit("embedder.embedder", SiteRole.PatchEmbedding, SiteRole.EmbeddingNorm, -1, _stemWidth, Channels, 7, 2);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++)
        {
            (int stage, int place) = At(layer);
            long input = place > 0 ? Widths[stage] : stage > 0 ? Widths[stage - 1] : _stemWidth;
            _layers.Add(AddLayer($"encoder.stages.{stage}.layers.{place}", layer, type, input, Widths[stage], place == 0 ? Step(stage) : 1, early));
        }
        Add(new Taps(config.LayerCount));
    }

    // A convolution and its norm.
    private sealed record Unit(Convolution Convolution, BatchNorm Norm);

    private sealed record Layers(Unit[] Units, Unit? Shortcut, Residual Residual);

    /// <inheritdoc/>
    public override string Prefix => "resnet";

    private protected override int StemWidth => _stemWidth;

    private int Step(int stage) => stage > 0 || _halvesFirst ? 2 : 1;

    private static (int[] Depths, int[] Widths) Sizes(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        int[] depths = ReadDepths(read, [3, 4, 6, 3]), widths = read.Stages("hidden_sizes", [256, 512, 1024, 2048], depths.Length);
        if (read.Text("layer_type", "bottleneck") == "bottleneck" && widths.Any(w => w < Reduction))
            throw new CheckpointFormatException($"config.json: field 'hidden_sizes' is [{string.Join(", ", widths)}]; bottleneck layers need at least {Reduction} channels.");
        return (depths, widths);
    }

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        (int[] depths, int[] widths) = Sizes(raw);
        return new BackboneConfig
        {
            ModelType = "resnet",
            Input = BackboneInput.Images,
            Raw = raw,
            HiddenSize = widths[^1],
            EmbeddingSize = read.Int("embedding_size", 64),
            LayerCount = depths.Sum(),
            HeadCount = 1,
            IntermediateSize = widths[^1],
            VocabularySize = 0,
            MaxTokens = int.MaxValue,
            Activation = read.Text("hidden_act", "relu"),
            HiddenDropout = 0,
            AttentionDropout = 0,
            ClassifierDropout = 0,
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    private Unit AddUnit(string path, SiteRole convolution, SiteRole norm, int layer, long width, long input, long kernel, long step) => new(
        AddConvolution(path + ".convolution", convolution, layer, [width, input, kernel, kernel], step, kernel / 2, bias: false),
        AddBatchNorm(path + ".normalization", norm, layer, width));

    private Layers AddLayer(string path, int layer, string type, long input, long width, int step, bool early)
    {
        Unit Unit(string name, long wide, long narrow, long kernel, long by) =>
            AddUnit($"{path}.{name}", SiteRole.OtherConvolution, SiteRole.OtherNorm, layer, wide, narrow, kernel, by);
        Unit? shortcut = input == width && step == 1 ? null : Unit("shortcut", width, input, 1, step);
        long inner = width / Reduction;
        Unit[] units = type == "basic"
            ? [Unit("layer.0", width, input, 3, step), Unit("layer.1", width, width, 3, 1)]
            : [Unit("layer.0", inner, input, 1, early ? step : 1), Unit("layer.1", inner, inner, 3, early ? 1 : step), Unit("layer.2", width, inner, 1, 1)];
        return new Layers(units, shortcut, Add(new Residual(path + ".output_adapters", SiteRole.FeedForwardResidual, layer)));
    }

    private protected override MapGrid Stem(long height, long width) => new(Pooled(Convolved(height, 7, 2, 3)), Pooled(Convolved(width, 7, 2, 3)));

    private static long Pooled(long length) => Convolved(length, 3, 2, 1);

    private protected override MapGrid Next(int stage, MapGrid before) => Step(stage) == 1 ? before
        : before with { Rows = Convolved(before.Rows, 1, 2, 0), Columns = Convolved(before.Columns, 1, 2, 0) };

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor map = _stem.Convolution.Forward(batch.Pixels!.to_type(_stem.Convolution.Weight.dtype), pass);
        (long rows, long columns) = (map.shape[2], map.shape[3]);
        Tensor active = _activation(_stem.Norm.Forward(Tokens(map), pass));
        Tensor places = active.view(active.shape[0], rows, columns, -1);
        places = LargestOfThree(LargestOfThree(places, 1), 2);
        return _sequence.Forward(places.flatten(1, 2), pass);
    }

    // The largest of three neighbours at every second place of an axis; what lies outside never is.
    private static Tensor LargestOfThree(Tensor x, int axis)
    {
        long length = x.shape[axis], places = Pooled(length);
        Tensor middle = x.slice(axis, 0, length, 2);                                         // 0, 2, 4, ...
        Tensor odd = x.slice(axis, 1, length, 2);                                            // 1, 3, 5, ...
        Tensor outside = full_like(middle.narrow(axis, 0, 1), float.NegativeInfinity);
        Tensor before = cat([outside, odd.narrow(axis, 0, places - 1)], axis);
        Tensor after = odd.shape[axis] == places ? odd : cat([odd, outside], axis);
        return middle.maximum(before).maximum(after);
    }

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Layers parts = _layers[layer];
        (int stage, int place) = At(layer);
        MapGrid grid = pass.Layout.Grid!;
        if (place == 0) Enter(stage, pass);
        Tensor output = pass.Scoped(() => Convolutions(parts.Units, Map(hidden, grid), pass));
        Tensor stream = parts.Shortcut is { } shortcut
            ? shortcut.Norm.Forward(Tokens(shortcut.Convolution.Forward(Map(hidden, grid), pass)), pass)
            : hidden;
        return parts.Residual.Forward(stream, output, (x, y) => _activation(x + y), pass);
    }

    // An activation between the units, none behind the last.
    private Tensor Convolutions(Unit[] units, Tensor map, Pass pass)
    {
        for (int i = 0; ; i++)
        {
            map = units[i].Convolution.Forward(map, pass);
            Tensor tokens = units[i].Norm.Forward(Tokens(map), pass);
            if (i == units.Length - 1) return tokens;
            map = Map(_activation(tokens), new MapGrid(map.shape[2], map.shape[3]));
        }
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new ResNetBackbone(Config, weights);
}
