// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>A layer as one node of the graph against its parts, run one by one by libtorch: outputs, gradients, dropped entries.</summary>
[TestClass]
public sealed class FusedLayerTests
{
    [TestInitialize]
    public void TheLibraryIsThere()
    {
        if (!NativeKernels.On) Assert.Inconclusive($"Native kernels: {NativeKernels.Description}");
    }

    private static Tensor Numbers(string name, params long[] shape) => new Draws(5, name).Normal(1, shape);

    /// <summary>A layer with random numbers, and which sites of it are patched.</summary>
    private sealed class Layer : IDisposable
    {
        private readonly Projection[] _sites;
        private readonly double _dropout;
        private readonly string _activation;
        private readonly bool _before;

        // A pre-norm layer has no dropout behind its parts.
        public Layer(int width, int heads, int inner, string activation, double dropout, bool before = false)
        {
            (_activation, _dropout, _before) = (activation, dropout, before);
            Projection Made(string name, SiteRole role, int outWidth, int inWidth, bool bias = true) =>
                new(name, role, 0, Numbers(name, outWidth, inWidth) / Math.Sqrt(inWidth), bias ? Numbers(name + "b", outWidth) * 0.1 : null);
            Norm Normed(string name, SiteRole role) => new(name, role, 0, Numbers(name, width) * 0.2 + 1, Numbers(name + "b", width) * 0.1, 1e-5);
            _sites =
            [
                Made("q", SiteRole.Query, width, width), Made("k", SiteRole.Key, width, width, bias: false), Made("v", SiteRole.Value, width, width),
                Made("o", SiteRole.AttentionOutput, width, width), Made("u", SiteRole.FeedForwardUp, inner, width), Made("d", SiteRole.FeedForwardDown, width, inner),
            ];
            var core = new AttentionCore("core", 0, heads, width / heads) { Index = 6 };
            for (int i = 0; i < _sites.Length; i++) _sites[i].Index = i;
            Parts = new FusedLayer.Parts(_sites, Normed("n", SiteRole.AttentionNorm), Normed("m", SiteRole.FeedForwardNorm), core, Activations.Kind(activation), dropout, before ? 0 : dropout, [core], before);
        }

        public FusedLayer.Parts Parts { get; }

        // What PostNormEncoder and PreNormEncoder do without the node.
        public Tensor OneByOne(Tensor x, bool first, Pass pass)
        {
            Tensor Split(Tensor y) => Heads.Split(y, Parts.Core);
            if (_before)
            {
                Tensor read = Parts.AttentionNorm.Forward(x, pass), key = Split(_sites[1].Forward(read, pass)), value = Split(_sites[2].Forward(read, pass));
                Tensor Asked(Tensor y) => first ? y.narrow(1, pass.Layout.First, 1) : y;
                var answered = new AttentionInput(Split(_sites[0].Forward(Asked(read), pass)), key, value, pass.Layout.KeyBias(ScalarType.Float32));
                Tensor sum = Asked(x) + _sites[3].Forward(Heads.Join(Heads.Attend(answered, Parts.Core.Scale, _dropout, pass)), pass);
                return sum + _sites[5].Forward(_sites[4].Forward(Parts.FeedForwardNorm.Forward(sum, pass), Follow.By(_activation), pass), pass);
            }
            Tensor asking = first ? x.narrow(1, pass.Layout.First, 1) : x;
            var input = new AttentionInput(
                Split(_sites[0].Forward(asking, pass)), Split(_sites[1].Forward(x, pass)), Split(_sites[2].Forward(x, pass)), pass.Layout.KeyBias(ScalarType.Float32));
            Tensor context = Heads.Join(Heads.Attend(input, Parts.Core.Scale, _dropout, pass));
            Tensor a = Parts.AttentionNorm.ForwardSum(asking, _sites[3].Forward(context, Follow.ByDropout(_dropout), pass), pass);
            return Parts.FeedForwardNorm.ForwardSum(a, _sites[5].Forward(_sites[4].Forward(a, Follow.By(_activation), pass), Follow.ByDropout(_dropout), pass), pass);
        }

        public PatchTable Table(string patched, Tensor[] factors, double dropout)
        {
            List<KeyValuePair<Site, Patch>> table = [];
            for (int i = 0; i < _sites.Length; i++)
            {
                if (!patched.Contains("qkvoud"[i])) continue;
                LowRankTerm term = new(factors[2 * i], factors[(2 * i) + 1], 0.6, Dropout: dropout);
                LowRankTerm[] terms = dropout == 0 && i == 0 ? [term, term with { Scale = 0.3 }] : [term];
                table.Add(new(_sites[i], new TermsPatch(_ => terms)));
            }
            return new PatchTable(table);
        }

