// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>Hugging Face names of the parts of one layer, after the layer's own path.</summary>
internal sealed record LayerNames(
    string Query, string Key, string Value, string Output, string AttentionNorm,
    string Up, string Down, string FeedForwardNorm, string AttentionResidual, string FeedForwardResidual)
{
    public static LayerNames Bert { get; } = new(
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "attention.output.LayerNorm",
        "intermediate.dense", "output.dense", "output.LayerNorm", "attention.output", "output");
}

/// <summary>
/// The post-norm encoder of BERT and its relatives: <c>a = LN(x + out(attention(x)))</c>, <c>x = LN(a + down(act(up a)))</c>.
/// Families differ in names, embeddings and positions (Devlin et al. 2019, arXiv 1810.04805).
/// </summary>
public abstract class PostNormEncoder : Backbone
{
    private readonly List<EncoderLayer> _layers = [];
    private readonly Follow _activation;

    private protected PostNormEncoder(BackboneConfig config, IWeightSource weights) : base(config, weights)
    {
        _activation = Follow.By(config.Activation);
        RequireEvenHeads();
    }

    /// <summary>What makes the first states of tokens: <c>LN(words + types + positions)</c>.</summary>
    private protected sealed record EmbeddingParts(Embedding Words, Sequence WordSequence, Embedding Positions, Embedding? Types, Norm Norm)
    {
        /// <summary>The tables in the order of the sum.</summary>
        public Embedding[] Tables { get; } = Types is null ? [Words, Positions] : [Words, Types, Positions];
    }

    /// <summary>Adds the sites that make the first states of tokens.</summary>
    /// <param name="width">Width of the tables.</param>
    /// <param name="positions">Rows of the position table.</param>
    /// <param name="types">Rows of the table of token types; 0 for none.</param>
    private protected EmbeddingParts AddEmbeddings(long width, long positions, long types)
    {
        Embedding words = AddEmbedding("embeddings.word_embeddings", SiteRole.WordEmbedding, Config.VocabularySize, width);
        Sequence sequence = AddWordSequence();
        return new EmbeddingParts(
            words, sequence,
            AddEmbedding("embeddings.position_embeddings", SiteRole.PositionEmbedding, positions, width),
            types == 0 ? null : AddEmbedding("embeddings.token_type_embeddings", SiteRole.TokenTypeEmbedding, types, width),
            AddNorm("embeddings.LayerNorm", SiteRole.EmbeddingNorm, -1, width));
    }

    /// <summary>The first states of a batch's tokens <c>[batch, tokens, width]</c>, normed and dropped out.</summary>
    /// <param name="parts">The sites.</param>
    /// <param name="batch">Tokens.</param>
    /// <param name="pad">Where positions are counted from the ids of the tokens, the padding token's; null where they are counted from 0.</param>
    /// <param name="pass">The running forward pass.</param>
    private protected Tensor Embedded(EmbeddingParts parts, TokenBatch batch, int? pad, Pass pass)
    {
        if (EmbeddedAtOnce(parts, batch, pad, pass) is { } all) return all;
        Tensor hidden = parts.WordSequence.Forward(parts.Words.Forward(batch.Ids, pass), pass);
        Positions.Check(batch, Config, pass);
        if (parts.Types is { } types) hidden = hidden + types.Forward(Positions.Types(batch, pass), pass);
        hidden = hidden + parts.Positions.Forward(pad is { } id ? Positions.ById(batch, id, pass) : Positions.Counted(batch, pass), pass);
        return pass.Dropout(parts.Norm.Forward(hidden, pass), Config.HiddenDropout);
    }

