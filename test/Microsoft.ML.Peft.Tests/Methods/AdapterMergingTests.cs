// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Adapters combined by weights: recorded combinations, and what must hold of any.</summary>
[TestClass]
public class AdapterMergingTests
{
    [TestMethod]
    [TestCategory("Fixtures")]
    public void CombinationsEqualPeft()
    {
        var deviations = new Deviations();
        int runs = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["runs"] is not JsonArray list || list[0]!["combination_type"] is null) continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            Dictionary<string, PeftAdaptation> adapters = [];
            foreach (string path in Directory.GetDirectories(fixture.PathOf("adapters")))
            {
                using AdapterFolder file = AdapterFolder.Open(path);
                adapters[Path.GetFileName(path)] = file.Attach(tiny.Backbone);
            }
            foreach (JsonNode? run in list)
            {
                Check(fixture, run!.AsObject(), tiny, adapters, deviations);
                runs++;
            }
            foreach (PeftAdaptation adapter in adapters.Values) adapter.Dispose();
        }
        Console.WriteLine($"{runs} combinations");
        deviations.Report();
    }

    private static AdapterMergeOptions Options(Fixture fixture, JsonObject run)
    {
        string label = (string)run["label"]!;
        var masks = new Queue<string>(fixture.Names.Where(n => n.StartsWith(label + "/mask/", StringComparison.Ordinal)).Order(StringComparer.Ordinal));
        return new AdapterMergeOptions
        {
            Combination = AdapterMerging.Parse((string)run["combination_type"]!),
            Density = (double?)run["density"],
            MajoritySign = (string?)run["majority_sign_method"] == "frequency" ? MajoritySign.Frequency : MajoritySign.Total,
            SvdRank = (int?)run["svd_rank"],
            SvdClamp = (double?)run["svd_clamp"],
            MaskWith = masks.Count == 0 ? null : _ => fixture[masks.Dequeue()],
        };
    }

    private static void Check(Fixture fixture, JsonObject run, TinyBase tiny, Dictionary<string, PeftAdaptation> adapters, Deviations deviations)
    {
        string label = (string)run["label"]!;
        double tolerance = (double)fixture.Json["tolerance"]!["tensors"]!, svd = (double)fixture.Json["tolerance"]!["svd kinds"]!;
        AdapterMergeOptions options = Options(fixture, run);
        using PeftAdaptation made = Combine(run, adapters, options.SvdClamp is null ? options : options with { SignWith = Signs(fixture, run, tiny, adapters, options) });
        var lora = (LoraOptions)made.Method;
        if (lora.Rank != (int)run["r"]! || lora.Alpha != (double)run["lora_alpha"]! || lora.RankPattern.Count + lora.AlphaPattern.Count > 0)
            deviations.Fail($"{fixture.Name} {label}: rank {lora.Rank}, alpha {lora.Alpha}, expected {run["r"]}, {run["lora_alpha"]} and no patterns");
        int compared = 0;
        foreach ((string key, Tensor expected) in fixture.Under(label + "/base_model.model."))
        {
            NamedParameter? parameter = HfBases.Find(key, made, tiny);
            if (parameter is null) deviations.Fail($"{fixture.Name} {label}: no parameter for {key}");
            else
            {
                compared++;
                // A site that has a lower rank in all adapters is filled up with zeros here.
                int axis = key.Contains("lora_A", StringComparison.Ordinal) || key.Contains("embedding_A", StringComparison.Ordinal) ? 0 : 1;
                Tensor found = parameter.Value.detach();
                long more = found.shape[axis] - expected.shape[axis];
                if (more > 0) found = found.narrow(axis, 0, expected.shape[axis]);
                deviations.Add("combined factor", $"{fixture.Name} {label} {key}", found, expected, tolerance);
            }
        }
        foreach ((string path, Tensor expected) in fixture.Under(label + "/delta/"))
        {
            var factors = ((LoraAdaptation)made).Factors.First(f => tiny.Backbone.PathOf(f.Site) == path);
            compared++;
            deviations.Add("combined update", $"{fixture.Name} {label} {path}", Like(factors.Delta(), expected), expected, svd);
        }
        if (compared == 0) deviations.Fail($"{fixture.Name} {label}: no factor or update is recorded");
        using var off = no_grad();
        deviations.Add("logits of a combination", $"{fixture.Name} {label}", new FixtureBatch(fixture).Forward(tiny.Backbone, tiny.Head, new Pass(made.Table())).Logits,
            fixture[label + "/logits"], (double)fixture.Json["tolerance"]!["logits"]!);
    }

    private static PeftAdaptation Combine(JsonObject run, Dictionary<string, PeftAdaptation> adapters, AdapterMergeOptions options) => AdapterMerging.Combine(adapters,
        [.. run["adapters"]!.AsArray().Select(n => (string)n!)], [.. run["weights"]!.AsArray().Select(n => (double)n!)], options);

    // Tables and transposed maps are recorded as they lie in the file.
    private static Tensor Like(Tensor delta, Tensor expected) => delta.shape.SequenceEqual(expected.shape) ? delta : delta.t();

    // Clamping depends on the signs of the singular vectors, which each library chooses by its own rounding: the signs are
    // those that give the recorded updates, and at sites without a recorded update those that give the recorded logits.
    private static Func<WeightSite, long, Tensor> Signs(Fixture fixture, JsonObject run, TinyBase tiny, Dictionary<string, PeftAdaptation> adapters, AdapterMergeOptions options)
    {
        using var off = no_grad();
        string label = (string)run["label"]!;
        int rank = (int)run["r"]!;
        Dictionary<WeightSite, int> chosen = [];
        Func<WeightSite, long, Tensor> By(Func<WeightSite, int> bits) => (site, count) =>
            tensor(Enumerable.Range(0, (int)count).Select(k => (bits(site) >> k & 1) == 0 ? 1f : -1f).ToArray());
        for (int bits = 0; bits < 1 << rank; bits++)
        {
            using PeftAdaptation tried = Combine(run, adapters, options with { SignWith = By(_ => bits) });
            foreach (LoraFactors factors in ((LoraAdaptation)tried).Factors)
            {
                string key = $"{label}/delta/{tiny.Backbone.PathOf(factors.Site)}";
                if (fixture.Has(key) && Deviations.Distance(Like(factors.Delta(), fixture[key]), fixture[key]) < 1e-5) chosen.TryAdd(factors.Site, bits);
            }
        }
        List<WeightSite> rest;
        using (PeftAdaptation any = Combine(run, adapters, options)) rest = [.. ((LoraAdaptation)any).Factors.Select(f => f.Site).Where(s => !chosen.ContainsKey(s))];
        Assert.IsLessThan(13, rank * rest.Count, $"{fixture.Name} {label}: too many signs are open");
        var best = (Distance: double.PositiveInfinity, Bits: 0);
        int Of(WeightSite site, int bits) => chosen.TryGetValue(site, out int known) ? known : bits >> (rank * rest.IndexOf(site));
        for (int bits = 0; bits < 1 << (rank * rest.Count); bits++)
        {
            using var scope = NewDisposeScope();
            int all = bits;
            using PeftAdaptation tried = Combine(run, adapters, options with { SignWith = By(site => Of(site, all)) });
            double distance = Deviations.Distance(new FixtureBatch(fixture).Forward(tiny.Backbone, tiny.Head, new Pass(tried.Table())).Logits, fixture[label + "/logits"]);
            if (distance < best.Distance) best = (distance, bits);
        }
        return By(site => Of(site, best.Bits));
    }

    private static PeftAdaptation[] Three(Backbone backbone, params LoraOptions[] methods)
    {
        using var off = no_grad();
        return [.. methods.Select((method, i) =>
        {
            PeftAdaptation made = method.Attach(backbone, i);
            foreach (NamedParameter p in made.Parameters) p.Load(new Draws(i, p.Name).Normal(0.3, p.Value.shape));
            return made;
        })];
    }

    private static Tensor Update(PeftAdaptation adapter, Site site) =>
        ((LoraAdaptation)adapter).Factors.FirstOrDefault(f => f.Site == site)?.Delta() is { } delta ? delta.detach() : zeros_like(((WeightSite)site).Weight);

    [TestMethod]
    public void SidesAndFullCutsAreExactOverSitesAndRanksThatDiffer()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        PeftAdaptation[] adapters = Three(backbone,
            new LoraOptions { Rank = 3, Alpha = 5, Targets = ["query", "word_embeddings"], RankPattern = { [@"layer\.1\..*"] = 2 } },
            new LoraOptions { Rank = 2, Alpha = 2, Targets = ["value", "query"], Layers = [1], UseRsLora = true },
            new LoraOptions { Rank = 4, Init = "pissa", Targets = ["key"] });
        double[] weights = [0.7, -1.3, 0.4];
        foreach (AdapterMergeOptions options in (AdapterMergeOptions[])[
            new() { Combination = AdapterCombination.Cat }, new() { SvdRank = 32 }, new() { Combination = AdapterCombination.TiesSvd, Density = 1, SvdRank = 32 },
            new() { Combination = AdapterCombination.DareLinearSvd, Density = 1, SvdRank = 32 }])
        {
            using PeftAdaptation made = AdapterMerging.Combine(adapters, weights, options);
            HashSet<Site> sites = [.. adapters.SelectMany(a => a.Patches.Keys)];
            Assert.IsTrue(sites.SetEquals(made.Patches.Keys));
            if (options.Combination == AdapterCombination.TiesSvd) continue;               // elects signs: no plain sum
            foreach (Site site in sites)
                Assert.IsLessThan(2e-5, Deviations.Distance(Update(made, site), adapters.Select((a, i) => Update(a, site) * weights[i]).Aggregate((a, b) => a + b)), $"{options.Combination} {site}");
        }
        foreach (PeftAdaptation adapter in adapters) adapter.Dispose();
    }

    [TestMethod]
    public void DroppingFollowsItsSeedAndShare()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        PeftAdaptation[] adapters = Three(backbone, new LoraOptions(), new LoraOptions());
        var options = new AdapterMergeOptions { Combination = AdapterCombination.DareLinear, Density = 0.3, Seed = 4 };
        using PeftAdaptation one = AdapterMerging.Combine(adapters, [1, 0], options), same = AdapterMerging.Combine(adapters, [1, 0], options),
            other = AdapterMerging.Combine(adapters, [1, 0], options with { Seed = 5 });
        NamedParameter a = one.Parameters[0];
        Assert.AreEqual(0, Deviations.Distance(a.Value, same.Parameters[0].Value));
        Assert.AreNotEqual(0, Deviations.Distance(a.Value, other.Parameters[0].Value));
        Assert.AreEqual(0.3, one.Parameters.Average(p => p.Value.detach().ne(0).to_type(ScalarType.Float32).mean().item<float>()), 0.05);
        foreach (PeftAdaptation adapter in adapters) adapter.Dispose();
    }

    [TestMethod]
    public void WhatCannotBeCombinedIsRefused()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU), elsewhere = MatrixModel.Make(CPU);
        PeftAdaptation[] some = Three(backbone, new LoraOptions(), new LoraOptions { Rank = 4 }, new LoraOptions { UseDora = true }, new LoraOptions { BiasMode = BiasMode.All },
            new LoraOptions { LoraBias = true }, new LoraOptions { ModulesToSave = ["pooler"] }, new LoraOptions { ModulesToSave = ["pooler"], Targets = ["key"] });
        using PeftAdaptation far = new LoraOptions().Attach(elsewhere, 0), bitfit = new BitFitOptions().Attach(backbone, 0);
        string Refused<T>(PeftAdaptation[] adapters, double[] weights, AdapterMergeOptions? options = null) where T : Exception =>
            Assert.ThrowsExactly<T>(() => AdapterMerging.Combine(adapters, weights, options).Dispose()).Message;
        var linear = new AdapterMergeOptions { Combination = AdapterCombination.Linear };
        StringAssert.Contains(Refused<ArgumentException>([some[0], some[1]], [1, 1], linear), "ranks 8, 4");
        StringAssert.Contains(Refused<ArgumentException>([], []), "no adapter");
        StringAssert.Contains(Refused<ArgumentException>([some[0]], [1, 2]), "2 weights");
        StringAssert.Contains(Refused<ArgumentException>([some[0]], [double.NaN]), "NaN");
        StringAssert.Contains(Refused<ArgumentException>([some[0], far], [1, 1]), "different backbones");
        StringAssert.Contains(Refused<NotSupportedException>([some[0], bitfit], [1, 1]), "bitfit");
        StringAssert.Contains(Refused<NotSupportedException>([some[0], some[2]], [1, 1]), "UseDora");
        StringAssert.Contains(Refused<NotSupportedException>([some[3]], [1]), "BiasMode");
        StringAssert.Contains(Refused<NotSupportedException>([some[4]], [1]), "LoraBias");
        StringAssert.Contains(Refused<ArgumentException>([some[5], some[6]], [1, 1]), "trained whole");
        StringAssert.Contains(Refused<ArgumentException>([some[0], some[0]], [1, 1], new() { Combination = AdapterCombination.Ties }), "Density is null");
        StringAssert.Contains(Refused<ArgumentException>([some[0], some[0]], [1, 1], new() { Combination = AdapterCombination.DareTies, Density = 0 }), "above 0");
        StringAssert.Contains(Refused<ArgumentException>([some[0], some[0]], [1, 1], new() { SvdClamp = 1.5 }), "SvdClamp");
        StringAssert.Contains(Refused<ArgumentException>([some[0], some[0]], [1, 1], new() { SvdRank = 0 }), "SvdRank");
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => AdapterMerging.Parse("tie")).Message, "'ties'");
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => AdapterMerging.Combine(new Dictionary<string, PeftAdaptation> { ["a"] = some[0] }, ["b"], [1])).Message, "there are a");
        using PeftAdaptation kept = AdapterMerging.Combine([some[0], some[5]], [1, 1]);
        Assert.AreEqual(0, Deviations.Distance(kept.Parameters.Single(p => p.Name == "bert.pooler.dense.weight").Value, some[5].Find("bert.pooler.dense.weight")!.Value));
        foreach (PeftAdaptation adapter in some) adapter.Dispose();
    }
}
