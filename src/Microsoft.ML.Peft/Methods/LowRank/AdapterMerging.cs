// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How several LoRA adapters become one.</summary>
public enum AdapterCombination
{
    /// <summary>Sums of the factors, <c>A = Σ ±√|w s| A_i</c>, <c>B = Σ √|w s| B_i</c> (with cross terms); equal ranks only.</summary>
    Linear,
    /// <summary>The factors side by side: exact, the ranks add up.</summary>
    Cat,
    /// <summary>The sum of the updates, cut back to a rank by its singular values.</summary>
    Svd,
    /// <summary>TIES (Yadav et al. 2023, arXiv 2306.01708) on the factors: prune by magnitude, elect signs, average what agrees.</summary>
    Ties,
    /// <summary>TIES on the updates, then cut back to a rank.</summary>
    TiesSvd,
    /// <summary>DARE (Yu et al. 2023, arXiv 2311.03099) on the factors: drop at random, enlarge the rest, sum.</summary>
    DareLinear,
    /// <summary>DARE's dropping with TIES' election, on the factors.</summary>
    DareTies,
    /// <summary>DARE on the updates, then cut back to a rank.</summary>
    DareLinearSvd,
    /// <summary>DARE's dropping with TIES' election on the updates, then cut back to a rank.</summary>
    DareTiesSvd,
    /// <summary>The largest entries of the factors, summed.</summary>
    MagnitudePrune,
    /// <summary>The largest entries of the updates, summed, then cut back to a rank.</summary>
    MagnitudePruneSvd,
}

/// <summary>What TIES elects a sign by.</summary>
public enum MajoritySign
{
    /// <summary>The sum of the values (without their weights).</summary>
    Total,
    /// <summary>The number of the values of each sign.</summary>
    Frequency,
}

/// <summary>How adapters are combined.</summary>
public sealed record AdapterMergeOptions
{
    /// <summary>How; <c>svd</c> where nothing is said.</summary>
    public AdapterCombination Combination { get; init; } = AdapterCombination.Svd;

    /// <summary>Share of the entries that pruning keeps, in [0, 1] (DARE: above 0); 1 keeps all. TIES, DARE and pruning need it.</summary>
    public double? Density { get; init; }

    /// <summary>What TIES elects a sign by.</summary>
    public MajoritySign MajoritySign { get; init; }

    /// <summary>Rank of the result where it is cut back; null for the largest rank of the adapters.</summary>
    public int? SvdRank { get; init; }

    /// <summary>Quantile in (0, 1] of the factors' entries beyond which they are clamped after cutting back; null for none.</summary>
    public double? SvdClamp { get; init; }

    /// <summary>Seed of DARE's random choice.</summary>
    public long Seed { get; init; }

    /// <summary>
    /// False (as Hugging Face PEFT) to take rsLoRA's scaling over from the first adapter: the result is then scaled by √r
    /// instead of 1. True for a result that is exactly the combination.
    /// </summary>
    public bool PlainScale { get; init; }

    /// <summary>Gives DARE's masks in place of the random choice: recorded ones, in tests. Asked site by site, A before B, adapter by adapter.</summary>
    internal Func<long[], Tensor>? MaskWith { get; init; }

    /// <summary>Gives signs of the singular vectors of a site, <c>[rank]</c>: clamping depends on them, and libraries choose them differently.</summary>
    internal Func<WeightSite, long, Tensor>? SignWith { get; init; }
}

/// <summary>Combines LoRA adapters of one backbone into one, by weights: <c>add_weighted_adapter</c> of Hugging Face PEFT.</summary>
public static class AdapterMerging
{
    /// <summary>A combination by its name in Hugging Face PEFT, e.g. <c>dare_ties_svd</c>.</summary>
    /// <param name="name">The name.</param>
    /// <exception cref="ArgumentException">There is no such combination.</exception>
    public static AdapterCombination Parse(string name)
    {
        foreach (AdapterCombination known in Enum.GetValues<AdapterCombination>())
            if (NameOf(known) == name) return known;
        string[] names = [.. Enum.GetValues<AdapterCombination>().Select(NameOf)];
        throw new ArgumentException($"The combination '{name}' is not known; known are {string.Join(", ", names)}.{Checkpoints.NearNames.Hint(name, names)}", nameof(name));
    }

    /// <summary>The name of a combination in Hugging Face PEFT.</summary>
    /// <param name="combination">The combination.</param>
    public static string NameOf(AdapterCombination combination) =>
        string.Concat(combination.ToString().Select((c, i) => i > 0 && char.IsUpper(c) ? $"_{char.ToLowerInvariant(c)}" : $"{char.ToLowerInvariant(c)}"));

    /// <summary>Combines some of several named adapters.</summary>
    /// <param name="adapters">Adapters by name.</param>
    /// <param name="names">Which of them.</param>
    /// <param name="weights">One weight a name; may be negative.</param>
    /// <param name="options">How; null for the default.</param>
    /// <returns>A new adaptation; the caller disposes it.</returns>
    /// <exception cref="ArgumentException">A name is unknown, or as the other form says.</exception>
    public static PeftAdaptation Combine(
        IReadOnlyDictionary<string, PeftAdaptation> adapters, IReadOnlyList<string> names, IReadOnlyList<double> weights, AdapterMergeOptions? options = null) =>
        Combine([.. names.Select(name => adapters.TryGetValue(name, out PeftAdaptation? found) ? found
            : throw new ArgumentException($"There is no adapter '{name}'; there are {string.Join(", ", adapters.Keys)}.", nameof(names)))], weights, options);

