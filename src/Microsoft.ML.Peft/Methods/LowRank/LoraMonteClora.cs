// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// MonteCLoRA (Sengupta et al. 2024, arXiv 2411.04358): while training, A is moved by a mixture of N random matrices whose
/// spread and shares are learned, and a loss term keeps these near their priors. Scoring and merging are LoRA's. Trained numbers
/// a site: r (in + out) + r + N.
/// </summary>
public sealed class MonteCloraVariant : LoraVariant
{
    private const double Least = 1e-6, LeastVariance = 1e-3;

    /// <summary>Number N of random matrices, 1 or more.</summary>
    public int Samples { get; set; } = 8;

    /// <summary>Factor of the noise, 0 or more.</summary>
    public double Scaler { get; set; } = 1e-4;

    /// <summary>Weight κ of the divergences from the priors in the loss, 0 or more.</summary>
    public double DivergenceWeight { get; set; } = 1e-5;

    /// <summary>Concentration α₀ of the prior of the shares, above 0.</summary>
    public double DirichletPrior { get; set; } = 0.1;

    /// <summary>True to add the sum of the squared shares to the loss, which evens them out.</summary>
    public bool UseEntropy { get; set; } = true;

    /// <summary>Number of draws that other implementations make ahead; kept for exchange, without effect here. 1 or more.</summary>
    public int BufferSize { get; set; } = 150;

    /// <summary>Gives random numbers by name and shape: recorded ones, in tests.</summary>
    internal Func<string, long[], Tensor>? DrawWith { get; set; }

