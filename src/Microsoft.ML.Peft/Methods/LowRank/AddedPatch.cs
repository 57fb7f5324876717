// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// An addend to the weight whose own input may be dropped out while training: <c>y + Δ drop(x)</c>. Δ is a function of the
/// site's frozen weight, so several of them at one site add up.
/// </summary>
/// <param name="site">A projection or convolution.</param>
/// <param name="dropout">Share of Δ's input that is dropped while training.</param>
/// <param name="delta">Makes Δ in float32, of as many numbers as the weight; the pass is null while merging.</param>
internal sealed class AddedPatch(WeightSite site, double dropout, Func<Pass?, Tensor> delta) : WeightPatch
{
    /// <inheritdoc/>
    public override PatchForm Form => dropout > 0 ? PatchForm.Around : PatchForm.Weight;

    /// <inheritdoc/>
    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
        (weight + delta(pass).to_type(weight.dtype).reshape(weight.shape), bias);

    /// <inheritdoc/>
    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor change = delta(pass), y = next(x);
        Tensor seen = pass.Dropout(x.to_type(change.dtype), dropout);
        Tensor addend = site is Convolution convolution
            ? convolution.Convolve(seen, change.reshape(site.Weight.shape), null)
            : nn.functional.linear(seen, change);
        return y + addend.to_type(y.dtype);
    }
}
