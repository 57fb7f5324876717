// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>Several adapters on one backbone: together, weighted, a different one a row.</summary>
[TestClass]
public class AdapterSetTests
{
    private static (TokenBatch Batch, int Rows) Batch()
    {
        var draws = new Draws(17, "rows of adapters");
        var ids = new long[6 * 7];
        var mask = new long[6 * 7];
        for (int row = 0; row < 6; row++)
            for (int at = 0; at < 3 + (row * 5 % 5); at++) (ids[(row * 7) + at], mask[(row * 7) + at]) = (1 + (long)(draws.Next() * 99), 1);
        return (new TokenBatch(tensor(ids, [6, 7]), tensor(mask, [6, 7])), 6);
    }

    // Fresh adapters do nothing: theirs are filled with noise.
    private static PeftAdaptation Noisy(PeftMethod method, Backbone backbone, long seed)
    {
        PeftAdaptation made = method.Attach(backbone, seed);
        using var scope = NewDisposeScope();
        foreach (NamedParameter p in made.Parameters.Where(p => p.Trainable)) p.Load(p.Value.detach() + new Draws(seed, "noise " + p.Name).Normal(0.1, p.Value.shape));
        return made;
    }

    private static readonly Dictionary<string, Func<PeftMethod>> _kinds = new()
    {
        ["terms"] = () => new LoraOptions { Targets = ["query", "word_embeddings", "position_embeddings", "intermediate.dense", "pooler.dense"] },
        ["weights"] = () => new LoraOptions { UseDora = true, Targets = ["value", "output.dense"], BiasMode = BiasMode.LoraOnly },
        ["norms and biases"] = () => new BitFitOptions(),
        ["residuals"] = () => new HoulsbyOptions { ReductionFactor = 4 },
        ["blocks"] = () => new BottleneckOptions { Parallel = true, ReductionFactor = 4 },
    };

    [TestMethod]
    public void EachRowWearsItsOwnAdapter()
    {
        using var model = new MatrixModel(null);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using var set = new AdapterSet(model.Backbone, model.Model.Head);
        long seed = 30;
        foreach ((string name, Func<PeftMethod> make) in _kinds)
            set.Add(name, Noisy(make(), model.Backbone, ++seed), new Tasks.SequenceClassificationHead(model.Backbone, 3, seed: seed));
        (TokenBatch batch, int rows) = Batch();
        Dictionary<string, Tensor> alone = set.Names.Append(AdapterSet.Bare).ToDictionary(n => n, n => set.Forward(batch, [.. Enumerable.Repeat(n, rows)]));
        for (int shift = 0; shift < 6; shift++)
        {
            string[] names = [.. Enumerable.Range(0, rows).Select(i => alone.Keys.ElementAt((i + shift) % alone.Count))];
            Tensor mixed = set.Forward(batch, names);
            for (int row = 0; row < rows; row++)
                Assert.IsLessThan(1e-5, Deviations.Distance(mixed[row], alone[names[row]][row]), $"row {row} with {names[row]}");
        }
        Assert.IsGreaterThan(1e-3, Deviations.Distance(alone["terms"], alone["weights"]), "the adapters must differ");
    }

    [TestMethod]
    public void WeightsScaleTheChange()
    {
        using var model = new MatrixModel(null);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        (TokenBatch batch, _) = Batch();
        foreach ((string name, Func<PeftMethod> make) in _kinds)
        {
            using var set = new AdapterSet(model.Backbone);
            set.Add("a", Noisy(make(), model.Backbone, 3));
            Tensor Run(PatchTable worn) => model.Backbone.Forward(batch, new Pass(worn)).Last;
            Tensor bare = Run(PatchTable.Empty), full = Run(set.Together("a")), none = Run(set.Weighted(("a", 0))), half = Run(set.Weighted(("a", 0.5)));
            Assert.IsLessThan(1e-5, Deviations.Distance(bare, none), name);
            Assert.AreEqual(0, Deviations.Distance(full, Run(set.Weighted(("a", 1)))), name);
            double share = Deviations.Distance(half, bare) / Deviations.Distance(full, bare);
            Assert.IsTrue(share is > 0.1 and < 0.9, $"{name}: {share}");
        }
    }

