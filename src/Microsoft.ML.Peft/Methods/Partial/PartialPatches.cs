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

    /// <summary>Makes the patch.</summary>
    /// <param name="weight">The trained weight, shaped as the site's.</param>
    /// <param name="bias">The trained bias, or null where the site has none or keeps its own.</param>
    public CopyPatch(NamedParameter weight, NamedParameter? bias) => (_weight, _bias) = (weight, bias);

    /// <inheritdoc/>
    public override PatchForm Form => PatchForm.Weight;

    /// <inheritdoc/>
    public override bool Trainable => _weight.Trainable || _bias is { Trainable: true };

    /// <inheritdoc/>
    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
        (_weight.Value.to_type(weight.dtype), bias is null || _bias is null ? bias : _bias.Value.to_type(bias.dtype));
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
        adaptation.Attach(site, new CopyPatch(weight, bias));
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
