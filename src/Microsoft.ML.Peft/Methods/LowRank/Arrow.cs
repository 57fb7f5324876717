// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How Arrow routes.</summary>
public sealed record ArrowOptions
{
    /// <summary>Number of experts that a token uses, 1 or more.</summary>
    public int TopK { get; init; } = 3;

    /// <summary>Divides the scores before their softmax, above 0: lower is sharper.</summary>
    public double Temperature { get; init; } = 1;

    /// <summary>Rounds of the iteration that finds an expert's strongest direction, 1 or more.</summary>
    public int Rounds { get; init; } = 15;

    /// <summary>Seed of the direction that the iteration starts from.</summary>
    public long Seed { get; init; }

    /// <summary>Gives prototypes <c>[experts, in]</c> by site: recorded ones, in tests.</summary>
    internal Func<WeightSite, Tensor>? PrototypesWith { get; init; }
}

/// <summary>
/// Arrow (Ostapenko et al. 2024, arXiv 2405.11157): trained LoRA adapters without a trained router. An expert's prototype is the
/// input direction that its update amplifies most; a token uses the experts whose prototypes it is most parallel to. With
/// general adapters, their mean is subtracted from every expert first (GenKnowSub, arXiv 2505.10939).
/// </summary>
public static class Arrow
{
    /// <summary>Makes a mixture of trained adapters.</summary>
    /// <param name="experts">Plain LoRA adapters of one backbone; their factors are copied.</param>
    /// <param name="general">Adapters of general knowledge, of the same ranks; null or empty for none.</param>
    /// <param name="options">How to route; null for the default.</param>
    /// <returns>An adaptation without trained numbers; the caller disposes it.</returns>
    /// <exception cref="ArgumentException">Options or shapes do not fit.</exception>
    /// <exception cref="NotSupportedException">An adapter is no plain LoRA at linear maps.</exception>
    public static PeftAdaptation Mix(IReadOnlyList<PeftAdaptation> experts, IReadOnlyList<PeftAdaptation>? general = null, ArrowOptions? options = null)
    {
        options ??= new ArrowOptions();
        if (options.TopK < 1) throw new ArgumentException($"ArrowOptions.TopK is {options.TopK}; allowed is 1 or more.", nameof(options));
        if (!(options.Temperature > 0)) throw new ArgumentException($"ArrowOptions.Temperature is {options.Temperature}; allowed is above 0.", nameof(options));
        if (options.Rounds < 1) throw new ArgumentException($"ArrowOptions.Rounds is {options.Rounds}; allowed is 1 or more.", nameof(options));
        return new Mixture(experts, general ?? [], options);
    }

    private sealed class Mixture : ExpertMixture
    {
        private readonly ArrowOptions _options;

        public Mixture(IReadOnlyList<PeftAdaptation> experts, IReadOnlyList<PeftAdaptation> general, ArrowOptions options) : base("arrow", experts)
        {
            _options = options;
            Take(experts, (site, a, b) => Subtract(site, a, b, general), (site, taken) =>
            {
                NamedParameter prototypes = Add(new NamedParameter($"{Backbone.PathOf(site)}.prototypes", Prototypes(site, taken), trainable: false));
                int[] here = [.. taken.Select(e => e.Number)];
                return new MixturePatch(taken, (x, _) => Route(x, prototypes.Value, here), trainable: false);
            });
        }

        private static (Tensor A, Tensor B) Subtract(WeightSite site, Tensor a, Tensor b, IReadOnlyList<PeftAdaptation> general)
        {
            LoraFactors[] common = [.. general.Cast<LoraAdaptation>().Select(g => g.Factors.FirstOrDefault(f => f.Site == site)).OfType<LoraFactors>()];
            if (common.Length == 0) return (a, b);
            if (common.Any(c => !c.A.Value.shape.SequenceEqual(a.shape)))
                throw new ArgumentException($"The general adapters have other ranks than the experts at {site.Name}; they must be equal to be subtracted.");
            return (a - stack([.. common.Select(c => c.A.Value.detach())], 0).mean([0]), b - stack([.. common.Select(c => c.B.Value.detach())], 0).mean([0]));
        }

        private Tensor Prototypes(WeightSite site, Expert[] taken)
        {
            if (_options.PrototypesWith is { } recorded) return recorded(site);
            return stack([.. taken.Select(e =>
            {
                Tensor a = e.A.Value, b = e.B.Value, v = new Draws(_options.Seed, e.A.Name).Normal(1, a.shape[1]).to(a.device);
                for (int i = 0; i < _options.Rounds; i++)
                {
                    v = a.t().mv(b.t().mv(b.mv(a.mv(v))));
                    v = v / v.norm().clamp(min: 1e-12);
                }
                return v;
            })], 0);
        }

        // Softmax over the most parallel ones; the others get nothing.
        private Tensor Route(Tensor x, Tensor prototypes, int[] here)
        {
            Tensor scores = nn.functional.linear(x.to_type(ScalarType.Float32), prototypes).abs();       // [..., experts here]
            int count = Math.Min(_options.TopK, here.Length);
            (Tensor best, Tensor places) = scores.topk(count, -1);
            Tensor shares = zeros_like(scores).scatter(-1, places, (best / _options.Temperature).softmax(-1));
            if (here.Length == Experts) return shares;
            long[] all = [.. scores.shape[..^1], Experts];
            return zeros(all, device: scores.device).index_copy(scores.dim() - 1, tensor(Array.ConvertAll(here, i => (long)i)).to(scores.device), shares);
        }
    }
}
