// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// MPNet (Song et al. 2020, arXiv 2004.09297): BERT's body with one table of relative-position biases for all layers,
/// and absolute positions counted from the ids of the tokens.
/// </summary>
public sealed class MPNetBackbone : PostNormEncoder
{
    private const int PadPosition = 1;   // whatever config.json says about the padding id
    private const int MaxDistance = 128;

    private static readonly LayerNames _names = new(
        "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm",
        "intermediate.dense", "output.dense", "output.LayerNorm", "attention_residual", "output");

    private readonly EmbeddingParts _embeddings;
    private readonly Embedding _relative;
    private readonly Sequence _sequence;
    private readonly int _buckets;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public MPNetBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _buckets = new ConfigReader(config.Raw).Int("relative_attention_num_buckets", 32);
        _embeddings = AddEmbeddings(config.HiddenSize, config.MaxTokens + PadPosition + 1, types: 0);
        _sequence = AddEmbeddingSequence();
        _relative = AddEmbedding("encoder.relative_attention_bias", SiteRole.RelativePosition, _buckets, config.HeadCount);
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"encoder.layer.{layer}", layer, _names);
        AddEnd("pooler.dense");
    }

    /// <inheritdoc/>
    public override string Prefix => "mpnet";

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        return BertBackbone.ReadConfig(raw, "mpnet") with
        {
            VocabularySize = read.Int("vocab_size", 30527),
            PadId = read.Int("pad_token_id", 1, 0),
            TypeVocabularySize = 0,
            MaxTokens = read.Int("max_position_embeddings", 512, PadPosition + 2) - PadPosition - 1,
        };
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor hidden = _sequence.Forward(Embedded(_embeddings, batch, PadPosition, pass), pass);
        ScoreBias(hidden.shape[1], pass);   // made here, so that layers that run again in the backward pass find it
        return hidden;
    }

    internal override Tensor? ScoreBias(long tokens, Pass pass) => pass.Once((this, tokens), () =>
    {
        long[] table = new RelativeBuckets(_buckets, MaxDistance, Both: true).Table(0, tokens, tokens);
        Tensor buckets = tensor(table, ScalarType.Int64, _relative.Weight.device).view(tokens, tokens);
        return _relative.Forward(buckets, pass).permute(2, 0, 1).unsqueeze(0);   // [1, heads, tokens, tokens]
    });

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new MPNetBackbone(Config, weights);
}
