// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Methods;
using TorchSharp;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Methods of several kinds on the networks that hear: attached, trained, saved, merged, run again.</summary>
[TestClass]
public class MethodSoundTests
{
    private static readonly string[] _rows =
        ["lora", "lora all-linear", "ssf", "bitfit", "pfeiffer", "houlsby", "bottleneck parallel", "prefix-tuning", "head-only", "ln-tuning", "ia3 pattern", "full"];

    private static int _threads;

    public static IEnumerable<object[]> Pairs => MatrixBackbone.Sounds.SelectMany(kind => _rows.Select(row => new object[] { kind.Name, row }));

    [ClassInitialize]
    public static void Prepare(TestContext context)
    {
        _ = context;
        _threads = torch.get_num_threads();
        torch.set_num_threads(1);
        // What the process keeps from a first run is no leak.
        foreach (MatrixBackbone kind in MatrixBackbone.Sounds) MethodBackboneTests.Holds(kind, new LoraOptions { Targets = ["FeedForwardUp"] });
    }

    [ClassCleanup]
    public static void RestoreThreads() => torch.set_num_threads(_threads);

    [TestMethod]
    [DynamicData(nameof(Pairs))]
    public void TheMethodHolds(string network, string row)
    {
        MatrixBackbone kind = MatrixBackbone.Sounds.Single(k => k.Name == network);
        long before = LiveTensors.Count();
        MethodBackboneTests.Holds(kind, kind.Spelled(MatrixRows.All[row]()));
        Assert.AreEqual(before, LiveTensors.Count(), "tensors leak");
    }

    public static IEnumerable<object[]> Kinds => MatrixBackbone.Sounds.Select(kind => new object[] { kind.Name });

    /// <summary>bfloat16 networks run near the float32 ones and train.</summary>
    [TestMethod]
    [DynamicData(nameof(Kinds))]
    public void ABfloat16NetworkRunsAndTrains(string network)
    {
        MatrixBackbone kind = MatrixBackbone.Sounds.Single(k => k.Name == network);
        var method = new LoraOptions { Targets = ["AttentionOutput", "FeedForwardUp", "FeedForwardDown"] };
        using MatrixModel full = new(method, kind: kind), half = new(method, dtype: torch.ScalarType.BFloat16, kind: kind);
        Assert.IsLessThan(0.15f, full.Score().Zip(half.Score()).Max(p => Math.Abs(p.First - p.Second)), "bfloat16 is too far from float32");
        Assert.IsTrue(half.Train(3).All(float.IsFinite));
    }
}
