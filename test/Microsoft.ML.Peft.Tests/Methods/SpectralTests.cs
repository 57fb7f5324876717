// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Positions and filters of the spectral methods, and the gradient of sparse updates.</summary>
[TestClass]
public class SpectralTests
{
    [TestMethod]
    public void FiltersAreOrthonormalWithTheirEvenShifts()
    {
        foreach (string name in Wavelets.Names)
        {
            double[] low = Wavelets.LowPass(name), high = Wavelets.HighPass(low);
            double Product(double[] a, double[] b, int shift) => a.Skip(shift).Zip(b, (x, y) => x * y).Sum();
            Assert.AreEqual(Math.Sqrt(2), low.Sum(), 1e-9, name);
            Assert.AreEqual(0, high.Sum(), 1e-9, name);
            for (int shift = 0; shift < low.Length; shift += 2)
            {
                Assert.AreEqual(shift == 0 ? 1 : 0, Product(low, low, shift), 1e-9, $"{name} {shift}");
                Assert.AreEqual(0, Product(low, high, shift), 1e-9, $"{name} {shift}");
            }
            // The number of vanishing moments: half the length, or a third for Coifman's.
            int moments = Math.Min(10, name.StartsWith("coif", StringComparison.Ordinal) ? low.Length / 3 : low.Length / 2);
            double largest = high.Select((g, k) => Math.Abs(g) * Math.Pow(k, moments - 1)).Sum();
            Assert.AreEqual(0, high.Select((g, k) => g * Math.Pow(k, moments - 1)).Sum() / largest, 1e-8, name);
        }
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void PositionsAndFiltersAreTheRecordedOnes()
    {
        int positions = 0, filters = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            using var scope = NewDisposeScope();
            if (!File.Exists(fixture.PathOf("adapter", "adapter_config.json"))) continue;
            JsonNode config = JsonNode.Parse(File.ReadAllText(fixture.PathOf("adapter", "adapter_config.json")))!;
            if (fixture.Has("rec_lo"))
            {
                double[] low = Wavelets.LowPass((string)config["wavelet_family"]!);
                Compare(low, fixture["rec_lo"], fixture.Name);
                Compare(Wavelets.HighPass(low), fixture["rec_hi"], fixture.Name);
                filters++;
            }
            if (config["random_loc_seed"] is null) continue;
            using TinyBase tiny = HfBases.Load(fixture);
            foreach ((string path, Tensor expected) in fixture.Under("indices/"))
            {
                Tensor weight = ((WeightSite)tiny.Backbone.FindSite(path)!).Weight;
                long[] at = new TorchGenerator((long)config["random_loc_seed"]!).First(weight.numel(), expected.shape[1]);
                int[] found = [.. at.Select(i => (int)(i / weight.shape[1])), .. at.Select(i => (int)(i % weight.shape[1]))];
                CollectionAssert.AreEqual(expected.reshape(-1).data<int>().ToArray(), found, $"{fixture.Name} {path}");
                positions++;
            }
        }
        Console.WriteLine($"{filters} filters, {positions} sites");
        if (Shared.Cases("hf-peft").Count > 0) Assert.IsTrue(filters > 0 && positions > 0);

        static void Compare(double[] found, Tensor expected, string name)
        {
            float[] recorded = expected.data<float>().ToArray();
            Assert.AreEqual(recorded.Length, found.Length, name);
            for (int i = 0; i < found.Length; i++) Assert.AreEqual(recorded[i], found[i], 1e-6, name);
        }
    }

