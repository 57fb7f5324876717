// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT's body without token types and pooler.</summary>
public sealed class DistilBertBackbone : PostNormEncoder
{
    private static readonly LayerNames _names = new(
        "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
        "ffn.lin1", "ffn.lin2", "output_layer_norm", "attention_residual", "output_residual");

    private readonly EmbeddingParts _embeddings;
    private readonly Sequence _sequence;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public DistilBertBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _embeddings = AddEmbeddings(config.HiddenSize, config.MaxTokens, types: 0);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"transformer.layer.{layer}", layer, _names);
        AddEnd();
    }

    /// <inheritdoc/>
    public override string Prefix => "distilbert";

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw, new Dictionary<string, string>
        {
            ["dim"] = "hidden_size",
            ["n_heads"] = "num_attention_heads",
            ["n_layers"] = "num_hidden_layers",
        });
        int hidden = read.Int("dim", 768);
        return new BackboneConfig
        {
            ModelType = "distilbert",
            Raw = raw,
            HiddenSize = hidden,
            EmbeddingSize = hidden,
            LayerCount = read.Int("n_layers", 6),
            HeadCount = read.Int("n_heads", 12),
            IntermediateSize = read.Int("hidden_dim", 3072),
            VocabularySize = read.Int("vocab_size", 30522),
            MaxTokens = read.Int("max_position_embeddings", 512),
            PadId = read.Int("pad_token_id", 0, 0),
            Activation = read.Text("activation", "gelu"),
            NormEpsilon = 1e-12,
            HiddenDropout = read.Share("dropout", 0.1),
            AttentionDropout = read.Share("attention_dropout", 0.1),
            ClassifierDropout = read.Share("seq_classif_dropout", 0.2),
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass) =>
        _sequence.Forward(Embedded(_embeddings, batch, pad: null, pass), pass);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new DistilBertBackbone(Config, weights);
}
