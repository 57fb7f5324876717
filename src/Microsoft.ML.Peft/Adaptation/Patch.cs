// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>How a patch at a weight site is given, so that fusing, merging and quantised storage need not know the method.</summary>
public enum PatchForm
{
    /// <summary>Low-rank terms beside the frozen product, and perhaps another bias.</summary>
    LowRank,
    /// <summary>The effective weight is a function of the frozen one.</summary>
    Weight,
    /// <summary>Any function around the site.</summary>
    Around,
}

/// <summary>What an adaptation puts on a site. Patches borrow the parameters of their adaptation and own nothing.</summary>
public abstract class Patch
{
    /// <summary>False where nothing of the patch is trained (then no gradient is needed for its sake).</summary>
    public virtual bool Trainable => true;

    /// <summary>False where a layer cannot run again in the backward pass, since the patch keeps a state from layer to layer; all activations are kept then.</summary>
    public virtual bool CanRunAgain => true;
}

/// <summary>
/// One low-rank term <c>y += s · B (A · dropout(x)) + b</c>; <c>A [rank, in]</c>, <c>B [out, rank]</c>.
/// </summary>
/// <param name="A">First factor <c>[rank, in]</c>.</param>
/// <param name="B">Second factor <c>[out, rank]</c>.</param>
/// <param name="Scale">The scaling s.</param>
/// <param name="BiasB">Bias of the second factor <c>[out]</c>, scaled as well, or null.</param>
/// <param name="Dropout">Probability that an input entry is dropped while training.</param>
public readonly record struct LowRankTerm(Tensor A, Tensor B, double Scale, Tensor? BiasB = null, double Dropout = 0)
{
    /// <summary>The term's share of the output.</summary>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Addend <c>[..., out]</c> in the type of x.</returns>
    public Tensor Apply(Tensor x, Pass pass)
    {
        Tensor input = pass.Dropout(x.to_type(A.dtype), Dropout);
        Tensor low = nn.functional.linear(input, A) * Scale;                 // [..., rank]: the smaller side to scale
        Tensor y = nn.functional.linear(low, B);
        if (BiasB is not null) y = y + BiasB * Scale;
        return y.to_type(x.dtype);
    }

    /// <summary>The term as a change of the weight, <c>s · B A</c>, <c>[out, in]</c>.</summary>
    public Tensor Delta() => B.matmul(A) * Scale;
}

/// <summary>A patch at a projection, norm or embedding.</summary>
public abstract class WeightPatch : Patch
{
    /// <summary>How this patch is given; the site picks its path by it.</summary>
    public abstract PatchForm Form { get; }

    /// <summary>The low-rank terms; only for <see cref="PatchForm.LowRank"/>.</summary>
    /// <param name="pass">The running forward pass, or null while merging.</param>
    public virtual IReadOnlyList<LowRankTerm> Terms(Pass? pass) => [];

    /// <summary>The bias that takes the frozen one's place.</summary>
    /// <param name="bias">Frozen bias <c>[out]</c>, or null.</param>
    /// <param name="pass">The running forward pass, or null while merging.</param>
    public virtual Tensor? RewriteBias(Tensor? bias, Pass? pass) => bias;

    /// <summary>
    /// The effective weight and bias. Merging runs this once. Low-rank patches need not override it.
    /// </summary>
    /// <param name="weight">Frozen weight in logical layout.</param>
    /// <param name="bias">Frozen bias, or null.</param>
    /// <param name="pass">The running forward pass, or null while merging.</param>
    /// <exception cref="NotSupportedException">The method cannot be merged.</exception>
    public virtual (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        if (Form == PatchForm.Around)
            throw new NotSupportedException(
                $"{GetType().Name} acts on activations and has no merged weight; keep the adapter unmerged.");
        Tensor? b = RewriteBias(bias, pass);
        foreach (LowRankTerm term in Terms(pass))
        {
            weight = weight + term.Delta().to_type(weight.dtype).view(weight.shape);
            if (term.BiasB is not null)
                b = b is null ? term.BiasB * term.Scale : b + term.BiasB * term.Scale;
        }
        return (weight, b);
    }

