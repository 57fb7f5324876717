// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
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
    /// <summary>Any other linear map.</summary>
    OtherProjection,
    /// <summary>Norm beside the attention part.</summary>
    AttentionNorm,
    /// <summary>Norm beside the feed-forward part.</summary>
    FeedForwardNorm,
    /// <summary>Norm of the embeddings.</summary>
    EmbeddingNorm,
    /// <summary>Norm after the last layer.</summary>
    FinalNorm,
    /// <summary>Table of token embeddings.</summary>
    WordEmbedding,
    /// <summary>Table of positions.</summary>
    PositionEmbedding,
    /// <summary>Table of token types.</summary>
    TokenTypeEmbedding,
    /// <summary>Table of relative-position biases.</summary>
    RelativePosition,
    /// <summary>The attention part, before its residual connection.</summary>
    AttentionBlock,
    /// <summary>The feed-forward part, before its residual connection.</summary>
    FeedForwardBlock,
    /// <summary>A whole layer.</summary>
    LayerBlock,
    /// <summary>Residual connection (and norm, in post-norm networks) after the attention part.</summary>
    AttentionResidual,
    /// <summary>Residual connection (and norm, in post-norm networks) after the feed-forward part.</summary>
    FeedForwardResidual,
    /// <summary>Queries, keys and values to context, head by head.</summary>
    AttentionCore,
    /// <summary>The token sequence after the embeddings.</summary>
    EmbeddingSequence,
    /// <summary>The token sequence at a layer's input.</summary>
    LayerSequence,
    /// <summary>The hidden states of all layers.</summary>
    Taps,
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

    /// <summary>Layer number from 0; -1 for what stands before the layers, the layer count for what stands after.</summary>
    public int Layer { get; }

    /// <inheritdoc/>
    public override string ToString() => $"{Name} ({Role}, layer {Layer})";
}

/// <summary>A site with frozen numbers: a projection, a norm or an embedding table.</summary>
public abstract class WeightSite : Site
{
    private protected WeightSite(string name, SiteRole role, int layer, Tensor weight, Tensor? bias)
        : base(name, role, layer)
    {
        Weight = weight;
        Bias = bias;
    }

    /// <summary>The frozen weight in logical layout: <c>[out, in]</c>, <c>[width]</c> or <c>[rows, width]</c>.</summary>
    public Tensor Weight { get; internal set; }

    /// <summary>The frozen bias <c>[out]</c>, or null.</summary>
    public Tensor? Bias { get; internal set; }

    /// <summary>Weight and bias as the patch makes them; the frozen ones where there is no patch.</summary>
    private protected (Tensor Weight, Tensor? Bias) Effective(WeightPatch? patch, Pass pass) =>
        patch is null ? (Weight, Bias) : patch.Rewrite(Weight, Bias, pass);
}

/// <summary>A linear map <c>y = x Wᵀ + b</c>, from <c>[..., in]</c> to <c>[..., out]</c>.</summary>
public sealed class Projection : WeightSite
{
    /// <summary>Makes a projection over frozen tensors.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">Frozen weight <c>[out, in]</c>.</param>
    /// <param name="bias">Frozen bias <c>[out]</c>, or null.</param>
    /// <param name="storedTransposed">True where files keep the weight as <c>[in, out]</c> (GPT-2's Conv1D).</param>
    public Projection(string name, SiteRole role, int layer, Tensor weight, Tensor? bias, bool storedTransposed = false)
        : base(name, role, layer, weight, bias)
    {
        StoredTransposed = storedTransposed;
        Out = (int)weight.shape[0];
        In = (int)weight.shape[1];
    }

    /// <summary>Width of the output.</summary>
    public int Out { get; }

    /// <summary>Width of the input.</summary>
    public int In { get; }

    /// <summary>True where files keep the weight as <c>[in, out]</c>.</summary>
    public bool StoredTransposed { get; }

    /// <summary>Applies the map with the patch that the pass wears here.</summary>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output <c>[..., out]</c>.</returns>
    public Tensor Forward(Tensor x, Pass pass)
    {
        WeightPatch? patch = pass.Patch<WeightPatch>(this);
        if (patch is null) return Products.Linear(x, Weight, Bias);
        return patch.Form switch
        {
            PatchForm.LowRank => LowRank(x, patch, pass),
            PatchForm.Weight => Rewritten(x, patch, pass),
            _ => patch.Around(x, input => Products.Linear(input, Weight, Bias), pass),
        };
    }

    private Tensor Rewritten(Tensor x, WeightPatch patch, Pass pass)
    {
        (Tensor weight, Tensor? bias) = patch.Rewrite(Weight, Bias, pass);
        return Products.Linear(x, weight, bias);
    }