        public Tensor[] Factors(string trained) => [.. _sites.SelectMany((site, i) => new[]
        {
            Trained(Numbers("A" + site.Name, 3, site.In) * 0.3, trained.Contains("qkvoud"[i])), Trained(Numbers("B" + site.Name, site.Out, 3) * 0.3, trained.Contains("qkvoud"[i])),
        })];

        public void Dispose()
        {
            foreach (Projection site in _sites) site.Unpack();
        }
    }

    private static Tensor Trained(Tensor x, bool trained) => trained ? x.requires_grad_() : x;

    // Rows of falling lengths; of four, the last one has no token at all.
    private static Layout Lengths(int batch, int tokens, bool padded) => new(
        tensor(Enumerable.Range(0, batch * tokens).Select(i => i % tokens < (i / tokens == 3 ? 0 : Math.Max(1, tokens - (i / tokens * 3))) ? 1L : 0L).ToArray(), [batch, tokens]), padded);

    private static (Tensor Output, Tensor?[] Gradients) Run(Layer layer, Tensor given, string patched, string trained, bool input, bool first, bool padded, double dropout, bool fused, Precision precision = Precision.Float32)
    {
        Tensor x = Trained(given.clone(), input);
        Tensor[] factors = layer.Factors(trained);
        var pass = new Pass(layer.Table(patched, factors, dropout), training: true, seed: 3) { Precision = precision, Layout = Lengths((int)x.shape[0], (int)x.shape[1], padded) };
        pass.BeginSegment(4);
        Tensor? y = fused ? FusedLayer.Apply(layer.Parts, x, first, pass) : layer.OneByOne(x, first, pass);
        Assert.IsNotNull(y, "the layer does not fit");
        if (input || trained.Length > 0) (y * Numbers("weights", y.shape)).sum().backward();
        return (y.detach(), [.. factors.Prepend(x).Select(t => t.requires_grad ? t.grad : null)]);
    }

    private static void Near(string what, Tensor expected, Tensor found, double tolerance)
    {
        CollectionAssert.AreEqual(expected.shape, found.shape, what);
        Assert.IsLessThan(tolerance * Math.Max(1, expected.abs().max().item<float>()), Deviations.Distance(expected, found), what);
    }

    [TestMethod]
    [DataRow(1, 1, 16, 2, 24, "gelu", 0.0, false)]
    [DataRow(3, 7, 24, 3, 40, "gelu", 0.1, false)]
    [DataRow(3, 33, 40, 2, 33, "relu", 0.0, false)]
    [DataRow(2, 23, 384, 12, 768, "gelu_new", 0.1, false)]
    [DataRow(1, 513, 32, 1, 64, "gelu", 0.1, false)]
    [DataRow(1, 1, 16, 2, 24, "gelu", 0.0, true)]
    [DataRow(3, 7, 24, 3, 40, "gelu", 0.1, true)]
    [DataRow(3, 33, 40, 2, 33, "relu", 0.0, true)]
    [DataRow(2, 23, 384, 12, 768, "gelu_new", 0.1, true)]
    [DataRow(1, 513, 32, 1, 64, "gelu", 0.1, true)]
    public void ALayerGivesWhatItsPartsGive(int batch, int tokens, int width, int heads, int inner, string activation, double dropout, bool before)
    {
        using var scope = NewDisposeScope();
        using var layer = new Layer(width, heads, inner, activation, dropout, before);
        Tensor x = Numbers("x", batch, tokens, width);
        // Nothing, LoRA's usual sites, all, one part alone; the input frozen or not, all trained or some.
        foreach ((string patched, string trained, bool input) in (ReadOnlySpan<(string, string, bool)>)
            [("", "", true), ("qv", "qv", false), ("qv", "qv", true), ("qkvoud", "qkvoud", true), ("qkvoud", "kod", false), ("d", "d", false), ("u", "u", false), ("o", "o", false), ("v", "", true), ("q", "", false)])
            foreach (bool first in (bool[])[false, true])
            {
                string what = $"{batch}x{tokens}x{width}, patched {patched}, trained {trained}, input {input}, first {first}";
                (Tensor output, Tensor?[] gradients) = Run(layer, x, patched, trained, input, first, batch > 1, dropout, fused: true);
                using NativeKernels.OffScope off = NativeKernels.Off();
                (Tensor expected, Tensor?[] slopes) = Run(layer, x, patched, trained, input, first, batch > 1, dropout, fused: false);
                Near(what, expected, output, 3e-5);
                for (int i = 0; i < slopes.Length; i++)
                {
                    Assert.AreEqual(slopes[i] is null, gradients[i] is null, $"{what}: gradient {i}");
                    if (slopes[i] is { } slope) Near($"{what}: gradient {i}", slope, gradients[i]!, 5e-5);
                }
            }
    }