    /// <summary>
    /// Running mean and variance of the patch's own, at a <see cref="BatchNorm"/> that it trains: a training pass normalises by its
    /// own batch then, moves these, and <see cref="Rewrite"/> speaks of the bare norm. Null to keep the frozen ones.
    /// </summary>
    public virtual (NamedParameter Mean, NamedParameter Variance)? Statistics => null;

    /// <summary>The patched function; only for <see cref="PatchForm.Around"/>.</summary>
    /// <param name="x">Input of the site.</param>
    /// <param name="next">The site without this patch.</param>
    /// <param name="pass">The running forward pass.</param>
    public virtual Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => next(x);
}

/// <summary>A patch around a block: it may change its input or output, run beside it, or replace it.</summary>
public abstract class BlockPatch : Patch
{
    /// <summary>The patched block.</summary>
    /// <param name="x">Input <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="next">The block without this patch.</param>
    /// <param name="pass">The running forward pass.</param>
    public abstract Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass);
}

/// <summary>A patch around a residual connection.</summary>
public abstract class ResidualPatch : Patch
{
    /// <summary>The patched connection.</summary>
    /// <param name="stream">Residual stream <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="output">Output of the part <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="next">The connection without this patch.</param>
    /// <param name="pass">The running forward pass.</param>
    public abstract Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass);
}

/// <summary>Queries, keys and values of all heads, and what is added to the scores. Rotation is done, cached keys are there.</summary>
/// <param name="Query">Queries <c>[batch, heads, tokens, head width]</c>.</param>
/// <param name="Key">Keys <c>[batch, key heads, keys, head width]</c>: fewer heads than queries where these share them.</param>
/// <param name="Value">Values, shaped as the keys.</param>
/// <param name="Bias">Added to the scores: causal order, padding and relative positions, broadcast to <c>[batch, heads, tokens, keys]</c>; null for none.</param>
/// <param name="Relative">Where scores have a bias by distance (T5): that bias for other keys; it is part of <paramref name="Bias"/> already.</param>
public readonly record struct AttentionInput(Tensor Query, Tensor Key, Tensor Value, Tensor? Bias, RelativeBias? Relative = null);

/// <summary>Bias of attention scores by distance: entry (i, j) is that of a key at the distance <c>first + j - i</c> from its query.</summary>
/// <param name="first">Distance of the first key from the first query.</param>
/// <param name="queries">Number of queries.</param>
/// <param name="keys">Number of keys.</param>
/// <returns>Bias <c>[1, heads, queries, keys]</c>.</returns>
public delegate Tensor RelativeBias(long first, long queries, long keys);

/// <summary>A patch around attention proper: prefix keys, edits of head outputs, token selection.</summary>
public abstract class AttentionPatch : Patch
{
    /// <summary>Number of keys in front that count as tokens in the positions of the row's own; 0 where those stay.</summary>
    public virtual int PositionShift => 0;

    /// <summary>The patched attention.</summary>
    /// <param name="input">Queries, keys, values and mask.</param>
    /// <param name="next">Attention without this patch; gives contexts <c>[batch, heads, tokens, head width]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    public abstract Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass);
}

/// <summary>A patch that inserts, replaces or drops tokens.</summary>
public abstract class SequencePatch : Patch
{
    /// <summary>True for a map of the hidden states that leaves the tokens as they are.</summary>
    public virtual bool KeepsTokens => false;

    /// <summary>Changes the sequence and sets <see cref="Pass.Layout"/> to fit.</summary>
    /// <param name="hidden">Hidden states <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    public abstract Tensor Change(Tensor hidden, Pass pass);
}

/// <summary>A patch that reads the hidden states of all layers.</summary>
public abstract class TapPatch : Patch
{
    /// <summary>Makes the final hidden states.</summary>
    /// <param name="states">Embedding output and each layer's output; those of an encoder before those of its decoder.</param>
    /// <param name="finish">What the network does after its last layer (a final norm); for patches that build on its own last state.</param>
    /// <param name="pass">The running forward pass.</param>
    public abstract Tensor Read(IReadOnlyList<Tensor> states, Func<Tensor, Tensor> finish, Pass pass);
}
