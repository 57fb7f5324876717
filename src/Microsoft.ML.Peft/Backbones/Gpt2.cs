// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// GPT-2 (Radford et al. 2019): learned positions, one projection to queries, keys and values, matrices that files keep as
/// <c>[in, out]</c>. Positions are counted from the left edge, padding included, where the batch gives none.
/// </summary>
public sealed class Gpt2Backbone : PreNormDecoder
{
    private static readonly DecoderNames _names = new(
        "attn", "ln_1", "attn.c_attn", "", "", "", "attn.c_proj", "mlp", "ln_2", null, "mlp.c_fc", "mlp.c_proj");

    private static readonly Dictionary<string, string> _aliases = new(StringComparer.Ordinal)
    {
        ["hidden_size"] = "n_embd",
        ["num_hidden_layers"] = "n_layer",
        ["num_attention_heads"] = "n_head",
        ["max_position_embeddings"] = "n_positions",
        ["intermediate_size"] = "n_inner",
    };

    private readonly Embedding _positions;
    private readonly double _embeddingDropout;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public Gpt2Backbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw, _aliases);
        _embeddingDropout = read.Share("embd_pdrop", 0.1);
        AddWords("wte");
        _positions = AddEmbedding("wpe", SiteRole.PositionEmbedding, config.MaxTokens, config.HiddenSize);
        AddInput();
        for (int layer = 0; layer < config.LayerCount; layer++) AddLayer($"h.{layer}", layer, _names, true, true, true);
        AddEnd("ln_f", read.Flag("tie_word_embeddings", true));
    }

    /// <inheritdoc/>
    public override string Prefix => "transformer";

    private protected override bool StoresTransposed => true;

    private protected override double ScaleOf(int layer)
    {
        var read = new ConfigReader(Config.Raw);
        double scale = read.Flag("scale_attn_weights", true) ? base.ScaleOf(layer) : 1;
        return read.Flag("scale_attn_by_inverse_layer_idx", false) ? scale / (layer + 1) : scale;
    }

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw, _aliases);
        int hidden = read.Int("hidden_size", 768);
        return new BackboneConfig
        {
            ModelType = "gpt2",
            Raw = raw,
            HiddenSize = hidden,
            LayerCount = read.Int("num_hidden_layers", 12),
            HeadCount = read.Int("num_attention_heads", 12),
            IntermediateSize = read.Int("intermediate_size", 4 * hidden),
            VocabularySize = read.Int("vocab_size", 50257),
            MaxTokens = read.Int("max_position_embeddings", 1024),
            EmbeddingSize = hidden,
            PadId = Math.Max(0, read.Int("pad_token_id", 0, -1)),
            Activation = read.Text("activation_function", "gelu_new"),
            NormEpsilon = read.Positive("layer_norm_epsilon", 1e-5),
            HiddenDropout = read.Share("resid_pdrop", 0.1),
            AttentionDropout = read.Share("attn_pdrop", 0.1),
            ClassifierDropout = 0,
            InitializerRange = read.Positive("initializer_range", 0.02),
        };
    }

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor words = EmbedWords(batch, pass);
        Positions.Check(batch, Config, pass);
        Tensor hidden = words + _positions.Forward(Positions.Counted(batch, pass), pass);
        return Input.Forward(pass.Dropout(hidden, _embeddingDropout), pass);
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new Gpt2Backbone(Config, weights);
}
