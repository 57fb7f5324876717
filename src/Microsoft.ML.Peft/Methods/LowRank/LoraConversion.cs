// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Any adaptation that changes weights as a plain LoRA, for programs that know nothing else.</summary>
public static class LoraConversion
{
    /// <summary>
    /// A LoRA whose updates are the changes of the weights, cut to a rank: <c>ΔW = U S Vᵀ</c>, <c>B = U_r S_r</c>, <c>A = V_rᵀ</c>,
    /// α = r. Exact where the changes have no higher rank, else the nearest of that rank.
    /// </summary>
    /// <param name="adaptation">A mergeable adaptation that leaves biases as they are, at linear maps.</param>
    /// <param name="rank">
    /// A whole number from 1: that rank everywhere, at most the narrower width of a module. Between 0 and 1: for each module the
    /// smallest rank that keeps this share of the squared singular values.
    /// </param>
    /// <returns>A LoRA on the same backbone; the caller disposes it.</returns>
    /// <exception cref="NotSupportedException">The adaptation acts on activations, biases, or other modules than linear maps.</exception>
    public static PeftAdaptation ToLora(PeftAdaptation adaptation, double rank)
    {
        bool share = rank is > 0 and < 1;
        if (!share && (!(rank >= 1) || rank > 4096 || rank != Math.Floor(rank)))
            throw new ArgumentException($"The rank is {rank}; allowed is a whole number from 1 to 4096, or a share between 0 and 1.", nameof(rank));
        if (!adaptation.Method.Mergeable)
            throw new NotSupportedException($"Method {adaptation.Method.Id} acts on activations and has no change of the weights that LoRA could hold.");
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var factors = new Dictionary<string, (Tensor A, Tensor B)>();
        foreach ((Site site, Patch patch) in adaptation.Patches.OrderBy(p => p.Key.Index))
            factors[adaptation.Backbone.PathOf(site)] = Factors(site, patch, rank, share);
        var options = new LoraOptions { Targets = [.. factors.Keys], Rank = share ? 1 : (int)rank, Alpha = share ? 1 : rank, Dropout = 0 };
        foreach ((string path, (Tensor a, _)) in factors)
            if (a.shape[0] != options.Rank) (options.RankPattern[path], options.AlphaPattern[path]) = ((int)a.shape[0], a.shape[0]);
        PeftAdaptation lora = options.Attach(adaptation.Backbone, 0);
        foreach ((string path, (Tensor a, Tensor b)) in factors)
        {
            lora.Find($"{path}.lora_A.weight")!.Load(a);
            lora.Find($"{path}.lora_B.weight")!.Load(b);
        }
        return lora;
    }

    private static (Tensor A, Tensor B) Factors(Site site, Patch patch, double rank, bool share)
    {
        if (site is not Projection map || patch is not WeightPatch weightPatch)
            throw new NotSupportedException($"{site} is no linear map; only the changes of linear maps become a plain LoRA.");
        (Tensor weight, Tensor? bias) = weightPatch.Rewrite(map.Weight, map.Bias, null);
        if (!ReferenceEquals(bias, map.Bias) && (map.Bias is null || !bias!.eq(map.Bias).all().item<bool>()))
            throw new NotSupportedException($"The adapter changes the bias of {site}; LoRA's files have no place for that. Keep the adapter as it is, or merge it.");
        return Methods.Factors.Nearest(weight.to_type(ScalarType.Float64) - map.Weight.to_type(ScalarType.Float64), s => share ? Smallest(s, rank) : (long)rank);
    }

    private static long Smallest(Tensor values, double share)
    {
        double[] squares = [.. values.cpu().data<double>().ToArray().Select(v => v * v)];
        double wanted = share * squares.Sum(), sum = 0;
        for (int kept = 0; kept < squares.Length; kept++)
            if ((sum += squares[kept]) >= wanted) return kept + 1;
        return squares.Length;
    }
}
