// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Products by the path that is fastest on every TorchSharp.</summary>
internal static class Products
{
    /// <summary>
    /// <c>x Wᵀ + b</c>. Rows of a batch are laid end to end first: with a matrix TorchSharp takes the product and the bias in one
    /// pass, with a block of three axes in two.
    /// </summary>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="weight">Weight <c>[out, in]</c>.</param>
    /// <param name="bias">Bias <c>[out]</c>, or null.</param>
    /// <returns>Output <c>[..., out]</c>.</returns>
    public static Tensor Linear(Tensor x, Tensor weight, Tensor? bias)
    {
        if (bias is null || x.ndim <= 2) return nn.functional.linear(x, weight, bias);
        long[] shape = x.shape;
        Tensor rows = nn.functional.linear(x.reshape(-1, shape[^1]), weight, bias);
        shape[^1] = weight.shape[0];
        return rows.reshape(shape);
    }
}
