// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// DINOv2 (Oquab et al. 2023, arXiv 2304.07193): a ViT with factors on the output of each part, with a gated feed-forward part
/// in its largest size, and with positions that are fitted to images of any size. Its classifier reads the class token and the
/// mean of the patches side by side.
/// </summary>
public sealed class Dinov2Backbone : ImageEncoder
{
    private readonly Norm _norm;
    private readonly bool _normsMaps;
    private readonly double _dropPath;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public Dinov2Backbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        (_normsMaps, _dropPath) = (read.Flag("apply_layernorm", true), read.Share("drop_path_rate", 0));
        bool gated = read.Flag("use_swiglu_ffn", false), bias = read.Flag("qkv_bias", true);
        AddLeading("embeddings.cls_token", SiteRole.ClassToken, 1, 1, config.HiddenSize);
        if (read.Flag("use_mask_token", true) && Stored("embeddings.mask_token")) AddConstant("embeddings.mask_token", SiteRole.MaskToken, 1, config.HiddenSize);
        AddPositions("embeddings.position_embeddings");
        AddPatches("embeddings.patch_embeddings.projection");
        PreNormNames names = PreNormNames.ViT with
        {
            AttentionNorm = "norm1",
            FeedForwardNorm = "norm2",
            Up = gated ? "mlp.weights_in" : "mlp.fc1",
            Down = gated ? "mlp.weights_out" : "mlp.fc2",
            FeedForwardBlock = "mlp",
            FeedForwardResidual = "output_adapters",
            AttentionScale = "layer_scale1.lambda1",
            FeedForwardScale = "layer_scale2.lambda1",
            Gated = gated,
            Biases = (bias, bias, bias),
        };
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layer.{layer}", layer, names);
        _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, config.HiddenSize);
        Add(new Taps(config.LayerCount));
    }

    /// <inheritdoc/>
    public override string Prefix => "dinov2";

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        BackboneConfig config = ReadShared(raw, "dinov2", leading: 1, epsilon: 1e-6);
        double wide = config.HiddenSize * read.Positive("mlp_ratio", 4);
        if (wide is < 1 or > int.MaxValue)
            throw new Checkpoints.CheckpointFormatException($"config.json: field 'mlp_ratio' makes a feed-forward part of width {wide:g6}; expected 1 or more times hidden_size {config.HiddenSize}.");
        bool gated = read.Flag("use_swiglu_ffn", false);
        // Two thirds of the width, since there are two matrices, and a multiple of 8.
        return config with
        {
            IntermediateSize = gated ? ((int)((int)wide * 2.0 / 3) + 7) / 8 * 8 : (int)wide,
            Activation = gated ? "silu" : config.Activation,
        };
    }

    private protected override bool InterpolatesUnasked => true;

    private protected override double DropPath => _dropPath;

    private protected override double FeedForwardDropout => 0;

    private protected override Norm? NormOfMaps => _normsMaps ? _norm : null;

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm.Forward(hidden, pass);

    /// <inheritdoc/>
    public override Tensor Pool(BackboneOutput output, Pass pass) => output.First();

    /// <inheritdoc/>
    public override bool ClassifierReadsFirstTokenOnly => false;

    /// <inheritdoc/>
    public override int ClassifierWidth => 2 * Config.HiddenSize;

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => cat([output.First(), MeanOfPatches(output)], 1);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new Dinov2Backbone(Config, weights);
}
