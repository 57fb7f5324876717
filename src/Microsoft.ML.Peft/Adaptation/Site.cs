// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>What a site does in its network; the same words in every backbone.</summary>
public enum SiteRole
{
    /// <summary>Projection to attention queries.</summary>
    Query,
    /// <summary>Projection to attention keys.</summary>
    Key,
    /// <summary>Projection to attention values.</summary>
    Value,
    /// <summary>One projection to queries, keys and values (GPT-2's c_attn).</summary>
    QueryKeyValue,
    /// <summary>Projection of the joined heads back to the hidden width.</summary>
    AttentionOutput,
    /// <summary>First projection of the feed-forward part.</summary>
    FeedForwardUp,
    /// <summary>Gate projection of a gated feed-forward part.</summary>
    FeedForwardGate,
    /// <summary>Last projection of the feed-forward part.</summary>
    FeedForwardDown,
    /// <summary>Projection from the embedding width to the hidden width (ALBERT, ELECTRA).</summary>
    EmbeddingProjection,
    /// <summary>The dense map of the pooler.</summary>
    Pooler,
    /// <summary>Projection of what stands for a row or image into a space that another network shares (CLIP).</summary>
    JointProjection,
    /// <summary>Any other linear map.</summary>
    OtherProjection,
    /// <summary>The convolution that makes tokens of an image's patches.</summary>
    PatchEmbedding,
    /// <summary>A convolution over places, each channel by itself.</summary>
    DepthwiseConvolution,
    /// <summary>Any other convolution.</summary>
    OtherConvolution,
    /// <summary>The linear map or convolution between two stages, which leaves fewer places and more channels.</summary>
    StageProjection,
    /// <summary>Norm between two stages, or at the end of one.</summary>
    StageNorm,
    /// <summary>Any other norm.</summary>
    OtherNorm,
    /// <summary>Factors of attention scores, one a head.</summary>
    AttentionScale,
    /// <summary>Norm beside the attention part.</summary>
    AttentionNorm,
    /// <summary>Norm beside the attention of a decoder to its encoder; its projections have the roles of other attention.</summary>
    CrossAttentionNorm,
    /// <summary>Norm beside the feed-forward part.</summary>
    FeedForwardNorm,
    /// <summary>Norm of the embeddings.</summary>
    EmbeddingNorm,
    /// <summary>Norm after the last layer.</summary>
    FinalNorm,
    /// <summary>Norm of what stands for the whole row or image.</summary>
    PoolerNorm,
    /// <summary>Table of token embeddings.</summary>
    WordEmbedding,
    /// <summary>Table of positions.</summary>
    PositionEmbedding,
    /// <summary>Table of token types.</summary>
    TokenTypeEmbedding,
    /// <summary>The token in front of an image's patches.</summary>
    ClassToken,
    /// <summary>A tensor that a module uses as it is: the stacked matrices of experts.</summary>
    ModuleParameter,
    /// <summary>The token behind the class token that a teacher's labels were learned at (DeiT, AST).</summary>
    DistillationToken,
    /// <summary>The token that stood for hidden patches in pretraining; nothing reads it here.</summary>
    MaskToken,
    /// <summary>A learned token that asks the final states, or queries an image's states.</summary>
    PoolerToken,
    /// <summary>Factors on the output of a layer's part, one a channel.</summary>
    LayerScale,
    /// <summary>Table of relative-position biases.</summary>
    RelativePosition,
    /// <summary>The attention part, before its residual connection.</summary>
    AttentionBlock,
    /// <summary>The attention of a decoder to its encoder, before its residual connection.</summary>
    CrossAttentionBlock,
    /// <summary>The feed-forward part, before its residual connection.</summary>
    FeedForwardBlock,
    /// <summary>A whole layer.</summary>
    LayerBlock,
    /// <summary>Residual connection (and norm, in post-norm networks) after the attention part.</summary>
    AttentionResidual,
    /// <summary>Residual connection after the attention of a decoder to its encoder.</summary>
    CrossAttentionResidual,
    /// <summary>Residual connection (and norm, in post-norm networks) after the feed-forward part.</summary>
    FeedForwardResidual,
    /// <summary>Queries, keys and values to context, head by head.</summary>
    AttentionCore,
    /// <summary>Attention from a decoder's tokens to an encoder's, head by head.</summary>
    CrossAttentionCore,
    /// <summary>The rows of the word table, before positions, types and norms: what is inserted here gets all of them.</summary>
    WordSequence,
    /// <summary>The token sequence after the embeddings; in networks of two stacks an encoder's, then a decoder's.</summary>
    EmbeddingSequence,
    /// <summary>The token sequence at a layer's input.</summary>
    LayerSequence,
    /// <summary>The hidden states of all layers.</summary>
    Taps,
    /// <summary>Projection of the last hidden states to a score for each entry of the vocabulary.</summary>
    LanguageHead,
}

/// <summary>
/// A named, adaptable place of a frozen network. A site is a function; a <see cref="Patch"/> wraps it. Sites belong to
/// the backbone and hold no patch: which patch is worn is said by the <see cref="Pass"/> of each forward.
/// </summary>
public abstract class Site
{
    private protected Site(string name, SiteRole role, int layer)
    {
        Name = name;
        Role = role;
        Layer = layer;
    }

    /// <summary>Position in <c>Backbone.Sites</c>.</summary>
    public int Index { get; internal set; } = -1;

    /// <summary>Hugging Face module path inside the base model, e.g. <c>encoder.layer.0.attention.self.query</c>.</summary>
    public string Name { get; }

    /// <summary>What the site does.</summary>
    public SiteRole Role { get; }

