// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>
/// Kernels against the path through libtorch: outputs, gradients, dropped entries. The kernels' own test, in C++, compares them with
/// plain loops in double precision and with finite differences.
/// </summary>
[TestClass]
public sealed class NativeKernelTests
{
    private const double Tolerance = 2e-5;

    [TestInitialize]
    public void TheLibraryIsThere()
    {
        if (!NativeKernels.On) Assert.Inconclusive($"Native kernels: {NativeKernels.Description}");
    }

    private static Tensor Numbers(string name, params long[] shape) => new Draws(3, name).Normal(1, shape);

    /// <summary>A result, and the gradients of its weighted sum: by the kernels, and without them.</summary>
    private static void Compare(string what, Func<Tensor[]> inputs, Func<Tensor[], Pass, Tensor> run, bool training = true)
    {
        using var scope = NewDisposeScope();
        (Tensor Output, Tensor?[] Gradients) Run()
        {
            Tensor[] given = inputs();
            var pass = new Pass(PatchTable.Empty, training, seed: 7);
            pass.BeginSegment(2);
            Tensor output = run(given, pass);
            if (given.Any(t => t.requires_grad)) (output * Numbers("weights", output.shape)).sum().backward();
            return (output.detach(), Array.ConvertAll(given, t => t.requires_grad ? t.grad : null));
        }

        (Tensor output, Tensor?[] gradients) = Run();
        using (NativeKernels.Off())
        {
            Assert.IsFalse(NativeKernels.On);
            (Tensor expected, Tensor?[] slopes) = Run();
            Near(what, expected, output);
            for (int i = 0; i < slopes.Length; i++)
            {
                Assert.AreEqual(slopes[i] is null, gradients[i] is null, $"{what}: gradient {i}");
                if (slopes[i] is not null) Near($"{what}: gradient {i}", slopes[i]!, gradients[i]!);
            }
        }
        Assert.IsTrue(NativeKernels.On);
    }

    private static void Near(string what, Tensor expected, Tensor found)
    {
        CollectionAssert.AreEqual(expected.shape, found.shape, what);
        double size = Math.Max(1, expected.abs().max().item<float>());
        Assert.IsLessThan(Tolerance * size, Deviations.Distance(expected, found), what);
    }

    private sealed class Term(LowRankTerm[] terms) : WeightPatch
    {
        public override PatchForm Form => PatchForm.LowRank;

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) => terms;

