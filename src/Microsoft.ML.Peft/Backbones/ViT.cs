// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// ViT (Dosovitskiy et al. 2021, arXiv 2010.11929): an image's patches behind a class token, learned positions, pre-norm
/// layers and a norm at the end; and DeiT (Touvron et al. 2021, arXiv 2012.12877), which has a distillation token behind the
/// class token.
/// </summary>
public sealed class ViTBackbone : ImageEncoder
{
    private readonly Norm _norm;
    private readonly Func<Tensor, Tensor> _poolerActivation;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public ViTBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        _poolerActivation = Activations.Get(read.Text("pooler_act", "tanh"));
        long width = config.HiddenSize;
        AddLeading("embeddings.cls_token", SiteRole.ClassToken, 1, 1, width);
        if (config.ModelType == "deit") AddLeading("embeddings.distillation_token", SiteRole.DistillationToken, 1, 1, width);
        AddPositions("embeddings.position_embeddings");
        AddPatches("embeddings.patch_embeddings.projection");
        bool bias = read.Flag("qkv_bias", true);
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layer.{layer}", layer, PreNormNames.ViT with { Biases = (bias, bias, bias) });
        _norm = AddNorm("layernorm", SiteRole.FinalNorm, config.LayerCount, width);
        if (Stored("pooler.dense.weight"))
            Pooler = AddProjection("pooler.dense", SiteRole.Pooler, config.LayerCount, read.Int("pooler_output_size", config.HiddenSize), width);
        Add(new Taps(config.LayerCount));
    }

    /// <inheritdoc/>
    public override string Prefix => Config.ModelType;

    internal static BackboneConfig ReadConfig(JsonObject raw, string modelType) => ReadShared(raw, modelType, leading: modelType == "deit" ? 2 : 1);

    /// <summary>True for a DeiT whose file has a classifier for the distillation token too.</summary>
    /// <param name="config">The network's configuration.</param>
    internal static bool HasTeacherHead(BackboneConfig config) => config.ModelType == "deit" && config.Raw["architectures"] is JsonArray names
        && names.Any(name => name is JsonValue v && v.TryGetValue(out string? text) && text.EndsWith("WithTeacher", StringComparison.Ordinal));

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm.Forward(hidden, pass);

    /// <inheritdoc/>
    public override Tensor Pool(BackboneOutput output, Pass pass) =>
        Pooler is null ? base.Pool(output, pass) : _poolerActivation(Pooler.Forward(output.First(), pass));

    /// <inheritdoc/>
    public override bool ClassifierReadsFirstTokenOnly => !HasTeacherHead(Config);

    /// <inheritdoc/>
    public override int ClassifierWidth => HasTeacherHead(Config) ? 2 * Config.HiddenSize : Config.HiddenSize;

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) =>
        HasTeacherHead(Config) ? output.Layout.Own(output.Last).narrow(1, 0, 2).flatten(1) : output.First();

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new ViTBackbone(Config, weights);
}