    [TestMethod]
    public void PositionsAreAPermutation()
    {
        CollectionAssert.AreEqual(Enumerable.Range(0, 50).Select(i => (long)i).ToArray(), new TorchGenerator(3).First(50, 50).Order().ToArray());
        CollectionAssert.AreNotEqual(new TorchGenerator(3).First(50, 50), new TorchGenerator(4).First(50, 50));
        CollectionAssert.AreEqual(new TorchGenerator(3).First(50, 50)[..7], new TorchGenerator(3).First(50, 7));
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => new TorchGenerator(1).First(1L << 40, 1)).Message, "too large");
    }

    [TestMethod]
    public void ASparseUpdateHasTheGradientOfItsEntriesAlone()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        var site = (Projection)backbone.Sites.First(s => s.Role == SiteRole.FeedForwardDown);
        using PeftAdaptation worn = new ShiraOptions { Rank = 2, Targets = ["FeedForwardDown"], InitWeights = false }.Attach(backbone, 1);
        var patch = (SparsePatch)worn.Patches[site];
        var seen = new List<Tensor>();
        patch.WatchGradient = gradient => seen.Add(gradient.clone().DetachFromDisposeScope());
        Tensor x = new Draws(1, "x").Normal(1, 3, 4, site.In).requires_grad_(), g = new Draws(1, "g").Normal(1, 3, 4, site.Out);
        Tensor y = site.Forward(x, new Pass(worn.Table()));
        (y * g).sum().backward();

        Tensor values = patch.Values.Value.detach().requires_grad_(), x2 = x.detach().requires_grad_();
        Tensor dense = site.Weight.reshape(-1).scatter_add(0, patch.Places(), values).reshape(site.Weight.shape);
        Tensor y2 = x2.matmul(dense.t()) + site.Bias!;
        (y2 * g).sum().backward();
        Assert.AreEqual(0f, (y - y2).abs().max().item<float>(), 1e-5f);
        Assert.AreEqual(0f, (patch.Values.Value.grad! - values.grad!).abs().max().item<float>(), 1e-4f);
        Assert.AreEqual(0f, (x.grad! - x2.grad!).abs().max().item<float>(), 1e-4f);
        Assert.AreEqual(0f, (seen.Single() - g.reshape(-1, site.Out).t().matmul(x.detach().reshape(-1, site.In))).abs().max().item<float>(), 1e-4f);
        seen[0].Dispose();

        // In company the entries are a product of their own.
        using PeftAdaptation other = new BeftOptions { Targets = ["FeedForwardDown"], InitWeights = false }.Attach(backbone, 2);
        Tensor both = site.Forward(x, new Pass(HfBases.Stack(other, worn)));
        Tensor shift = other.Parameters[0].Value.reshape(-1);
        Assert.AreEqual(0f, (both - y - shift).abs().max().item<float>(), 1e-5f);
    }

    [TestMethod]
    public void GradientsOfOsfStayOffTheKeptDirections()
    {
        using var model = new MatrixModel(new OsfOptions { EffectiveRank = 20 });
        model.Train(1);
        using var scope = NewDisposeScope();
        PeftAdaptation worn = model.Adaptation!;
        string path = model.Backbone.PathOf(worn.Patches.Keys.First());
        Tensor left = worn.Find(path + ".osf_svd_params.U_low")!.Value.grad!, right = worn.Find(path + ".osf_svd_params.V_low")!.Value.grad!;
        Assert.IsGreaterThan(1e-4f, left.abs().max().item<float>());
        Assert.AreEqual(0f, worn.Find(path + ".osf_U_high")!.Value.t().matmul(left).abs().max().item<float>(), 1e-5f);
        Assert.AreEqual(0f, right.matmul(worn.Find(path + ".osf_V_high")!.Value.t()).abs().max().item<float>(), 1e-5f);
    }

    [TestMethod]
    public void OptionsThatDoNotFitAreRefused()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        void Refused(PeftMethod method, string part) =>
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => method.Attach(backbone, 1).Dispose()).Message, part);
        Refused(new FourierFtOptions { Frequencies = 2000 }, "at most 1024");
        Refused(new WaveFtOptions { Wavelet = "sym44" }, "sym4");
        Refused(new C3aOptions { BlockSize = 24 }, "a divisor of both sides");
        Refused(new OsfOptions { EffectiveRank = 32 }, "below 32");
        Refused(new OsfOptions { EffectiveRank = 1.5 }, "whole number");
        Refused(new ShiraOptions { Rank = 40 }, "at most 16");
        Refused(new SuperTuningOptions { Sparsity = 0.9999 }, "small enough");
        Refused(new SuperTuningOptions { Alpha = 3 }, "null where Rank is null");
        Refused(new TrainableTokensOptions(), "at least one");
        Refused(new TrainableTokensOptions { TokenIndices = [5, 300] }, "0 to 100");
        Refused(new TrainableTokensOptions { TokenIndices = [5, 5] }, "each id once");
        Refused(new LofitOptions { Stage = LofitStage.Tune }, "at least one head");
        Refused(new LofitOptions { Stage = LofitStage.Tune, Heads = ["2:0"] }, "attention 0 to 1");
        Refused(new LofitOptions { Stage = LofitStage.Tune, Heads = ["1:4"] }, "head 0 to 3");
        Refused(new LofitOptions { Stage = LofitStage.Tune, Heads = ["1.3"] }, "attention:head");
        Refused(new Ia3Options { FeedForwardTargets = ["dense"], FeedForwardPattern = "x" }, "one of the two");
        Refused(new LayerNormTuningOptions { Targets = ["query"] }, "cannot adapt");
    }
}
