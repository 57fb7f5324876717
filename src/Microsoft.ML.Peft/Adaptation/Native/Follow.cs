// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>What is done to a projection's output at once: an activation, then dropout. Kernels do it before the result leaves the registers.</summary>
/// <param name="Activation">The activation, or null.</param>
/// <param name="Kind">The same as kernels know it; <see cref="ActivationKind.None"/> where they do not.</param>
/// <param name="Dropout">Share of entries dropped while training.</param>
internal readonly record struct Follow(Func<Tensor, Tensor>? Activation, ActivationKind Kind, double Dropout)
{
    /// <summary>Nothing follows.</summary>
    public static Follow Nothing => default;

    /// <summary>An activation by its name in config.json follows.</summary>
    public static Follow By(string activation) => new(Activations.Get(activation), Activations.Kind(activation), 0);

    /// <summary>Dropout follows.</summary>
    public static Follow ByDropout(double share) => new(null, ActivationKind.None, share);

    /// <summary>Both by libtorch.</summary>
    /// <param name="y">The projection's output.</param>
    /// <param name="pass">The running forward pass.</param>
    public Tensor Apply(Tensor y, Pass pass) => pass.Dropout(Activation is null ? y : Activation(y), Dropout);
}