    /// <summary>
    /// Layer number from 0; -1 for what stands before the layers, the layer count for what stands after. A decoder's layers
    /// are numbered on from its encoder's; what stands between the two stacks has the number of the decoder's first layer.
    /// </summary>
    public int Layer { get; }

    /// <summary>
    /// The module that this site is a part of, where targets name the whole: <c>attn</c> for the output map inside of one
    /// fused attention module. Null for a module of its own.
    /// </summary>
    public string? PartOf { get; init; }

    /// <summary>True for what stands beside the base model in a task model's file, and is named without its prefix.</summary>
    internal bool AtRoot { get; init; }

    /// <inheritdoc/>
    public override string ToString() => $"{Name} ({Role}, layer {Layer})";
}

/// <summary>
/// A part of a layer, <c>[batch, tokens, hidden]</c> to the same shape, before its residual connection. In pre-norm networks
/// its input is normed already; the stream itself is at the <see cref="Residual"/>.
/// </summary>
public sealed class Block : Site
{
    /// <summary>Makes a block site.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    public Block(string name, SiteRole role, int layer) : base(name, role, layer)
    {
    }

    /// <summary>Runs the body with the patch that the pass wears here.</summary>
    /// <param name="x">Input <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="body">The bare block.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output <c>[batch, tokens, hidden]</c>.</returns>
    public Tensor Forward(Tensor x, Func<Tensor, Tensor> body, Pass pass) =>
        pass.Patch<BlockPatch>(this) is { } patch ? patch.Around(x, body, pass) : body(x);
}

/// <summary>A residual connection: (stream, output of the part) to the new stream, the norm of post-norm networks included.</summary>
public sealed class Residual : Site
{
    /// <summary>Makes a residual site.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    public Residual(string name, SiteRole role, int layer) : base(name, role, layer)
    {
    }

    /// <summary>Joins stream and output with the patch that the pass wears here.</summary>
    /// <param name="stream">Residual stream <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="output">Output of the part <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="join">The bare connection.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>New stream <c>[batch, tokens, hidden]</c>.</returns>
    public Tensor Forward(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> join, Pass pass) =>
        pass.Patch<ResidualPatch>(this) is { } patch ? patch.Around(stream, output, join, pass) : join(stream, output);
}

/// <summary>Attention proper: queries, keys, values of all heads to contexts.</summary>
public sealed class AttentionCore : Site
{
    /// <summary>Makes an attention site.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="heads">Number of heads.</param>
    /// <param name="headWidth">Width of a head.</param>
    /// <param name="keyHeads">Number of heads of keys and values where they are shared by several heads of queries; null for as many.</param>
    /// <param name="role">What attends to what.</param>
    public AttentionCore(string name, int layer, int heads, int headWidth, int? keyHeads = null, SiteRole role = SiteRole.AttentionCore)
        : base(name, role, layer)
    {
        Heads = heads;
        HeadWidth = headWidth;
        KeyHeads = keyHeads ?? heads;
        Scale = 1 / Math.Sqrt(headWidth);
    }

    /// <summary>Number of heads.</summary>
    public int Heads { get; }

    /// <summary>Width of a head.</summary>
    public int HeadWidth { get; }

    /// <summary>Number of key and value heads; each serves <see cref="Heads"/> / KeyHeads query heads in a row.</summary>
    public int KeyHeads { get; }

    /// <summary>Factor on the products of queries and keys.</summary>
    public double Scale { get; init; }

    /// <summary>True where tokens attend inside of windows, which stand in the batch's place then: <c>[batch · windows, heads, tokens of a window, head width]</c>.</summary>
    public bool Windowed { get; init; }

    /// <summary>Runs attention with the patch that the pass wears here.</summary>
    /// <param name="input">Queries, keys, values and mask.</param>
    /// <param name="body">The bare attention.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Contexts <c>[batch, heads, tokens, head width]</c>.</returns>
    public Tensor Forward(AttentionInput input, Func<AttentionInput, Tensor> body, Pass pass) =>
        pass.Patch<AttentionPatch>(this) is { } patch ? patch.Around(input, body, pass) : body(input);
}

/// <summary>The token sequence at a place where tokens may be inserted, replaced or dropped.</summary>
public sealed class Sequence : Site
{
    /// <summary>Makes a sequence site.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    public Sequence(string name, SiteRole role, int layer) : base(name, role, layer)
    {
    }

    /// <summary>Lets the patch that the pass wears here change the sequence; it keeps <see cref="Pass.Layout"/> right.</summary>
    /// <param name="hidden">Hidden states <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Hidden states, perhaps with another number of tokens.</returns>
    public Tensor Forward(Tensor hidden, Pass pass) =>
        pass.Patch<SequencePatch>(this) is { } patch ? patch.Change(hidden, pass) : hidden;
}

/// <summary>All hidden states, read once at the end.</summary>
public sealed class Taps : Site
{
    /// <summary>Makes the taps of a backbone.</summary>
    /// <param name="layer">The layer count.</param>
    public Taps(int layer) : base("taps", SiteRole.Taps, layer)
    {
    }

    /// <summary>True where the pass wears a patch here, so that the backbone must keep the hidden states.</summary>
    internal bool Wanted(Pass pass) => pass.Patch<TapPatch>(this) is not null;

    /// <summary>Lets the patch make the final hidden states out of all hidden states.</summary>
    /// <param name="states">Embedding output and each layer's output, each <c>[batch, tokens, hidden]</c>; those of an encoder before those of its decoder.</param>
    /// <param name="finish">What the network does after its last layer (a final norm).</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Final hidden states.</returns>
    public Tensor Forward(IReadOnlyList<Tensor> states, Func<Tensor, Tensor> finish, Pass pass) =>
        pass.Patch<TapPatch>(this) is { } patch ? patch.Read(states, finish, pass) : finish(states[^1]);
}