    [TestMethod]
    public void WrongNamesAndCountsAreTold()
    {
        using var model = new MatrixModel(null);
        using var set = new AdapterSet(model.Backbone);
        set.Add("news", new LoraOptions().Attach(model.Backbone, 1));
        using var scope = NewDisposeScope();
        (TokenBatch batch, int rows) = Batch();
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => set.Forward(batch, ["news"])).Message, "1 adapter names for 6 rows");
        string unknown = Assert.ThrowsExactly<ArgumentException>(() => set.Forward(batch, [.. Enumerable.Repeat("new", rows)])).Message;
        StringAssert.Contains(unknown, "no adapter 'new'");
        StringAssert.Contains(unknown, "news");
        Assert.ThrowsExactly<ArgumentException>(() => set.Together("other"));
        Assert.ThrowsExactly<ArgumentException>(() => set.Weighted(("news", double.NaN)));
        Assert.ThrowsExactly<ArgumentException>(() => set.Add("news", set["news"]));
        Assert.ThrowsExactly<ArgumentException>(() => set.Add(AdapterSet.Bare, set["news"]));
        using var other = new MatrixModel(null);
        using PeftAdaptation foreign = new LoraOptions().Attach(other.Backbone, 1);
        Assert.ThrowsExactly<ArgumentException>(() => set.Add("foreign", foreign));
    }

    [TestMethod]
    public void NoTensorLeaks()
    {
        Once();
        long before = LiveTensors.Count();
        Once();
        Assert.AreEqual(before, LiveTensors.Count());

        static void Once()
        {
            using var model = new MatrixModel(null);
            using var scope = NewDisposeScope();
            using var set = new AdapterSet(model.Backbone, model.Model.Head);
            foreach ((string name, Func<PeftMethod> make) in _kinds) set.Add(name, make().Attach(model.Backbone, 1));
            (TokenBatch batch, int rows) = Batch();
            set.Forward(batch, [.. Enumerable.Range(0, rows).Select(i => set.Names[i % set.Names.Count])]);
            set.Remove("terms");
        }
    }

    /// <summary>Batches with an adapter name a row, of the recorded cases.</summary>
    [TestMethod]
    [TestCategory("Fixtures")]
    public void MixedBatchesEqualPeft()
    {
        var deviations = new Deviations();
        List<string> done = [], later = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["adapter_names"] is not JsonArray lists) continue;
            if (HfPeftFixtureTests.Later(fixture) is { } reason) { later.Add($"{fixture.Name} ({reason})"); continue; }
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture), heads = HfBases.Load(fixture);
            using var set = new AdapterSet(tiny.Backbone, tiny.Head);
            List<TinyBase> owners = [];
            foreach (string path in Directory.GetDirectories(fixture.PathOf("adapters")))
            {
                using AdapterFolder file = AdapterFolder.Open(path);
                var own = HfBases.Load(fixture);
                owners.Add(own);
                set.Add(Path.GetFileName(path), file.Attach(tiny.Backbone, own.Head), own.TakeHead());
            }
            double tolerance = (double)fixture.Json["tolerance"]!["logits"]!;
            TokenBatch batch = new FixtureBatch(fixture).Tokens;
            for (int k = 0; k < lists.Count; k++)
            {
                string[] names = [.. lists[k]!.AsArray().Select(n => (string)n!)];
                Tensor ours = set.Forward(batch, names);
                for (int row = 0; row < names.Length; row++)
                    deviations.Add("row of a mixed batch", $"{fixture.Name} list {k} row {row}", ours[row],
                        fixture["logits/" + (names[row] == AdapterSet.Bare ? "base" : names[row])][row], tolerance);
                if (fixture.Has($"mixed/{k}")) deviations.Add("mixed batch", $"{fixture.Name} list {k}", ours, fixture[$"mixed/{k}"], tolerance);
            }
            foreach (TinyBase owner in owners) owner.Dispose();
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} mixed batches: {string.Join(", ", done)}; later: {string.Join(", ", later)}");
        deviations.Report();
    }

    /// <summary>Adapters put in the place of a live one, of the recorded cases.</summary>
    [TestMethod]
    [TestCategory("Fixtures")]
    public void SwappedAdaptersEqualPeft()
    {
        var deviations = new Deviations();
        List<string> done = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["swap_from_first_to"] is not JsonObject swaps) continue;
            foreach ((string name, JsonNode? expected) in swaps)
            {
                using var scope = NewDisposeScope();
                using TinyBase tiny = HfBases.Load(fixture);
                using var set = new AdapterSet(tiny.Backbone);
                PeftAdaptation Read(string adapter)
                {
                    using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapters", adapter));
                    return file.Attach(tiny.Backbone, tiny.Head);
                }
                set.Add("live", Read("first"));
                PeftAdaptation other = Read(name);
                if (expected!["error"] is not null)
                {
                    string message = Assert.ThrowsExactly<ArgumentException>(() => set.Swap("live", other)).Message;
                    Assert.IsTrue(message.Length > 40, message);
                    other.Dispose();
                    continue;
                }
                set.Swap("live", other);
                using var off = no_grad();
                deviations.Add("logits after a swap", $"{fixture.Name} {name}",
                    new FixtureBatch(fixture).Forward(tiny.Backbone, tiny.Head, new Pass(set.Together("live"))).Logits, fixture["logits/" + name], (double)fixture.Json["tolerance"]!["logits"]!);
                done.Add(name);
            }
        }
        Console.WriteLine($"{done.Count} swaps: {string.Join(", ", done)}");
        deviations.Report();
    }

    /// <summary>Adapters of several methods that are active at once, of the recorded cases.</summary>
    [TestMethod]
    [TestCategory("Fixtures")]
    public void MixedModelsEqualPeft()
    {
        var deviations = new Deviations();
        List<string> done = [], later = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Text("peft_type") is not null || fixture.Json["configs"] is not JsonObject configs || !Directory.Exists(fixture.PathOf("adapters"))) continue;
            if (!fixture.Names.Any(n => n.StartsWith("logits/", StringComparison.Ordinal) && n.Contains('+'))) continue;
            if (configs.Select(c => HfPeftFixtureTests.LaterAdapter(fixture.PathOf("adapters", c.Key))).FirstOrDefault(r => r is not null) is { } reason)
            {
                later.Add($"{fixture.Name} ({reason})");
                continue;
            }
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using var set = new AdapterSet(tiny.Backbone);
            foreach ((string name, _) in configs)
            {
                using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapters", name));
                set.Add(name, file.Attach(tiny.Backbone));
            }
            double tolerance = (double)fixture.Json["tolerance"]!["logits"]!;
            var batch = new FixtureBatch(fixture);
            foreach ((string key, Tensor expected) in fixture.Under("logits/"))
            {
                string[] names = [.. key.Split('+', ',').Select(n => n.Trim())];
                if (!names.All(set.Names.Contains)) continue;
                using var off = no_grad();
                deviations.Add("logits", $"{fixture.Name} {key}", batch.Forward(tiny.Backbone, tiny.Head, new Pass(set.Together(names))).Logits, expected, tolerance);
            }
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} mixed models: {string.Join(", ", done)}; later: {string.Join(", ", later)}");
        deviations.Report();
    }
}
