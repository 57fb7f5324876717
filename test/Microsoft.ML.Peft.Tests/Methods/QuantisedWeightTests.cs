// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Frozen weights in 4 and 8 bits: code book, blocks, sizes, products, training and merging on them, and LoftQ.</summary>
[TestClass]
public class QuantisedWeightTests
{
    private static readonly WeightFormat[] _formats = Enum.GetValues<WeightFormat>();

    [TestMethod]
    public void TheCodeBookIsThatOfNf4()
    {
        double[] sheet = [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0, 0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1];
        Assert.AreEqual(16, QuantisedWeight.Levels.Length);
        for (int i = 0; i < 16; i++) Assert.AreEqual(sheet[i], QuantisedWeight.Levels[i], 5.1e-8);
    }

    [TestMethod]
    public void BlocksOf64RunOverRowEndsAndRestoreTheNearestLevel()
    {
        using var scope = NewDisposeScope();
        Tensor weight = new Draws(1, "w").Normal(1, 7, 30);                                     // 210 numbers: three blocks and a part
        using QuantisedWeight kept = QuantisedWeight.Of(weight, WeightFormat.Nf4);
        float[] flat = weight.data<float>().ToArray(), restored = kept.Dequantise().contiguous().data<float>().ToArray(), scales = kept.Scales();
        int[,] codes = kept.Codes();
        Assert.HasCount(4, scales);
        for (int i = 0; i < flat.Length; i++)
        {
            float[] block = flat[(i / 64 * 64)..Math.Min(flat.Length, (i / 64 * 64) + 64)];
            float most = block.Max(Math.Abs);
            Assert.AreEqual(most, scales[i / 64]);
            float nearest = QuantisedWeight.Levels.ToArray().MinBy(level => Math.Abs(level - (flat[i] / most)));
            Assert.AreEqual(nearest * most, restored[i], 1e-6);
            Assert.AreEqual(nearest, QuantisedWeight.Levels[codes[i / 30, i % 30]]);
        }
    }

    [TestMethod]
    public void EightBitsAreRoundedByRow()
    {
        using var scope = NewDisposeScope();
        Tensor weight = cat([new Draws(1, "w").Normal(1, 4, 33), zeros([1, 33])], 0);
        using QuantisedWeight kept = QuantisedWeight.Of(weight, WeightFormat.Int8);
        Tensor most = weight.abs().amax([1], keepdim: true);
        Assert.AreEqual(0, Deviations.Distance(kept.Dequantise(), (weight * 127 / most.clamp(min: 1e-30)).round() * (most / 127)));
        Assert.AreEqual(8 + (32.0 / 33), kept.BitsPerNumber, 1e-9);
    }

    [TestMethod]
    public void SizesAreAsPromised()
    {
        using var scope = NewDisposeScope();
        Tensor weight = new Draws(1, "w").Normal(1, 512, 512);
        using QuantisedWeight plain = QuantisedWeight.Of(weight, WeightFormat.Nf4), twice = QuantisedWeight.Of(weight, WeightFormat.Nf4Double), eight = QuantisedWeight.Of(weight, WeightFormat.Int8);
        Assert.AreEqual(4.5, plain.BitsPerNumber, 1e-9);
        Assert.AreEqual(4.127, twice.BitsPerNumber, 1e-3);
        Assert.AreEqual(8.0625, eight.BitsPerNumber, 1e-9);
        // The widest gap of the levels is 1 - 0.723, half of it on either side; the scales' own rounding adds little.
        float most = weight.abs().max().item<float>();
        Assert.IsLessThan(0.152 * most + 1e-6, Deviations.Distance(plain.Dequantise(), weight));
        Assert.IsLessThan(0.02 * most, Deviations.Distance(plain.Dequantise(), twice.Dequantise()));
        Assert.IsGreaterThan(0, Deviations.Distance(plain.Dequantise(), twice.Dequantise()));
    }

    [TestMethod]
    public void ProductsAndTheirGradientsAreThoseOfTheRestoredWeight()
    {
        using var scope = NewDisposeScope();
        foreach (WeightFormat format in _formats)
        {
            Tensor weight = new Draws(1, "w").Normal(1, 12, 40), bias = new Draws(1, "b").Normal(1, 12), x = new Draws(1, "x").Normal(1, 2, 3, 40).requires_grad_();
            using QuantisedWeight kept = QuantisedWeight.Of(weight, format);
            Tensor y = kept.Product(x, bias), same = x.detach().clone().requires_grad_(), expected = nn.functional.linear(same, kept.Dequantise(), bias);
            Assert.IsLessThan(1e-5, Deviations.Distance(y, expected));
            (y * y).sum().backward();
            (expected * expected).sum().backward();
            Assert.IsLessThan(1e-3, Deviations.Distance(x.grad!, same.grad!));
        }
    }

