// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Tests.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>What networks of stages promise beside their numbers: widths, windows, maps, refusals.</summary>
[TestClass]
public sealed class StagedBackboneTests
{
    private static StagedBackbone Make(string name) => (StagedBackbone)MatrixBackbone.Stages.Single(kind => kind.Name == name).Make(CPU, ScalarType.Float32);

    private static Tensor Pixels(long rows, long height, long width) => new Draws(13, "pixels").Normal(1, rows, 3, height, width);

    [TestMethod]
    [DataRow(5, 7, 3, 1, 0)]
    [DataRow(8, 8, 4, 2, 2)]
    [DataRow(4, 4, 4, 0, 1)]
    [DataRow(9, 2, 4, 3, 0)]
    public void WindowsAreCutAndJoined(long rows, long columns, int side, int shift, int inserted)
    {
        using var scope = NewDisposeScope();
        var windows = new Windows(new MapGrid(rows, columns), side, shift);
        Tensor x = new Draws(1, "x").Normal(1, 2, inserted + rows * columns, 3), cut = windows.Cut(x, inserted);
        Assert.AreEqual(windows.Count * (inserted + side * side), cut.shape[1]);
        Assert.IsLessThan(1e-6, Deviations.Distance(x, windows.Join(cut, inserted)));
    }

    [TestMethod]
    public void PlacesThatTheSeamBringsTogetherStayApart()
    {
        using var scope = NewDisposeScope();
        var windows = new Windows(new MapGrid(4, 4), 2, 1);
        Tensor bias = windows.Bias(zeros([1, 1, 4, 4]), 1, 2, new Pass());
        CollectionAssert.AreEqual(new long[] { 8, 1, 5, 5 }, bias.shape);
        // The first window is whole; the last one's four places come from four corners. Inserted tokens see all.
        Assert.AreEqual(0f, bias.select(0, 0).abs().sum().item<float>());
        Assert.AreEqual(-100f * 12, bias.select(0, 3).sum().item<float>());
        Assert.AreEqual(0f, bias.select(0, 3).select(1, 0).abs().sum().item<float>());
    }

    [TestMethod]
    public void EachLayerHasTheWidthOfItsStage()
    {
        foreach (MatrixBackbone kind in MatrixBackbone.Stages)
        {
            using var scope = NewDisposeScope();
            using var off = no_grad();
            using StagedBackbone backbone = Make(kind.Name);
            BackboneOutput output = backbone.Forward(TokenBatch.OfImages(Pixels(1, 32, 36)), new Pass { KeepHiddenStates = true });
            for (int i = 0; i < output.HiddenStates!.Count; i++) Assert.AreEqual(backbone.WidthAt(i - 1), output.HiddenStates[i].shape[2], $"{kind.Name} state {i}");
            IReadOnlyList<Tensor> maps = backbone.StageMaps(output);
            Assert.HasCount(backbone.Depths.Count + 1, maps);
            for (int stage = 0; stage < backbone.Depths.Count; stage++) Assert.AreEqual(backbone.Widths[stage], maps[stage + 1].shape[1], kind.Name);
            Assert.AreEqual(backbone.Config.HiddenSize, backbone.WidthAt(backbone.Config.LayerCount));
            Assert.ThrowsExactly<NotSupportedException>(() => backbone.Restacked([0]));
            Assert.ThrowsExactly<ArgumentException>(() => backbone.StageMaps(backbone.Forward(TokenBatch.OfImages(Pixels(1, 32, 36)), new Pass())));
        }
    }

    [TestMethod]
    public void RowsOfABatchDoNotMeet()
    {
        foreach (MatrixBackbone kind in MatrixBackbone.Stages)
        {
            using var scope = NewDisposeScope();
            using var off = no_grad();
            using StagedBackbone backbone = Make(kind.Name);
            TokenBatch both = TokenBatch.OfImages(Pixels(2, 27, 33));
            Tensor whole = backbone.Forward(both, new Pass()).Last.narrow(0, 1, 1), alone = backbone.Forward(both.Rows(tensor(new long[] { 1 })), new Pass()).Last;
            Assert.IsLessThan(1e-4, Deviations.Distance(whole, alone), kind.Name);
        }
    }

