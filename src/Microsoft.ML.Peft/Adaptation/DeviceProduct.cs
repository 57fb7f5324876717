// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Products with frozen weights on GPUs in bfloat16: both factors are rounded, sums are float32's inside of the product, the result is
/// rounded once. What is around the product, biases and low-rank terms too, stays in float32.
/// </summary>
internal static class DeviceProduct
{
    /// <summary>True where the product is made in bfloat16.</summary>
    public static bool Fits(Projection site, Tensor x, Pass pass) => pass.Precision != Precision.Float32
        && x.device_type == DeviceType.CUDA && x.dtype == ScalarType.Float32 && site.Rounds;

    /// <summary><c>x Wᵀ + b</c>, <c>[..., out]</c> in float32.</summary>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="rounded">Weight <c>[out, in]</c> in bfloat16.</param>
    /// <param name="bias">Bias <c>[out]</c> in float32, or null.</param>
    public static Tensor Apply(Tensor x, Tensor rounded, Tensor? bias)
    {
        Tensor y = Products.Linear(x.to_type(ScalarType.BFloat16), rounded, null).to_type(ScalarType.Float32);
        return bias is null ? y : y + bias;
    }
}

/// <summary>The rounded copy of one frozen weight: made at first use, shared by all adaptations, freed with the backbone.</summary>
internal sealed class RoundedWeight : IDisposable
{
    private readonly Lock _gate = new();
    private Tensor? _rounded;

    public Tensor Of(Tensor weight)
    {
        if (Volatile.Read(ref _rounded) is { } there) return there;
        using Lock.Scope alone = _gate.EnterScope();
        if (_rounded is null)
        {
            using var off = no_grad();
            Volatile.Write(ref _rounded, weight.to_type(ScalarType.BFloat16).DetachFromDisposeScope());
        }
        return _rounded!;
    }

    public void Dispose()
    {
        _rounded?.Dispose();
        _rounded = null;
    }
}
