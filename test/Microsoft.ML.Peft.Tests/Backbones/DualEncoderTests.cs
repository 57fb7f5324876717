// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>What pairs of towers promise beside their numbers: adapters on one or both, the end of a text, refusals, no leaks.</summary>
[TestClass]
public sealed class DualEncoderTests
{
    private const string Towers =
        """
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8, "patch_size": 4},
        "text_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 50,
        "max_position_embeddings": 8, "eos_token_id": 40, "pad_token_id": 40}
        """;

    private static DualEncoder Make(string type, string more = "") =>
        DualEncoder.Build(JsonNode.Parse($$"""{"model_type": "{{type}}", "projection_dim": 12, {{Towers}} {{more}}}""")!.AsObject(), new Numbers());

    private sealed class Numbers : IWeightSource
    {
        public bool Has(string name) => true;

        public Tensor Load(string name, params long[] shape)
        {
            Tensor noise = new Draws(3, name).Normal(0.2, shape.Length == 0 ? [1] : shape);
            if (shape.Length == 0) return noise.view();
            return shape.Length == 1 && name.Contains("norm", StringComparison.Ordinal) && name.EndsWith(".weight", StringComparison.Ordinal) ? noise + 1 : noise;
        }
    }

    private static TokenBatch Images(int rows) => TokenBatch.OfImages(new Draws(5, "images").Normal(1, rows, 3, 8, 8));

    private static TokenBatch Texts()
    {
        Tensor ids = tensor(new long[] { 1, 2, 3, 40, 40, 1, 9, 8, 7, 40, 1, 30, 40, 40, 40 }, [3, 5]);
        return new TokenBatch(ids, tensor(new long[] { 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0 }, [3, 5]));
    }

    private static Tensor Loss(DualEncoder pair, PeftAdaptation? images, PeftAdaptation? texts, bool training = true)
    {
        var onImages = new Pass(images?.Table() ?? PatchTable.Empty, training, 1);
        var onTexts = new Pass(texts?.Table() ?? PatchTable.Empty, training, 1);
        return pair.Loss(pair.Logits(pair.TextFeatures(Texts(), onTexts, texts), pair.ImageFeatures(Images(3), onImages, images)));
    }

    [TestMethod]
    [DataRow("clip", true, true)]
    [DataRow("clip", true, false)]
    [DataRow("clip", false, true)]
    [DataRow("siglip", true, true)]
    public void TowersWearAdaptersOfTheirOwn(string type, bool onImages, bool onTexts)
    {
        using DualEncoder pair = Make(type);
        LoraOptions Method() => new() { Rank = 2, Targets = ["q_proj", "v_proj"] };
        using PeftAdaptation? images = onImages ? Method().Attach(pair.Images, 1) : null, texts = onTexts ? Method().Attach(pair.Texts, 2) : null;
        NamedParameter[] parameters = [.. images?.Parameters ?? [], .. texts?.Parameters ?? []];
        if (onImages && onTexts)
        {
            pair.LogitScale.SetTrainable(true);
            parameters = [.. parameters, pair.LogitScale];
        }
        byte[][] Frozen() => [.. pair.Images.Sites.Concat(pair.Texts.Sites).OfType<WeightSite>().Select(s => s.Weight.contiguous().bytes.ToArray())];
        byte[][] before = Frozen();
        float start = Now();
        var optimizer = new PlainAdamW(0.02, 0);
        for (int step = 0; step < 8; step++)
        {
            using var scope = NewDisposeScope();
            PlainAdamW.ZeroGradients(parameters);
            Loss(pair, images, texts).backward();
            optimizer.Step(parameters);
        }
        optimizer.Dispose();
        Assert.IsLessThan(start, Now());
        foreach (NamedParameter parameter in parameters) Assert.IsNotNull(parameter.Value.grad, parameter.Name);
        Assert.IsTrue(before.Zip(Frozen()).All(p => p.First.AsSpan().SequenceEqual(p.Second)), "a frozen number changed");

        float Now()
        {
            using var scope = NewDisposeScope();
            using var off = no_grad();
            return Loss(pair, images, texts, training: false).item<float>();
        }
    }

    [TestMethod]
    public void TheCommonProjectionsCanBeAdaptedByTheirNames()
    {
        using DualEncoder pair = Make("clip");
        using PeftAdaptation images = new LoraOptions { Rank = 2, Targets = ["visual_projection"] }.Attach(pair.Images, 1);
        Assert.AreEqual("visual_projection.lora_A.weight", images.Parameters[0].Name);
        using var scope = NewDisposeScope();
        Loss(pair, images, null).backward();
        Assert.IsNotNull(images.Parameters[1].Value.grad);
        // A tower by itself has none: nothing would read it.
        using Backbone alone = BackboneLoader.Build(JsonNode.Parse($$"""{"model_type": "clip", {{Towers}}}""")!.AsObject(), new Numbers());
        Assert.IsNull(alone.FindSite("visual_projection"));
        Assert.AreEqual("clip_vision_model", alone.Config.ModelType);
    }

