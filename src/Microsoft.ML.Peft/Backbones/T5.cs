// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// T5 (Raffel et al. 2020, arXiv 1910.10683), T5 v1.1, Flan-T5 and mT5: an encoder and a decoder, pre-norm by the root mean
/// square, no biases, attention without a factor but with a bias for relative positions that each stack has one table for.
/// </summary>
public sealed class T5Backbone : Backbone
{
    private readonly Embedding _words;
    private readonly Stack _encoder, _decoder;
    private readonly Projection? _head;
    private readonly Follow _activation;
    private readonly bool _gated;
    private readonly double _headScale;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry.</param>
    /// <param name="weights">Frozen tensors.</param>
    public T5Backbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        (_gated, string activation) = FeedForward(config.Raw, config.ModelType);
        _activation = Follow.By(activation);
        int buckets = read.Int("relative_attention_num_buckets", 32, 4), distance = read.Int("relative_attention_max_distance", 128);
        if (distance <= buckets / 2)
            throw new CheckpointFormatException(
                $"config.json: relative_attention_max_distance is {distance}; expected more than half of relative_attention_num_buckets, {buckets / 2}.");
        // Some files keep one of the three names of the table only.
        string table = !Stored("shared.weight") && Stored("encoder.embed_tokens.weight") ? "encoder.embed_tokens" : "shared";
        _words = AddEmbedding("shared", SiteRole.WordEmbedding, config.VocabularySize, config.HiddenSize, stored: table);
        int turn = config.DecoderStart!.Value;
        var input = Add(new Sequence("encoder.embeddings", SiteRole.EmbeddingSequence, -1));
        _encoder = AddStack("encoder", 0, turn, new(buckets, distance, Both: true), input);
        input = Add(new Sequence("decoder.embeddings", SiteRole.EmbeddingSequence, turn));
        _decoder = AddStack("decoder", turn, config.LayerCount, new(buckets, distance, Both: false), input);
        // Newer files say that all heads are tied: a stored matrix of its own is the one to use all the same.
        if (config.LanguageHead) _head = AddLanguageHead("lm_head", _words, read.Flag("tie_word_embeddings", true));
        bool scaled = config.ModelType == "t5" && read.Flag("scale_decoder_outputs", read.Flag("tie_word_embeddings", true));
        _headScale = scaled ? 1 / Math.Sqrt(config.HiddenSize) : 1;
        Add(new Taps(config.LayerCount));
    }

    private sealed record Layers(
        Block Whole, Sequence Sequence, PreNormPart Self, AttentionParts SelfParts, PreNormPart? Cross, AttentionParts? CrossParts,
        PreNormPart FeedForward, Projection? Gate, Projection Up, Projection Down);

    private sealed record Stack(Sequence Input, int First, IReadOnlyList<Layers> Layers, Embedding Relative, RelativeBuckets Buckets, Norm Norm);

    /// <inheritdoc/>
    public override string Prefix => "";

    /// <inheritdoc/>
    public override int LeadingTokens => 0;

    internal static BackboneConfig ReadConfig(JsonObject raw, string modelType)
    {
        bool many = modelType == "mt5";
        var read = new ConfigReader(raw, new Dictionary<string, string>
        {
            ["d_model"] = "hidden_size",
            ["d_kv"] = "head_dim",
            ["num_heads"] = "num_attention_heads",
            ["num_layers"] = "num_hidden_layers",
        });
        int layers = read.Int("num_layers", many ? 8 : 6), decoder = read.Int("num_decoder_layers", layers), hidden = read.Int("d_model", 512);
        if (layers > int.MaxValue - decoder)
            throw new CheckpointFormatException($"config.json: num_layers {layers} and num_decoder_layers {decoder} are more than any network has.");
        double dropout = read.Share("dropout_rate", 0.1);
        FeedForward(raw, modelType);
        return new BackboneConfig
        {
            ModelType = modelType,
            Raw = raw,
            HiddenSize = hidden,
            EmbeddingSize = hidden,
            LayerCount = layers + decoder,
            DecoderStart = layers,
            HeadCount = read.Int("num_heads", many ? 6 : 8),
            HeadWidth = read.Int("d_kv", 64),
            IntermediateSize = read.Int("d_ff", many ? 1024 : 2048),
            VocabularySize = read.Int("vocab_size", many ? 250112 : 32128),
            MaxTokens = read.Int("n_positions", 512),
            PadId = read.Int("pad_token_id", 0, 0),
            DecoderStartId = read.Int("decoder_start_token_id", read.Int("pad_token_id", 0, 0), 0),
            NormEpsilon = read.Positive("layer_norm_epsilon", 1e-6),
            HiddenDropout = dropout,
            AttentionDropout = dropout,
            ClassifierDropout = read.Share("classifier_dropout", 0),
        };
    }

    // "relu", or "gated-" and an activation; the plain "gated-gelu" of published files means the tanh form.
    private static (bool Gated, string Activation) FeedForward(JsonObject raw, string modelType)
    {
        string text = new ConfigReader(raw).Text("feed_forward_proj", modelType == "mt5" ? "gated-gelu" : "relu");
        string[] parts = text.Split('-');
        if (parts.Length > 2 || (parts.Length == 2 && parts[0] != "gated"))
            throw new CheckpointFormatException(
                $"config.json: feed_forward_proj is '{text}'; expected the name of an activation, or 'gated-' and one, such as relu or gated-gelu.");
        return (parts.Length == 2, text == "gated-gelu" ? "gelu_new" : parts[^1]);
    }

    private Stack AddStack(string name, int first, int end, RelativeBuckets buckets, Sequence input)
    {
        var layers = new List<Layers>();
        Embedding? relative = null;
        for (int layer = first; layer < end; layer++)
        {
            string path = $"{name}.block.{layer - first}";
            if (layer == first)
                relative = AddEmbedding($"{path}.layer.0.SelfAttention.relative_attention_bias", SiteRole.RelativePosition, buckets.Buckets, Config.HeadCount, layer);
            layers.Add(AddLayer(path, layer, cross: !buckets.Both));
        }
        return new Stack(input, first, layers, relative!, buckets, AddNorm($"{name}.final_layer_norm", SiteRole.FinalNorm, end, Config.HiddenSize, rootMeanSquare: true));
    }

    private Layers AddLayer(string path, int layer, bool cross)
    {
        string last = $"{path}.layer.{(cross ? 2 : 1)}", forward = $"{last}.DenseReluDense";
        long width = Config.HiddenSize, inner = Config.IntermediateSize;
        return new Layers(
            Add(new Block(path, SiteRole.LayerBlock, layer)),
            Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer)),
            AddPart($"{path}.layer.0", "SelfAttention", layer, SiteRole.AttentionNorm, SiteRole.AttentionBlock, SiteRole.AttentionResidual),
            AddAttention($"{path}.layer.0.SelfAttention", layer, SiteRole.AttentionCore),
            cross ? AddPart($"{path}.layer.1", "EncDecAttention", layer, SiteRole.CrossAttentionNorm, SiteRole.CrossAttentionBlock, SiteRole.CrossAttentionResidual) : null,
            cross ? AddAttention($"{path}.layer.1.EncDecAttention", layer, SiteRole.CrossAttentionCore) : null,
            AddPart(last, "DenseReluDense", layer, SiteRole.FeedForwardNorm, SiteRole.FeedForwardBlock, SiteRole.FeedForwardResidual),
            _gated ? AddProjection(forward + ".wi_0", SiteRole.FeedForwardGate, layer, inner, width, bias: false) : null,
            AddProjection(forward + (_gated ? ".wi_1" : ".wi"), SiteRole.FeedForwardUp, layer, inner, width, bias: false),
            AddProjection(forward + ".wo", SiteRole.FeedForwardDown, layer, width, inner, bias: false));
    }

    private PreNormPart AddPart(string path, string module, int layer, SiteRole norm, SiteRole block, SiteRole residual) => new(
        AddNorm(path + ".layer_norm", norm, layer, Config.HiddenSize, rootMeanSquare: true),
        Add(new Block($"{path}.{module}", block, layer)),
        Add(new Residual(path, residual, layer)));

    private AttentionParts AddAttention(string path, int layer, SiteRole core)
    {
        long width = Config.HiddenSize, inner = (long)Config.HeadCount * Config.HeadWidth!.Value;
        return new AttentionParts(
            AddProjection(path + ".q", SiteRole.Query, layer, inner, width, bias: false),
            AddProjection(path + ".k", SiteRole.Key, layer, inner, width, bias: false),
            AddProjection(path + ".v", SiteRole.Value, layer, inner, width, bias: false),
            AddProjection(path + ".o", SiteRole.AttentionOutput, layer, width, inner, bias: false),
            Add(new AttentionCore(path + ".core", layer, Config.HeadCount, Config.HeadWidth!.Value, role: core) { Scale = 1 }));
    }

    // What a cache holds are tokens of the decoder.
    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass) => new(batch.Mask, batch.Padded);

    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass) =>
        _encoder.Input.Forward(pass.Dropout(_words.Forward(batch.Ids, pass), Config.HiddenDropout), pass);

    /// <inheritdoc/>
    protected override Tensor FinishEncoder(Tensor hidden, Pass pass) =>
        pass.Dropout(_encoder.Norm.Forward(hidden, pass), Config.HiddenDropout);

    /// <inheritdoc/>
    protected override Tensor EmbedDecoder(TokenBatch batch, Pass pass)
    {
        if (batch.DecoderIds is not { } ids)
            throw new ArgumentException($"A {Config.ModelType} backbone reads two texts: give the decoder's tokens as DecoderIds (labels shifted right).");
        pass.Layout = new Layout(batch.DecoderMask ?? ones_like(ids), batch.DecoderMask is not null || pass.Cache is { Padded: true }) { Past = pass.Cache?.Mask };
        return _decoder.Input.Forward(pass.Dropout(_words.Forward(ids, pass), Config.HiddenDropout), pass);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) =>
        pass.Dropout(_decoder.Norm.Forward(hidden, pass), Config.HiddenDropout);

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Stack stack = layer < Config.DecoderStart ? _encoder : _decoder;
        Layers parts = stack.Layers[layer - stack.First];
        return parts.Whole.Forward(parts.Sequence.Forward(hidden, pass), x =>
        {
            x = parts.Self.Run(x, y => SelfAttention(stack, parts.SelfParts, y, pass), pass);
            if (parts.Cross is not null) x = parts.Cross.Run(x, y => CrossAttention(parts.CrossParts!, y, pass), pass);
            return parts.FeedForward.Run(x, y => FeedForward(parts, y, pass), pass);
        }, pass);
    }

    private Tensor SelfAttention(Stack stack, AttentionParts parts, Tensor x, Pass pass)
    {
        bool decodes = !stack.Buckets.Both;
        pass.Share(x, parts.Query, parts.Key, parts.Value);
        (Tensor key, Tensor value) = parts.KeyValue(x, pass);
        if (decodes && pass.Cache is { } cache) (key, value) = cache.Append(parts.Core, key, value);
        long tokens = x.shape[1], keys = key.shape[2];
        Tensor Relative(long first, long queries, long count) => Bias(stack, first, queries, count, pass);
        Tensor bias = Relative(tokens - keys, tokens, keys);
        if ((decodes ? pass.Layout.CausalBias(x.dtype) : pass.Layout.KeyBias(x.dtype)) is { } mask) bias = bias + mask;
        return pass.Dropout(parts.Run(x, key, value, bias, Relative, Config.AttentionDropout, pass), Config.HiddenDropout);
    }

    private Tensor CrossAttention(AttentionParts parts, Tensor x, Pass pass)
    {
        (Tensor key, Tensor value) = pass.Cache is { } cache
            ? cache.Once(parts.Core, () => parts.KeyValue(pass.Encoded!, pass))
            : parts.KeyValue(pass.Encoded!, pass);
        return pass.Dropout(parts.Run(x, key, value, pass.EncodedLayout!.KeyBias(x.dtype), null, Config.AttentionDropout, pass), Config.HiddenDropout);
    }

    // Each stack has one table, which all of its layers read: [1, heads, queries, keys].
    private static Tensor Bias(Stack stack, long first, long queries, long keys, Pass pass) => pass.Once((stack, first, queries, keys), () =>
    {
        Tensor buckets = tensor(stack.Buckets.Table(first, queries, keys), ScalarType.Int64, stack.Relative.Weight.device).view(queries, keys);
        return stack.Relative.Forward(buckets, pass).permute(2, 0, 1).unsqueeze(0);
    });

    private Tensor FeedForward(Layers parts, Tensor x, Pass pass)
    {
        Tensor inner = parts.Gate is null
            ? parts.Up.Forward(x, _activation, pass)
            : parts.Gate.Forward(x, _activation, pass) * parts.Up.Forward(x, pass);
        return parts.Down.Forward(pass.Dropout(inner, Config.HiddenDropout), Follow.ByDropout(Config.HiddenDropout), pass);
    }

    /// <inheritdoc/>
    public override Tensor VocabularyScores(Tensor hidden, Pass pass)
    {
        if (_head is null) return base.VocabularyScores(hidden, pass);
        if (_headScale != 1) hidden = hidden * _headScale;
        return _head.Forward(hidden, pass);
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new T5Backbone(Config, weights);
}