    /// <summary>Combines adapters. α of the result is its rank, so that its scaling is 1.</summary>
    /// <param name="adapters">Plain LoRA adapters of one backbone; those that started from the weights (PiSSA and its kin) are converted first.</param>
    /// <param name="weights">One weight an adapter; may be negative.</param>
    /// <param name="options">How; null for the default.</param>
    /// <returns>A new adaptation; the caller disposes it. With one adapter every combination is <see cref="AdapterCombination.Linear"/>.</returns>
    /// <exception cref="ArgumentException">Numbers, ranks or options do not fit; the message says which.</exception>
    /// <exception cref="NotSupportedException">An adapter is no plain LoRA (DoRA, trained biases, variants).</exception>
    public static PeftAdaptation Combine(IReadOnlyList<PeftAdaptation> adapters, IReadOnlyList<double> weights, AdapterMergeOptions? options = null)
    {
        options ??= new AdapterMergeOptions();
        Check(adapters, weights, options);
        PeftAdaptation[] plain = [.. adapters.Select(a => a.Method.ToExchange(a))];
        try
        {
            AdapterCombination kind = adapters.Count == 1 ? AdapterCombination.Linear : options.Combination;
            return new AdapterMerger([.. plain.Cast<LoraAdaptation>()], [.. weights], options with { Combination = kind }).Run();
        }
        finally
        {
            foreach ((PeftAdaptation made, PeftAdaptation given) in plain.Zip(adapters))
                if (!ReferenceEquals(made, given)) made.Dispose();
        }
    }

    private static void Check(IReadOnlyList<PeftAdaptation> adapters, IReadOnlyList<double> weights, AdapterMergeOptions options)
    {
        if (adapters.Count == 0) throw new ArgumentException("There is no adapter to combine; give one or more.", nameof(adapters));
        if (adapters.Count != weights.Count)
            throw new ArgumentException($"There are {adapters.Count} adapters and {weights.Count} weights; give one weight an adapter.", nameof(weights));
        foreach (double weight in weights)
            if (!double.IsFinite(weight)) throw new ArgumentException($"A weight is {weight}; it must be finite.", nameof(weights));
        if (!Enum.IsDefined(options.Combination)) throw new ArgumentException($"Combination is {options.Combination}; allowed is one of {string.Join(", ", Enum.GetNames<AdapterCombination>())}.", nameof(options));
        if (!Enum.IsDefined(options.MajoritySign)) throw new ArgumentException($"MajoritySign is {options.MajoritySign}; allowed is Total or Frequency.", nameof(options));
        bool prunes = options.Combination is not (AdapterCombination.Linear or AdapterCombination.Cat or AdapterCombination.Svd);
        bool drops = NameOf(options.Combination).StartsWith("dare", StringComparison.Ordinal);
        if (prunes && adapters.Count > 1 && !(options.Density is { } density && density is >= 0 and <= 1 && (density > 0 || !drops)))
            throw new ArgumentException($"Density is {options.Density?.ToString(System.Globalization.CultureInfo.InvariantCulture) ?? "null"}; {NameOf(options.Combination)} needs the share of entries that are kept, {(drops ? "above 0" : "from 0")} to 1.", nameof(options));
        if (options.SvdRank is < 1) throw new ArgumentException($"SvdRank is {options.SvdRank}; allowed is null, or 1 or more.", nameof(options));
        if (options.SvdClamp is { } clamp && !(clamp is > 0 and <= 1)) throw new ArgumentException($"SvdClamp is {clamp}; allowed is null, or above 0 to 1.", nameof(options));
        foreach (PeftAdaptation adapter in adapters) CheckOne(adapter, adapters[0].Backbone);
        if (adapters.Count(a => ((LoraOptions)a.Method).ModulesToSave.Length > 0) > 1)
            throw new ArgumentException("Several of the adapters hold modules that were trained whole (ModulesToSave); which one should count cannot be said. Combine adapters of which at most one does.", nameof(adapters));
    }

    private static void CheckOne(PeftAdaptation adapter, Backbone backbone)
    {
        if (adapter is not LoraAdaptation { Method: LoraOptions lora })
            throw new NotSupportedException($"Adapters of method '{adapter.Method.Id}' cannot be combined by weights; only lora can. Merge them one after another instead.");
        if (!ReferenceEquals(adapter.Backbone, backbone))
            throw new ArgumentException("The adapters belong to different backbones; attach all of them to one.");
        string? other = lora.UseDora ? nameof(lora.UseDora) : lora.LoraBias ? nameof(lora.LoraBias)
            : lora.Variant is not null ? $"{nameof(lora.Variant)} = {lora.Variant.GetType().Name}"
            : lora.TrainableTokens.Count > 0 ? nameof(lora.TrainableTokens)
            : lora.TargetParameters.Length > 0 ? nameof(lora.TargetParameters)
            : adapter.Patches.Keys.Any(site => site is Convolution { Groups: > 1 }) ? "grouped convolutions"
            : lora.BiasMode != BiasMode.None ? $"{nameof(lora.BiasMode)} = {lora.BiasMode}" : null;
        if (other is not null)
            throw new NotSupportedException($"An adapter with {other} cannot be combined by weights: its change is more than B A. Merge it into the backbone instead.");
    }
}
