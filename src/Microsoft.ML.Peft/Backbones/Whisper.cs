// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// Whisper (Radford et al. 2022, arXiv 2212.04356): two convolutions and positions over a log-mel spectrogram, pre-norm layers; and,
/// loaded with its language head, the decoder that writes what was said. Without the head it is the encoder alone, for
/// classifiers. A batch is <see cref="TokenBatch.OfSound"/> of <c>[batch, mel bins, frames]</c>.
/// </summary>
public sealed class WhisperBackbone : Backbone
{
    private readonly Convolution _first, _second;
    private readonly Embedding _soundPositions;
    private readonly Embedding? _words, _wordPositions;
    private readonly Stack _encoder;
    private readonly Stack? _decoder;
    private readonly Projection? _head;
    private readonly Func<Tensor, Tensor> _activation;
    private readonly double _innerDropout;
    private readonly int _bins;
    private readonly bool _mixesLayers;

    /// <summary>Builds the network over a source of weights.</summary>
    /// <param name="config">Geometry; with <see cref="BackboneConfig.DecoderStart"/> for both stacks.</param>
    /// <param name="weights">Frozen tensors.</param>
    public WhisperBackbone(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        var read = new ConfigReader(config.Raw);
        _activation = Activations.Get(config.Activation);
        (_innerDropout, _mixesLayers) = (read.Share("activation_dropout", 0), read.Flag("use_weighted_layer_sum", false));
        _bins = read.Int("num_mel_bins", 80);
        long width = config.HiddenSize;
        int turn = config.DecoderStart ?? config.LayerCount;
        _first = AddConvolution("encoder.conv1", SiteRole.OtherConvolution, -1, [width, _bins, 3], padding: 1);
        _second = AddConvolution("encoder.conv2", SiteRole.OtherConvolution, -1, [width, width, 3], stride: 2, padding: 1);
        _soundPositions = AddEmbedding("encoder.embed_positions", SiteRole.PositionEmbedding, config.MaxTokens, width);
        _encoder = AddStack("encoder", 0, turn, config.HeadCount, config.IntermediateSize, -1);
        if (config.DecoderStart is not null)
        {
            _words = AddEmbedding("decoder.embed_tokens", SiteRole.WordEmbedding, config.VocabularySize, width, turn);
            _wordPositions = AddEmbedding("decoder.embed_positions", SiteRole.PositionEmbedding, MostTokens(read), width, turn);
            _decoder = AddStack("decoder", turn, config.LayerCount, read.Int("decoder_attention_heads", 6), read.Int("decoder_ffn_dim", 1536), turn);
            if (config.LanguageHead) _head = AddLanguageHead("proj_out", _words, read.Flag("tie_word_embeddings", true));
        }
        Add(new Taps(config.LayerCount));
    }

    private sealed record Layers(
        Block Whole, Sequence Sequence, PreNormPart Self, AttentionParts SelfParts, PreNormPart? Cross, AttentionParts? CrossParts,
        PreNormPart FeedForward, Projection Up, Projection Down);

    private sealed record Stack(Sequence Input, int First, IReadOnlyList<Layers> Layers, Norm Norm);

    /// <inheritdoc/>
    public override string Prefix => "model";

    /// <inheritdoc/>
    public override int LeadingTokens => 0;

    private protected override bool ClassifierReadsHiddenStates => _mixesLayers && Config.DecoderStart is null;

    private static int MostTokens(ConfigReader read) => read.Int("max_target_positions", 448);

    internal static BackboneConfig ReadConfig(JsonObject raw)
    {
        var read = new ConfigReader(raw);
        int layers = read.Int("encoder_layers", 4), decoder = read.Int("decoder_layers", 4), hidden = read.Int("d_model", 384);
        if (layers > int.MaxValue - decoder)
            throw new CheckpointFormatException($"config.json: encoder_layers {layers} and decoder_layers {decoder} are more than any network has.");
        foreach (string heads in (string[])["encoder_attention_heads", "decoder_attention_heads"])
            if (hidden % read.Int(heads, 6) != 0)
                throw new CheckpointFormatException($"config.json: d_model {hidden} is not divisible by {heads} {read.Int(heads, 6)}.");
        return new BackboneConfig
        {
            ModelType = "whisper",
            Input = BackboneInput.Sound,
            Raw = raw,
            HiddenSize = hidden,
            EmbeddingSize = hidden,
            LayerCount = layers + decoder,
            DecoderStart = layers,
            HeadCount = read.Int("encoder_attention_heads", 6),
            IntermediateSize = read.Int("encoder_ffn_dim", 1536),
            VocabularySize = read.Int("vocab_size", 51865),
            MaxTokens = read.Int("max_source_positions", 1500),
            PadId = read.Int("pad_token_id", 50256, 0),
            DecoderStartId = read.Int("decoder_start_token_id", 50257, 0),
            Activation = read.Text("activation_function", "gelu"),
            NormEpsilon = 1e-5,
            HiddenDropout = read.Share("dropout", 0),
            AttentionDropout = read.Share("attention_dropout", 0),
            ClassifierDropout = 0,
            InitializerRange = read.Positive("init_std", 0.02),
        };
    }

