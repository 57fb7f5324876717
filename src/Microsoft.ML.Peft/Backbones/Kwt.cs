// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// The Keyword Transformer (Berg et al. 2021, arXiv 2104.00769): each frame of a mel cepstrum is a token behind a class token,
/// learned positions, post-norm layers without biases on queries, keys and values. A batch is <see cref="TokenBatch.OfSound"/>
/// of <c>[batch, frames, coefficients]</c>. The family has no Hugging Face form: a folder is told by the fields of its config.json.
/// </summary>
public sealed class KwtBackbone : PostNormEncoder
{
    private static readonly LayerNames _names = new(
        "attn.q", "attn.k", "attn.v", "attn.out", "norm1", "mlp.fc1", "mlp.fc2", "norm2", "attention_adapters", "output_adapters");

    private readonly Projection _frames;
    private readonly Constant _class, _positions;
    private readonly Sequence _sequence;
    private readonly int _coefficients;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public KwtBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _coefficients = new ConfigReader(config.Raw).Int("mfcc", 40);
        long width = config.HiddenSize;
        _class = AddConstant("cls_token", SiteRole.ClassToken, 1, 1, width);
        _positions = AddConstant("pos_embed", SiteRole.PositionEmbedding, 1, config.MaxTokens, width);
        _frames = AddProjection("embed", SiteRole.EmbeddingProjection, -1, width, _coefficients);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"blocks.{layer}", layer, _names, attentionBias: false);
        AddEnd();
    }

    /// <inheritdoc/>
    public override string Prefix => "";

    /// <inheritdoc/>
    public override bool ClassifierReadsFirstTokenOnly => true;

    /// <summary>True where a config.json without <c>model_type</c> has the fields of a Keyword Transformer.</summary>
    internal static bool Describes(JsonObject raw) =>
        ((string[])["sample_rate", "frame", "hop", "frames", "mel", "mfcc", "hidden", "layers", "heads", "mlp"]).All(raw.ContainsKey);

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        if (read.Text("norm", "post") != "post")
            throw new CheckpointFormatException($"config.json: norm is '{read.Text("norm", "post")}'; only post-norm Keyword Transformers are supported.");
        int hidden = read.Int("hidden", 64), frames = read.Int("frames", 98);
        if (frames == int.MaxValue) throw new CheckpointFormatException($"config.json: frames {frames} are more than any network hears.");
        string activation = read.Text("activation", "gelu_tanh");
        return new BackboneConfig
        {
            ModelType = "kwt",
            Input = BackboneInput.Sound,
            Raw = raw,
            HiddenSize = hidden,
            EmbeddingSize = hidden,
            LayerCount = read.Int("layers", 12),
            HeadCount = read.Int("heads", 1),
            IntermediateSize = read.Int("mlp", 256),
            VocabularySize = 0,
            MaxTokens = frames + 1,
            Activation = activation == "gelu_tanh" ? "gelu_pytorch_tanh" : activation,
            NormEpsilon = read.Positive("layer_norm_eps", 1e-6),
            HiddenDropout = read.Share("dropout", 0),
            AttentionDropout = read.Share("dropout", 0),
            ClassifierDropout = 0,
        };
    }

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        if (batch.Sound is not { } sound)
            throw new ArgumentException("A kwt backbone hears: make the batch with TokenBatch.OfSound.");
        if (sound.shape is not [var rows, var frames, var coefficients] || frames != Config.MaxTokens - 1 || coefficients != _coefficients)
            throw new ArgumentException($"The sounds have the shape [{string.Join(", ", sound.shape)}]; expected [batch, {Config.MaxTokens - 1} frames, {_coefficients} coefficients].");
        return new Layout(ones([rows, frames + 1], ScalarType.Int64, sound.device), padded: false);
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor frames = _frames.Forward(batch.Sound!.to_type(_class.Weight.dtype), pass);       // [batch, frames, hidden]
        Tensor first = _class.Value(pass).expand(frames.shape[0], 1, Config.HiddenSize);
        Tensor hidden = _positions.Forward(cat([first.to_type(frames.dtype), frames], 1), pass);
        return _sequence.Forward(pass.Dropout(hidden, Config.HiddenDropout), pass);
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new KwtBackbone(Config, weights);
}
