// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Training;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Counts of partial tuning on a model of real size, which halves are drawn, and the two phases of lottery tickets.</summary>
[TestClass]
public class PartialTuningTests
{
    [TestMethod]
    public void CountsOnARealSizeAreTheFormulas()
    {
        using Backbone bert = MatrixModel.ShapesOnly(hidden: 768, layers: 12, inner: 3072);
        long Count(PeftMethod method) => method.CountTrainable(bert);
        Assert.AreEqual(38_400, Count(new LayerNormTuningOptions()));
        Assert.AreEqual(38_400, Count(new PartialTuningOptions { LastLayers = 0, Norms = NormPart.All }));
        Assert.AreEqual(19_200, Count(new PartialTuningOptions { LastLayers = 0, Norms = NormPart.Scales }));
        Assert.AreEqual(102_912, Count(new PartialTuningOptions { LastLayers = 0, Biases = true }));
        Assert.AreEqual(7_087_872, Count(new PartialTuningOptions()));
        Assert.AreEqual(102_912 + 19_200, Count(new PartialTuningOptions { LastLayers = 0, Biases = true, Norms = NormPart.Scales }), "norms' shifts count once");
        Assert.AreEqual(55_296, Count(new Ia3Options()));
        Assert.AreEqual(64_512, Count(new Ia3Options { Targets = ["key", "value", "output.dense"], FeedForwardTargets = ["output.dense"] }));
        Assert.AreEqual(204_288, Count(new SsfOptions()));
        Assert.AreEqual(9_216, Count(new LofitOptions()));
        Assert.AreEqual(256, Count(new LofitOptions { Stage = LofitStage.Tune, Heads = ["0:1", "3:2", "3:11", "11:0"] }));
        Assert.AreEqual(28_311_552, Count(new MaskTuningOptions()));
        Assert.AreEqual(56_623_104, Count(new MaskTuningOptions { Part = MaskedPart.FeedForward }));
        Assert.AreEqual(24_000, Count(new FourierFtOptions()));
        Assert.AreEqual(62_208, Count(new WaveFtOptions()));
        Assert.AreEqual(55_296, Count(new C3aOptions()));
        Assert.AreEqual(1_179_648, Count(new ShiraOptions()));
        Assert.AreEqual(141_552, Count(new SuperTuningOptions()));
        Assert.AreEqual(14_164_992, Count(new OsfOptions()));
    }

    [TestMethod]
    public void HalfOfEachLayerIsDrawn()
    {
        using Backbone bert = MatrixModel.ShapesOnly(hidden: 768, layers: 12, inner: 3072);
        string[] Drawn(HalfTuningOptions method)
        {
            using PeftAdaptation worn = method.Attach(bert, 1);
            Assert.AreEqual(method.CountTrainable(bert), worn.TrainableCount);
            return [.. worn.Patches.Keys.Select(s => s.Name)];
        }
        string[] first = Drawn(new HalfTuningOptions()), second = Drawn(new HalfTuningOptions { Round = 1 });
        for (int layer = 0; layer < 12; layer++)
        {
            string[] there = [.. first.Where(n => n.StartsWith($"encoder.layer.{layer}.", StringComparison.Ordinal) && !n.EndsWith("LayerNorm", StringComparison.Ordinal))];
            Assert.AreEqual(2, there.Count(n => n.Contains(".attention.", StringComparison.Ordinal)), $"attention of layer {layer}");
            Assert.AreEqual(1, there.Count(n => !n.Contains(".attention.", StringComparison.Ordinal)), $"feed-forward of layer {layer}");
        }
        Assert.AreEqual(12, first.Count(n => n.EndsWith("LayerNorm", StringComparison.Ordinal)));
        Assert.AreEqual(3, first.Count(n => n.EndsWith("_embeddings", StringComparison.Ordinal)));
        CollectionAssert.AreNotEquivalent(first, second);
        CollectionAssert.AreEquivalent(first, Drawn(new HalfTuningOptions()));
        string[] layers = Drawn(new HalfTuningOptions { Granularity = HalfOf.Layer, TrainEmbeddings = false });
        Assert.AreEqual(6 * 8, layers.Length);
    }

    private static AdaptedModel Model(PeftMethod method)
    {
        var backbone = new TinyBackbone();
        return new AdaptedModel(backbone, method.Attach(backbone, 1), new TinyHead(backbone, 3), ownsBackbone: true);
    }

    [TestMethod]
    public void TicketsAreDrawnRewoundAndTrainedAlone()
    {
        var method = new LotteryTicketOptions { Count = 150, FirstSteps = 4 };
        using AdaptedModel model = Model(method);
        NamedParameter[] changes = [.. model.Adaptation!.Parameters.Where(p => p.Trainable)];
        float[] Flat() => [.. changes.SelectMany(p => p.Value.detach().data<float>().ToArray())];
        float[] before = [], after = [];
        var trainer = new Trainer(Tiny.Options(3))
        {
            BeforeStep = (step, _) =>
            {
                if (step == 3) Assert.IsTrue(Flat().Count(v => v != 0) > 150, "the first phase trains everything");
                if (step == 4) after = Flat();
                else before = Flat();
            },
        };
        trainer.Fit(model, Tiny.Rows(45), null, new CrossEntropyObjective(3));
        Assert.IsTrue(after.All(v => v == 0), "everything goes back");
        Assert.IsLessThanOrEqualTo(150, Flat().Count(v => v != 0));
        Assert.IsGreaterThan(140, Flat().Count(v => v != 0));

        string folder = HfBases.Temporary();
        AdapterFolder.Save(folder, model.Adaptation);
        using AdapterFolder file = AdapterFolder.Open(folder);
        Assert.IsTrue(file.Names.All(n => n.Contains(".lt_", StringComparison.Ordinal)));
        using PeftAdaptation loaded = file.Attach(model.Backbone);
        Assert.IsLessThanOrEqualTo(150, loaded.TrainableCount);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var batch = new TokenBatch(arange(1, 25, dtype: ScalarType.Int64).reshape(4, 6), ones(4, 6, dtype: ScalarType.Int64));
        Tensor dense = model.Backbone.Forward(batch, new Pass(model.Patches)).Last, sparse = model.Backbone.Forward(batch, new Pass(loaded.Table())).Last;
        Assert.AreEqual(0f, (dense - sparse).abs().max().item<float>(), 1e-6f);
        // Differences add, in any order.
        Tensor twice = model.Backbone.Forward(batch, new Pass(HfBases.Stack(loaded, model.Adaptation))).Last;
        Tensor again = model.Backbone.Forward(batch, new Pass(HfBases.Stack(model.Adaptation, loaded))).Last;
        Assert.AreEqual(0f, (twice - again).abs().max().item<float>(), 1e-5f);
        Assert.IsGreaterThan(1e-6f, (twice - dense).abs().max().item<float>());
    }

    [TestMethod]
    public void OptionsThatDoNotFitAreRefused()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        void Refused(PeftMethod method, string part) =>
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => method.Attach(backbone, 1).Dispose()).Message, part);
        Refused(new PartialTuningOptions { LastLayers = 3 }, "at most 2");
        Refused(new PartialTuningOptions { LastLayers = 0 }, "head-only");
        Refused(new HalfTuningOptions { Ratio = 1 }, "below 1");
        Refused(new HalfTuningOptions { Ratio = 0.01, TrainEmbeddings = false }, "large enough");
        Refused(new LotteryTicketOptions { Count = 1_000_000 }, "numbers that may be trained");
        Refused(new LotteryTicketOptions { Count = 0 }, "1 or more");
    }
}
