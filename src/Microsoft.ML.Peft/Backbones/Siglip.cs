// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// The image tower of SigLIP (Zhai et al. 2023, arXiv 2303.15343): a ViT without class token; one learned token asks the final
/// states, and what it gets stands for the image. A classifier reads the mean of the patches.
/// </summary>
public sealed class SiglipVisionBackbone : ImageEncoder
{
    private readonly Norm _norm;
    private readonly PoolingHead? _head;
    private readonly Func<Tensor, Tensor> _activation;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public SiglipVisionBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _activation = Activations.Get(config.Activation);
        AddPositions("embeddings.position_embedding", module: true);
        AddPatches("embeddings.patch_embedding");
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layers.{layer}", layer, PreNormNames.Clip);
        _norm = AddNorm("post_layernorm", SiteRole.FinalNorm, config.LayerCount, config.HiddenSize);
        if (new ConfigReader(config.Raw).Flag("vision_use_head", true)) _head = AddHead("head", config.LayerCount);
        Add(new Taps(config.LayerCount));
    }

    private sealed record PoolingHead(Constant Probe, Projection Packed, Projection Output, Norm Norm, Projection Up, Projection Down);

    private PoolingHead AddHead(string path, int layer)
    {
        long width = Config.HiddenSize, inner = Config.IntermediateSize;
        return new PoolingHead(
            AddConstant(path + ".probe", SiteRole.PoolerToken, layer, [1, 1, width]),
            AddPackedProjection(path + ".attention.in_proj", SiteRole.OtherProjection, layer, 3 * width, width),
            AddProjection(path + ".attention.out_proj", SiteRole.OtherProjection, layer, width, width),
            AddNorm(path + ".layernorm", SiteRole.PoolerNorm, layer, width),
            AddProjection(path + ".mlp.fc1", SiteRole.OtherProjection, layer, inner, width),
            AddProjection(path + ".mlp.fc2", SiteRole.OtherProjection, layer, width, inner));
    }

    /// <inheritdoc/>
    public override string Prefix => "vision_model";

    internal static BackboneConfig ReadConfig(JsonObject raw) =>
        TowerConfig.Images(TowerConfig.Section(raw, "vision_config", "siglip_vision_model"), "siglip_vision_model", leading: 0, 1e-6, "gelu_pytorch_tanh");

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm.Forward(hidden, pass);

    /// <summary>What the learned token gets of the image, <c>[batch, hidden]</c>.</summary>
    /// <param name="output">What a forward pass gave.</param>
    /// <param name="pass">The same pass.</param>
    /// <exception cref="InvalidOperationException">The network has no such token (<c>vision_use_head</c> is false).</exception>
    public override Tensor Pool(BackboneOutput output, Pass pass)
    {
        if (_head is not { } head)
            throw new InvalidOperationException("This siglip backbone has no pooling head (vision_use_head is false in config.json); use the mean of the tokens.");
        Tensor x = output.Last;                                                                             // [batch, tokens, hidden]
        int width = Config.HiddenSize, headWidth = width / Config.HeadCount;
        Tensor probe = head.Probe.Value(pass).to_type(x.dtype).expand(x.shape[0], 1, width);
        // Queries, keys and values lie one above the other.
        Tensor query = head.Packed.Forward(probe, pass).narrow(-1, 0, width), rest = head.Packed.Forward(x, pass);
        Tensor Split(Tensor y) => Heads.Split(y.contiguous(), headWidth);
        var input = new AttentionInput(Split(query), Split(rest.narrow(-1, width, width)), Split(rest.narrow(-1, 2 * width, width)), pass.Layout.KeyBias(x.dtype));
        Tensor found = head.Output.Forward(Heads.Join(Heads.Attend(input, 1 / Math.Sqrt(headWidth), 0, pass)), pass);
        Tensor fed = head.Down.Forward(_activation(head.Up.Forward(head.Norm.Forward(found, pass), pass)), pass);
        return (found + fed).squeeze(1);
    }

    /// <inheritdoc/>
    public override bool ClassifierReadsFirstTokenOnly => false;

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => MeanOfPatches(output);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new SiglipVisionBackbone(Config, weights);
}

/// <summary>
/// The text tower of SigLIP: every token sees every other, padding included; the last one stands for the text. Texts are padded
/// to the network's full length, as they were in its training.
/// </summary>
public sealed class SiglipTextBackbone : TextTowerBackbone
{
    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public SiglipTextBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        Pooler = AddProjection("head", SiteRole.Pooler, config.LayerCount, new ConfigReader(config.Raw).Int("projection_size", config.HiddenSize), config.HiddenSize);
        Add(new Taps(config.LayerCount));
    }

    internal static BackboneConfig ReadConfig(JsonObject raw) => TowerConfig.Texts(
        TowerConfig.Section(raw, "text_config", "siglip_text_model"), "siglip_text_model", new TextTower(768, 12, 32000, 64, "gelu_pytorch_tanh", 1e-6));

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        _ = base.LayoutOf(batch, pass);
        return new Layout(ones_like(batch.Ids), padded: false);
    }

    /// <summary>The last token through the head, <c>[batch, projection_size]</c>.</summary>
    /// <param name="output">What a forward pass gave.</param>
    /// <param name="pass">The same pass.</param>
    public override Tensor Pool(BackboneOutput output, Pass pass)
    {
        Tensor own = output.Layout.Own(output.Last);
        return Pooler!.Forward(own.select(1, own.shape[1] - 1), pass);
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new SiglipTextBackbone(Config, weights);
}