    private Tensor LowRank(Tensor x, WeightPatch patch, Pass pass)
    {
        Tensor? bias = patch.RewriteBias(Bias, pass);
        IReadOnlyList<LowRankTerm> terms = patch.Terms(pass);
        if (x.dtype == ScalarType.Float32 && terms.All(t => t.A.dtype == ScalarType.Float32)) return Accumulated(x, bias, terms, pass);
        Tensor y = Products.Linear(x, Weight, bias);
        foreach (LowRankTerm term in terms) y = y + term.Apply(x, pass);
        return y;
    }

    // On flat rows the second factor's product adds to the frozen product's result: no passes for scale and sum.
    private Tensor Accumulated(Tensor x, Tensor? bias, IReadOnlyList<LowRankTerm> terms, Pass pass)
    {
        long[] shape = x.shape;
        Tensor y = nn.functional.linear(x.reshape(-1, In), Weight, bias);
        foreach (LowRankTerm term in terms)
        {
            Tensor low = nn.functional.linear(pass.Dropout(x, term.Dropout).reshape(-1, In), term.A);   // [rows, rank]
            y.addmm_(low, term.B.t(), 1, (float)term.Scale);
            if (term.BiasB is not null) y = y + term.BiasB * term.Scale;
        }
        shape[^1] = Out;
        return y.view(shape);
    }
}

/// <summary>A layer norm over the last axis.</summary>
public sealed class Norm : WeightSite
{
    /// <summary>Makes a norm over frozen tensors.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">Scale <c>[width]</c>.</param>
    /// <param name="bias">Shift <c>[width]</c>, or null.</param>
    /// <param name="epsilon">Added to the variance.</param>
    public Norm(string name, SiteRole role, int layer, Tensor weight, Tensor? bias, double epsilon)
        : base(name, role, layer, weight, bias) => Epsilon = epsilon;

    /// <summary>Added to the variance.</summary>
    public double Epsilon { get; }

    /// <summary>Normalises with the patch that the pass wears here.</summary>
    /// <param name="x">Input <c>[..., width]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output of the same shape.</returns>
    public Tensor Forward(Tensor x, Pass pass)
    {
        WeightPatch? patch = pass.Patch<WeightPatch>(this);
        if (patch is { Form: PatchForm.Around }) return patch.Around(x, input => Normalise(input, null, pass), pass);
        return Normalise(x, patch, pass);
    }

    private Tensor Normalise(Tensor x, WeightPatch? patch, Pass pass)
    {
        (Tensor weight, Tensor? bias) = Effective(patch, pass);
        return nn.functional.layer_norm(x, [weight.shape[0]], weight, bias, Epsilon);
    }
}

/// <summary>A table of rows looked up by id.</summary>
public sealed class Embedding : WeightSite
{
    /// <summary>Makes a table over a frozen tensor.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">Table <c>[rows, width]</c>.</param>
    public Embedding(string name, SiteRole role, int layer, Tensor weight)
        : base(name, role, layer, weight, null)
    {
    }

    /// <summary>Looks rows up with the patch that the pass wears here.</summary>
    /// <param name="ids">Row numbers, int64, any shape <c>[...]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Rows <c>[..., width]</c>.</returns>
    public Tensor Forward(Tensor ids, Pass pass)
    {
        WeightPatch? patch = pass.Patch<WeightPatch>(this);
        if (patch is { Form: PatchForm.Around }) return patch.Around(ids, input => LookUp(input, Weight), pass);
        return LookUp(ids, Effective(patch, pass).Weight);
    }

    /// <summary>The whole table with the patch that the pass wears here, <c>[rows, width]</c>: for decoders that share it.</summary>
    /// <param name="pass">The running forward pass.</param>
    public Tensor Table(Pass pass) => Effective(pass.Patch<WeightPatch>(this), pass).Weight;

    private static Tensor LookUp(Tensor ids, Tensor table)
    {
        long[] shape = [.. ids.shape, table.shape[1]];
        return table.index_select(0, ids.reshape(-1)).reshape(shape);
    }
}

/// <summary>A part of a layer, <c>[batch, tokens, hidden]</c> to the same shape, before its residual connection.</summary>
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
    public AttentionCore(string name, int layer, int heads, int headWidth) : base(name, SiteRole.AttentionCore, layer)
    {
        Heads = heads;
        HeadWidth = headWidth;
    }

    /// <summary>Number of heads.</summary>
    public int Heads { get; }

    /// <summary>Width of a head.</summary>
    public int HeadWidth { get; }

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
    /// <param name="states">Embedding output and each layer's output, each <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Final hidden states.</returns>
    public Tensor Forward(IReadOnlyList<Tensor> states, Pass pass) =>
        pass.Patch<TapPatch>(this) is { } patch ? patch.Read(states, pass) : states[^1];
}
