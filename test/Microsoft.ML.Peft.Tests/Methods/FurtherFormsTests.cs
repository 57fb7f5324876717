// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Switches of methods that no recorded case turns.</summary>
[TestClass]
public class FurtherFormsTests
{
    /// <summary>Clusters of little importance stop when the schedule says, and stay stopped.</summary>
    [TestMethod]
    public void ClustersOfAdamssStopAsTheScheduleSays()
    {
        using var scope = NewDisposeScope();
        using var model = new MatrixModel(null);
        var options = new AdamssOptions { Rank = 8, Subspaces = 3, SubspaceRank = 2, TargetSubspaces = 4, FirstStep = 2, LastStep = 6, StepsBetween = 2, ScheduleExponent = 1, Layers = [0, 1] };
        using var adaptation = (AdamssAdaptation)options.Attach(model.Backbone, 1);
        NamedParameter[] first = [.. adaptation.Parameters.Where(p => p.Trainable && p.Name.Contains(".adamss_A.", StringComparison.Ordinal))];
        Assert.HasCount(12, first);
        int[] left = new int[9];
        for (int step = 0; step < left.Length; step++)
        {
            PlainAdamW.ZeroGradients(adaptation.Parameters);
            // The loss depends on a cluster the more, the later it comes.
            Tensor loss = zeros([1]);
            for (int i = 0; i < first.Length; i++)
                if (first[i].Trainable) loss = loss + first[i].Value.abs().sum() * Math.Pow(4, i);
            loss.backward();
            adaptation.AfterStep(step);
            left[step] = first.Count(p => p.Trainable);
        }
        CollectionAssert.AreEqual(new[] { 12, 12, 12, 12, 8, 8, 4, 4, 4 }, left);
        Assert.IsTrue(first[8..].All(p => p.Trainable), "the most important are left");
        Assert.AreEqual(8, adaptation.Parameters.Count(p => p.Trainable), "both factors stop");
    }

    [TestMethod]
    public void AdamssTakesTheRankThatThereIs()
    {
        using var model = new MatrixModel(null);
        var options = new AdamssOptions { Rank = 100, Subspaces = 20, SubspaceRank = 3, Targets = ["query"] };
        using PeftAdaptation adaptation = options.Attach(model.Backbone, 1);
        Assert.AreEqual(32, adaptation.Parameters.First(p => p.Name.EndsWith("adamss_newB", StringComparison.Ordinal)).Value.shape[0]);
        Assert.IsTrue(adaptation.Parameters.Where(p => p.Name.Contains(".adamss_B.", StringComparison.Ordinal)).All(p => p.Value.shape[1] <= p.Value.shape[0]), "a cluster has no more ranks than rows");
        Assert.AreEqual(options.CountTrainable(model.Backbone), adaptation.TrainableCount);
    }

    [TestMethod]
    [DataRow(VeloraDirection.FirstBatch, true, false)]
    [DataRow(VeloraDirection.EachBatch, true, true)]
    [DataRow(VeloraDirection.Random, false, false)]
    public void VelorasDirectionComesFromWhereItIsSaid(VeloraDirection direction, bool changesFirst, bool changesLater)
    {
        using var scope = NewDisposeScope();
        using var model = new MatrixModel(null);
        using PeftAdaptation adaptation = new LoraOptions { Dropout = 0, Variant = new VeloraVariant { Groups = 4, Direction = direction } }.Attach(model.Backbone, 1);
        NamedParameter embed = adaptation.Parameters.First(p => p.Name.EndsWith("lora_velora_embed", StringComparison.Ordinal));
        Tensor See(params long[] ids)
        {
            Tensor before = embed.Value.clone();
            model.Backbone.Forward(new(tensor(ids, [1, ids.Length]), ones([1, ids.Length], dtype: ScalarType.Int64)), new Pass(adaptation.Table(), training: true, 3));
            return (embed.Value - before).abs().max();
        }
        Assert.AreEqual(changesFirst, See(5, 6, 7).item<float>() > 1e-4);
        Assert.AreEqual(changesLater, See(9, 8, 11, 3).item<float>() > 1e-4);
        Assert.AreEqual(1, embed.Value.norm().item<float>(), 1e-5);
    }
}
