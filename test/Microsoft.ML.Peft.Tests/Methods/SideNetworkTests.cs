// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>What side networks promise beside what every method does.</summary>
[TestClass]
public class SideNetworkTests
{
    [TestMethod]
    public void ALadderBesideT5HasThePapersCount()
    {
        JsonObject config = JsonNode.Parse("""{"model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}""")!.AsObject();
        using Backbone backbone = MatrixModel.ShapesOnly(config);
        int[] kept = [1, 2, 3, 5, 6, 7, 9, 10, 11];
        // The count of 3,878,712 has the gates of the six dropped layers too; those have nothing to weigh and are not made.
        Assert.AreEqual(3_878_712 - 6, new LadderSideOptions { Layers = kept, DecoderLayers = kept }.CountTrainable(backbone));
        Assert.AreEqual(9 * (110_784 + 1) + 10 * (768 * 96 + 96) + 96 + 384, SideShape.Of(backbone, "encoder.", 0, 12, kept, 8).Count(768));
    }

    [TestMethod]
    public void NoGraphEntersTheBackbone()
    {
        foreach (PeftMethod method in new PeftMethod[] { new LadderSideOptions { Reduction = 4 }, new VisualQueryOptions { Tokens = 2 } })
        {
            using var scope = NewDisposeScope();
            using Backbone backbone = MatrixModel.Make(CPU);
            using PeftAdaptation adaptation = method.Attach(backbone, 1);
            Tensor ids = tensor([5L, 6, 7, 8, 9, 10]).view(2, 3);
            var batch = new TokenBatch(ids, ones_like(ids));
            BackboneOutput output = backbone.Forward(batch, new Pass(adaptation.Table()));
            Assert.IsTrue(output.Last.requires_grad, method.Id);
            Assert.IsTrue(output.HiddenStates!.All(h => !h.requires_grad), $"{method.Id}: a state of the backbone has a graph");
            BackboneOutput bare = backbone.Forward(batch, new Pass { KeepHiddenStates = true });
            foreach ((Tensor worn, Tensor frozen) in output.HiddenStates!.Zip(bare.HiddenStates!)) Assert.AreEqual(0, Deviations.Distance(worn, frozen), method.Id);
        }
    }

    [TestMethod]
    public void AClosedGateLeavesTheLadderOut()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation adaptation = new LadderSideOptions { Reduction = 4 }.Attach(backbone, 1);
        Tensor ids = tensor([5L, 6, 7, 8]).view(1, 4);
        Tensor Run() => backbone.Forward(new TokenBatch(ids, ones_like(ids)), new Pass(adaptation.Table())).Last.clone();
        adaptation.Find("side.alpha.1")!.Load(tensor([float.PositiveInfinity]));
        Tensor before = Run();
        adaptation.Find("side.ladder.1.weight")!.Value.fill_(3);
        Assert.AreEqual(0, Deviations.Distance(before, Run()));
        adaptation.Find("side.alpha.1")!.Load(zeros([1]));
        Assert.AreNotEqual(0, Deviations.Distance(before, Run()));
    }

    [TestMethod]
    public void TheStartIsCutOutOfTheBackbone()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation adaptation = new LadderSideOptions { Reduction = 4, Layers = [1] }.Attach(backbone, 1);
        var norm = (WeightSite)backbone.FindSite("encoder.layer.1.attention.output.LayerNorm")!;
        float[] whole = norm.Weight.data<float>().ToArray(), kept = adaptation.Find("side.block.1.norm1.weight")!.Value.data<float>().ToArray();
        Assert.AreEqual(8, kept.Length);
        int at = -1;
        foreach (float value in kept)
        {
            int next = Array.IndexOf(whole, value, at + 1);
            Assert.IsGreaterThan(at, next, "kept channels rise");
            at = next;
        }
    }

    [TestMethod]
    public void WhatDoesNotFitIsRefused()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        void Refused(PeftMethod method, string message) => StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => method.Attach(backbone, 0)).Message, message);
        Refused(new LadderSideOptions { Reduction = 5 }, "divisor of the hidden width 32");
        Refused(new LadderSideOptions { Reduction = 4, Layers = [2] }, "0 to 1");
        Refused(new LadderSideOptions { GateTemperature = 0 }, "above 0");
        Refused(new LadderSideOptions { Init = "fisher" }, "magnitude or random");
        Refused(new VisualQueryOptions { Tokens = 0 }, "1 or more");
        using PeftAdaptation tokens = new VisualQueryOptions { Tokens = 2, Reading = QueryReading.Tokens }.Attach(backbone, 0);
        using var head = new VisualQueryHead(backbone, 3, 2);
        using var scope = NewDisposeScope();
        Tensor ids = tensor([5L, 6]).view(1, 2);
        var pass = new Pass(tokens.Table());
        Tensor states = backbone.Forward(new TokenBatch(ids, ones_like(ids)), pass).Last;
        StringAssert.Contains(Assert.ThrowsExactly<InvalidOperationException>(() => head.FromFeatures(states, pass)).Message, "the same T");
    }
}
