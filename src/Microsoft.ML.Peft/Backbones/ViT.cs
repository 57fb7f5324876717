// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// ViT (Dosovitskiy et al. 2021, arXiv 2010.11929): an image's patches behind a class token, learned positions, pre-norm
/// layers and a norm at the end. A batch is <see cref="TokenBatch.OfImages"/>; no token of it is padding.
/// </summary>
public sealed class ViTBackbone : Backbone
{
    private readonly Convolution _patches;
    private readonly Constant _class, _positions;
    private readonly Sequence _sequence;
    private readonly List<Layers> _layers = [];
    private readonly Norm _norm;
    private readonly Func<Tensor, Tensor> _activation, _poolerActivation;
    private readonly int _channels;
    private readonly (int Height, int Width) _image, _patch;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public ViTBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        _activation = Activations.Get(config.Activation);
        _poolerActivation = Activations.Get(read.Text("pooler_act", "tanh"));
        if (config.HiddenSize % config.HeadCount != 0)
            throw new CheckpointFormatException($"config.json: hidden_size {config.HiddenSize} is not divisible by {config.HeadCount} attention heads.");
        _channels = read.Int("num_channels", 3);
        (_image, _patch) = Sizes(config.Raw);
        long width = config.HiddenSize;
        _class = AddConstant("embeddings.cls_token", SiteRole.ClassToken, 1, 1, width);
        _positions = AddConstant("embeddings.position_embeddings", SiteRole.PositionEmbedding, 1, config.MaxTokens, width);
        _patches = AddConvolution("embeddings.patch_embeddings.projection", SiteRole.PatchEmbedding,
            [_patch.Height, _patch.Width], width, _channels, _patch.Height, _patch.Width);
        _sequence = AddEmbeddingSequence();
        bool bias = read.Flag("qkv_bias", true);
        for (int layer = 0; layer < config.LayerCount; layer++) _layers.Add(AddLayer($"encoder.layer.{layer}", layer, bias));
        _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, width);
        if (Stored("pooler.dense.weight"))
            Pooler = AddProjection("pooler.dense", SiteRole.Pooler, config.LayerCount, read.Int("pooler_output_size", config.HiddenSize), width);
        Add(new Taps(config.LayerCount));
    }

    private sealed record Layers(
        Block Whole, Sequence Sequence, PreNormPart Attention, AttentionParts Parts, PreNormPart FeedForward, Projection Up, Projection Down);

    /// <inheritdoc/>
    public override string Prefix => "vit";

    /// <inheritdoc/>
    public override bool ClassifierReadsFirstTokenOnly => true;

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        ((int height, int width), (int patchHeight, int patchWidth)) = Sizes(raw);
        int hidden = read.Int("hidden_size", 768);
        return new BackboneConfig
        {
            ModelType = "vit",
            Input = BackboneInput.Images,
            Raw = raw,
            HiddenSize = hidden,
            EmbeddingSize = hidden,
            LayerCount = read.Int("num_hidden_layers", 12),
            HeadCount = read.Int("num_attention_heads", 12),
            IntermediateSize = read.Int("intermediate_size", 3072),
            VocabularySize = 0,
            MaxTokens = height / patchHeight * (width / patchWidth) + 1,
            Activation = read.Text("hidden_act", "gelu"),
            NormEpsilon = read.Positive("layer_norm_eps", 1e-12),
            HiddenDropout = read.Share("hidden_dropout_prob", 0),
            AttentionDropout = read.Share("attention_probs_dropout_prob", 0),
            ClassifierDropout = 0,
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    private static ((int Height, int Width) Image, (int Height, int Width) Patch) Sizes(JsonObject raw)
    {
        (int height, int width) = Size(raw, "image_size", 224);
        (int patchHeight, int patchWidth) = Size(raw, "patch_size", 16);
        if (height % patchHeight != 0 || width % patchWidth != 0)
            throw new CheckpointFormatException(
                $"config.json: image_size {height}x{width} is not a multiple of patch_size {patchHeight}x{patchWidth} (height x width).");
        if ((long)(height / patchHeight) * (width / patchWidth) >= int.MaxValue)
            throw new CheckpointFormatException($"config.json: image_size {height}x{width} makes more tokens than any network has; found patch_size {patchHeight}x{patchWidth}.");
        return ((height, width), (patchHeight, patchWidth));
    }

    // One number for a square, or [height, width].
    private static (int Height, int Width) Size(JsonObject raw, string name, int missing)
    {
        if (raw[name] is not JsonArray pair)
        {
            int side = new ConfigReader(raw).Int(name, missing);
            return (side, side);
        }
        int[] sides = [.. pair.Select(n => n is JsonValue v && v.GetValueKind() == JsonValueKind.Number && v.TryGetValue(out double d) && d >= 1 && d == Math.Floor(d) && d <= int.MaxValue ? (int)d : 0)];
        return sides is [> 0, > 0]
            ? (sides[0], sides[1])
            : throw new CheckpointFormatException($"config.json: field '{name}' is {pair.ToJsonString()}; expected a whole number, or two: height and width.");
    }

    private Layers AddLayer(string path, int layer, bool bias)
    {
        long width = Config.HiddenSize;
        string attention = path + ".attention.attention";
        return new Layers(
            Add(new Block(path, SiteRole.LayerBlock, layer)),
            Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer)),
            new PreNormPart(
                AddNorm(path + ".layernorm_before", SiteRole.AttentionNorm, layer, width),
                Add(new Block(path + ".attention", SiteRole.AttentionBlock, layer)),
                Add(new Residual(path + ".attention_adapters", SiteRole.AttentionResidual, layer))),
            new AttentionParts(
                AddProjection(attention + ".query", SiteRole.Query, layer, width, width, bias),
                AddProjection(attention + ".key", SiteRole.Key, layer, width, width, bias),
                AddProjection(attention + ".value", SiteRole.Value, layer, width, width, bias),
                AddProjection(path + ".attention.output.dense", SiteRole.AttentionOutput, layer, width, width),
                Add(new AttentionCore(path + ".attention.core", layer, Config.HeadCount, Config.HiddenSize / Config.HeadCount))),
            new PreNormPart(
                AddNorm(path + ".layernorm_after", SiteRole.FeedForwardNorm, layer, width),
                Add(new Block(path + ".feed_forward", SiteRole.FeedForwardBlock, layer)),
                Add(new Residual(path + ".output.output_adapters", SiteRole.FeedForwardResidual, layer))),
            AddProjection(path + ".intermediate.dense", SiteRole.FeedForwardUp, layer, Config.IntermediateSize, width),
            AddProjection(path + ".output.dense", SiteRole.FeedForwardDown, layer, width, Config.IntermediateSize));
    }

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        if (batch.Pixels is not { } pixels)
            throw new ArgumentException("A vit backbone reads images: make the batch with TokenBatch.OfImages.");
        long[] shape = pixels.shape;                                             // [batch, channels, height, width]
        if (shape.Length != 4 || shape[1] != _channels)
            throw new ArgumentException($"Images have the shape [{string.Join(", ", shape)}]; expected [batch, {_channels}, height, width].");
        (long height, long width) = (shape[2], shape[3]);
        if ((height, width) != _image && !batch.InterpolatePositions)
            throw new ArgumentException(
                $"Images are {height}x{width} (height x width), but this backbone is for {_image.Height}x{_image.Width}; resize them or set InterpolatePositions.");
        if (height < _patch.Height || width < _patch.Width)
            throw new ArgumentException($"Images are {height}x{width} (height x width), smaller than one patch of {_patch.Height}x{_patch.Width}.");
        long tokens = height / _patch.Height * (width / _patch.Width) + 1;
        return new Layout(ones([shape[0], tokens], ScalarType.Int64, pixels.device), padded: false);
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor pixels = batch.Pixels!.to_type(_patches.Weight.dtype);
        Tensor maps = _patches.Forward(pixels, pass);                            // [batch, hidden, rows, columns]
        (long rows, long columns) = (maps.shape[2], maps.shape[3]);
        Tensor first = _class.Value(pass).expand(maps.shape[0], 1, Config.HiddenSize);
        Tensor hidden = cat([first.to_type(maps.dtype), maps.flatten(2).transpose(1, 2)], 1);
        bool native = rows == _image.Height / _patch.Height && columns == _image.Width / _patch.Width;
        hidden = native ? _positions.Forward(hidden, pass) : hidden + Interpolated(_positions.Value(pass), rows, columns).to_type(hidden.dtype);
        return _sequence.Forward(pass.Dropout(hidden, Config.HiddenDropout), pass);
    }

    // The class token keeps its position; the others lie on a grid, which is scaled by cubic convolution.
    private Tensor Interpolated(Tensor table, long rows, long columns)
    {
        (long oldRows, long oldColumns) = (_image.Height / _patch.Height, _image.Width / _patch.Width);
        Tensor wide = table.to_type(ScalarType.Float32);
        Tensor grid = wide.narrow(1, 1, oldRows * oldColumns).view(oldRows, oldColumns, -1).permute(2, 0, 1);   // [hidden, rows, columns]
        Tensor down = CubicWeights(oldRows, rows).to(wide.device), across = CubicWeights(oldColumns, columns).to(wide.device);
        Tensor scaled = down.matmul(grid).matmul(across.t());                                                   // [hidden, new rows, new columns]
        return cat([wide.narrow(1, 0, 1), scaled.permute(1, 2, 0).reshape(1, rows * columns, -1)], 1);
    }

    // [to, from]: Keys' kernel with a = -0.75, pixel centres, edges repeated, no antialias.
    private static Tensor CubicWeights(long from, long to)
    {
        const double A = -0.75;
        static double Kernel(double x) => x <= 1
            ? ((A + 2) * x - (A + 3)) * x * x + 1
            : (((x - 5) * x + 8) * x - 4) * A;
        var weights = new float[to * from];
        for (long i = 0; i < to; i++)
        {
            double at = (i + 0.5) * from / to - 0.5, floor = Math.Floor(at);
            for (int tap = -1; tap <= 2; tap++)
                weights[i * from + (long)Math.Clamp(floor + tap, 0, from - 1)] += (float)Kernel(Math.Abs(at - floor - tap));
        }
        return tensor(weights, [to, from]);
    }

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Layers parts = _layers[layer];
        hidden = parts.Sequence.Forward(hidden, pass);
        bool first = pass.FirstTokenOnly && layer == Config.LayerCount - 1 && pass.Patches[parts.Whole] is null
            && parts.Attention.TokenByToken(pass) && parts.Parts.TokenByToken(pass) && parts.FeedForward.TokenByToken(pass);
        return parts.Whole.Forward(hidden, x =>
        {
            x = parts.Attention.Run(x, y =>
            {
                Tensor asking = first ? y.narrow(1, pass.Layout.First, 1) : y;
                pass.Share(y, parts.Parts.Query, parts.Parts.Key, parts.Parts.Value);
                (Tensor key, Tensor value) = parts.Parts.KeyValue(y, pass);
                return pass.Dropout(parts.Parts.Run(asking, key, value, pass.Layout.KeyBias(y.dtype), null, Config.AttentionDropout, pass), Config.HiddenDropout);
            }, pass);
            return parts.FeedForward.Run(x, y =>
                pass.Dropout(parts.Down.Forward(_activation(parts.Up.Forward(y, pass)), pass), Config.HiddenDropout), pass);
        }, pass);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm.Forward(hidden, pass);

    /// <inheritdoc/>
    public override Tensor Pool(BackboneOutput output, Pass pass) =>
        Pooler is null ? base.Pool(output, pass) : _poolerActivation(Pooler.Forward(output.First(), pass));

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new ViTBackbone(Config, weights);
}
