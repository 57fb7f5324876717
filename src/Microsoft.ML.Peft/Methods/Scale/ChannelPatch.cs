// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Factors and a shift of channels around a site: <c>y = γ ⊙ f(α ⊙ x) + β</c>. The axis follows from the kind of site: the
/// second of a convolution, the last of all others. Run as functions of activations, so that the weight needs no gradient;
/// merging folds them into weight and bias.
/// </summary>
/// <param name="site">The site.</param>
internal sealed class ChannelPatch(WeightSite site) : WeightPatch
{
    /// <summary>α, factors of the input's channels, of any shape; null for none.</summary>
    public Func<Tensor>? Input { get; init; }

    /// <summary>γ, factors of the output's channels, of any shape; null for none.</summary>
    public Func<Tensor>? Scale { get; init; }

    /// <summary>β, added to the output's channels, of any shape; null for none.</summary>
    public Func<Tensor>? Shift { get; init; }

    public override PatchForm Form => PatchForm.Around;

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        if (Input is not null) x = (x * Channels(Input())).to_type(x.dtype);
        Tensor y = next(x);
        if (Scale is null && Shift is null) return y;
        Tensor changed = Scale is null ? y : y * Channels(Scale());
        if (Shift is not null) changed = changed + Channels(Shift());
        return changed.to_type(y.dtype);
    }

    // Factors are made for the axis of channels: [1, c, 1, ...] at a convolution, [c] elsewhere.
    private Tensor Channels(Tensor factors) => site is Convolution convolution
        ? factors.reshape([1, -1, .. convolution.Kernel.Select(_ => 1L)])
        : factors.reshape(-1);

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        Tensor w = weight.to_type(ScalarType.Float32);
        Tensor? b = bias?.to_type(ScalarType.Float32);
        if (Input is not null) w = w * InputColumns(Input());
        if (Scale is not null) (w, b) = (w * Rows(Scale()), b is null ? null : b * Scale().reshape(-1));
        if (Shift is not null && site is Embedding) w = w + Shift().reshape(-1);
        else if (Shift is not null) b = b is null ? Shift().reshape(-1) : b + Shift().reshape(-1);
        return (w.to_type(weight.dtype), b?.to_type(weight.dtype));
    }

    // Outputs are the first axis of weights, the last of tables.
    private Tensor Rows(Tensor factors) => site is Embedding
        ? factors.reshape(-1)
        : factors.reshape([-1, .. site.Weight.shape.Skip(1).Select(_ => 1L)]);

    // The second axis of weights is the input; each group of a convolution reads channels of its own.
    private Tensor InputColumns(Tensor factors)
    {
        if (site is not Convolution { } convolution) return factors.reshape(1, -1);
        long groups = convolution.Groups, inside = convolution.In / groups, outside = convolution.Out / groups;
        return factors.reshape(groups, 1, inside).expand(groups, outside, inside)
            .reshape([convolution.Out, inside, .. convolution.Kernel.Select(_ => 1L)]);
    }
}
