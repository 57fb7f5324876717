// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// Methods on networks of stages, whose layers differ in width and places: a handful that hold, each in all that
/// <see cref="MethodBackboneTests"/> asks, and all others either run or are refused in words.
/// </summary>
[TestClass]
public class StagedMethodTests
{
    private static readonly string[] _all = ["swin", "swinv2", "convnext", "resnet", "segformer"], _attend = ["swin", "swinv2", "segformer"], _parts = ["swin", "swinv2", "convnext", "segformer"];

    private static readonly (string Name, string[] Networks, Func<PeftMethod> Method)[] _holding =
    [
        ("lora", _parts, () => new LoraOptions { Targets = ["FeedForwardUp", "FeedForwardDown"], Dropout = 0.1 }),
        ("lora of attention", _attend, () => new LoraOptions { Targets = ["Query", "Value", "AttentionOutput"] }),
        ("lora between stages", _parts, () => new LoraOptions { Targets = ["PatchEmbedding", "StageProjection"] }),
        ("lora at convolutions", ["resnet", "segformer"], () => new LoraOptions { Targets = ["PatchEmbedding", "OtherConvolution"] }),
        ("dora at convolutions", ["resnet"], () => new LoraOptions { Targets = ["OtherConvolution"], UseDora = true }),
        ("ia3", _parts, () => new Ia3Options()),
        ("ssf", _all, () => new SsfOptions()),
        ("bitfit", _all, () => new BitFitOptions()),
        ("ln-tuning", _all, () => new LayerNormTuningOptions()),
        ("bottleneck", _all, () => new BottleneckOptions { AfterAttention = true, ReductionFactor = 4, OwnNormBefore = true }),
        ("adaptformer", _parts, () => new BottleneckOptions { Parallel = true, ReductionFactor = 4, Init = "mam_adapter", Scaling = "0.1", Dropout = 0.1 }),
        ("compacter", _parts, () => new CompacterOptions { ReductionFactor = 4 }),
        ("unified-view", _parts, () => new UnifiedViewOptions { Bottleneck = 4, NormBefore = true }),
        ("reft", _parts, () => new ReftOptions { Rank = 2 }),
        ("vpt", ["swin", "swinv2"], () => new VisualPromptTuningOptions { Length = 3 }),
        ("vpt shallow", ["swin", "swinv2"], () => new VisualPromptTuningOptions { Length = 2, Deep = false }),
        ("partial", _all, () => new PartialTuningOptions { LastLayers = 1, Norms = NormPart.Scales }),
        ("full", _all, () => new FullFineTuningOptions()),
        ("head-only", _all, () => new HeadOnlyOptions()),
    ];

    private static readonly (string Network, Func<PeftMethod> Method, string Words)[] _refused =
    [
        ("swin", () => new PrefixTuningOptions(), "inside of windows"),
        ("segformer", () => new PrefixTuningOptions(), "from stage to stage"),
        ("convnext", () => new PrefixTuningOptions(), "has no attention"),
        ("swin", () => new AdaptionPromptOptions(), "inside of windows"),
        ("convnext", () => new VisualPromptTuningOptions(), "works on maps"),
        ("resnet", () => new PromptTuningOptions(), "works on maps"),
        ("segformer", () => new VisualPromptTuningOptions(), "works on maps"),
        ("swin", () => new VisualPromptTuningOptions { ProjectFrom = 8 }, "one width"),
        ("swin", () => new LadderSideOptions(), "one width"),
        ("convnext", () => new LadderSideOptions(), "one width"),
        ("swin", () => new VisualQueryOptions(), "one width"),
        ("swin", () => new UnifiedViewOptions { Target = UnifiedTarget.HeadAttention }, "FeedForwardOutput"),
        ("resnet", () => new ReftOptions(), "use lora"),
        ("resnet", () => new LoraOptions(), "Candidates: convolution"),
        ("convnext", () => new LoraOptions { Targets = ["dwconv"], Rank = 8 }, "multiples"),
    ];