    [TestMethod]
    public void EveryLinearMapButTheHeadIsKeptSmallAndTheFileIsRead()
    {
        if (Shared.Cases("hf-peft").Count == 0) return;
        foreach (string name in (string[])["_base-bert", "_base-gpt2", "_base-llama"])
        {
            string path = Path.Combine(Shared.Fixtures, "hf-peft", name);
            if (!Directory.Exists(path)) continue;
            using var folder = CheckpointFolder.Open(path);
            using Backbone dense = BackboneLoader.Load(folder, languageHead: name != "_base-bert"), small = BackboneLoader.Load(folder, languageHead: name != "_base-bert", quantised: WeightFormat.Nf4);
            using var scope = NewDisposeScope();
            Assert.AreEqual(dense.ParameterCount, small.ParameterCount);
            Assert.IsLessThan(dense.WeightBytes, small.WeightBytes);
            foreach ((Site a, Site b) in dense.Sites.Zip(small.Sites))
            {
                if (a is not WeightSite x || b is not WeightSite y) continue;
                bool kept = a is Projection { TiedTo: null } && a.Role != SiteRole.LanguageHead;
                Assert.AreEqual(kept, y.Quantised is not null, a.Name);
                if (!kept) Assert.AreEqual(0, Deviations.Distance(x.Weight, y.Weight), a.Name);
                else Assert.IsLessThan(0.16 * x.Weight.abs().max().item<float>(), Deviations.Distance(x.Weight, y.Weight), a.Name);
            }
        }
    }

    public static IEnumerable<object[]> Methods =>
        from format in Enum.GetValues<WeightFormat>()
        from method in (string[])["lora", "ia3", "bitfit", "bottleneck", "loha"]
        where PeftMethods.Ids.Contains(method)
        select new object[] { format, method };

    [TestMethod]
    [DynamicData(nameof(Methods))]
    public void MethodsTrainOnSmallWeightsAndLeaveTheCodes(WeightFormat format, string id)
    {
        long before = LiveTensors.Count();
        Once();
        long once = LiveTensors.Count();
        Once();
        Assert.AreEqual(once, LiveTensors.Count(), $"tensors leak (before: {before})");

        void Once()
        {
            using var dense = new MatrixModel(null);
            dense.Backbone.Quantise(format);
            var codes = dense.Backbone.Sites.OfType<Projection>().ToDictionary(s => s, s => s.Quantised!.Codes());
            float[] bare = dense.Score();
            using var model = new MatrixModel(PeftMethods.Create(id), seed: 3, quantised: format);
            Assert.IsTrue(bare.Zip(model.Score(bare: true)).All(p => p.First == p.Second), "one quantisation");
            if (model.Adaptation!.Method.ExactAtStart)
                Assert.IsTrue(bare.Zip(model.Score()).All(p => Math.Abs(p.First - p.Second) < 1e-5f), "the start changed the output");
            List<float> losses = model.Train(12);
            Assert.IsLessThan(losses[0], losses[^1]);
            foreach ((Projection site, int[,] code) in codes)
                CollectionAssert.AreEqual(code, ((Projection)model.Backbone.Sites[site.Index]).Quantised!.Codes(), site.Name);
        }
    }

    [TestMethod]
    public void GradientsOnSmallWeightsAreThoseOnTheRestoredOnes()
    {
        using var scope = NewDisposeScope();
        using var small = new MatrixModel(new LoraOptions { Dropout = 0, Targets = ["all-linear"] }, seed: 3, quantised: WeightFormat.Nf4);
        using Backbone restored = small.Backbone.With(small.Backbone.Sites.OfType<Projection>().ToDictionary(s => (Site)s, s => (s.Weight, s.Bias)));
        using PeftAdaptation onDense = new LoraOptions { Dropout = 0, Targets = ["all-linear"] }.Attach(restored, 3);
        Assert.IsTrue(restored.Sites.OfType<Projection>().All(s => s.Quantised is null));
        foreach (NamedParameter p in onDense.Parameters)
        {
            p.Load(new Draws(1, p.Name).Normal(0.2, p.Value.shape));
            small.Adaptation!.Find(p.Name)!.Load(p.Value);
        }
        small.Loss(new Pass(small.Model.Patches)).backward();
        small.Loss(new Pass(onDense.Table()), restored).backward();
        foreach (NamedParameter p in onDense.Parameters) Assert.IsLessThan(1e-4, Deviations.Distance(p.Value.grad!, small.Adaptation!.Find(p.Name)!.Value.grad!), p.Name);
    }

