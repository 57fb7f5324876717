// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// VideoMAE (Tong et al. 2022, arXiv 2203.12602): tokens are patches of some frames at once, in the order time, row, column,
/// with fixed sine positions and no class token. A batch is <see cref="TokenBatch.OfImages"/> over
/// <c>[batch, frames, channels, height, width]</c>.
/// </summary>
public sealed class VideoMaeBackbone : ImageEncoder
{
    private readonly Convolution _tubelets;
    private readonly Sequence _sequence;
    private readonly Norm? _norm;
    private readonly float[] _positions;
    private readonly int _frames, _depth;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public VideoMaeBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        (_frames, _depth) = Frames(config.Raw);
        long width = config.HiddenSize;
        _positions = Sines(config.MaxTokens, config.HiddenSize);
        long[] kernel = [_depth, Patch.Height, Patch.Width];
        _tubelets = AddConvolution("embeddings.patch_embeddings.projection", SiteRole.PatchEmbedding, kernel, true, [width, Channels, .. kernel]);
        _sequence = AddEmbeddingSequence();
        var read = new ConfigReader(config.Raw);
        bool bias = read.Flag("qkv_bias", read.Flag("qv_bias", true));
        PreNormNames names = PreNormNames.ViT with
        {
            Biases = (bias, false, bias),
            BiasNames = ("attention.attention.q_bias", "attention.attention.v_bias"),
        };
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layer.{layer}", layer, names);
        if (!HasMeanPooling(config)) _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, width);
        Add(new Taps(config.LayerCount));
    }

    /// <inheritdoc/>
    public override string Prefix => "videomae";

    /// <summary>True where the classifier reads the mean of the tokens by a norm of its own.</summary>
    /// <param name="config">The network's configuration.</param>
    internal static bool HasMeanPooling(BackboneConfig config) => new ConfigReader(config.Raw).Flag("use_mean_pooling", true);

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        (int frames, int depth) = Frames(raw);
        BackboneConfig config = ReadShared(raw, "videomae", leading: 0);
        if ((long)config.MaxTokens * (frames / depth) > int.MaxValue)
            throw new CheckpointFormatException($"config.json: num_frames {frames} makes more tokens than any network has.");
        return config with { MaxTokens = config.MaxTokens * (frames / depth) };
    }

    private static (int Frames, int Depth) Frames(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        int frames = read.Int("num_frames", 16), depth = read.Int("tubelet_size", 2);
        return frames % depth == 0 ? (frames, depth)
            : throw new CheckpointFormatException($"config.json: num_frames {frames} is not a multiple of tubelet_size {depth}.");
    }

    // [tokens · hidden]: sines at even, cosines at odd places, of wave lengths that grow with the place.
    private static float[] Sines(int tokens, int hidden)
    {
        var table = new float[(long)tokens * hidden];
        for (int token = 0; token < tokens; token++)
            for (int i = 0; i < hidden; i++)
            {
                double angle = token / Math.Pow(10000, 2 * (i / 2) / (double)hidden);
                table[(long)token * hidden + i] = (float)(i % 2 == 0 ? Math.Sin(angle) : Math.Cos(angle));
            }
        return table;
    }

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        if (batch.Pixels is not { } pixels)
            throw new ArgumentException("A videomae backbone reads videos: make the batch with TokenBatch.OfImages.");
        long[] shape = pixels.shape;
        if (shape.Length != 5 || shape[1] != _frames || shape[2] != Channels || (shape[3], shape[4]) != Image)
            throw new ArgumentException(
                $"Videos have the shape [{string.Join(", ", shape)}]; expected [batch, {_frames}, {Channels}, {Image.Height}, {Image.Width}]: frames, channels, height, width.");
        return new Layout(ones([shape[0], Config.MaxTokens], ScalarType.Int64, pixels.device), padded: false);
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor pixels = batch.Pixels!.to_type(_tubelets.Weight.dtype).transpose(1, 2);                             // [batch, channels, frames, height, width]
        Tensor hidden = _tubelets.Forward(pixels, pass).flatten(2).transpose(1, 2);                                // [batch, tokens, hidden]
        Tensor positions = tensor(_positions, [1, Config.MaxTokens, Config.HiddenSize]).to_type(hidden.dtype).to(hidden.device);
        return _sequence.Forward(hidden + positions, pass);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm?.Forward(hidden, pass) ?? hidden;

    /// <inheritdoc/>
    public override bool ClassifierReadsFirstTokenOnly => _norm is not null;

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => _norm is null ? MeanOfPatches(output) : output.First();

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new VideoMaeBackbone(Config, weights);
}