    [TestMethod]
    public void WhatComesAfterTheEndOfATextDoesNotMatter()
    {
        using DualEncoder pair = Make("clip");
        using var scope = NewDisposeScope();
        using var off = no_grad();
        TokenBatch texts = Texts();
        Tensor found = pair.TextFeatures(texts, new Pass());
        Tensor ids = texts.Ids.clone();
        ids[0, 4] = 13;
        ids[2, 3] = 21;
        foreach (TokenBatch other in (TokenBatch[])[texts with { Ids = ids }, texts with { Ids = ids, Mask = ones_like(ids), Padded = false }])
            Assert.IsLessThan(1e-6, Deviations.Distance(found, pair.TextFeatures(other, new Pass())));
        var end = (ClipTextBackbone)pair.Texts;
        CollectionAssert.AreEqual(new long[] { 3, 4, 2 }, end.EndOf(texts.Ids).data<long>().ToArray());
    }

    [TestMethod]
    public void WhatIsNoPairIsRefused()
    {
        static void Refused(string config, string words)
        {
            var e = Assert.ThrowsExactly<CheckpointFormatException>(() => DualEncoder.Build(JsonNode.Parse(config)!.AsObject(), new Numbers()).Dispose());
            StringAssert.Contains(e.Message, words);
        }
        Refused("""{"model_type": "vit"}""", "clip and siglip");
        Refused("""{"model_type": "clip", "vision_config": 3}""", "vision_config");
        Refused("""{"model_type": "clip", "projection_dim": 0}""", "projection_dim");
        Refused("""{"model_type": "siglip", "text_config": {"projection_size": 5}}""", "projection_size");
        using DualEncoder pair = Make("siglip", ", \"unused\": 1");
        using var scope = NewDisposeScope();
        Assert.ThrowsExactly<ArgumentException>(() => pair.Loss(zeros([2, 3])));
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => pair.ImageFeatures(Texts(), new Pass())).Message, "OfImages");
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => pair.TextFeatures(Images(1), new Pass())).Message, "reads texts");
        Tensor tooLong = ones([1, 9], dtype: ScalarType.Int64);
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => pair.TextFeatures(new TokenBatch(tooLong, tooLong), new Pass())).Message, "at most 8");
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => pair.ImageFeatures(TokenBatch.OfImages(zeros([1, 4, 8, 8])), new Pass())).Message, "[batch, 3, height, width]");
    }

    [TestMethod]
    public void NothingLeaks()
    {
        Once();
        long before = LiveTensors.Count();
        Once();
        Assert.AreEqual(before, LiveTensors.Count());

        static void Once()
        {
            foreach (string type in (string[])["clip", "siglip"])
            {
                using DualEncoder pair = Make(type);
                using PeftAdaptation images = new LoraOptions { Targets = ["q_proj"] }.Attach(pair.Images, 1);
                using var scope = NewDisposeScope();
                Loss(pair, images, null).backward();
            }
            Assert.ThrowsExactly<CheckpointFormatException>(() => DualEncoder.Build(JsonNode.Parse("""{"model_type": "siglip", "text_config": {"projection_size": 5}}""")!.AsObject(), new Numbers()));
        }
    }

    [TestMethod]
    public void AQueryingTransformerRefusesWhatItCannotRead()
    {
        using Backbone backbone = BackboneLoader.Build(
            JsonNode.Parse("""{"model_type": "blip_2_qformer", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "encoder_hidden_size": 10, "num_query_tokens": 3}""")!.AsObject(),
            new Numbers());
        using var scope = NewDisposeScope();
        void Refused(TokenBatch batch, string words) => StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => backbone.Forward(batch, new Pass())).Message, words);
        Refused(Images(1), "OfStates");
        Refused(TokenBatch.OfStates(zeros([2, 5, 9])), "[batch, tokens, 10]");
        Refused(TokenBatch.OfStates(zeros([2, 5, 10]), queries: zeros([3, 4, 16])), "[1 or 2, queries, 16]");
        Assert.AreEqual("query_tokens", backbone.PathOf(backbone.Sites[0]));
        CollectionAssert.AreEqual(new long[] { 2, 3, 16 }, backbone.Forward(TokenBatch.OfStates(zeros([2, 5, 10])), new Pass()).Last.shape);
        CollectionAssert.AreEqual(new long[] { 2, 4, 16 }, backbone.Forward(TokenBatch.OfStates(zeros([2, 5, 10]), queries: zeros([1, 4, 16])), new Pass()).Last.shape);
        using PeftAdaptation adaptation = new LoraOptions { Targets = ["Query", "Value"] }.Attach(backbone, 1);
        var pass = new Pass(adaptation.Table(), training: true, seed: 1) { Checkpointing = true };
        backbone.Forward(TokenBatch.OfStates(ones([2, 5, 10])), pass).Last.square().sum().backward();
        Assert.IsTrue(adaptation.Parameters.All(p => p.Value.grad is not null));
    }
}