    // libtorch lets gradients through scores that have drowned in the padding's number; kernels do not, whether at once or one by one.
    [TestMethod]
    [DataRow(false)]
    [DataRow(true)]
    public void ARowWithoutTokensGivesWhatTheKernelsOfItsPartsGive(bool before)
    {
        using var scope = NewDisposeScope();
        using var layer = new Layer(24, 3, 40, "gelu", 0.1, before);
        Tensor x = Numbers("x", 4, 11, 24);
        foreach (bool first in (bool[])[false, true])
        {
            (Tensor output, Tensor?[] gradients) = Run(layer, x, "qkvoud", "qkvoud", true, first, true, 0.1, fused: true);
            (Tensor expected, Tensor?[] slopes) = Run(layer, x, "qkvoud", "qkvoud", true, first, true, 0.1, fused: false);
            Near("output", expected, output, 3e-5);
            for (int i = 0; i < slopes.Length; i++) Near($"gradient {i}", slopes[i]!, gradients[i]!, 3e-5);
        }
    }

    [TestMethod]
    [DataRow(false)]
    [DataRow(true)]
    public void GradientsAreThoseOfFiniteDifferences(bool before)
    {
        using var scope = NewDisposeScope();
        using var layer = new Layer(24, 3, 40, "gelu", 0.1, before);
        Tensor x = Numbers("x", 3, 7, 24), along = Numbers("along", 3, 7, 24);
        double Loss(double step)
        {
            using var off = no_grad();
            (Tensor output, _) = Run(layer, x + along * step, "qkvoud", "", false, false, true, 0.1, fused: true);
            return (output.to_type(ScalarType.Float64) * Numbers("weights", output.shape)).sum().item<double>();
        }

        Tensor slope = Run(layer, x, "qkvoud", "qkvoud", true, false, true, 0.1, fused: true).Gradients[0]!;
        double expected = (Loss(2e-3) - Loss(-2e-3)) / 4e-3, found = (slope * along).sum().item<float>();
        Assert.AreEqual(expected, found, 2e-3 * (1 + Math.Abs(expected)));
    }

    // Threads take slices of the batch where it can be cut evenly, and share each product where not.
    [TestMethod]
    [DataRow(4, 40, false)]
    [DataRow(6, 11, false)]
    [DataRow(9, 23, false)]
    [DataRow(2, 5, false)]
    [DataRow(1, 64, false)]
    [DataRow(4, 40, true)]
    [DataRow(9, 23, true)]
    [DataRow(1, 64, true)]
    public void ThreadsDoNotChangeABit(int batch, int tokens, bool norms)
    {
        using var scope = NewDisposeScope();
        using var layer = new Layer(40, 2, 56, "gelu", 0.1, norms);
        Tensor x = Numbers("x", batch, tokens, 40);
        int before = get_num_threads();
        foreach (Precision precision in (Precision[])[Precision.Float32, Precision.BFloat16, Precision.Int8Frozen])
            foreach ((string patched, string trained, bool input) in (ReadOnlySpan<(string, string, bool)>)[("qv", "qv", true), ("qkvoud", "qkvoud", true), ("qkvoud", "kd", false), ("u", "u", false)])
                foreach (bool first in (bool[])[false, true])
                    try
                    {
                        set_num_threads(1);
                        (Tensor output, Tensor?[] gradients) = Run(layer, x, patched, trained, input, first, true, 0.1, fused: true, precision);
                        foreach (int threads in (int[])[2, 3, 5])
                        {
                            set_num_threads(threads);
                            string what = $"{batch}x{tokens}, {patched}, first {first}, {precision}, {threads} threads";
                            (Tensor found, Tensor?[] slopes) = Run(layer, x, patched, trained, input, first, true, 0.1, fused: true, precision);
                            Same(what, output, found);
                            for (int i = 0; i < gradients.Length; i++)
                                if (gradients[i] is { } gradient) Same($"{what}: gradient {i}", gradient, slopes[i]!);
                        }
                    }
                    finally
                    {
                        set_num_threads(before);
                    }
    }

    private static void Same(string what, Tensor expected, Tensor found) =>
        CollectionAssert.AreEqual(expected.contiguous().data<float>().ToArray(), found.contiguous().data<float>().ToArray(), what);