    private Tensor? EmbeddedAtOnce(EmbeddingParts parts, TokenBatch batch, int? pad, Pass pass)
    {
        if (pass.Patches[parts.WordSequence] is not null || pass.Layout.Inserted > 0) return null;
        if (batch.Ids.shape is not [long rows, long tokens] || tokens != pass.Layout.Tokens) return null;
        if (!FusedEmbedding.Fits(parts.Tables, parts.Norm, Config.HiddenDropout, pass)) return null;
        Positions.Check(batch, Config, pass);
        var words = new FusedEmbedding.Rows(parts.Words, batch.Ids);
        FusedEmbedding.Rows positions = batch.PositionIds is null && pad is null
            ? new(parts.Positions, null, pass.Patches.PositionShift + pass.Layout.PastTokens, Counted: true)
            : new(parts.Positions, pad is { } id ? Positions.ById(batch, id, pass) : Positions.Counted(batch, pass));
        ReadOnlySpan<FusedEmbedding.Rows> taken = parts.Types is null ? [words, positions] : [words, new(parts.Types, batch.TypeIds), positions];
        return FusedEmbedding.Apply(taken, parts.Norm, Config.HiddenDropout, rows, tokens, pass);
    }

    private sealed record EncoderLayer(
        Projection Query, Projection Key, Projection Value, Projection Output, Projection Up, Projection Down,
        Norm AttentionNorm, Norm FeedForwardNorm, AttentionCore Core, Block Attention, Block FeedForward, Block Whole,
        Residual AttentionResidual, Residual FeedForwardResidual, Sequence Sequence)
    {
        /// <summary>The same as kernels run it at once.</summary>
        public required FusedLayer.Parts Fused { get; init; }

        /// <summary>True where a token's output depends on the others' through keys and values alone, whatever is worn.</summary>
        public bool TokenByToken(Pass pass)
        {
            foreach (Site site in (ReadOnlySpan<Site>)[Core, Attention, FeedForward, Whole, AttentionResidual, FeedForwardResidual])
                if (pass.Patches[site] is not null) return false;
            foreach (Site site in (ReadOnlySpan<Site>)[Query, Output, Up, Down, AttentionNorm, FeedForwardNorm])
                if (pass.Patches[site] is WeightPatch { Form: PatchForm.Around }) return false;
            return true;
        }
    }

    /// <summary>Adds one layer's sites.</summary>
    private protected void AddLayer(string path, int layer, LayerNames names, bool attentionBias = true)
    {
        long width = Config.HiddenSize, inner = Config.IntermediateSize;
        string Path(string part) => path + "." + part;
        var parts = new EncoderLayer(
            AddProjection(Path(names.Query), SiteRole.Query, layer, width, width, attentionBias),
            AddProjection(Path(names.Key), SiteRole.Key, layer, width, width, attentionBias),
            AddProjection(Path(names.Value), SiteRole.Value, layer, width, width, attentionBias),
            AddProjection(Path(names.Output), SiteRole.AttentionOutput, layer, width, width),
            AddProjection(Path(names.Up), SiteRole.FeedForwardUp, layer, inner, width),
            AddProjection(Path(names.Down), SiteRole.FeedForwardDown, layer, width, inner),
            AddNorm(Path(names.AttentionNorm), SiteRole.AttentionNorm, layer, width),
            AddNorm(Path(names.FeedForwardNorm), SiteRole.FeedForwardNorm, layer, width),
            Add(new AttentionCore(Path("attention.core"), layer, Config.HeadCount, Config.HiddenSize / Config.HeadCount)),
            Add(new Block(Path("attention"), SiteRole.AttentionBlock, layer)),
            Add(new Block(Path("feed_forward"), SiteRole.FeedForwardBlock, layer)),
            Add(new Block(path, SiteRole.LayerBlock, layer)),
            Add(new Residual(Path(names.AttentionResidual), SiteRole.AttentionResidual, layer)),
            Add(new Residual(Path(names.FeedForwardResidual), SiteRole.FeedForwardResidual, layer)),
            Add(new Sequence(Path("input"), SiteRole.LayerSequence, layer)))
        { Fused = null! };
        _layers.Add(parts with { Fused = Fused(parts) });
    }

