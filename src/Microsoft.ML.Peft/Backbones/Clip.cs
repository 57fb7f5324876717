// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// The image tower of CLIP (Radford et al. 2021, arXiv 2103.00020): a ViT with a norm before the first layer; none of the final
/// states is normed but the class token's, where it stands for the image. A classifier reads the mean of the patches.
/// </summary>
public sealed class ClipVisionBackbone : ImageEncoder
{
    private readonly Norm _norm;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public ClipVisionBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        AddLeading("embeddings.class_embedding", SiteRole.ClassToken, config.HiddenSize);
        AddPositions("embeddings.position_embedding", module: true);
        AddPatches("embeddings.patch_embedding", bias: false, norm: "pre_layrnorm");
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layers.{layer}", layer, PreNormNames.Clip);
        _norm = AddNorm("post_layernorm", SiteRole.PoolerNorm, config.LayerCount, config.HiddenSize);
        AddJointProjection("visual_projection");
        Add(new Taps(config.LayerCount));
    }

    /// <inheritdoc/>
    public override string Prefix => "vision_model";

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        JsonObject fields = TowerConfig.Section(raw, "vision_config", "clip_vision_model");
        return TowerConfig.Images(fields, "clip_vision_model", leading: 1, 1e-5, "quick_gelu") with { JointWidth = TowerConfig.JointWidth(raw, fields) };
    }

    /// <summary>The class token's normed state, <c>[batch, hidden]</c>.</summary>
    /// <param name="output">What a forward pass gave.</param>
    /// <param name="pass">The same pass.</param>
    public override Tensor Pool(BackboneOutput output, Pass pass) => _norm.Forward(output.First(), pass);

    /// <inheritdoc/>
    public override bool ClassifierReadsFirstTokenOnly => false;

    /// <inheritdoc/>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass) => MeanOfPatches(output);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new ClipVisionBackbone(Config, weights);
}

/// <summary>
/// The text tower of CLIP: pre-norm layers in which no token sees a later one, a norm at the end. The token that ends the text
/// stands for it.
/// </summary>
public sealed class ClipTextBackbone : TextTowerBackbone
{
    // Old files have this number whatever their tokenizer's is.
    private const int LegacyEnd = 2;

    private readonly int _end;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public ClipTextBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _end = new ConfigReader(config.Raw).Int("eos_token_id", 49407, 0);
        AddJointProjection("text_projection");
        Add(new Taps(config.LayerCount));
    }

    /// <inheritdoc/>
    public override bool Causal => true;

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        JsonObject fields = TowerConfig.Section(raw, "text_config", "clip_text_model");
        return TowerConfig.Texts(fields, "clip_text_model", new TextTower(512, 8, 49408, 77, "quick_gelu", 1e-5)) with { JointWidth = TowerConfig.JointWidth(raw, fields) };
    }

    private protected override Tensor? ScoreBias(int layer, ScalarType dtype, Pass pass) => pass.Layout.CausalBias(dtype);

    /// <summary>Place of each row's end token among its own, int64 <c>[batch]</c>.</summary>
    /// <param name="ids">Token ids, int64 <c>[batch, tokens]</c>.</param>
    /// <remarks>
    /// The first token of the configuration's <c>eos_token_id</c>; where that is 2, as in old files, the first of the row's
    /// largest id. The first token of all where there is none.
    /// </remarks>
    public Tensor EndOf(Tensor ids)
    {
        Tensor ends = ids.eq(_end == LegacyEnd ? ids.amax([1], keepdim: true) : _end);
        Tensor falling = arange(ids.shape[1], 0, -1, ScalarType.Int64, ids.device);                        // the first place counts most
        return (ends.to_type(ScalarType.Int64) * falling).argmax(1);
    }

    /// <summary>The end token's state, <c>[batch, hidden]</c>.</summary>
    /// <param name="output">What a forward pass gave.</param>
    /// <param name="pass">The same pass.</param>
    /// <exception cref="NotSupportedException">A method has dropped tokens, so that the end has no place any more.</exception>
    public override Tensor Pool(BackboneOutput output, Pass pass)
    {
        Tensor own = output.Layout.Own(output.Last), ids = output.Batch!.Ids;
        if (own.shape[1] != ids.shape[1])
            throw new NotSupportedException($"Of {ids.shape[1]} tokens {own.shape[1]} are left, so the end of the text is not known; methods that drop tokens do not fit clip's texts.");
        return own.gather(1, EndOf(ids).view(-1, 1, 1).expand(-1, 1, own.shape[2])).squeeze(1);
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new ClipTextBackbone(Config, weights);
}

/// <summary>A text tower of CLIP's kind: words and positions, pre-norm layers, a norm at the end.</summary>
public abstract class TextTowerBackbone : PreNormEncoder
{
    private readonly Embedding _words, _positions;
    private readonly Sequence _wordSequence, _sequence;
    private readonly Norm _norm;

    private protected TextTowerBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _words = AddEmbedding("embeddings.token_embedding", SiteRole.WordEmbedding, config.VocabularySize, config.HiddenSize);
        _wordSequence = AddWordSequence();
        _positions = AddEmbedding("embeddings.position_embedding", SiteRole.PositionEmbedding, config.MaxTokens, config.HiddenSize);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layers.{layer}", layer, PreNormNames.Clip);
        _norm = AddNorm("final_layer_norm", SiteRole.FinalNorm, config.LayerCount, config.HiddenSize);
    }

    /// <inheritdoc/>
    public override string Prefix => "text_model";

    /// <inheritdoc/>
    public override int LeadingTokens => 0;

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        if (batch.Pixels is not null || batch.Sound is not null)
            throw new ArgumentException($"A {Config.ModelType} backbone reads texts; images go through the other tower.");
        return new Layout(batch.Mask, batch.Padded);
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor words = _wordSequence.Forward(_words.Forward(batch.Ids, pass), pass);
        Positions.Check(batch, Config, pass);
        return _sequence.Forward(words + _positions.Forward(Positions.Counted(batch, pass), pass), pass);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _norm.Forward(hidden, pass);
}
