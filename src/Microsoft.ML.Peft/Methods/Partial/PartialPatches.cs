// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>A trained bias in place of the frozen one; the weight stays.</summary>
public sealed class BiasPatch : WeightPatch
{
    private readonly NamedParameter _bias;

    /// <summary>Makes the patch.</summary>
    /// <param name="bias">The trained bias <c>[out]</c>.</param>
    public BiasPatch(NamedParameter bias) => _bias = bias;

    /// <inheritdoc/>
    public override PatchForm Form => PatchForm.LowRank;

    /// <inheritdoc/>
    public override bool Trainable => _bias.Trainable;

    /// <inheritdoc/>
    public override Tensor? RewriteBias(Tensor? bias, Pass? pass) =>
        bias is null ? _bias.Value : _bias.Value.to_type(bias.dtype);
}

/// <summary>Trained copies in place of a site's frozen weight and bias.</summary>
public sealed class CopyPatch : WeightPatch
{
    private readonly NamedParameter _weight;
    private readonly NamedParameter? _bias;
    private readonly RunningStatistics? _statistics;

    /// <summary>Makes the patch.</summary>
    /// <param name="weight">The trained weight, shaped as the site's.</param>
    /// <param name="bias">The trained bias, or null where the site has none or keeps its own.</param>
    public CopyPatch(NamedParameter weight, NamedParameter? bias) : this(weight, bias, null)
    {
    }

    internal CopyPatch(NamedParameter weight, NamedParameter? bias, RunningStatistics? statistics) =>
        (_weight, _bias, _statistics) = (weight, bias, statistics);

    /// <inheritdoc/>
    public override (NamedParameter Mean, NamedParameter Variance)? Statistics => _statistics is null ? null : (_statistics.Mean, _statistics.Variance);

    /// <inheritdoc/>
    public override PatchForm Form => PatchForm.Weight;

    /// <inheritdoc/>
    public override bool Trainable => _weight.Trainable || _bias is { Trainable: true };

    /// <inheritdoc/>
    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        if (_statistics is not null && pass is not { Training: true }) return _statistics.Fold(_weight.Value, _bias?.Value ?? bias, weight.dtype);
        return (_weight.Value.to_type(weight.dtype), bias is null || _bias is null ? bias : _bias.Value.to_type(bias.dtype));
    }
}

/// <summary>Running statistics of a batch norm that is trained, beside the frozen ones.</summary>
internal sealed class RunningStatistics(BatchNorm site, NamedParameter mean, NamedParameter variance)
{
    public NamedParameter Mean => mean;

    public NamedParameter Variance => variance;

    /// <summary>Scale and shift that do over the frozen statistics what the given ones do over these.</summary>
    public (Tensor Weight, Tensor? Bias) Fold(Tensor weight, Tensor? bias, ScalarType dtype)
    {
        Tensor own = (variance.Value + site.Epsilon).rsqrt(), frozen = (site.Variance.to_type(ScalarType.Float32) + site.Epsilon).sqrt();
        Tensor shift = weight * own * (site.Mean.to_type(ScalarType.Float32) - mean.Value);
        return ((weight * own * frozen).to_type(dtype), (bias is null ? shift : bias + shift).to_type(dtype));
    }

    /// <summary>Copies of a site's statistics, as buffers of an adaptation; null where the site is no batch norm.</summary>
    /// <param name="adaptation">Their owner.</param>
    /// <param name="site">Any site.</param>
    /// <param name="path">What stands before <c>.running_mean</c> in their names.</param>
    public static RunningStatistics? Of(PeftAdaptation adaptation, WeightSite site, string path)
    {
        if (site is not BatchNorm norm) return null;
        NamedParameter Keep(string name, Tensor frozen) =>
            adaptation.Add(new NamedParameter($"{path}.{name}", TrainedCopies.Copy(frozen), trainable: false) { Learned = true });
        return new RunningStatistics(norm, Keep("running_mean", norm.Mean), Keep("running_var", norm.Variance));
    }
}

/// <summary>Trained copies of a site's frozen numbers.</summary>
internal static class TrainedCopies
{
    /// <summary>Puts a trained copy of the whole site into the adaptation.</summary>
    /// <param name="adaptation">Its owner.</param>
    /// <param name="site">The site that is copied.</param>
    public static void Whole(PeftAdaptation adaptation, WeightSite site)
    {
        string path = adaptation.Backbone.PathOf(site);
        NamedParameter weight = adaptation.Add(path + site.WeightSuffix, Copy(site.Weight));
        NamedParameter? bias = site.Bias is null ? null : adaptation.Add($"{path}.bias", Copy(site.Bias));
        adaptation.Attach(site, new CopyPatch(weight, bias, RunningStatistics.Of(adaptation, site, path)));
    }

    /// <summary>Adds a trained copy of the site's bias, without a patch.</summary>
    /// <param name="adaptation">Its owner.</param>
    /// <param name="site">A site that has a bias.</param>
    /// <param name="middle">What stands between the path and <c>bias</c>.</param>
    public static NamedParameter Bias(PeftAdaptation adaptation, WeightSite site, string middle = "") =>
        adaptation.Add($"{adaptation.Backbone.PathOf(site)}.{middle}bias", Copy(site.Bias!));

    /// <summary>A copy in float32, whatever the frozen type: small steps would vanish in bfloat16.</summary>
    /// <param name="frozen">The frozen tensor.</param>
    public static Tensor Copy(Tensor frozen)
    {
        using var off = no_grad();
        return frozen.to_type(ScalarType.Float32, copy: true).detach();
    }

    /// <summary>Number of numbers in the whole site.</summary>
    /// <param name="site">A site.</param>
    public static long Count(WeightSite site) => site.Weight.numel() + (site.Bias?.numel() ?? 0);
}