    private FusedLayer.Parts Fused(EncoderLayer parts) => new(
        [parts.Query, parts.Key, parts.Value, parts.Output, parts.Up, parts.Down], parts.AttentionNorm, parts.FeedForwardNorm, parts.Core,
        _activation.Kind, Config.AttentionDropout, Config.HiddenDropout,
        [parts.Core, parts.Attention, parts.FeedForward, parts.Whole, parts.AttentionNorm, parts.FeedForwardNorm, parts.AttentionResidual, parts.FeedForwardResidual]);

    /// <summary>Adds what stands after the layers.</summary>
    private protected void AddEnd(string? pooler = null)
    {
        if (pooler is not null && Stored(pooler + ".weight"))
            Pooler = AddProjection(pooler, SiteRole.Pooler, Config.LayerCount, Config.HiddenSize, Config.HiddenSize);
        Add(new Taps(Config.LayerCount));
    }

    /// <summary>Which of the added layers runs as the given application (ALBERT shares).</summary>
    internal virtual int LayerOf(int application) => application;

    /// <summary>Added to the attention scores of every layer, <c>[1 or batch, heads, tokens, tokens]</c>, or null.</summary>
    internal virtual Tensor? ScoreBias(long tokens, Pass pass) => null;

    /// <inheritdoc/>
    protected override Tensor Layer(int layer, Tensor hidden, Pass pass)
    {
        EncoderLayer parts = _layers[LayerOf(layer)];
        hidden = parts.Sequence.Forward(hidden, pass);
        bool first = pass.FirstTokenOnly && layer == Config.LayerCount - 1 && parts.TokenByToken(pass);
        if (ScoreBias(hidden.shape[1], pass) is null && FusedLayer.Apply(parts.Fused, hidden, first, pass) is { } output) return output;
        return parts.Whole.Forward(hidden, x =>
        {
            Tensor attended = pass.Scoped(() => parts.Attention.Forward(x, input => Attention(parts, input, first, pass), pass));
            if (first) x = x.narrow(1, pass.Layout.First, 1);
            x = parts.AttentionResidual.Forward(x, attended, (stream, y) => parts.AttentionNorm.ForwardSum(stream, y, pass), pass);
            Tensor fed = pass.Scoped(() => parts.FeedForward.Forward(x, input => FeedForward(parts, input, pass), pass));
            return parts.FeedForwardResidual.Forward(x, fed, (stream, y) => parts.FeedForwardNorm.ForwardSum(stream, y, pass), pass);
        }, pass);
    }

    // With `first`, only each row's own first token asks; all tokens answer.
    private Tensor Attention(EncoderLayer parts, Tensor x, bool first, Pass pass)
    {
        long tokens = x.shape[1];
        Tensor Split(Tensor y) => Heads.Split(y, parts.Core);
        Tensor? bias = pass.Layout.KeyBias(x.dtype);
        if (ScoreBias(tokens, pass) is { } relative)
        {
            if (first) relative = relative.narrow(2, pass.Layout.First, 1);
            bias = bias is null ? relative : bias + relative;
        }
        Tensor asking = first ? x.narrow(1, pass.Layout.First, 1) : x;
        pass.Share(x, parts.Query, parts.Key, parts.Value);
        var input = new AttentionInput(
            Split(parts.Query.Forward(asking, pass)), Split(parts.Key.Forward(x, pass)), Split(parts.Value.Forward(x, pass)), bias);
        Tensor context = Heads.Join(parts.Core.Forward(input, a => Heads.Attend(a, parts.Core.Scale, Config.AttentionDropout, pass), pass));
        return parts.Output.Forward(context, Follow.ByDropout(Config.HiddenDropout), pass);
    }

    private Tensor FeedForward(EncoderLayer parts, Tensor x, Pass pass) =>
        parts.Down.Forward(parts.Up.Forward(x, _activation, pass), Follow.ByDropout(Config.HiddenDropout), pass);
}
