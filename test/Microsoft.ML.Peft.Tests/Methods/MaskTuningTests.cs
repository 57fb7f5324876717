// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>What the method matrix does not see of mask tuning: its gradient, its gate, its bits.</summary>
[TestClass]
public class MaskTuningTests
{
    [TestMethod]
    public void TheGradientOfAScoreIsThatOfItsWeightTimesTheWeight()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation worn = new MaskTuningOptions { Targets = ["FeedForwardUp"] }.Attach(backbone, 1);
        var site = (Projection)backbone.Sites.First(s => s.Role == SiteRole.FeedForwardUp);
        NamedParameter scores = worn.Find(backbone.PathOf(site) + ".mask_scores")!;
        using (no_grad()) scores.Value[0, TensorIndex.Colon] = 0;                                 // a row that is masked
        Tensor x = new Draws(1, "x").Normal(1, 5, site.In), weights = new Draws(1, "w").Normal(1, 5, site.Out);
        Tensor y = site.Forward(x, new Pass(worn.Table()));
        Assert.AreEqual(0f, (y - x.matmul(site.Weight.t()) - site.Bias!).narrow(1, 1, site.Out - 1).abs().max().item<float>(), 1e-5f);
        Assert.AreEqual(site.Bias![0].item<float>(), y[3, 0].item<float>(), 1e-6f);
        (y * weights).sum().backward();
        Tensor expected = weights.t().matmul(x) * site.Weight;                                   // masked or not
        Assert.AreEqual(0f, (scores.Value.grad! - expected).abs().max().item<float>(), 1e-5f);
        Assert.AreEqual(1.0 / 48 / 2, MaskTuningOptions.MaskedShare(worn), 1e-9);                  // one row of one of two sites
    }

    [TestMethod]
    public void TheGateKeepsAgreementAndDropsByChance()
    {
        using var scope = NewDisposeScope();
        const int count = 200_000;
        Tensor chance = new Draws(4, "chance").Uniform(0.5, count) + 0.5;
        Tensor a = full(count, 3f), agreeing = full(count, 0.1f), opposed = full(count, -1f);
        Assert.AreEqual(count, MaskAdaptation.Gate(a, agreeing, chance, 1).eq(3).sum().item<long>());
        Assert.AreEqual(0.75, MaskAdaptation.Gate(a, opposed, chance, 1).eq(3).sum().item<long>() / (double)count, 0.02);
        Assert.AreEqual(0.75, MaskAdaptation.Gate(a.neg(), opposed.neg(), chance, 1).eq(-3).sum().item<long>() / (double)count, 0.02);
        Tensor half = MaskAdaptation.Gate(a, opposed, chance, 0.5);
        Assert.AreEqual(count, half.eq(3).logical_or(half.eq(1.5)).sum().item<long>());
        Assert.AreEqual(count, MaskAdaptation.Gate(a, opposed, chance, 0).eq(3).sum().item<long>());
    }

    [TestMethod]
    public void TheGateDropsGradientsInTraining()
    {
        (float[] open, float[] gated) = (Gradient(0), Gradient(1));
        Assert.IsTrue(open.Zip(gated).All(p => p.Second == 0 || p.Second == p.First), "a gate changes no gradient, it drops some");
        int dropped = open.Zip(gated).Count(p => p.First != 0 && p.Second == 0);
        Assert.IsTrue(dropped > 0 && dropped < open.Length, $"{dropped} of {open.Length} were dropped");

        static float[] Gradient(double strength)
        {
            using var scope = NewDisposeScope();
            // Near the masks' start the model is the base: only a moved one contradicts it.
            using var model = new MatrixModel(new MaskTuningOptions { GradientDropout = strength, Penalty = 0, Targets = ["query"] });
            foreach (NamedParameter scores in model.Adaptation!.Parameters) scores.Load(new Draws(2, scores.Name).Uniform(0.02, scores.Value.shape) + 0.01);
            var batch = new TokenBatch(arange(1, 25, dtype: ScalarType.Int64).reshape(4, 6), ones(4, 6, dtype: ScalarType.Int64), Padded: false);
            Tensor logits = model.Model.Forward(batch, new Pass(model.Model.Patches, training: true, seed: 3));
            nn.functional.cross_entropy(logits, tensor(new long[] { 0, 1, 2, 0 })).backward();
            model.Adaptation.BeforeStep(0);
            return model.Adaptation.Parameters[0].Value.grad!.reshape(-1).data<float>().ToArray();
        }
    }

    [TestMethod]
    [DataRow(1)]
    [DataRow(8)]
    [DataRow(21)]
    public void MasksAsBitsComeBack(int count)
    {
        bool[] kept = [.. Enumerable.Range(0, count).Select(i => i * i % 3 != 1)];
        byte[] bytes = MaskBits.Pack(kept);
        Assert.AreEqual((count + 7) / 8, bytes.Length);
        Assert.AreEqual(kept[0], (bytes[0] & 0x80) != 0);
        CollectionAssert.AreEqual(kept, MaskBits.Unpack(bytes, count));
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => MaskBits.Unpack([.. bytes, 0], count)).Message, $"takes {bytes.Length} bytes");
    }

    [TestMethod]
    public void ExchangedFilesHoldOneBitAWeight()
    {
        using var model = new MatrixModel(new MaskTuningOptions());
        model.Train(3);
        string folder = HfBases.Temporary();
        AdapterFolder.Save(folder, model.Adaptation!);
        using AdapterFolder file = AdapterFolder.Open(folder);
        Assert.IsTrue(file.Names.All(n => n.EndsWith(".mask_bits", StringComparison.Ordinal)));
        Assert.AreEqual(32 * 32 / 8, file.Shape(file.Names[0])[0]);
        using PeftAdaptation loaded = file.Attach(model.Backbone);
        Assert.AreEqual(MaskTuningOptions.MaskedShare(model.Adaptation!), MaskTuningOptions.MaskedShare(loaded));
    }

    [TestMethod]
    public void OptionsOutOfRangeAreRefused()
    {
        void Refused(MaskTuningOptions options, string part) =>
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(options.Validate).Message, part);
        Refused(new MaskTuningOptions { Threshold = 0.01 }, "every weight starts masked");
        Refused(new MaskTuningOptions { GradientDropout = 1.5 }, "0 to 1");
        Refused(new MaskTuningOptions { Penalty = -1 }, "0 or more");
    }
}
