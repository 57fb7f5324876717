// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// Hugging Face names of the parts of one layer, after the layer's own path; a fused projection stands for the three, and
/// without a gate the feed-forward part is <c>down(act(up x))</c>.
/// </summary>
internal sealed record DecoderNames(
    string Attention, string AttentionNorm, string? Fused, string Query, string Key, string Value, string Output,
    string FeedForward, string FeedForwardNorm, string? Gate, string Up, string Down);

/// <summary>
/// The pre-norm decoder: <c>x += out(attention(norm x))</c>, <c>x += feed_forward(norm x)</c>, no token sees a later one, and a
/// norm at the end (Radford et al. 2019; Touvron et al. 2023, arXiv 2302.13971). The blocks are Hugging Face's modules: their
/// input is the normed stream; the residual sites see the stream itself. Families differ in names, positions, and whether
/// there is a gate.
/// </summary>
public abstract class PreNormDecoder : Backbone
{
    private readonly List<DecoderLayer> _layers = [];
    private readonly Follow _activation;
    private readonly int _headWidth, _keyHeads;
    private Sequence _wordSequence = null!;
    private Norm _finalNorm = null!;
    private Projection? _languageHead;

    private protected PreNormDecoder(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _activation = Follow.By(config.Activation);
        _keyHeads = config.KeyHeadCount ?? config.HeadCount;
        if (config.HeadWidth is null) RequireEvenHeads();
        if (config.HeadCount % _keyHeads != 0)
            throw new CheckpointFormatException($"config.json: {config.HeadCount} attention heads are not divisible by {_keyHeads} key and value heads.");
        _headWidth = config.HeadWidth ?? config.HiddenSize / config.HeadCount;
    }

    private sealed record DecoderLayer(
        Block Whole, Sequence Sequence, PreNormPart Attention, Projection? Fused, Projection? Query, Projection? Key, Projection? Value,
        Projection Output, AttentionCore Core, PreNormPart FeedForward, Projection? Gate, Projection Up, Projection Down);

    /// <inheritdoc/>
    public sealed override bool Causal => true;

    /// <inheritdoc/>
    public sealed override int LeadingTokens => 0;

    private protected Embedding Words { get; private set; } = null!;

    /// <summary>The sequence that enters the first layer.</summary>
    private protected Sequence Input { get; private set; } = null!;

    /// <summary>True where files keep matrices as <c>[in, out]</c>.</summary>
    private protected virtual bool StoresTransposed => false;

    /// <summary>True for root-mean-square norms.</summary>
    private protected virtual bool RootMeanSquare => false;

    /// <summary>Factor on the attention scores of a layer.</summary>
    private protected virtual double ScaleOf(int layer) => 1 / Math.Sqrt(_headWidth);

    /// <summary>Turns queries and keys by their positions.</summary>
    private protected virtual (Tensor Query, Tensor Key) Rotate(Tensor query, Tensor key, Pass pass) => (query, key);

    private protected void AddWords(string name)
    {
        Words = AddEmbedding(name, SiteRole.WordEmbedding, Config.VocabularySize, Config.HiddenSize);
        _wordSequence = AddWordSequence();
    }

    private protected void AddInput() => Input = AddEmbeddingSequence();

    /// <summary>Word embeddings, with what methods insert; a pass that goes on after cached tokens has those in the cache.</summary>
    private protected Tensor EmbedWords(TokenBatch batch, Pass pass)
    {
        Tensor words = Words.Forward(batch.Ids, pass);
        return pass.Layout.Past is null ? _wordSequence.Forward(words, pass) : words;
    }

