// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// RoBERTa (Liu et al. 2019, arXiv 1907.11692), XLM-RoBERTa and CamemBERT: BERT's body with positions counted from the
/// ids of the tokens, starting behind the padding id.
/// </summary>
public sealed class RobertaBackbone : PostNormEncoder
{
    private readonly EmbeddingParts _embeddings;
    private readonly Sequence _sequence;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public RobertaBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        // The position table has a row for the padding position and those before it, which no token reaches.
        _embeddings = AddEmbeddings(config.HiddenSize, config.MaxTokens + config.PadId + 1, config.TypeVocabularySize);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layer.{layer}", layer, LayerNames.Bert);
        AddEnd("pooler.dense");
    }

    /// <inheritdoc/>
    public override string Prefix => "roberta";

    internal static BackboneConfig ReadConfig(JsonObject raw, string modelType)
    {
        BackboneConfig config = BertBackbone.ReadConfig(raw, modelType);
        var read = new ConfigReader(raw);
        int pad = read.Int("pad_token_id", 1, 0);
        return config with
        {
            VocabularySize = read.Int("vocab_size", modelType == "roberta" ? 50265 : 30522),
            PadId = pad,
            MaxTokens = read.Int("max_position_embeddings", 512, pad + 2) - pad - 1,
        };
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass) =>
        _sequence.Forward(Embedded(_embeddings, batch, Config.PadId, pass), pass);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new RobertaBackbone(Config, weights);
}
