// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

[TestClass]
public class MissTests
{
    private const string Query = "encoder.layer.0.attention.self.query";

    // An adaptation whose blocks hold numbers, not zeros.
    private static PeftAdaptation Filled(MissOptions options, Backbone backbone)
    {
        PeftAdaptation adaptation = options.Attach(backbone, 1);
        foreach (NamedParameter parameter in adaptation.Parameters)
            parameter.Load(new Draws(5, parameter.Name.Replace("bone_", "miss_", StringComparison.Ordinal)).Normal(0.3, parameter.Value.shape));
        return adaptation;
    }

    private static float[,] Change(PeftAdaptation adaptation, Backbone backbone)
    {
        using var off = no_grad();
        var site = (Projection)backbone.FindSite(Query)!;
        Tensor change = ((WeightPatch)adaptation.Patches[site]).Rewrite(site.Weight, site.Bias, null).Weight - site.Weight;
        return Table(change);
    }

    private static float[,] Table(Tensor matrix)
    {
        float[] flat = matrix.detach().contiguous().data<float>().ToArray();
        var table = new float[matrix.shape[0], matrix.shape[1]];
        Buffer.BlockCopy(flat, 0, table, 0, flat.Length * sizeof(float));
        return table;
    }

    [TestMethod]
    [DataRow(4)]
    [DataRow(5)]
    public void AColumnTakesTheRowOfItsRemainder(int rank)
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation adaptation = Filled(new MissOptions { Rank = rank }, backbone);
        float[,] change = Change(adaptation, backbone), block = Table(adaptation.Find("bert." + Query + ".miss_block")!.Value);
        for (int o = 0; o < 32; o++)
            for (int c = 0; c < 32; c++)
                Assert.AreEqual(block[c % rank, o], change[o, c], 1e-5f, $"{o}, {c}");
    }

    [TestMethod]
    public void BlocksAreGuidedByTheWeightsOwn()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation adaptation = Filled(new MissOptions { Rank = 4, Mode = MissMode.Bat }, backbone);
        float[,] change = Change(adaptation, backbone), weight = Table(((Projection)backbone.FindSite(Query)!).Weight);
        float[,] blocks = Table(adaptation.Find("bert." + Query + ".miss_block")!.Value.reshape(-1, 4));
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 8; j++)
                for (int a = 0; a < 4; a++)
                    for (int d = 0; d < 4; d++)
                    {
                        float expected = blocks[4 * i + a, d];
                        for (int c = 0; c < 4; c++) expected += weight[4 * i + a, 4 * j + c] * blocks[4 * i + c, d];
                        Assert.AreEqual(expected, change[4 * i + a, 4 * j + d], 1e-5f);
                    }
    }

    [TestMethod]
    public void RanksAreThoseOfTheForms()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        int Rank(MissMode mode)
        {
            using PeftAdaptation adaptation = Filled(new MissOptions { Rank = 4, Mode = mode }, backbone);
            var site = (Projection)backbone.FindSite(Query)!;
            using var off = no_grad();
            Tensor change = ((WeightPatch)adaptation.Patches[site]).Rewrite(site.Weight, null, null).Weight - site.Weight;
            return linalg.svd(change, fullMatrices: false).Item2.data<float>().ToArray().Count(s => s > 1e-4f);
        }
        Assert.AreEqual(4, Rank(MissMode.Miss));
        Assert.AreEqual(1, Rank(MissMode.Mini));
        Assert.IsGreaterThan(16, Rank(MissMode.Bat));
    }

    [TestMethod]
    public void CountsAreThoseOfThePaper()
    {
        using Backbone bert = MatrixModel.ShapesOnly(768, 12, 3072);
        Assert.AreEqual(147_456, new MissOptions { Rank = 8 }.CountTrainable(bert));
        Assert.AreEqual(1_179_648, new MissOptions { Rank = 64, Mode = MissMode.Bat }.CountTrainable(bert));
        Assert.AreEqual(24 * 8 * 32, new MissOptions { Rank = 8, Mode = MissMode.Mini, MiniRank = 32 }.CountTrainable(bert));
    }

    [TestMethod]
    public void MiniOfFullWidthAndTheOldNameAreTheSame()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation miss = Filled(new MissOptions { Rank = 4 }, backbone);
        using PeftAdaptation mini = Filled(new MissOptions { Rank = 4, Mode = MissMode.Mini, MiniRank = 32 }, backbone);
        using PeftAdaptation bone = Filled(new BoneOptions { Rank = 4 }, backbone);
        string folder = HfBases.Temporary();
        AdapterFolder.Save(folder, bone);
        using AdapterFolder file = AdapterFolder.Open(folder);
        Assert.IsTrue(file.Names.All(name => name.EndsWith(".bone_block", StringComparison.Ordinal)), string.Join(", ", file.Names));
        Assert.AreEqual("BONE", (string?)file.Config["peft_type"]);
        using PeftAdaptation read = file.Attach(backbone);
        float[,] expected = Change(miss, backbone);
        foreach (PeftAdaptation same in (PeftAdaptation[])[mini, bone, read]) CollectionAssert.AreEqual(expected, Change(same, backbone));
    }

    [TestMethod]
    public void AsPlainLoraTheChangeIsTheSame()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation miss = Filled(new MissOptions { Rank = 5 }, backbone);
        using PeftAdaptation lora = LoraConversion.ToLora(miss, 5);
        float[] worst = [.. Change(miss, backbone).Cast<float>().Zip(Change(lora, backbone).Cast<float>(), (a, b) => Math.Abs(a - b))];
        Assert.IsLessThanOrEqualTo(2e-6f, worst.Max());
        using PeftAdaptation half = LoraConversion.ToLora(miss, 0.5);
        Assert.IsLessThan(5, ((LoraOptions)half.Method).RankAt("bert." + Query));
        Assert.ThrowsExactly<ArgumentException>(() => LoraConversion.ToLora(miss, 2.5));
        using PeftAdaptation road = new RoadOptions { GroupSize = 8 }.Attach(backbone, 1);
        road.Parameters[0].Load(ones_like(road.Parameters[0].Value));
        StringAssert.Contains(Assert.ThrowsExactly<NotSupportedException>(() => LoraConversion.ToLora(road, 4)).Message, "bias");
    }

    [TestMethod]
    public void OptionsThatDoNotFitAreRefused()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        void Refused(MissOptions options, string word) => StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => options.Attach(backbone, 0)).Message, word);
        Refused(new MissOptions { Rank = 0 }, "Rank");
        Refused(new MissOptions { Rank = 33 }, "32 inputs");
        Refused(new MissOptions { Rank = 5, Mode = MissMode.Bat }, "divide both widths");
        Refused(new MissOptions { Rank = 4, Mode = MissMode.Mini, MiniRank = 7 }, "MiniRank");
        Refused(new MissOptions { Rank = 4, Dropout = 1 }, "Dropout");
        Refused(new MissOptions { Rank = 4, Mode = MissMode.Bat, Dropout = 0.1 }, "bat");
        Assert.ThrowsExactly<ArgumentException>(() => PeftMethods.Set(new MissOptions(), "alpha", "8"));
    }
}
