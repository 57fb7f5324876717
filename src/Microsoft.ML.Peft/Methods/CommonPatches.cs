// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The weight chain of one site as a function: <c>(W, b) → (W', b')</c>. Computed in float32, given back in the site's type.</summary>
/// <param name="rewrite">The function; the pass is null while merging. It sees float32 numbers.</param>
public sealed class RewritePatch(Func<Tensor, Tensor?, Pass?, (Tensor Weight, Tensor? Bias)> rewrite) : WeightPatch
{
    /// <inheritdoc/>
    public override PatchForm Form => PatchForm.Weight;

    /// <inheritdoc/>
    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        (Tensor made, Tensor? shift) = rewrite(weight.to_type(ScalarType.Float32), bias?.to_type(ScalarType.Float32), pass);
        return (made.to_type(weight.dtype), shift?.to_type(weight.dtype));
    }
}

/// <summary>An addend to the weight: <c>W' = W + Δ</c>, Δ of as many numbers as W.</summary>
/// <param name="delta">Makes Δ in float32, <c>[out, in]</c> or the weight's shape; the pass is null while merging.</param>
public sealed class DeltaPatch(Func<Pass?, Tensor> delta) : WeightPatch
{
    /// <inheritdoc/>
    public override PatchForm Form => PatchForm.Weight;

    /// <inheritdoc/>
    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
        (weight + delta(pass).to_type(weight.dtype).view(weight.shape), bias);
}

/// <summary>Low-rank terms as a function of the pass.</summary>
/// <param name="terms">Makes the terms; the pass is null while merging.</param>
public sealed class TermsPatch(Func<Pass?, IReadOnlyList<LowRankTerm>> terms) : WeightPatch
{
    /// <inheritdoc/>
    public override PatchForm Form => PatchForm.LowRank;

    /// <inheritdoc/>
    public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) => terms(pass);
}
