// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A convolution over one to three axes, from <c>[batch, in, ...]</c> to <c>[batch, out, ...]</c>. Its weight
/// <c>[out, in / groups, kernel...]</c> counts as a matrix <c>[out, in / groups · kernel]</c> where a patch needs one.
/// </summary>
public sealed class Convolution : WeightSite
{
    /// <summary>Makes a convolution over frozen tensors.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">Frozen weight <c>[out, in / groups, kernel]</c>, <c>[out, in / groups, height, width]</c> or with frames before the height.</param>
    /// <param name="bias">Frozen bias <c>[out]</c>, or null.</param>
    /// <param name="stride">Step an axis, one number an axis of the kernel; null for 1.</param>
    /// <param name="padding">Zeros on either side, one number an axis of the kernel; null for 0.</param>
    /// <param name="groups">Groups of channels.</param>
    public Convolution(string name, SiteRole role, int layer, Tensor weight, Tensor? bias, long[]? stride = null, long[]? padding = null, int groups = 1)
        : base(name, role, layer, weight, bias)
    {
        long[] shape = weight.shape;
        if (shape.Length is not (3 or 4 or 5))
            throw new ArgumentException($"{name}: a convolution has a weight of three to five axes; given is [{string.Join(", ", shape)}].", nameof(weight));
        Kernel = shape[2..];
        Stride = stride ?? [.. Kernel.Select(_ => 1L)];
        Padding = padding ?? [.. Kernel.Select(_ => 0L)];
        (Groups, Out, In) = (groups, (int)shape[0], (int)shape[1] * groups);
    }

    /// <summary>Channels of the output.</summary>
    public int Out { get; }

    /// <summary>Channels of the input.</summary>
    public int In { get; }

    /// <summary>Groups of channels.</summary>
    public int Groups { get; }

    /// <summary>Extent of the kernel, one number an axis.</summary>
    public long[] Kernel { get; }

    /// <summary>Step an axis.</summary>
    public long[] Stride { get; }

    /// <summary>Zeros on either side, an axis.</summary>
    public long[] Padding { get; }

    /// <summary>Applies the convolution with a patch.</summary>
    /// <param name="x">Input <c>[batch, in, ...]</c>.</param>
    /// <param name="patch">The patch, or null for the bare convolution.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output <c>[batch, out, ...]</c>.</returns>
    public override Tensor Forward(Tensor x, WeightPatch? patch, Pass pass)
    {
        if (patch is { Form: PatchForm.Around }) return patch.Around(x, input => Convolve(input, Weight, Bias), pass);
        if (patch is { Form: PatchForm.LowRank }) return LowRank(x, patch, pass);
        (Tensor weight, Tensor? bias) = Effective(patch, pass);
        return Convolve(x, weight, bias);
    }

    private Tensor LowRank(Tensor x, WeightPatch patch, Pass pass)
    {
        Tensor y = Convolve(x, Weight, patch.RewriteBias(Bias, pass));
        foreach (LowRankTerm term in patch.Terms(pass)) y = y + Apply(term, x, pass);
        return y;
    }

    /// <summary>
    /// A low-rank term as two convolutions: A over all input channels with this site's kernel, step and padding, B over the
    /// rank at each place.
    /// </summary>
    /// <param name="term">The term, <c>A [rank, in · kernel]</c>, <c>B [out, rank]</c>.</param>
    /// <param name="x">Input <c>[batch, in, ...]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Addend <c>[batch, out, ...]</c>.</returns>
    public override Tensor Apply(LowRankTerm term, Tensor x, Pass pass)
    {
        long[] ones = [.. Kernel.Select(_ => 1L)];
        Tensor input = pass.Dropout(x.to_type(term.A.dtype), term.Dropout);
        Tensor low = Convolve(input, term.A.reshape((long[])[-1, In, .. Kernel]), null, groups: 1) * term.Scale;
        Tensor b = term.B.reshape((long[])[Out, -1, .. ones]);
        Tensor? shift = term.BiasB is null ? null : term.BiasB * term.Scale;
        Tensor y = Kernel.Length switch
        {
            1 => nn.functional.conv1d(low, b, shift),
            2 => nn.functional.conv2d(low, b, shift),
            _ => nn.functional.conv3d(low, b, shift),
        };
        return y.to_type(x.dtype);
    }

    /// <summary>The bare operation with other numbers, at this site's step and padding.</summary>
    /// <param name="x">Input <c>[batch, in, ...]</c>.</param>
    /// <param name="weight">Weight of the site's kernel.</param>
    /// <param name="bias">Bias, or null.</param>
    /// <param name="groups">Groups of channels; null for the site's.</param>
    public Tensor Convolve(Tensor x, Tensor weight, Tensor? bias, int? groups = null) => Kernel.Length switch
    {
        1 => nn.functional.conv1d(x, weight, bias, Stride[0], Padding[0], 1, groups ?? Groups),
        2 => nn.functional.conv2d(x, weight, bias, Stride, Padding, [1, 1], groups ?? Groups),
        _ => nn.functional.conv3d(x, weight, bias, Stride, Padding, [1, 1, 1], groups ?? Groups),
    };
}
