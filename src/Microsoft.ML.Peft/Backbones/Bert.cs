// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// BERT (Devlin et al. 2019, arXiv 1810.04805), MiniLM included, and ELECTRA (Clark et al. 2020, arXiv 2003.10555),
/// whose embeddings may be narrower and are projected.
/// </summary>
public sealed class BertBackbone : PostNormEncoder
{
    private readonly EmbeddingParts _embeddings;
    private readonly Projection? _project;
    private readonly Sequence _sequence;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public BertBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        int narrow = config.EmbeddingSize;
        _embeddings = AddEmbeddings(narrow, config.MaxTokens, config.TypeVocabularySize);
        if (narrow != config.HiddenSize)
            _project = AddProjection("embeddings_project", SiteRole.EmbeddingProjection, -1, config.HiddenSize, narrow);
        _sequence = AddEmbeddingSequence();
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layer.{layer}", layer, LayerNames.Bert);
        AddEnd(config.ModelType == "bert" ? "pooler.dense" : null);
    }

    /// <inheritdoc/>
    public override string Prefix => Config.ModelType;

    internal static BackboneConfig ReadConfig(JsonObject raw, string modelType)
    {
        var read = new ConfigReader(raw);
        bool electra = modelType == "electra";
        int hidden = read.Int("hidden_size", electra ? 256 : 768);
        return new BackboneConfig
        {
            ModelType = modelType,
            Raw = raw,
            HiddenSize = hidden,
            LayerCount = read.Int("num_hidden_layers", 12),
            HeadCount = read.Int("num_attention_heads", electra ? 4 : 12),
            IntermediateSize = read.Int("intermediate_size", electra ? 1024 : 3072),
            VocabularySize = read.Int("vocab_size", 30522),
            MaxTokens = read.Int("max_position_embeddings", 512),
            EmbeddingSize = electra ? read.Int("embedding_size", 128) : hidden,
            TypeVocabularySize = read.Int("type_vocab_size", 2),
            PadId = read.Int("pad_token_id", 0, 0),
            Activation = read.Text("hidden_act", "gelu"),
            NormEpsilon = read.Positive("layer_norm_eps", 1e-12),
            HiddenDropout = read.Share("hidden_dropout_prob", 0.1),
            AttentionDropout = read.Share("attention_probs_dropout_prob", 0.1),
            ClassifierDropout = read.OptionalShare("classifier_dropout"),
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor hidden = Embedded(_embeddings, batch, pad: null, pass);
        if (_project is not null) hidden = _project.Forward(hidden, pass);
        return _sequence.Forward(hidden, pass);
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new BertBackbone(Config, weights);
}
