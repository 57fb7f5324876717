// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Two factors, trained or shared; VeRA's matrices (or their diagonals) stand between and in front of them.</summary>
internal sealed class HubFactors(NamedParameter a, NamedParameter b, (NamedParameter D, NamedParameter B)? vera)
{
    /// <summary>A, or D A: <c>[rank, in]</c>; block below block for a fused projection.</summary>
    public Tensor A => vera is not { D: var d } ? a.Value : d.Value.dim() == 1 ? d.Value.unsqueeze(1) * a.Value : d.Value.matmul(a.Value);

    /// <summary>B, or Λ B: <c>[out, rank]</c>.</summary>
    public Tensor B => vera is not { B: var l } ? b.Value : l.Value.dim() == 1 ? l.Value.unsqueeze(1) * b.Value : l.Value.matmul(b.Value);
}

/// <summary>A gate a row and block: the mean over all positions of a sigmoid, <c>[batch, 1, blocks]</c>.</summary>
internal static class HubGate
{
    public static Tensor Of(Tensor x, (NamedParameter Weight, NamedParameter Bias) gate) =>
        nn.functional.linear(x, gate.Weight.Value, gate.Bias.Value).sigmoid().mean([1], keepdim: true);
}

/// <summary>Gated LoRA: <c>y = W x + b + g · B A x</c>, without α/r.</summary>
internal sealed class HubGatedPatch(HubProjection place, HubFactors factors, (NamedParameter Weight, NamedParameter Bias) gate, double dropout) : WeightPatch
{
    public override PatchForm Form => PatchForm.Around;

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor input = x.to_type(ScalarType.Float32), a = factors.A, b = factors.B;
        Tensor g = HubGate.Of(input, gate), seen = pass.Dropout(input, dropout);
        long rank = a.shape[0] / place.Adapted.Length;
        Tensor Block(int at)
        {
            Tensor low = nn.functional.linear(seen, a.narrow(0, at * rank, rank));
            return nn.functional.linear(low, b.narrow(0, at * place.BlockOut, place.BlockOut)) * g.narrow(-1, at, 1);
        }
        Tensor change = place.Adapted.Length == 1 ? Block(0) : cat([.. Enumerable.Range(0, place.Adapted.Length).Select(Block)], -1);
        return next(x) + place.Spread(change, 0).to_type(x.dtype);
    }
}

/// <summary>(IA)³: <c>y = l ⊙ (W x + b)</c>, l times α or times the gate.</summary>
internal sealed class HubScalePatch(HubProjection place, NamedParameter vector, double alpha, (NamedParameter Weight, NamedParameter Bias)? gate) : WeightPatch
{
    public override PatchForm Form => PatchForm.Around;

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor l = vector.Value.view(1, 1, -1);
        if (gate is { } trained)
        {
            Tensor g = HubGate.Of(x.to_type(ScalarType.Float32), trained);                      // [batch, 1, blocks]
            l = cat([.. place.Adapted.Select((_, at) => l.narrow(-1, at * place.BlockOut, place.BlockOut) * g.narrow(-1, at, 1))], -1);
        }
        else if (alpha != 1) l = l * alpha;
        Tensor y = next(x);
        return y * place.Spread(l, 1).to_type(y.dtype);
    }

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        if (gate is not null) return base.Rewrite(weight, bias, pass);
        Tensor l = place.Spread(vector.Value.view(-1) * alpha, 1).to_type(weight.dtype);
        return (weight * l.unsqueeze(1), bias is null ? null : bias * l);
    }
}

/// <summary>DoRA of AdapterHub: <c>y = (m/n) ⊙ (W x + b + s B A x)</c>, n the lengths of the rows of <c>W + B A</c>, with gradients.</summary>
internal sealed class HubDoraPatch(Projection site, HubFactors factors, NamedParameter lengths, double scale, double dropout) : WeightPatch
{
    public override PatchForm Form => PatchForm.Around;

    // [out, 1]
    private Tensor Ratio()
    {
        Tensor changed = site.Weight.to_type(ScalarType.Float32) + factors.B.matmul(factors.A);
        return lengths.Value / changed.norm(1, keepdim: true);
    }

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor y = next(x) + new LowRankTerm(factors.A, factors.B, scale, Dropout: dropout).Apply(x, pass);
        return y * Ratio().squeeze(1).to_type(y.dtype);
    }

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        Tensor ratio = Ratio();
        Tensor merged = ratio * (weight.to_type(ScalarType.Float32) + factors.B.matmul(factors.A) * scale);
        return (merged.to_type(weight.dtype), bias is null ? null : bias * ratio.squeeze(1).to_type(bias.dtype));
    }
}