        public Tensor? Bias { get; init; }

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass) => Bias ?? bias;
    }

    private static Tensor Trained(Tensor x, bool trained) => trained ? x.requires_grad_() : x;

    [TestMethod]
    [DataRow(1, 1, 32, 32, "linear", 0.0)]
    [DataRow(3, 5, 24, 33, "gelu", 0.1)]
    [DataRow(2, 23, 384, 96, "gelu_new", 0.0)]
    [DataRow(4, 9, 40, 1, "relu", 0.3)]
    [DataRow(1, 130, 17, 50, "silu", 0.1)]
    public void AFrozenProjectionGivesWhatLibtorchGives(int batch, int tokens, int inWidth, int outWidth, string activation, double dropout)
    {
        using var scope = NewDisposeScope();
        Tensor weight = Numbers("w", outWidth, inWidth) / Math.Sqrt(inWidth), bias = Numbers("b", outWidth);
        using Owned owned = new(new Projection("p", SiteRole.FeedForwardUp, 0, weight, bias)), bare = new(new Projection("p", SiteRole.FeedForwardUp, 0, weight, null));
        Follow follow = activation == "linear" ? Follow.ByDropout(dropout) : Follow.By(activation) with { Dropout = dropout };
        foreach (bool trained in (bool[])[true, false])
            foreach (int kind in (int[])[0, 1, 2, 3, 4])
                Compare($"{batch}x{tokens} {inWidth}->{outWidth} {activation} dropout {dropout}, kind {kind}, input {(trained ? "trained" : "frozen")}",
                    () => [Trained(Numbers("x", batch, tokens, inWidth), trained), Trained(Numbers("A", 3, inWidth), kind > 0), Trained(Numbers("B", outWidth, 3), kind > 0), Trained(Numbers("c", outWidth), kind == 4)],
                    (t, pass) =>
                    {
                        var term = new LowRankTerm(t[1], t[2], 0.7, Dropout: kind is 2 or 4 ? 0.2 : 0);
                        WeightPatch? patch = kind == 0 ? null : new Term(kind == 3 ? [term, term with { Scale = 0.2 }] : [term]) { Bias = kind == 4 ? t[3] : null };
                        Projection site = kind == 1 ? bare.Site : owned.Site;
                        return site.Forward(t[0], follow, new Worn(site, patch, pass).Pass);
                    });
    }

    // The pass of a comparison, wearing one patch.
    private sealed class Worn
    {
        public Worn(Projection site, WeightPatch? patch, Pass pass)
        {
            site.Index = 0;
            Pass = new Pass(patch is null ? PatchTable.Empty : new PatchTable([KeyValuePair.Create<Site, Patch>(site, patch)]), pass.Training, pass.Seed);
            Pass.BeginSegment(2);
        }

        public Pass Pass { get; }
    }

    private sealed class Owned(Projection site) : IDisposable
    {
        public Projection Site => site;

        public void Dispose() => site.Unpack();
    }

    [TestMethod]
    [DataRow(1, 1, 1)]
    [DataRow(2, 2, 2)]
    [DataRow(3, 7, 7)]
    [DataRow(2, 33, 33)]
    [DataRow(3, 1, 40)]
    [DataRow(2, 9, 17)]
    [DataRow(1, 200, 200)]
    [DataRow(1, 513, 513)]
    public void AttentionGivesWhatLibtorchGives(int batch, int queries, int keys)
    {
        foreach ((int heads, int keyHeads, int width) in ((int, int, int)[])[(3, 3, 32), (4, 2, 8), (2, 1, 20)])
            foreach (int kind in (int[])[0, 1, 2, 3])
                Compare($"{batch} rows, {heads}/{keyHeads} heads of {width}, {queries} queries, {keys} keys, kind {kind}",
                    () => [Trained(Numbers("q", batch, queries, heads, width), true), Trained(Numbers("k", batch, keys, keyHeads, width), true), Trained(Numbers("v", batch, keyHeads, keys, width), true)],
                    (t, pass) =>
                    {
                        pass.Layout = new Layout(Mask(batch, keys, atTheEnd: kind != 3), padded: kind is 1 or 3);
                        Tensor? bias = kind == 2 ? Numbers("bias", heads, queries, keys) : pass.Layout.KeyBias(ScalarType.Float32);
                        var input = new AttentionInput(t[0].transpose(1, 2), t[1].transpose(1, 2), t[2], bias);
                        return Heads.Attend(input, 1 / Math.Sqrt(width), kind == 1 ? 0 : 0.1, pass);
                    });
    }

    // Rows of all lengths, one of them whole; or with a hole in front.
    private static Tensor Mask(int batch, int keys, bool atTheEnd) =>
        tensor(Enumerable.Range(0, batch * keys).Select(i => (i % keys) < Math.Max(1, keys - (i / keys * 5)) && (atTheEnd || keys == 1 || i % keys != 0) ? 1L : 0L).ToArray(), [batch, keys]);

    [TestMethod]
    [DataRow(1, 1)]
    [DataRow(3, 7)]
    [DataRow(40, 384)]
    [DataRow(200, 33)]
    public void NormsGiveWhatLibtorchGives(int rows, int width)
    {
        using var scope = NewDisposeScope();
        Tensor weight = Numbers("w", width), bias = Numbers("b", width);
        foreach (bool root in (bool[])[false, true])
        {
            // The gradient of a norm over one number is all rounding.
            var norm = new Norm("n", SiteRole.AttentionNorm, 0, weight, root ? null : bias, width == 1 ? 1 : 1e-5, root);
            Compare($"norm {rows}x{width}, root {root}", () => [Trained(Numbers("x", 1, rows, width), true)], (t, pass) => norm.Forward(t[0], pass));
            Compare($"norm of a sum {rows}x{width}, root {root}", () => [Trained(Numbers("x", 1, rows, width), true), Trained(Numbers("y", 1, rows, width), true)], (t, pass) => norm.ForwardSum(t[0], t[1], pass));
        }
    }

    [TestMethod]
    public void TrainingThroughKernelsIsTrainingThroughLibtorch()
    {
        double[] Losses()
        {
            using var model = new MatrixModel(new LoraOptions { Targets = ["query", "value", "dense"], Dropout = 0.1, Init = "false" });
            return [.. model.Train(6).Select(loss => (double)loss)];
        }

        double[] kernels = Losses();
        using NativeKernels.OffScope off = NativeKernels.Off();
        double[] expected = Losses();
        for (int i = 0; i < expected.Length; i++) Assert.AreEqual(expected[i], kernels[i], 1e-4, $"step {i}");
        Assert.AreNotEqual(expected[0], expected[^1]);
    }

    [TestMethod]
    [DataRow(7, 96, 40)]
    [DataRow(30, 33, 57)]
    public void BFloat16RoundsTheFactorsOfFrozenProducts(int rows, int outWidth, int inWidth)
    {
        if (!NativeKernels.HasBFloat16) Assert.Inconclusive("No products in bfloat16 on this processor.");
        using var scope = NewDisposeScope();
        Tensor weight = Numbers("w", outWidth, inWidth) / Math.Sqrt(inWidth);
        using Owned owned = new(new Projection("p", SiteRole.Query, 0, weight, Numbers("b", outWidth)));
        Tensor Rounded(Tensor x) => x.to_type(ScalarType.BFloat16).to_type(ScalarType.Float32);
        Tensor x = Numbers("x", rows, inWidth).requires_grad_(), g = Numbers("g", rows, outWidth);
        Tensor y = owned.Site.Forward(x, null, new Pass { Precision = Precision.BFloat16 });
        Near("forward", Products.Linear(Rounded(x.detach()), Rounded(weight), owned.Site.Bias), y.detach());
        (y * g).sum().backward();
        Near("gradient", Rounded(g).matmul(Rounded(weight)), x.grad!);
        Assert.IsGreaterThan(0, Deviations.Distance(y, Products.Linear(x, weight, owned.Site.Bias)));
    }

    [TestMethod]
    [DataRow(Precision.BFloat16, 0.03)]
    [DataRow(Precision.Int8Frozen, 0.05)]
    public void TrainingInFewerBitsFollowsFloat32AndRepeatsItself(Precision few, double allowed)
    {
        float[] Losses(Precision precision)
        {
            using var model = new MatrixModel(new LoraOptions { Targets = ["query", "value"], Dropout = 0.1, Init = "false" });
            model.Model.Precision = precision;
            return [.. model.Train(6)];
        }

        float[] wide = Losses(Precision.Float32), narrow = Losses(few);
        for (int i = 0; i < wide.Length; i++) Assert.AreEqual(wide[i], narrow[i], allowed, $"step {i}");
        CollectionAssert.AreEqual(narrow, Losses(few));
        if (few != Precision.BFloat16 || NativeKernels.HasBFloat16) CollectionAssert.AreNotEqual(wide, narrow);
    }

    // The kernels' sums of whole numbers, and libtorch's products in the same steps. One number half-way between two steps may differ.
    [TestMethod]
    [DataRow(7, 96, 40)]
    [DataRow(30, 33, 57)]
    [DataRow(1, 384, 1536)]
    public void Int8GivesWhatLibtorchGivesInTheSameSteps(int rows, int outWidth, int inWidth)
    {
        using var scope = NewDisposeScope();
        Tensor weight = Numbers("w", outWidth, inWidth) / Math.Sqrt(inWidth);
        using Owned owned = new(new Projection("p", SiteRole.Query, 0, weight, Numbers("b", outWidth)));
        Tensor g = Numbers("g", rows, outWidth);
        (Tensor Y, Tensor Slope) Run(Precision precision)
        {
            Tensor x = Numbers("x", rows, inWidth).requires_grad_();
            Tensor y = owned.Site.Forward(x, null, new Pass { Precision = precision });
            (y * g).sum().backward();
            return (y.detach(), x.grad!);
        }

        (Tensor y, Tensor slope) = Run(Precision.Int8Frozen);
        (Tensor wide, Tensor wideSlope) = Run(Precision.Float32);
        double apart = Deviations.Distance(wide, y);
        Assert.IsTrue(apart is > 0 and < 0.06, $"{apart} from float32");
        Assert.IsLessThan(0.02 * wideSlope.abs().max().item<float>(), Deviations.Distance(wideSlope, slope), "gradient");
        using (NativeKernels.Off())
        {
            (Tensor expected, Tensor expectedSlope) = Run(Precision.Int8Frozen);
            Assert.IsLessThan(0.01, Deviations.Distance(expected, y), "steps");
            Assert.IsLessThan(2e-5, (expected - y).abs().mean().item<float>(), "steps on average");
            Assert.IsLessThan(0.01 * wideSlope.abs().max().item<float>(), Deviations.Distance(expectedSlope, slope), "steps of the gradient");
            Assert.IsLessThan(2e-5, (expectedSlope - slope).abs().mean().item<float>(), "steps of the gradient on average");
        }
    }

    [TestMethod]
    public void ProjectionsOfOneInputShareItsRowsInInt8()
    {
        using var scope = NewDisposeScope();
        using Owned query = new(new Projection("q", SiteRole.Query, 0, Numbers("q", 24, 40), Numbers("b", 24))), key = new(new Projection("k", SiteRole.Key, 0, Numbers("k", 24, 40), null));
        Tensor x = Numbers("x", 3, 5, 40);
        var alone = new Pass { Precision = Precision.Int8Frozen };
        Tensor first = query.Site.Forward(x, null, alone), second = key.Site.Forward(x, null, alone);
        Assert.IsNull(alone.Int8Rows(x));
        var together = new Pass { Precision = Precision.Int8Frozen };
        together.Share(x, query.Site, key.Site);
        Assert.AreEqual(0, Deviations.Distance(first, query.Site.Forward(x, null, together)));
        Assert.AreSame(together.Int8Rows(x), together.Int8Rows(x));
        Assert.AreEqual(0, Deviations.Distance(second, key.Site.Forward(x, null, together)));
        Assert.IsNull(together.Int8Rows(Numbers("y", 3, 5, 40)));
    }

    [TestMethod]
    public void ScoringInInt8AlonePacksNothingElse()
    {
        using var model = new MatrixModel(new LoraOptions { Init = "false" });
        model.Model.Precision = Precision.Int8Frozen;
        float[] narrow = model.Scored();
        Projection[] sites = [.. model.Backbone.Sites.OfType<Projection>()];
        Assert.IsTrue(sites.Any(s => s.Packed(Precision.Int8Frozen)));
        Assert.IsFalse(sites.Any(s => s.Packed(Precision.Float32) || s.Packed(Precision.BFloat16)));
        model.Model.Precision = Precision.Float32;
        float[] wide = model.Scored();
        CollectionAssert.AreNotEqual(wide, narrow);
        for (int i = 0; i < wide.Length; i++) Assert.AreEqual(wide[i], narrow[i], 0.1);
    }

    // Merging, scoring and training look for what is not finite; a kernel must not hide it.
    [TestMethod]
    [DataRow("linear")]
    [DataRow("gelu")]
    [DataRow("gelu_new")]
    [DataRow("relu")]
    public void WhatIsNotANumberStaysSo(string activation)
    {
        using var scope = NewDisposeScope();
        using Owned owned = new(new Projection("p", SiteRole.FeedForwardUp, 0, Numbers("w", 24, 40), Numbers("b", 24)));
        Tensor x = Numbers("x", 2, 3, 40);
        x[1, 2, 5] = tensor(float.NaN);
        Tensor y = owned.Site.Forward(x, activation == "linear" ? Follow.ByDropout(0) : Follow.By(activation), new Worn(owned.Site, null, new Pass()).Pass);
        Assert.IsTrue(y[1, 2].isnan().all().item<bool>(), "the row itself");
        Assert.IsFalse(y.view(-1, 24).narrow(0, 0, 5).isnan().any().item<bool>(), "the others");
    }

    [TestMethod]
    public void ADamagedAdapterShowsInTheScores()
    {
        using var model = new MatrixModel(new LoraOptions { Init = "false" });
        using (no_grad()) model.Adaptation!.Parameters[0].Value.fill_(float.NaN);
        Assert.IsTrue(model.Score().All(float.IsNaN));
    }

    [TestMethod]
    public void ManyThreadsGetTheSameBits()
    {
        using var model = new MatrixModel(new LoraOptions { Init = "false" });
        float[] expected = model.Score();
        Parallel.For(0, 64, new ParallelOptions { MaxDegreeOfParallelism = 8 }, _ => CollectionAssert.AreEqual(expected, model.Score()));
    }

    // A row's result does not depend on the rows beside it: to the bit where the padding is the same.
    [TestMethod]
    public void RowsDoNotSeeEachOther()
    {
        using var scope = NewDisposeScope();
        using Owned owned = new(new Projection("p", SiteRole.Query, 0, Numbers("w", 48, 40), Numbers("b", 48)));
        Tensor x = Numbers("x", 37, 40), all = owned.Site.Forward(x, null, new Pass());
        for (int row = 0; row < 37; row++)
            CollectionAssert.AreEqual(all.narrow(0, row, 1).contiguous().data<float>().ToArray(), owned.Site.Forward(x.narrow(0, row, 1), null, new Pass()).data<float>().ToArray());
    }

    [TestMethod]
    public void PackedWeightsAreMadeOnceAndFreed()
    {
        using var scope = NewDisposeScope();
        Tensor weight = Numbers("w", 48, 40);
        var site = new Projection("p", SiteRole.Query, 0, weight, null);
        PackedWeight first = site.PackedForward();
        Assert.AreSame(first, site.PackedForward());
        Assert.IsGreaterThanOrEqualTo(48 * 40 * 4, first.Bytes);
        site.Unpack();
        Assert.IsTrue(first.IsClosed);
        Near("packed anew", Products.Linear(weight, weight, null), site.Forward(weight, null, new Pass()));
        site.Unpack();
    }

    [TestMethod]
    public void WeightsThatCannotBePackedTakeLibtorchsPath()
    {
        using var scope = NewDisposeScope();
        using Owned half = new(new Projection("p", SiteRole.Query, 0, Numbers("w", 8, 8).to_type(ScalarType.BFloat16), null)), head = new(new Projection("p", SiteRole.LanguageHead, 0, Numbers("w", 8, 8), null));
        Assert.IsFalse(half.Site.Packs);
        Assert.IsFalse(head.Site.Packs);
        Assert.AreEqual(ScalarType.BFloat16, half.Site.Forward(Numbers("x", 2, 8).to_type(ScalarType.BFloat16), null, new Pass()).dtype);
    }
}
