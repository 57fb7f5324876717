// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How the factors of low-rank adapters are averaged.</summary>
public enum AveragingStrategy
{
    /// <summary>Every tensor by itself, A and B too.</summary>
    Linear,
    /// <summary>A by the weights' magnitudes, B by the weights: a negative weight then takes its update away.</summary>
    NegateB,
    /// <summary>The singular decomposition of the summed updates, cut to a rank.</summary>
    DeltaSvd,
}

/// <summary>
/// New adapters whose numbers are combinations of others': those of one method with the same options (Chronopoulou et al. 2023,
/// arXiv 2302.07027). For Hugging Face LoRA, <see cref="AdapterMerging"/> knows more.
/// </summary>
public static class AdapterAveraging
{
    private const string FactorA = ".lora_A", FactorB = ".lora_B";

    /// <summary>Averages adapters into a new one.</summary>
    /// <param name="parts">Adapters of one backbone and one method with the same options.</param>
    /// <param name="weights">One weight a part; null for equal ones.</param>
    /// <param name="normalize">True to divide the weights by their sum.</param>
    /// <param name="strategy">How factors are averaged.</param>
    /// <param name="rank">Rank of the result; for <see cref="AveragingStrategy.DeltaSvd"/> alone. α stays, so α/r follows the new rank.</param>
    /// <param name="name">Name of the new adapter, where the method has names; null for the first one's.</param>
    /// <returns>An adaptation of its own; the caller disposes it.</returns>
    /// <exception cref="ArgumentException">Parts of different options or backbones, wrong weights, or a strategy that does not fit the method.</exception>
    public static PeftAdaptation Average(
        IReadOnlyList<PeftAdaptation> parts, IReadOnlyList<double>? weights = null, bool normalize = true,
        AveragingStrategy strategy = AveragingStrategy.Linear, int? rank = null, string? name = null)
    {
        double[] shares = Weights(parts, weights, normalize);
        JsonObject options = Same(parts);
        if (strategy != AveragingStrategy.Linear) CheckFactors(parts[0], strategy);
        if (rank is not null != (strategy == AveragingStrategy.DeltaSvd))
            throw new ArgumentException($"rank is {rank?.ToString() ?? "null"} with {strategy}; DeltaSvd needs one, the others have none.", nameof(rank));
        if (name is not null && options.ContainsKey("name")) options["name"] = name;
        if (rank is not null) options["rank"] = rank;
        using var off = no_grad();
        using var scope = NewDisposeScope();
        PeftAdaptation made = PeftMethods.FromJson(options.ToJsonString()).Attach(parts[0].Backbone, 0);
        try
        {
            if (strategy == AveragingStrategy.DeltaSvd) Decompose(made, parts, shares);
            else Sum(made, parts, shares, strategy);
            made.Filled();
            return made;
        }
        catch
        {
            made.Dispose();
            throw;
        }
    }

    private static double[] Weights(IReadOnlyList<PeftAdaptation> parts, IReadOnlyList<double>? weights, bool normalize)
    {
        if (parts.Count == 0) throw new ArgumentException("There is nothing to average; give one adapter or more.", nameof(parts));
        double[] given = weights is null ? [.. parts.Select(_ => 1.0 / parts.Count)] : [.. weights];
        if (given.Length != parts.Count) throw new ArgumentException($"There are {given.Length} weights for {parts.Count} adapters; expected is one each.", nameof(weights));
        double sum = given.Sum();
        if (!given.All(double.IsFinite) || (normalize && sum == 0)) throw new ArgumentException($"The weights [{string.Join(", ", given)}] sum to {sum}; expected are finite numbers with another sum than 0.", nameof(weights));
        return normalize ? [.. given.Select(w => w / sum)] : given;
    }

    // The options of all parts, which may differ in the adapter's name alone.
    private static JsonObject Same(IReadOnlyList<PeftAdaptation> parts)
    {
        JsonObject[] all = [.. parts.Select(p => JsonNode.Parse(PeftMethods.ToJson(p.Method))!.AsObject())];
        static string Nameless(JsonObject options)
        {
            var copy = options.DeepClone().AsObject();
            copy.Remove("name");
            return copy.ToJsonString();
        }
        for (int i = 1; i < all.Length; i++)
        {
            if (!ReferenceEquals(parts[i].Backbone, parts[0].Backbone)) throw new ArgumentException($"Adapter {i} belongs to another backbone than the first.", nameof(parts));
            if (Nameless(all[i]) != Nameless(all[0]))
                throw new ArgumentException($"Adapters of different options cannot be averaged: the first has {Nameless(all[0])}, number {i} has {Nameless(all[i])}.", nameof(parts));
        }
        return all[0];
    }

    private static void CheckFactors(PeftAdaptation part, AveragingStrategy strategy)
    {
        if (part.Parameters.FirstOrDefault(p => !p.Name.Contains(FactorA, StringComparison.Ordinal) && !p.Name.Contains(FactorB, StringComparison.Ordinal)) is { } other)
            throw new ArgumentException($"{strategy} averages low-rank factors; {part.Method.Id} has {other.Name}. Take Linear.", nameof(strategy));
    }

    private static void Sum(PeftAdaptation made, IReadOnlyList<PeftAdaptation> parts, double[] weights, AveragingStrategy strategy)
    {
        for (int i = 0; i < made.Parameters.Count; i++)
        {
            NamedParameter target = made.Parameters[i];
            if (!target.Value.is_floating_point())
            {
                target.Load(parts[0].Parameters[i].Value);
                continue;
            }
            bool magnitude = strategy == AveragingStrategy.NegateB && target.Name.Contains(FactorA, StringComparison.Ordinal);
            Tensor sum = zeros_like(target.Value);
            for (int k = 0; k < parts.Count; k++) sum = sum + parts[k].Parameters[i].Value * (magnitude ? Math.Abs(weights[k]) : weights[k]);
            target.Load(sum);
        }
    }

    private static void Decompose(PeftAdaptation made, IReadOnlyList<PeftAdaptation> parts, double[] weights)
    {
        for (int i = 0; i < made.Parameters.Count; i++)
        {
            NamedParameter a = made.Parameters[i];
            if (!a.Name.Contains(FactorA, StringComparison.Ordinal)) continue;
            int at = IndexOf(made, a.Name.Replace(FactorA, FactorB, StringComparison.Ordinal));
            Tensor? delta = null;
            for (int k = 0; k < parts.Count; k++)
            {
                Tensor own = parts[k].Parameters[at].Value, first = parts[k].Parameters[i].Value;
                if (own.shape[1] != first.shape[0])
                    throw new ArgumentException($"{a.Name}: one projection to queries, keys and values has several updates, which do not decompose as one; take Linear.", nameof(parts));
                Tensor part = own.matmul(first) * weights[k];
                delta = delta is null ? part : delta + part;
            }
            long rank = a.Value.shape[0];
            if (rank > delta!.shape.Min()) throw new ArgumentException($"rank is {rank}; {a.Name} has at most {delta!.shape.Min()}.", nameof(parts));
            (Tensor narrow, Tensor second) = Factors.Nearest(delta!, _ => rank);
            a.Load(narrow);
            made.Parameters[at].Load(second);
        }
    }

    private static int IndexOf(PeftAdaptation made, string name)
    {
        for (int i = 0; i < made.Parameters.Count; i++)
            if (made.Parameters[i].Name == name) return i;
        throw new ArgumentException($"There is no {name} beside its first factor.");
    }
}
