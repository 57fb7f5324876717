// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Lily (Zhong and Zhou 2024, arXiv 2407.09946): neighbouring layers share the first factor, all layers share a set of second
/// factors, and a router a site mixes them. <c>h = A x</c>, <c>p</c> = the mean over all tokens of <c>softmax(R h)</c>,
/// <c>y += scaling · Σ p_e B_e h</c>, with <c>A [rank, in]</c>, <c>B [experts · rank, out]</c>, <c>R [experts, rank]</c>. Sites share where their names,
/// the layer's number aside, and their shapes are the same. B starts at 0.
/// </summary>
/// <remarks>
/// <b>The mean is taken over every token of the whole batch, padding included:</b> what a row gives depends on the rows beside
/// it and on how far it was padded. Score rows one by one, or in batches as they were in training, where that matters.
/// </remarks>
public sealed class LilyOptions : SiteMethod
{
    /// <summary>Rank, 1 to 4096.</summary>
    public int Rank { get; set; } = 32;

    /// <summary>Number of shared second factors, 1 to 1024.</summary>
    public int Experts { get; set; } = 2;

    /// <summary>Consecutive layers that share a first factor, 1 or more.</summary>
    public int Stride { get; set; } = 1;

    /// <summary>Scaling of the update.</summary>
    public double Scaling { get; set; } = 1;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "lily";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r in a group of layers, n r out for all, n r a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool RowsAreIndependent => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "LILY";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (Experts is < 1 or > 1024) throw Invalid(nameof(Experts), Experts, "1 to 1024");
        if (Stride < 1) throw Invalid(nameof(Stride), Stride, "1 or more");
        if (Scaling == 0 || !double.IsFinite(Scaling)) throw Invalid(nameof(Scaling), Scaling, "a finite number other than 0");
    }

    // Sites that share the second factors, and those of them that share a first one.
    private static string Kind(WeightSite site)
    {
        IEnumerable<string> parts = site.Name.Split('.').Where(part => !part.All(char.IsAsciiDigit));
        return $"{string.Join('.', parts)} {Wide(site)} {Narrow(site)}";
    }

    private string Block(WeightSite site) => $"{Kind(site)} {Math.Max(site.Layer, 0) / Stride}";

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => (long)Experts * Rank;

    /// <inheritdoc/>
    protected override long CountShared(Backbone backbone, IReadOnlyList<WeightSite> sites) =>
        sites.DistinctBy(Block).Sum(site => Rank * Narrow(site)) + sites.DistinctBy(Kind).Sum(site => (long)Experts * Rank * Wide(site));

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone) => new Adapted(this, backbone);

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed)
    {
        var adapted = (Adapted)adaptation;
        foreach (WeightSite site in sites)
        {
            adapted.First[site] = Shared("lily_A", Block, name => new Draws(seed, name).Kaiming(Rank, Narrow(site)));
            adapted.Second[site] = Shared("lily_B", Kind, _ => zeros([Experts * (long)Rank, Wide(site)]));

            // The first site names the tensor; the files hold a copy for each of the others.
            NamedParameter Shared(string letter, Func<WeightSite, string> group, Func<string, Tensor> make)
            {
                string[] names = [.. sites.Where(other => group(other) == group(site)).Select(other => $"{adaptation.Backbone.PathOf(other)}.{letter}.weight")];
                return adaptation.Find(names[0]) ?? adaptation.Add(new NamedParameter(names[0], make(names[0]).to(adaptation.Backbone.Device)) { Copies = names[1..] });
            }
        }
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        var adapted = (Adapted)adaptation;
        NamedParameter router = Add(adaptation, $"{path}.lily_router.weight", new Draws(seed, $"{path}.lily_router.weight").Kaiming(Experts, Rank));
        adaptation.Attach(site, new Mixture(adapted.First[site], adapted.Second[site], router, Scaling));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 32);
        Experts = AdapterConfig.Get(config, "num_B", 2);
        Stride = AdapterConfig.Get(config, "stride_A", 1);
        Scaling = AdapterConfig.Get(config, "scaling", 1.0);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config["init_weights"] = true;
        config["r"] = Rank;
        config["num_B"] = Experts;
        config["stride_A"] = Stride;
        config["scaling"] = Scaling;
    }

    private sealed class Adapted(PeftMethod method, Backbone backbone) : PeftAdaptation(method, backbone)
    {
        public Dictionary<WeightSite, NamedParameter> First { get; } = [];

        public Dictionary<WeightSite, NamedParameter> Second { get; } = [];
    }

    private sealed class Mixture(NamedParameter first, NamedParameter second, NamedParameter router, double scaling) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor y = next(x);
            Tensor hidden = nn.functional.linear(x.to_type(ScalarType.Float32), first.Value);                          // [..., rank]
            Tensor scores = nn.functional.linear(hidden, router.Value);                                                // [..., experts]
            Tensor share = scores.softmax(-1).reshape(-1, scores.shape[^1]).mean([0]);
            Tensor mixed = share.matmul(second.Value.view(share.shape[0], -1)).view(hidden.shape[^1], -1);             // [rank, out]
            return y + (hidden * scaling).matmul(mixed).to_type(y.dtype);
        }
    }
}
