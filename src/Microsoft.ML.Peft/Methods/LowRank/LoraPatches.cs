// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>LoRA at a projection: low-rank terms, given as data.</summary>
internal sealed class LoraPatch(LoraFactors factors) : WeightPatch
{
    public override PatchForm Form => PatchForm.LowRank;

    public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) =>
        factors.StartTerm is { } start ? [factors.Term, start] : [factors.Term];

    public override Tensor? RewriteBias(Tensor? bias, Pass? pass) =>
        factors.Bias is null || bias is null ? bias : factors.Bias.Value.to_type(bias.dtype);

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        if (factors.Site is Convolution { Groups: > 1 })
            throw new NotSupportedException(
                $"The update at {factors.Site.Name} mixes channels that its groups keep apart, so it cannot be merged; keep the adapter unmerged, or exclude grouped convolutions.");
        return base.Rewrite(weight, bias, pass);
    }
}

/// <summary>
/// DoRA at a projection (Liu et al. 2024, arXiv 2402.09353): <c>W' = diag(m/n) V</c>, <c>V = W + s B A</c>, n the lengths of V's
/// rows, taken as constants. Written as a change of the unpatched output, <c>y + (m/n − 1) ⊙ W x̃ + (m/n) ⊙ s B A x̃</c>, so
/// that the weight itself needs no gradient and a fresh patch changes nothing.
/// </summary>
internal sealed class DoraPatch(LoraFactors factors) : WeightPatch
{
    public override PatchForm Form => PatchForm.Around;

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor y = next(x);
        Tensor seen = pass.Dropout(x, factors.Dropout);
        Tensor product = ReferenceEquals(seen, x) ? y : next(seen);
        if (factors.Site.Bias is { } frozen) product = product - factors.OnOutput(frozen);   // W x̃: the bias is not scaled
        if (factors.StartTerm is { } start)
        {
            y = y + start.Apply(x, pass);
            product = product + start.Apply(seen, pass);
        }
        Tensor ratio = factors.OnOutput(factors.Ratio());
        Tensor change = (ratio - 1) * product + ratio * factors.Site.Apply(factors.Term with { Dropout = 0 }, seen, pass);
        if (factors is { Bias: { } trained, Site.Bias: { } old }) change = change + factors.OnOutput(trained.Value - old);
        return y + change.to_type(y.dtype);
    }

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        Tensor ratio = factors.Ratio().reshape((long[])[-1, .. weight.shape.Skip(1).Select(_ => 1L)]);
        Tensor merged = ratio * (weight.to_type(ScalarType.Float32) + factors.Delta());
        return (merged.to_type(weight.dtype), factors.Bias is null || bias is null ? bias : factors.Bias.Value.to_type(bias.dtype));
    }
}

/// <summary>LoRA or DoRA at an embedding table: <c>E' = E + s (B A)ᵀ</c>; only the rows that are looked up are made.</summary>
internal sealed class LoraTablePatch(LoraFactors factors) : WeightPatch
{
    public override PatchForm Form => PatchForm.Around;

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor rows = next(x);                                                   // [..., width]
        Tensor low = factors.A.Value.index_select(1, x.reshape(-1)).t();         // [tokens, rank]
        Tensor change = nn.functional.linear(low * factors.Scale, factors.B.Value).reshape(rows.shape);
        if (factors.Magnitude is null) return rows + change.to_type(rows.dtype);
        Tensor ratio = factors.Ratio();
        return rows + ((ratio - 1) * rows + ratio * change).to_type(rows.dtype);
    }

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        Tensor merged = weight.to_type(ScalarType.Float32) + factors.Delta();
        if (factors.Magnitude is not null) merged = merged * factors.Ratio();
        return (merged.to_type(weight.dtype), bias);
    }
}