    [TestMethod]
    public void PromptsAreNoPlaces()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using StagedBackbone swin = Make("swin");
        using PeftAdaptation prompts = new VisualPromptTuningOptions { Length = 3 }.Attach(swin, 1);
        BackboneOutput bare = swin.Forward(TokenBatch.OfImages(Pixels(2, 18, 14)), new Pass { KeepHiddenStates = true });
        BackboneOutput worn = swin.Forward(TokenBatch.OfImages(Pixels(2, 18, 14)), new Pass(prompts.Table()) { KeepHiddenStates = true });
        Assert.AreEqual(bare.Last.shape[1] + 3, worn.Last.shape[1]);
        foreach ((Tensor a, Tensor b) in swin.StageMaps(bare).Zip(swin.StageMaps(worn))) CollectionAssert.AreEqual(a.shape, b.shape);
        Assert.AreEqual(0.0, Deviations.Distance(swin.StageMaps(bare)[0], swin.StageMaps(worn)[0]));
        Assert.IsGreaterThan(1e-4, Deviations.Distance(swin.StageMaps(bare)[1], swin.StageMaps(worn)[1]));
        CollectionAssert.AreEqual(new long[] { 2, swin.Config.HiddenSize }, swin.ClassifierFeatures(worn, new Pass()).shape);
    }

    [TestMethod]
    public void FrozenStatisticsStayInTrainingUnlessTheNormIsTrained()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using StagedBackbone resnet = Make("resnet");
        TokenBatch batch = TokenBatch.OfImages(Pixels(2, 32, 32));
        Tensor scored = resnet.Forward(batch, new Pass()).Last;
        Assert.AreEqual(0.0, Deviations.Distance(scored, resnet.Forward(batch, new Pass(PatchTable.Empty, training: true)).Last));
        using PeftAdaptation biases = new BitFitOptions().Attach(resnet, 1), norms = new LayerNormTuningOptions().Attach(resnet, 1);
        Assert.AreEqual(0.0, Deviations.Distance(scored, resnet.Forward(batch, new Pass(biases.Table(), training: true)).Last));
        Assert.IsGreaterThan(1e-3, Deviations.Distance(scored, resnet.Forward(batch, new Pass(norms.Table(), training: true)).Last));
        var one = TokenBatch.OfImages(Pixels(1, 8, 8));
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => resnet.Forward(one, new Pass(norms.Table(), training: true))).Message, "more rows");
    }

    [TestMethod]
    public void SegmentationCountsThePixelsThatCount()
    {
        using var scope = NewDisposeScope();
        Tensor scores = new Draws(1, "scores").Normal(1, 2, 4, 3, 5), all = full([2, 6, 10], 255, dtype: ScalarType.Int64);
        Assert.AreEqual(0f, SegmentationHead.Loss(scores, all).item<float>());
        long[] labels = [.. Enumerable.Repeat(255L, 120)];
        labels[17] = 3;
        Tensor one = SegmentationHead.Loss(scores, tensor(labels, [2, 6, 10]));
        labels[18] = 7;
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => SegmentationHead.Loss(scores, tensor(labels, [2, 6, 10]))).Message, "label 7");
        Assert.ThrowsExactly<ArgumentException>(() => SegmentationHead.Loss(scores, all.narrow(0, 0, 1)));
        Assert.IsTrue(float.IsFinite(one.item<float>()));
        CollectionAssert.AreEqual(new long[] { 2, 9, 7 }, SegmentationHead.LabelMap(scores, 9, 7).shape);
        using Backbone vit = MatrixBackbone.All.Single(kind => kind.Name == "vit").Make(CPU, ScalarType.Float32);
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => new SegmentationHead(vit, 3)).Message, "segformer");
    }

    [TestMethod]
    public void ASegmentationHeadLearnsOverAnyStages()
    {
        foreach (string name in (string[])["segformer", "swin"])
        {
            using StagedBackbone backbone = Make(name);
            using var head = new SegmentationHead(backbone, 2, width: 8);
            using var model = new AdaptedModel(backbone, new LoraOptions { Targets = ["Query"] }.Attach(backbone, 1), head);
            using var pixels = Pixels(2, 32, 32).DetachFromDisposeScope();
            var optimizer = new PlainAdamW(0.01, 0.01);
            var losses = new List<float>();
            for (int step = 0; step < 15; step++)
            {
                using var scope = NewDisposeScope();
                Tensor labels = pixels.select(1, 0).gt(0).to_type(ScalarType.Int64);
                PlainAdamW.ZeroGradients(model.Parameters);
                Tensor loss = SegmentationHead.Loss(model.Forward(TokenBatch.OfImages(pixels), new Pass(model.Patches, training: true, seed: (ulong)step)), labels);
                loss.backward();
                optimizer.Step(model.Parameters);
                losses.Add(loss.item<float>());
            }
            optimizer.Dispose();
            Assert.IsLessThan(losses[0], losses[^1], name);
        }
    }

    [TestMethod]
    public void ImagesThatDoNotFitAreRefused()
    {
        using var scope = NewDisposeScope();
        foreach ((string network, long[] shape, string words) in ((string, long[], string)[])
            [("swin", [1, 1, 16, 16], "[batch, 3, height, width]"), ("convnext", [1, 3, 4, 4], "too small"), ("convnext", [1, 3, 3, 32], "too small"),
             ("segformer", [1, 3, 2, 32], "too small"), ("resnet", [3, 32, 32], "[batch, 3, height, width]")])
        {
            using StagedBackbone backbone = Make(network);
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => backbone.Forward(TokenBatch.OfImages(zeros(shape)), new Pass())).Message, words, network);
        }
        using StagedBackbone swin = Make("swin");
        var texts = new TokenBatch(zeros([1, 2], ScalarType.Int64), ones([1, 2], ScalarType.Int64));
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => swin.Forward(texts, new Pass())).Message, "OfImages");
        Assert.ThrowsExactly<ArgumentException>(() => new SequenceClassificationHead(swin, 3, Pooling.FirstToken));
    }

    [TestMethod]
    [DataRow("swin", "num_heads", "[2]", "one a stage")]
    [DataRow("swin", "num_heads", "[3, 5, 12, 24]", "not divisible")]
    [DataRow("swin", "depths", "[2, 2.5]", "whole numbers")]
    [DataRow("swin", "depths", "[2, 2000000000, 2000000000, 2]", "at most")]
    [DataRow("swin", "embed_dim", "2000000000", "no network")]
    [DataRow("swin", "window_size", "0", "at least 1")]
    [DataRow("swin", "image_size", "2", "smaller than patch_size")]
    [DataRow("swin", "mlp_ratio", "1e300", "mlp_ratio")]
    [DataRow("swinv2", "pretrained_window_sizes", "[0]", "one a stage")]
    [DataRow("convnext", "hidden_sizes", "[96, 192]", "one a stage")]
    [DataRow("convnext", "hidden_act", "\"cubic\"", "Unknown activation")]
    [DataRow("resnet", "layer_type", "\"wide\"", "basic or bottleneck")]
    [DataRow("resnet", "hidden_sizes", "[2, 4, 8, 16]", "at least 4")]
    [DataRow("segformer", "sr_ratios", "[8, 4, 2]", "one a stage")]
    [DataRow("segformer", "num_encoder_blocks", "3", "one a stage")]
    public void SettingsThatCannotBeAreRefused(string family, string field, string value, string words)
    {
        var config = new JsonObject { ["model_type"] = family, [field] = JsonNode.Parse(value) };
        var e = Assert.Throws<Exception>(() => BackboneLoader.Build(JsonNode.Parse(config.ToJsonString())!.AsObject(), new Shapes()).Dispose());
        Assert.IsTrue(e is CheckpointFormatException or NotSupportedException, e.ToString());
        StringAssert.Contains(e.Message, words);
    }

    private sealed class Shapes : IWeightSource
    {
        public bool Has(string name) => true;

        public Tensor Load(string name, params long[] shape) => zeros([1]).expand(shape);
    }
}