    // Sums over rows alone see them all: what a row's own tokens give has the same bits alone and among others.
    [TestMethod]
    [DataRow(false)]
    [DataRow(true)]
    public void RowsDoNotSeeEachOther(bool before)
    {
        using var scope = NewDisposeScope();
        using var layer = new Layer(40, 2, 56, "gelu", 0, before);
        Tensor x = Numbers("x", 5, 9, 40);
        foreach (Precision precision in (Precision[])[Precision.Float32, Precision.BFloat16, Precision.Int8Frozen])
        {
            (Tensor all, Tensor?[] gradients) = Run(layer, x, "qkvoud", "", true, false, false, 0, fused: true, precision);
            for (int row = 0; row < 5; row++)
            {
                Tensor alone = x.narrow(0, row, 1).clone().requires_grad_();
                var pass = new Pass(layer.Table("qkvoud", layer.Factors(""), 0), training: true, seed: 3) { Precision = precision, Layout = Lengths(1, 9, padded: false) };
                Tensor y = FusedLayer.Apply(layer.Parts, alone, false, pass)!;
                (y * Numbers("weights", all.shape).narrow(0, row, 1)).sum().backward();
                CollectionAssert.AreEqual(all.narrow(0, row, 1).contiguous().data<float>().ToArray(), y.data<float>().ToArray(), $"row {row}, {precision}");
                CollectionAssert.AreEqual(gradients[0]!.narrow(0, row, 1).contiguous().data<float>().ToArray(), alone.grad!.data<float>().ToArray(), $"gradient of row {row}, {precision}");
            }
        }
    }

    [TestMethod]
    [DataRow("qv", Precision.BFloat16, false)]
    [DataRow("qkvoud", Precision.BFloat16, false)]
    [DataRow("qv", Precision.Int8Frozen, false)]
    [DataRow("qkvoud", Precision.Int8Frozen, false)]
    [DataRow("qv", Precision.BFloat16, true)]
    [DataRow("qkvoud", Precision.BFloat16, true)]
    [DataRow("qv", Precision.Int8Frozen, true)]
    [DataRow("qkvoud", Precision.Int8Frozen, true)]
    public void LowerPrecisionsFollowFloat32(string patched, Precision precision, bool before)
    {
        if (!NativeKernels.HasBFloat16) Assert.Inconclusive("No products in bfloat16 on this processor.");
        using var scope = NewDisposeScope();
        using var layer = new Layer(96, 3, 160, "gelu", 0.1, before);
        Tensor x = Numbers("x", 3, 19, 96);
        foreach (bool first in (bool[])[false, true])
        {
            (Tensor wide, Tensor?[] slopes) = Run(layer, x, patched, patched, true, first, true, 0.1, fused: true);
            (Tensor narrow, Tensor?[] found) = Run(layer, x, patched, patched, true, first, true, 0.1, fused: true, precision);
            Near("output", wide, narrow, 0.03);
            Assert.IsGreaterThan(0, Deviations.Distance(wide, narrow));
            for (int i = 0; i < slopes.Length; i++)
                if (slopes[i] is { } slope) Near($"gradient {i}", slope, found[i]!, 0.05);
            // The same kernels one by one: they round at the same places, but for the activation's slope.
            (Tensor parts, Tensor?[] theirs) = Run(layer, x, patched, patched, true, first, true, 0.1, fused: false, precision);
            Near("output of the parts", parts, narrow, 1e-5);
            // A slope that differs by 1e-4 may take a gradient to the next step of int8, the 127th part of its row's largest: two of them at most, and few.
            double step = precision == Precision.Int8Frozen ? 2.0 / 127 : 6e-3;
            for (int i = 0; i < theirs.Length; i++)
                if (theirs[i] is { } slope)
                {
                    Near($"gradient {i} of the parts", slope, found[i]!, step);
                    Assert.IsLessThan(1e-2, ((slope - found[i]!).abs().mean() / slope.abs().mean()).item<float>(), $"gradient {i} of the parts, on average");
                }
        }
    }

    [TestMethod]
    public void PartsThatWearMoreRunOneByOne()
    {
        using var scope = NewDisposeScope();
        using var layer = new Layer(16, 2, 24, "gelu", 0);
        Tensor x = Numbers("x", 2, 3, 16).requires_grad_();
        Pass Wearing(PatchTable table, Tensor? mask = null) => new(table, training: true, seed: 3) { Layout = mask is null ? Lengths(2, 3, false) : new Layout(mask, true) };
        Assert.IsNotNull(FusedLayer.Apply(layer.Parts, x, false, Wearing(PatchTable.Empty)));
        Assert.IsNull(FusedLayer.Apply(layer.Parts, x, false, Wearing(new PatchTable([new(layer.Parts.Core, new Nothing())]))));
        Assert.IsNull(FusedLayer.Apply(layer.Parts, x, false, Wearing(new PatchTable([new(layer.Parts.Projections[3], new AroundPatch())]))));
        Assert.IsNull(FusedLayer.Apply(layer.Parts, x, false, Wearing(PatchTable.Empty, tensor(new[] { 0L, 1, 1, 1, 1, 1 }, [2, 3]))), "padding in front");
        layer.Parts.Projections[1].Weight.requires_grad_();
        Assert.IsNull(FusedLayer.Apply(layer.Parts, x, false, Wearing(PatchTable.Empty)), "a gradient of a frozen weight is asked for");
    }

    private sealed class Nothing : Patch;

    private sealed class AroundPatch : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;
    }
}