    /// <summary>Adds one layer's sites.</summary>
    private protected void AddLayer(string path, int layer, DecoderNames names, bool attentionBias, bool outputBias, bool feedForwardBias)
    {
        long width = Config.HiddenSize, inner = Config.IntermediateSize, queries = (long)Config.HeadCount * _headWidth, keys = (long)_keyHeads * _headWidth;
        Projection Map(string part, SiteRole role, long outWidth, long inWidth, bool bias) =>
            AddProjection($"{path}.{part}", role, layer, outWidth, inWidth, bias, StoresTransposed);
        PreNormPart Part(string norm, string block, string residual, SiteRole normRole, SiteRole blockRole, SiteRole residualRole) => new(
            AddNorm($"{path}.{norm}", normRole, layer, width, RootMeanSquare),
            Add(new Block($"{path}.{block}", blockRole, layer)),
            Add(new Residual($"{path}.{residual}", residualRole, layer)));

        bool fused = names.Fused is not null;
        _layers.Add(new DecoderLayer(
            Add(new Block(path, SiteRole.LayerBlock, layer)),
            Add(new Sequence(path + ".input", SiteRole.LayerSequence, layer)),
            Part(names.AttentionNorm, names.Attention, "attention_adapters", SiteRole.AttentionNorm, SiteRole.AttentionBlock, SiteRole.AttentionResidual),
            fused ? Map(names.Fused!, SiteRole.QueryKeyValue, queries + 2 * keys, width, attentionBias) : null,
            fused ? null : Map(names.Query, SiteRole.Query, queries, width, attentionBias),
            fused ? null : Map(names.Key, SiteRole.Key, keys, width, attentionBias),
            fused ? null : Map(names.Value, SiteRole.Value, keys, width, attentionBias),
            Map(names.Output, SiteRole.AttentionOutput, width, queries, outputBias),
            Add(new AttentionCore($"{path}.{names.Attention}.core", layer, Config.HeadCount, _headWidth, _keyHeads) { Scale = ScaleOf(layer) }),
            Part(names.FeedForwardNorm, names.FeedForward, "output_adapters", SiteRole.FeedForwardNorm, SiteRole.FeedForwardBlock, SiteRole.FeedForwardResidual),
            names.Gate is null ? null : Map(names.Gate, SiteRole.FeedForwardGate, inner, width, feedForwardBias),
            Map(names.Up, SiteRole.FeedForwardUp, inner, width, feedForwardBias),
            Map(names.Down, SiteRole.FeedForwardDown, width, inner, feedForwardBias)));
    }

    /// <summary>Adds what stands after the layers.</summary>
    private protected void AddEnd(string norm, bool tied)
    {
        _finalNorm = AddNorm(norm, SiteRole.FinalNorm, Config.LayerCount, Config.HiddenSize, RootMeanSquare);
        Add(new Taps(Config.LayerCount));
        if (Config.LanguageHead) _languageHead = AddLanguageHead("lm_head", Words, tied);
    }

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        DecoderLayer parts = _layers[layer];
        return parts.Whole.Forward(parts.Sequence.Forward(hidden, pass), x =>
        {
            x = parts.Attention.Run(x, y => Attention(parts, y, pass), pass);
            return parts.FeedForward.Run(x, y => FeedForward(parts, y, pass), pass);
        }, pass);
    }

    private Tensor Attention(DecoderLayer parts, Tensor x, Pass pass)
    {
        (Tensor q, Tensor k, Tensor v) = QueryKeyValue(parts, x, pass);
        (Tensor query, Tensor key) = Rotate(Heads.Split(q, parts.Core), Heads.Split(k, parts.Core), pass);
        Tensor value = Heads.Split(v, parts.Core);
        if (pass.Cache is not null) (key, value) = pass.Cache.Append(parts.Core, key, value);
        var input = new AttentionInput(query, key, value, pass.Layout.CausalBias(x.dtype));
        Tensor context = parts.Core.Forward(input, a => Heads.Attend(a, parts.Core.Scale, Config.AttentionDropout, pass), pass);
        return parts.Output.Forward(Heads.Join(context), Follow.ByDropout(Config.HiddenDropout), pass);
    }

    private (Tensor Query, Tensor Key, Tensor Value) QueryKeyValue(DecoderLayer parts, Tensor x, Pass pass)
    {
        if (parts.Fused is null)
        {
            pass.Share(x, parts.Query!, parts.Key!, parts.Value!);
            return (parts.Query!.Forward(x, pass), parts.Key!.Forward(x, pass), parts.Value!.Forward(x, pass));
        }
        Tensor all = parts.Fused.Forward(x, pass);
        long queries = (long)parts.Core.Heads * _headWidth, keys = (long)_keyHeads * _headWidth;
        return (all.narrow(-1, 0, queries), all.narrow(-1, queries, keys), all.narrow(-1, queries + keys, keys));
    }

    private Tensor FeedForward(DecoderLayer parts, Tensor x, Pass pass)
    {
        if (parts.Gate is not null) pass.Share(x, parts.Gate, parts.Up);
        Tensor inner = parts.Gate is null
            ? parts.Up.Forward(x, _activation, pass)
            : parts.Gate.Forward(x, _activation, pass) * parts.Up.Forward(x, pass);
        return parts.Down.Forward(inner, Follow.ByDropout(Config.HiddenDropout), pass);
    }

    /// <inheritdoc/>
    protected override Tensor Finish(Tensor hidden, Pass pass) => _finalNorm.Forward(hidden, pass);

    /// <inheritdoc/>
    public override Tensor VocabularyScores(Tensor hidden, Pass pass) =>
        _languageHead is null ? base.VocabularyScores(hidden, pass) : _languageHead.Forward(hidden, pass);
}