    internal static MonteCloraVariant From(JsonObject fields)
    {
        var plain = new MonteCloraVariant();
        return new MonteCloraVariant
        {
            Samples = AdapterConfig.Get(fields, "num_samples", plain.Samples),
            Scaler = AdapterConfig.Get(fields, "sample_scaler", plain.Scaler),
            DivergenceWeight = AdapterConfig.Get(fields, "kl_loss_weight", plain.DivergenceWeight),
            DirichletPrior = AdapterConfig.Get(fields, "dirichlet_prior", plain.DirichletPrior),
            UseEntropy = AdapterConfig.Get(fields, "use_entropy", false),
            BufferSize = AdapterConfig.Get(fields, "buffer_size", plain.BufferSize),
        };
    }

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        if (Samples < 1) throw invalid(nameof(Samples), Samples, "1 or more");
        if (BufferSize < 1) throw invalid(nameof(BufferSize), BufferSize, "1 or more");
        if (!(Scaler >= 0) || !double.IsFinite(Scaler)) throw invalid(nameof(Scaler), Scaler, "a finite number, 0 or more");
        if (!(DivergenceWeight >= 0) || !double.IsFinite(DivergenceWeight)) throw invalid(nameof(DivergenceWeight), DivergenceWeight, "a finite number, 0 or more");
        if (!(DirichletPrior > 0) || !double.IsFinite(DirichletPrior)) throw invalid(nameof(DirichletPrior), DirichletPrior, "a finite number above 0");
    }

    internal override void Write(JsonObject config) => config["monteclora_config"] = new JsonObject
    {
        ["buffer_size"] = BufferSize,
        ["dirichlet_prior"] = DirichletPrior,
        ["kl_loss_weight"] = DivergenceWeight,
        ["num_samples"] = Samples,
        ["sample_scaler"] = Scaler,
        ["use_entropy"] = UseEntropy,
    };

    internal override long CountBeside(int rank) => rank + Samples;

    internal override void Add(LoraAdaptation adaptation, LoraFactors factors, string path, long seed)
    {
        Device device = adaptation.Backbone.Device;
        int rank = (int)factors.A.Value.shape[0];
        NamedParameter Own(string end, Tensor value, bool trainable) =>
            factors.More[end] = adaptation.Add($"{path}.lora_monteclora_sampler.{end}", value.to(device), trainable);
        Tensor Uniform(string end, long count)
        {
            var draws = new Draws(seed, $"{path}.{end}");
            return tensor(Enumerable.Range(0, (int)count).Select(_ => (float)draws.Next()).ToArray());
        }
        Own("std_prior", Uniform("std_prior", rank), true);
        Own("expert_weights_prior", Uniform("expert_weights_prior", Samples), true);
        Own("expert_weights", full(Samples, 1.0 / Samples), false);
        Own("gaussian_var_prior", eye(rank), false);
    }

    internal override WeightPatch Patch(LoraFactors factors) => new NoisyPatch(this, factors);

    // Spread v [rank] and shares w [samples] of one site in one pass: the loss term sees the same ones as the forward.
    private (Tensor Spread, Tensor Shares) Sample(LoraFactors factors, Pass pass)
    {
        return ((Tensor, Tensor))pass.Once<object>((this, factors), () =>
        {
            string name = factors.A.Name;
            int rank = (int)factors.A.Value.shape[0];
            Tensor spread = (factors.More["std_prior"].Value.exp().square() * Wishart(pass, name, rank)).clamp(min: LeastVariance);
            Tensor prior = factors.More["expert_weights_prior"].Value, inverse = (-prior).exp();
            double n = Samples;
            Tensor variance = (inverse * (1 - 2 / n) + inverse.sum() / (n * n)).clamp(min: Least);
            Tensor logits = (variance + Least).sqrt() * Normal(pass, name, "dirichlet", Samples) + prior - prior.mean();
            return (spread, logits.softmax(0));
        });
    }

    // The diagonal of a Wishart matrix of as many degrees of freedom as the rank.
    private Tensor Wishart(Pass pass, string name, int rank) => DrawWith is not null
        ? DrawWith($"wishart/{name}", [rank, rank]).diag()
        : Normal(pass, name, "wishart", rank, rank).square().sum(1L);

    private Tensor Normal(Pass pass, string name, string what, params long[] shape) => DrawWith is not null ? DrawWith($"{what}/{name}", shape)
        : pass.Seed is { } seed ? new Draws(unchecked((long)seed), $"{what}/{name}").Normal(1, shape)
        : randn(shape);

    private Tensor NoisyA(LoraFactors factors, Pass pass)
    {
        Tensor a = factors.A.Value;
        (Tensor spread, Tensor shares) = Sample(factors, pass);
        Tensor noise = Normal(pass, factors.A.Name, "mvn", Samples, a.shape[1], a.shape[0]).to(a.device) * spread.sqrt() * Scaler;   // [samples, in, rank]
        return a + (noise * shares.view(-1, 1, 1)).sum(0L).t();
    }

    internal override Tensor? ExtraLoss(LoraAdaptation adaptation, Pass pass)
    {
        if (!pass.Training) return null;
        Tensor[] terms = [.. adaptation.Factors.Where(f => f.More.ContainsKey("std_prior")).Select(f => Divergence(f, pass))];
        return stack(terms).mean();
    }

    private Tensor Divergence(LoraFactors factors, Pass pass)
    {
        (Tensor spread, Tensor shares) = Sample(factors, pass);
        double rank = spread.shape[0], n = Samples;
        Tensor log = factors.More["std_prior"].Value * 2, pi = factors.More["expert_weights_prior"].Value.exp(), whole = pi.sum();
        Tensor dirichlet = whole.lgamma() - tensor(n * DirichletPrior).lgamma() + (pi.lgamma() - tensor(DirichletPrior).lgamma()).sum()
            + ((pi - DirichletPrior) * (pi.digamma() - whole.digamma())).sum();
        Tensor wishart = (spread.sum() - spread.log().sum() - rank) * (n / 2);
        Tensor normal = (log.exp().sum() - log.sum() - rank) * (rank / 2);
        Tensor loss = (dirichlet + wishart + normal) * DivergenceWeight;
        return (UseEntropy ? loss + shares.square().sum() : loss).to_type(ScalarType.Float32);
    }

    private sealed class NoisyPatch(MonteCloraVariant options, LoraFactors factors) : WeightPatch
    {
        public override PatchForm Form => PatchForm.LowRank;

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) =>
            [pass is { Training: true } ? factors.Term with { A = options.NoisyA(factors, pass) } : factors.Term];

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass) => Bias(factors, bias);
    }
}