    private static int _threads;

    public TestContext TestContext { get; set; } = null!;

    public static IEnumerable<object[]> Holding => _holding.SelectMany(row => row.Networks.Select(network => new object[] { network, row.Name }));

    public static IEnumerable<object[]> Networks => _all.Select(network => new object[] { network });

    private static MatrixBackbone Kind(string name) => MatrixBackbone.Stages.Single(kind => kind.Name == name);

    [ClassInitialize]
    public static void Prepare(TestContext context)
    {
        _ = context;
        _threads = torch.get_num_threads();
        torch.set_num_threads(1);
        foreach (string network in _all) MethodBackboneTests.Holds(Kind(network), new BitFitOptions());
    }

    [ClassCleanup]
    public static void RestoreThreads() => torch.set_num_threads(_threads);

    [TestMethod]
    [DynamicData(nameof(Holding))]
    public void AMethodHolds(string network, string row)
    {
        long before = LiveTensors.Count();
        MethodBackboneTests.Holds(Kind(network), _holding.Single(r => r.Name == row).Method());
        Assert.AreEqual(before, LiveTensors.Count(), "tensors leak");
    }

    [TestMethod]
    public void WhatDoesNotFitIsRefused()
    {
        foreach ((string network, Func<PeftMethod> method, string words) in _refused)
        {
            using Backbone backbone = Kind(network).Make(CPU, ScalarType.Float32);
            var e = Assert.ThrowsExactly<ArgumentException>(() => method().Attach(backbone, 0).Dispose(), $"{network}: {method().Id}");
            StringAssert.Contains(e.Message, words, $"{network}: {method().Id}");
        }
    }

    /// <summary>Nothing that attaches fails in its first step; nothing else is refused without words.</summary>
    [TestMethod]
    [DynamicData(nameof(Networks))]
    public void EveryMethodRunsOrIsRefused(string network)
    {
        MatrixBackbone kind = Kind(network);
        var runs = new List<string>();
        foreach (IGrouping<string, string> rows in MatrixRows.All.Keys.GroupBy(row => MatrixRows.All[row]().Id))
        {
            string row = rows.First();
            MatrixModel model;
            try
            {
                model = new MatrixModel(kind.Spelled(MatrixRows.All[row]()), kind: kind);
            }
            catch (Exception e) when (e is ArgumentException or NotSupportedException)
            {
                Assert.IsGreaterThan(20, e.Message.Length, $"{row}: {e}");
                TestContext.WriteLine($"{row} is refused: {e.Message}");
                continue;
            }
            using (model)
            {
                Assert.AreEqual(model.Adaptation!.Method.CountTrainable(model.Backbone), model.Adaptation.TrainableCount, $"{network}: {row}, the formula's count");
                Assert.IsTrue(model.Score().All(float.IsFinite), $"{network}: {row}");
                Assert.IsTrue(model.Train(1).All(float.IsFinite), $"{network}: {row}");
            }
            runs.Add(rows.Key);
        }
        TestContext.WriteLine($"{network}: {runs.Count} methods run: {string.Join(", ", runs)}");
        Assert.IsGreaterThan(15, runs.Count);
    }

    [TestMethod]
    [DynamicData(nameof(Networks))]
    public void ABfloat16NetworkRunsAndTrains(string network)
    {
        MatrixBackbone kind = Kind(network);
        var method = new LoraOptions { Targets = network == "resnet" ? ["OtherConvolution"] : ["FeedForwardUp", "FeedForwardDown"] };
        using MatrixModel full = new(method, kind: kind), half = new(method, dtype: ScalarType.BFloat16, kind: kind);
        Assert.IsLessThan(0.15f, full.Score().Zip(half.Score()).Max(p => Math.Abs(p.First - p.Second)), "bfloat16 is too far from float32");
        Assert.IsTrue(half.Train(2).All(float.IsFinite));
    }
}