    private Stack AddStack(string name, int first, int end, int heads, int inner, int before)
    {
        Sequence input = Add(new Sequence(name + ".embeddings", SiteRole.EmbeddingSequence, before));
        Layers[] layers = [.. Enumerable.Range(first, end - first).Select(layer => AddLayer($"{name}.layers.{layer - first}", layer, heads, inner, first > 0))];
        return new Stack(input, first, layers, AddNorm(name + ".layer_norm", SiteRole.FinalNorm, end, Config.HiddenSize));
    }

    private Layers AddLayer(string path, int layer, int heads, int inner, bool cross)
    {
        PreNormPart Part(string norm, string block, string residual, SiteRole normRole, SiteRole blockRole, SiteRole residualRole) => new(
            AddNorm($"{path}.{norm}", normRole, layer, Config.HiddenSize),
            Add(new Block($"{path}.{block}", blockRole, layer)),
            Add(new Residual($"{path}.{residual}", residualRole, layer)));
        return new Layers(
            Add(new Block(path, SiteRole.LayerBlock, layer)),
            Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer)),
            Part("self_attn_layer_norm", "self_attn", "attention_adapters", SiteRole.AttentionNorm, SiteRole.AttentionBlock, SiteRole.AttentionResidual),
            AddAttention(path + ".self_attn", layer, heads, SiteRole.AttentionCore),
            cross ? Part("encoder_attn_layer_norm", "encoder_attn", "cross_attention_adapters", SiteRole.CrossAttentionNorm, SiteRole.CrossAttentionBlock, SiteRole.CrossAttentionResidual) : null,
            cross ? AddAttention(path + ".encoder_attn", layer, heads, SiteRole.CrossAttentionCore) : null,
            Part("final_layer_norm", "feed_forward", "output_adapters", SiteRole.FeedForwardNorm, SiteRole.FeedForwardBlock, SiteRole.FeedForwardResidual),
            AddProjection(path + ".fc1", SiteRole.FeedForwardUp, layer, inner, Config.HiddenSize),
            AddProjection(path + ".fc2", SiteRole.FeedForwardDown, layer, Config.HiddenSize, inner));
    }

    private AttentionParts AddAttention(string path, int layer, int heads, SiteRole core)
    {
        long width = Config.HiddenSize;
        return new AttentionParts(
            AddProjection(path + ".q_proj", SiteRole.Query, layer, width, width),
            AddProjection(path + ".k_proj", SiteRole.Key, layer, width, width, bias: false),
            AddProjection(path + ".v_proj", SiteRole.Value, layer, width, width),
            AddProjection(path + ".out_proj", SiteRole.AttentionOutput, layer, width, width),
            Add(new AttentionCore(path + ".core", layer, heads, Config.HiddenSize / heads, role: core)));
    }

    /// <inheritdoc/>
    protected override Layout LayoutOf(TokenBatch batch, Pass pass)
    {
        if (batch.Sound is not { } sound)
            throw new ArgumentException("A whisper backbone hears: make the batch with TokenBatch.OfSound.");
        if (sound.shape is not [var rows, var bins, var frames] || bins != _bins || frames < 1)
            throw new ArgumentException($"The spectrograms have the shape [{string.Join(", ", sound.shape)}]; expected [batch, {_bins} mel bins, frames].");
        long tokens = (frames - 1) / 2 + 1, most = Config.MaxTokens;
        if (frames != 2 * most && !(batch.CutPositions && tokens <= most))
            throw new ArgumentException($"The spectrograms have {frames} frames, but this backbone is for {2 * most}; pad or cut them, or set CutPositions for shorter ones.");
        return new Layout(ones([rows, tokens], ScalarType.Int64, sound.device), padded: false);
    }

    // The activation always gets a contiguous gradient: libtorch 1.13's gelu needs that.
    /// <inheritdoc/>
    protected override Tensor Embed(TokenBatch batch, Pass pass)
    {
        Tensor x = nn.functional.gelu(_first.Forward(batch.Sound!.to_type(_first.Weight.dtype), pass));                 // [batch, hidden, frames]
        x = nn.functional.gelu(_second.Forward(x, pass).transpose(1, 2).contiguous());                                  // [batch, tokens, hidden]
        x = x + _soundPositions.Forward(arange(x.shape[1], ScalarType.Int64, x.device), pass);
        return _encoder.Input.Forward(pass.Dropout(x, Config.HiddenDropout), pass);
    }

    /// <inheritdoc/>
    protected override Tensor FinishEncoder(Tensor hidden, Pass pass) => _encoder.Norm.Forward(hidden, pass);

    /// <inheritdoc/>
    protected override Tensor EmbedDecoder(TokenBatch batch, Pass pass)
    {
        if (batch.DecoderIds is not { } ids || _words is null)
            throw new ArgumentException("A whisper backbone writes what it hears: give the decoder's tokens as DecoderIds (labels shifted right).");
        pass.Layout = new Layout(batch.DecoderMask ?? ones_like(ids), batch.DecoderMask is not null || pass.Cache is { Padded: true }) { Past = pass.Cache?.Mask };
        long first = pass.Patches.PositionShift + pass.Layout.PastTokens, most = _wordPositions!.Weight.shape[0];
        if (first + ids.shape[1] > most)
            throw new ArgumentException($"The decoder reads {ids.shape[1]} tokens after {first}, but this whisper backbone takes at most {most}; shorten the text or the prompt.");
        Tensor x = _words.Forward(ids, pass) + _wordPositions.Forward(arange(first, first + ids.shape[1], ScalarType.Int64, ids.device), pass);
        return _decoder!.Input.Forward(pass.Dropout(x, Config.HiddenDropout), pass);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => (_decoder ?? _encoder).Norm.Forward(hidden, pass);

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        Stack stack = _decoder is null || layer < _decoder.First ? _encoder : _decoder;
        Layers parts = stack.Layers[layer - stack.First];
        return parts.Whole.Forward(parts.Sequence.Forward(hidden, pass), x =>
        {
            x = parts.Self.Run(x, y => SelfAttention(parts.SelfParts, parts.Cross is not null, y, pass), pass);
            if (parts.Cross is not null) x = parts.Cross.Run(x, y => CrossAttention(parts.CrossParts!, y, pass), pass);
            return parts.FeedForward.Run(x, y =>
                pass.Dropout(parts.Down.Forward(pass.Dropout(_activation(parts.Up.Forward(y, pass)), _innerDropout), pass), Config.HiddenDropout), pass);
        }, pass);
    }

    private Tensor SelfAttention(AttentionParts parts, bool decodes, Tensor x, Pass pass)
    {
        pass.Share(x, parts.Query, parts.Key, parts.Value);
        (Tensor key, Tensor value) = parts.KeyValue(x, pass);
        if (decodes && pass.Cache is { } cache) (key, value) = cache.Append(parts.Core, key, value);
        Tensor? bias = decodes ? pass.Layout.CausalBias(x.dtype) : pass.Layout.KeyBias(x.dtype);
        return pass.Dropout(parts.Run(x, key, value, bias, null, Config.AttentionDropout, pass), Config.HiddenDropout);
    }

    private Tensor CrossAttention(AttentionParts parts, Tensor x, Pass pass)
    {
        (Tensor key, Tensor value) = pass.Cache is { } cache
            ? cache.Once(parts.Core, () => parts.KeyValue(pass.Encoded!, pass))
            : parts.KeyValue(pass.Encoded!, pass);
        return pass.Dropout(parts.Run(x, key, value, pass.EncodedLayout!.KeyBias(x.dtype), null, Config.AttentionDropout, pass), Config.HiddenDropout);
    }

    /// <inheritdoc/>
    public override Tensor VocabularyScores(Tensor hidden, Pass pass) => _head is null ? base.VocabularyScores(hidden, pass) : _head.Forward(hidden, pass);

    /// <summary>
    /// Mean over the encoder's frames, <c>[batch, hidden]</c>; where layers are mixed that of each state, <c>[batch, layers + 1, hidden]</c>,
    /// the last behind the final norm.
    /// </summary>
    /// <param name="output">What <see cref="Backbone.Forward"/> gave.</param>
    /// <param name="pass">The same pass.</param>
    public override Tensor ClassifierFeatures(BackboneOutput output, Pass pass)
    {
        BackboneOutput heard = output.Encoder ?? output;
        return _mixesLayers && heard.HiddenStates is { } states
            ? stack([.. states.SkipLast(1).Append(heard.Last).Select(state => MeanOfFrames(state, heard.Layout))], 1)
            : MeanOfFrames(heard.Last, heard.Layout);
    }

    /// <inheritdoc/>
    protected override Backbone Rebuild(IWeightSource weights) => new WhisperBackbone(Config, weights);
}
