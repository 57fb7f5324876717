// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// ALBERT (Lan et al. 2020, arXiv 1909.11942): narrow embeddings mapped once to the hidden width, and groups of layers
/// applied again and again. A site is shared by all its applications, so one patch acts at each of them.
/// </summary>
public sealed class AlbertBackbone : PostNormEncoder
{
    private static readonly LayerNames _names = new(
        "attention.query", "attention.key", "attention.value", "attention.dense", "attention.LayerNorm",
        "ffn", "ffn_output", "full_layer_layer_norm", "attention_residual", "output_residual");

    private readonly EmbeddingParts _embeddings;
    private readonly Projection _map;
    private readonly Sequence _sequence;
    private readonly int _layers, _groups, _inner;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry; its layer count counts applications.</param>
    /// <param name="weights">Frozen tensors.</param>
    public AlbertBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        _groups = read.Int("num_hidden_groups", 1);
        _inner = read.Int("inner_group_num", 1);
        _layers = config.LayerCount / _inner;
        int narrow = config.EmbeddingSize;
        _embeddings = AddEmbeddings(narrow, config.MaxTokens, config.TypeVocabularySize);
        _map = AddProjection("encoder.embedding_hidden_mapping_in", SiteRole.EmbeddingProjection, -1, config.HiddenSize, narrow);
        _sequence = AddEmbeddingSequence();
        for (int group = 0; group < _groups; group++)
        {
            for (int inner = 0; inner < _inner; inner++)
            {
                string path = $"encoder.albert_layer_groups.{group}.albert_layers.{inner}";
                AddLayer(path, Enumerable.Range(0, config.LayerCount).First(a => LayerOf(a) == group * _inner + inner), _names);
            }
        }
        AddEnd("pooler");
    }

    /// <inheritdoc/>
    public override string Prefix => "albert";

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        int layers = read.Int("num_hidden_layers", 12), groups = read.Int("num_hidden_groups", 1);
        if (groups > layers)
            throw new Checkpoints.CheckpointFormatException($"config.json: num_hidden_groups is {groups}; expected at most num_hidden_layers, {layers}.");
        return new BackboneConfig
        {
            ModelType = "albert",
            Raw = raw,
            HiddenSize = read.Int("hidden_size", 4096),
            LayerCount = layers * read.Int("inner_group_num", 1),
            HeadCount = read.Int("num_attention_heads", 64),
            IntermediateSize = read.Int("intermediate_size", 16384),
            VocabularySize = read.Int("vocab_size", 30000),
            MaxTokens = read.Int("max_position_embeddings", 512),
            EmbeddingSize = read.Int("embedding_size", 128),
            TypeVocabularySize = read.Int("type_vocab_size", 2),
            PadId = read.Int("pad_token_id", 0, 0),
            Activation = read.Text("hidden_act", "gelu_new"),
            NormEpsilon = read.Positive("layer_norm_eps", 1e-12),
            HiddenDropout = read.Share("hidden_dropout_prob", 0),
            AttentionDropout = read.Share("attention_probs_dropout_prob", 0),
            ClassifierDropout = read.Share("classifier_dropout_prob", 0.1),
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    private protected override bool LayersStandAlone => false;

    // Layer l uses group floor(l / (layers / groups)), and runs all its inner layers in turn.
    internal override int LayerOf(int application)
    {
        int group = (int)(application / _inner / ((double)_layers / _groups));
        return Math.Min(group, _groups - 1) * _inner + application % _inner;
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass) =>
        _sequence.Forward(_map.Forward(Embedded(_embeddings, batch, pad: null, pass), pass), pass);

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new AlbertBackbone(Config, weights);
}
