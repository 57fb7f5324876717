// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>Activations by their names in config.json.</summary>
public static class Activations
{
    private static readonly Dictionary<string, Func<Tensor, Tensor>> _byName = new(StringComparer.Ordinal)
    {
        ["gelu"] = nn.functional.gelu,
        ["gelu_python"] = nn.functional.gelu,
        ["gelu_new"] = GeluTanh,
        ["gelu_fast"] = GeluTanh,
        ["gelu_pytorch_tanh"] = GeluTanh,
        ["gelu_accurate"] = GeluTanh,
        ["gelu_10"] = x => nn.functional.gelu(x).clamp(-10, 10),
        ["quick_gelu"] = x => x * (x * 1.702).sigmoid(),
        ["relu"] = x => x.relu(),
        ["relu2"] = x => x.relu().square(),
        ["relu6"] = x => x.clamp(0, 6),
        ["leaky_relu"] = x => where(x >= 0, x, x * 0.01),
        ["silu"] = x => x * x.sigmoid(),
        ["swish"] = x => x * x.sigmoid(),
        ["mish"] = x => x * Softplus(x).tanh(),
        ["sigmoid"] = x => x.sigmoid(),
        ["tanh"] = x => x.tanh(),
        ["linear"] = x => x,
    };

    /// <summary>All names, sorted.</summary>
    public static IReadOnlyList<string> Names { get; } = [.. _byName.Keys.Order(StringComparer.Ordinal)];

    /// <summary>The activation of a name as kernels know it.</summary>
    internal static ActivationKind Kind(string name) => name switch
    {
        "gelu" or "gelu_python" => ActivationKind.Gelu,
        "gelu_new" or "gelu_fast" or "gelu_pytorch_tanh" or "gelu_accurate" => ActivationKind.GeluTanh,
        "relu" => ActivationKind.Relu,
        _ => ActivationKind.None,
    };

    /// <summary>The activation of a name.</summary>
    /// <param name="name">Name as in config.json.</param>
    /// <exception cref="NotSupportedException">Unknown name; the message lists the known ones.</exception>
    public static Func<Tensor, Tensor> Get(string name) => _byName.TryGetValue(name, out Func<Tensor, Tensor>? f)
        ? f
        : throw new NotSupportedException($"Unknown activation '{name}' in config.json; known: {string.Join(", ", Names)}.");

    // x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))
    private static Tensor GeluTanh(Tensor x) =>
        0.5 * x * (1 + (0.7978845608028654 * (x + 0.044715 * x.pow(3))).tanh());

    // log(1 + eˣ) without overflow.
    private static Tensor Softplus(Tensor x) => x.relu() + (-x.abs()).exp().log1p();
}