    [TestMethod]
    public void MergingOnSmallWeightsRefusesRoundsAgainOrGrows()
    {
        using var scope = NewDisposeScope();
        using var model = new MatrixModel(new LoraOptions { Dropout = 0 }, seed: 3, quantised: WeightFormat.Int8);
        model.Train(3);
        StringAssert.Contains(Assert.ThrowsExactly<NotSupportedException>(() => Merging.Merge(model.Adaptation!).Dispose()).Message, "QuantisedMerge");
        float[] worn = model.Score();
        using Backbone grown = Merging.Merge(model.Adaptation!, out double none, QuantisedMerge.Dense), rounded = Merging.Merge(model.Adaptation!, out double loss, QuantisedMerge.Requantise);
        Assert.AreEqual(0, none);
        Assert.IsLessThan(1e-5f, worn.Zip(model.Score(bare: true, grown)).Max(p => Math.Abs(p.First - p.Second)));
        Assert.IsTrue(loss is > 0 and <= 0.5 / 127 + 1e-6, $"{loss}");
        Assert.IsTrue(rounded.Sites.OfType<Projection>().All(s => s.Quantised is not null));
        foreach (Site site in model.Adaptation!.Patches.Keys) Assert.IsNull(((Projection)grown.Sites[site.Index]).Quantised);
        Assert.IsLessThan(0.3f, worn.Zip(model.Score(bare: true, rounded)).Max(p => Math.Abs(p.First - p.Second)));
        CollectionAssert.AreEqual(worn, model.Score());
    }

    [TestMethod]
    public void StartsThatNeedTheDenseWeightAreRefused()
    {
        using var model = new MatrixModel(null);
        model.Backbone.Quantise(WeightFormat.Nf4);
        foreach (LoraOptions options in (LoraOptions[])[new() { Init = "pissa" }, new() { Init = "olora" }, new() { Init = "mica" }, new() { UseDora = true }, new() { Variant = new KasaVariant() },
            new() { DataStart = new LoraGaStart() }, new() { DataStart = new CordaStart() }])
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => options.Attach(model.Backbone, 0).Dispose()).Message, "Nf4");
        Assert.ThrowsExactly<ArgumentException>(() => QuantisedWeight.Of(full([2, 2], float.NaN), WeightFormat.Nf4));
        Assert.ThrowsExactly<ArgumentException>(() => QuantisedWeight.Of(zeros([2, 2, 2]), WeightFormat.Nf4));
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void LoftQEqualsPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Text("call") is not { } call || Regex.Match(call, @"loftq_bits=(\d+), loftq_iter=(\d+)") is not { Success: true } match || !fixture.Has("quantised")) continue;
            using var scope = NewDisposeScope();
            WeightFormat format = match.Groups[1].Value == "8" ? WeightFormat.Int8 : WeightFormat.Nf4;
            Tensor a = fixture["lora_A"], b = fixture["lora_B"];
            (QuantisedWeight kept, Tensor ourA, Tensor ourB) = LoftQ.Decompose(fixture["weight"], (int)a.shape[0], format, int.Parse(match.Groups[2].Value));
            deviations.Add("quantised", fixture.Name, kept.Dequantise(), fixture["quantised"], (double)fixture.Json["tolerance"]!["quantised"]!);
            deviations.Add("B A", fixture.Name, ourB.matmul(ourA), b.matmul(a), (double)fixture.Json["tolerance"]!["B A"]!);
            kept.Dispose();
            using QuantisedWeight first = QuantisedWeight.Of(fixture["weight"], format, halfScales: true);
            deviations.Add("first scales", fixture.Name, tensor(first.Scales()), fixture["first_absmax"], 1e-6);
            if (format == WeightFormat.Nf4)
            {
                int[,] codes = first.Codes();
                float[] theirs = fixture["first_codes"].reshape(-1).data<float>().ToArray();
                for (int i = 0; i < theirs.Length; i++)
                    if (codes[i / codes.GetLength(1), i % codes.GetLength(1)] != (int)theirs[i]) deviations.Fail($"{fixture.Name}: code {i} differs");
            }
            count++;
        }
        Console.WriteLine($"{count} cases");
        deviations.Report();
    }

    [TestMethod]
    public void LoftQStartsCloserToTheDenseNetwork()
    {
        using var scope = NewDisposeScope();
        using var model = new MatrixModel(null);
        using var plain = new MatrixModel(null);
        plain.Backbone.Quantise(WeightFormat.Nf4);
        float[] dense = model.Score(), rounded = plain.Score();
        (Backbone kept, PeftAdaptation lora) = LoftQ.Attach(model.Backbone, new LoraOptions { Rank = 12, Alpha = 24, Dropout = 0, Targets = ["all-linear"] }, WeightFormat.Nf4, 3);
        using (kept)
        using (lora)
        {
            float[] started = model.Score(lora.Table(), kept);
            Assert.IsLessThan(dense.Zip(rounded).Sum(p => Math.Abs(p.First - p.Second)), dense.Zip(started).Sum(p => Math.Abs(p.First - p.Second)));
            Assert.IsTrue(kept.Sites.OfType<Projection>().All(s => s.Quantised is not null));
            CollectionAssert.AreEqual(dense, model.Score());
        }
        Assert.ThrowsExactly<ArgumentException>(() => LoftQ.Attach(model.Backbone, new LoraOptions { UseDora = true }));
        Assert.ThrowsExactly<ArgumentException>(() => LoftQ.Attach(model.Backbone, new LoraOptions(), iterations: 0));
    }
}
