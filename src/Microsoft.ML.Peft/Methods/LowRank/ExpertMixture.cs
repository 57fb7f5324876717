// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Trained LoRA adapters worn together, each token with its own weights: <c>y += Σ_e w_e s_e B_e A_e x</c>. It owns copies of the
/// adapters' factors; what the weights are is its descendants' business.
/// </summary>
internal abstract class ExpertMixture : PeftAdaptation
{
    /// <summary>One expert at one site.</summary>
    protected sealed record Expert(NamedParameter A, NamedParameter B, double Scale, int Number);

    private readonly List<WeightSite> _sites = [];

    protected ExpertMixture(string name, IReadOnlyList<PeftAdaptation> experts) : base(new MixtureMethod(name), Backbone(experts)) => Experts = experts.Count;

    /// <summary>Number of experts.</summary>
    public int Experts { get; }

    /// <summary>The adapted sites, in the order of the network.</summary>
    public IReadOnlyList<WeightSite> Sites => _sites;

    private static new Backbone Backbone(IReadOnlyList<PeftAdaptation> experts)
    {
        if (experts.Count == 0) throw new ArgumentException("There is no adapter to mix; give one or more.", nameof(experts));
        foreach (PeftAdaptation expert in experts)
        {
            if (expert is not LoraAdaptation { Options: { UseDora: false, LoraBias: false, BiasMode: BiasMode.None, Variant: null, TrainableTokens.Count: 0 } } lora)
                throw new NotSupportedException($"Only plain LoRA adapters can be mixed by token; found '{expert.Method.Id}' with options that change more than B A.");
            if (lora.Factors.Any(f => f.Site is not Projection || f.Start is not null))
                throw new NotSupportedException("Only LoRA at linear maps can be mixed by token; convert adapters that began with a part of the weights (AdapterFolder.Save) and leave tables out.");
            if (!ReferenceEquals(expert.Backbone, experts[0].Backbone)) throw new ArgumentException("The adapters belong to different backbones; attach all of them to one.");
        }
        return experts[0].Backbone;
    }

    /// <summary>Copies the factors of all experts; <paramref name="change"/> may alter A and B of a site.</summary>
    protected void Take(IReadOnlyList<PeftAdaptation> experts, Func<WeightSite, Tensor, Tensor, (Tensor A, Tensor B)> change, Func<WeightSite, Expert[], WeightPatch> patch)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (WeightSite site in experts.SelectMany(e => e.Patches.Keys).Distinct().OrderBy(s => s.Index).Cast<WeightSite>())
        {
            string path = base.Backbone.PathOf(site);
            var taken = new List<Expert>();
            for (int e = 0; e < experts.Count; e++)
            {
                if (((LoraAdaptation)experts[e]).Factors.FirstOrDefault(f => f.Site == site) is not { } f) continue;
                (Tensor a, Tensor b) = change(site, f.A.Value.detach(), f.B.Value.detach());
                NamedParameter Own(string end, Tensor value) => Add(new NamedParameter($"{path}.{end}.{e}.weight", value.clone(), trainable: false));
                taken.Add(new Expert(Own("lora_A", a), Own("lora_B", b), f.Scale, e));
            }
            _sites.Add(site);
            Attach(site, patch(site, [.. taken]));
        }
    }

    /// <summary>The weights with all but the largest set to 0.</summary>
    /// <param name="weights">Weights <c>[..., experts]</c>.</param>
    /// <param name="count">How many are kept.</param>
    protected static Tensor Largest(Tensor weights, int count)
    {
        Tensor places = weights.topk(count, -1).indexes;
        return zeros_like(weights).scatter(-1, places, weights.gather(-1, places));
    }

    /// <summary>The mixture at one site.</summary>
    /// <param name="experts">The experts that this site has.</param>
    /// <param name="weights">Weights of each token, <c>[..., experts]</c>, out of the site's input; null for none of them.</param>
    /// <param name="trainable">True where a gradient must reach the weights.</param>
    protected sealed class MixturePatch(Expert[] experts, Func<Tensor, Pass, Tensor?> weights, bool trainable) : WeightPatch
    {
        public override bool Trainable => trainable;

        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor y = next(x);
            if (weights(x, pass) is not { } shares) return y;
            Tensor input = x.to_type(ScalarType.Float32);
            foreach (Expert expert in experts)
            {
                Tensor low = nn.functional.linear(input, expert.A.Value) * (shares.narrow(-1, expert.Number, 1) * expert.Scale);
                y = y + nn.functional.linear(low, expert.B.Value).to_type(y.dtype);
            }
            return y;
        }
    }

    private sealed class MixtureMethod(string name) : PeftMethod
    {
        [JsonIgnore]
        public override string Id => name;

        [JsonIgnore]
        public override string Family => "low rank";

        [JsonIgnore]
        public override bool Mergeable => false;

        public override PeftAdaptation Attach(Backbone backbone, long seed) => throw new NotSupportedException($"'{name}' is made of trained adapters, not attached fresh.");

        public override long CountTrainable(Backbone backbone) => throw new NotSupportedException($"'{name}' is made of trained adapters; its count is that of its adaptation.");
    }
}
