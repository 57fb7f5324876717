// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A batch norm over the last axis (Ioffe and Szegedy 2015, arXiv 1502.03167): <c>w ⊙ (x − μ) / √(σ² + ε) + b</c> with a running
/// mean and variance. These are frozen, in training passes too, unless the patch that is worn brings its own: then a
/// training pass takes mean and variance of its batch, and moves the patch's.
/// </summary>
public sealed class BatchNorm : Norm
{
    /// <summary>Share of a batch's statistics in the running ones.</summary>
    public const double Momentum = 0.1;

    /// <summary>Makes a norm over frozen tensors.</summary>
    /// <param name="name">Hugging Face module path.</param>
    /// <param name="role">Role in the network.</param>
    /// <param name="layer">Layer number.</param>
    /// <param name="weight">Scale <c>[width]</c>.</param>
    /// <param name="bias">Shift <c>[width]</c>.</param>
    /// <param name="mean">Running mean <c>[width]</c>.</param>
    /// <param name="variance">Running variance <c>[width]</c>.</param>
    /// <param name="epsilon">Added to the variance.</param>
    public BatchNorm(string name, SiteRole role, int layer, Tensor weight, Tensor bias, Tensor mean, Tensor variance, double epsilon = 1e-5)
        : base(name, role, layer, weight, bias, epsilon) => (Mean, Variance) = (mean, variance);

    /// <summary>The frozen running mean <c>[width]</c>.</summary>
    public Tensor Mean { get; }

    /// <summary>The frozen running variance <c>[width]</c>.</summary>
    public Tensor Variance { get; }

    /// <summary>Normalises with a patch.</summary>
    /// <param name="x">Input <c>[..., width]</c>.</param>
    /// <param name="patch">The patch, or null for the bare norm.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns>Output of the same shape.</returns>
    /// <exception cref="ArgumentException">A training pass that takes its batch's statistics has one place a channel.</exception>
    public override Tensor Forward(Tensor x, WeightPatch? patch, Pass pass)
    {
        if (patch is { Form: PatchForm.Around }) return patch.Around(x, input => ByRunning(input, Weight, Bias), pass);
        (Tensor weight, Tensor? bias) = Effective(patch, pass);
        if (!pass.Training || patch?.Statistics is not { } own) return ByRunning(x, weight, bias);
        return ByBatch(x, weight, bias, own.Mean.Value, own.Variance.Value, Epsilon, pass.FirstTime(this));
    }

    // One pass over x: scale and shift are made of the statistics beforehand.
    private Tensor ByRunning(Tensor x, Tensor weight, Tensor? bias)
    {
        Tensor scale = weight.to_type(ScalarType.Float32) * (Variance.to_type(ScalarType.Float32) + Epsilon).rsqrt();
        Tensor shift = Mean.to_type(ScalarType.Float32) * scale * -1;
        if (bias is not null) shift = shift + bias.to_type(ScalarType.Float32);
        return shift.addcmul(x.to_type(ScalarType.Float32), scale, 1).to_type(x.dtype);
    }

    /// <summary>Normalises by mean and variance of x.</summary>
    /// <param name="x">Input <c>[..., width]</c>.</param>
    /// <param name="weight">Scale <c>[width]</c>.</param>
    /// <param name="bias">Shift <c>[width]</c>, or null.</param>
    /// <param name="mean">Running mean in float32.</param>
    /// <param name="variance">Running variance in float32.</param>
    /// <param name="epsilon">Added to the variance.</param>
    /// <param name="moves">True to move the running statistics.</param>
    internal static Tensor ByBatch(Tensor x, Tensor weight, Tensor? bias, Tensor mean, Tensor variance, double epsilon, bool moves)
    {
        Tensor flat = x.to_type(ScalarType.Float32).reshape(-1, x.shape[^1]);
        if (flat.shape[0] < 2)
            throw new ArgumentException("A batch norm that is trained has one place a channel in this batch, of which there is no variance; train on more rows at once, or on larger images.");
        // Copies: the backward pass keeps what was given, and the running ones change in place.
        Tensor movedMean = mean.clone(), movedVariance = variance.clone();
        Tensor y = nn.functional.batch_norm(flat, movedMean, movedVariance, weight.to_type(ScalarType.Float32), bias?.to_type(ScalarType.Float32)!,
            training: true, momentum: Momentum, eps: epsilon);
        if (moves)
        {
            using var off = no_grad();
            mean.copy_(movedMean);
            variance.copy_(movedVariance);
        }
        return y.reshape(x.shape).to_type(x.dtype);
    }
}
