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
    private QuantisedWeight? _weight, _transposed;

    /// <summary>True for a site whose sums fit into 32 bits, those of its gradient too.</summary>
    public static bool Fits(Projection site) => site.In <= Most && site.Out <= Most;

    /// <summary>True where the kernels would take the product in int8, were they there.</summary>
    public static bool Fits(Projection site, Tensor x, Pass pass) => pass.Precision == Precision.Int8Frozen && !NativeKernels.On
        && Fits(site) && site.Packs && x.dtype == ScalarType.Float32 && x.device_type == DeviceType.CPU && x.numel() > 0;

    /// <summary>The weight with its numbers on their steps, <c>[out, in]</c> in float32; a new tensor of the running dispose scope.</summary>
    public Tensor Of(Tensor weight) => Dequantised(ref _weight, weight);

    /// <summary>The transposed weight <c>[in, out]</c>, whose rows have steps of their own, for the gradient of the input.</summary>
    public Tensor TransposedOf(Tensor weight)
    {
        using Tensor transposed = weight.t();
        return Dequantised(ref _transposed, transposed);
    }

    private Tensor Dequantised(ref QuantisedWeight? place, Tensor weight)
    {
        using Lock.Scope alone = _gate.EnterScope();
        place ??= QuantisedWeight.Of(weight, WeightFormat.Int8);
        return place.Dequantise();
    }

    /// <summary><c>x Wᵀ + b</c> of factors on their steps, and <c>dy W</c> as the gradient, of factors on theirs.</summary>
    /// <param name="site">The projection.</param>
    /// <param name="x">Input <c>[..., in]</c>.</param>
    /// <param name="bias">Bias <c>[out]</c>, or null.</param>
    public static Tensor Product(Projection site, Tensor x, Tensor? bias)
    {
        Tensor y = is_grad_enabled() && x.requires_grad ? Function.apply(site, x) : Stepped(x, site.Stepped);
        return bias is null ? y : y + bias;
    }

    private static Tensor Stepped(Tensor x, Func<Tensor> weight)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        return Products.Linear(OnSteps(x), weight(), null).MoveToOuterDisposeScope();
    }

    private sealed class Function : autograd.SingleTensorFunction<Function>
    {
        public override string Name => nameof(Int8Steps);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var site = (Projection)vars[0];
            ctx.save_data("site", site);
            return Stepped((Tensor)vars[1], site.Stepped);
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            var site = (Projection)ctx.get_data("site")!;
            return [null!, Stepped(grad_output, site.SteppedBack)];
        }
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
        _transposed?.Dispose();
        _weight = _transposed = null;
    }
}
