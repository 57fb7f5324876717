// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Products in int8 by libtorch, in the same steps as the kernels': what <see cref="Precision.Int8Frozen"/> is where those are off. A
/// number half-way between two steps may go either way, so that results agree within a step. Slower than float32: for equal results.
/// </summary>
internal sealed class Int8Steps : IDisposable
{
    /// <summary>Columns beyond which sums in 32 bits could overflow.</summary>
    private const int Most = 65536;

    private readonly Lock _gate = new();
    private QuantisedWeight? _weight;

    /// <summary>True for a site whose sums fit into 32 bits.</summary>
    public static bool Fits(Projection site) => site.In <= Most;

    /// <summary>True where the kernels would take the product in int8, were they there.</summary>
    public static bool Fits(Projection site, Tensor x, Pass pass) => pass.Precision == Precision.Int8Frozen && !NativeKernels.On
        && Fits(site) && site.Packs && x.dtype == ScalarType.Float32 && x.device_type == DeviceType.CPU && x.numel() > 0;

    /// <summary>The weight with its numbers on their steps, <c>[out, in]</c> in float32; a new tensor of the running dispose scope.</summary>
    public Tensor Of(Tensor weight)
    {
        using Lock.Scope alone = _gate.EnterScope();
        _weight ??= QuantisedWeight.Of(weight, WeightFormat.Int8);
        return _weight.Dequantise();
    }

    /// <summary><c>x Wᵀ + b</c> of factors on their steps. The gradient is that of the product as it would be without steps.</summary>
    /// <param name="site">The projection.</param>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="bias">Bias <c>[out]</c>, or null.</param>
    public static Tensor Product(Projection site, Tensor x, Tensor? bias)
    {
        if (!is_grad_enabled() || !(x.requires_grad || bias is { requires_grad: true })) return Stepped(site, x, bias);
        Tensor plain = Products.Linear(x, site.Weight, bias);
        return plain + (Stepped(site, x, bias) - plain.detach());
    }

    private static Tensor Stepped(Projection site, Tensor x, Tensor? bias)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        return Products.Linear(OnSteps(x), site.Stepped(), bias).MoveToOuterDisposeScope();
    }

    // 256 steps from the lowest to the highest number of a row, or zero where that is beyond.
    private static Tensor OnSteps(Tensor x)
    {
        Tensor low = x.amin([-1], keepdim: true).clamp(max: 0), range = x.amax([-1], keepdim: true).clamp(min: 0) - low;
        Tensor inverse = where(range > 1e-30, 255 / range, zeros_like(range)), zero = (-low * inverse).round();
        Tensor steps = ((x * inverse).round() + zero).clamp(0, 255) - zero;
        return steps * (range / 255);
    }

    public void Dispose()
    {
        _weight?.Dispose();
        _weight = null;
    }
}
