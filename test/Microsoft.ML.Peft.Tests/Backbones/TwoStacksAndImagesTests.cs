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

/// <summary>What T5 and ViT promise beside their numbers: refusals, numbering of layers, shared weights, no leaks.</summary>
[TestClass]
public sealed class TwoStacksAndImagesTests
{
    private static Backbone Make(string name) => MatrixBackbone.All.Single(kind => kind.Name == name).Make(CPU, ScalarType.Float32);

    private static Backbone Writing() => BackboneLoader.Build(
        JsonNode.Parse("""{"model_type": "t5", "d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 48, "vocab_size": 101}""")!.AsObject(),
        new Tied(), languageHead: true);

    private sealed class Tied : IWeightSource
    {
        public bool Has(string name) => name != "lm_head.weight";

        public Tensor Load(string name, params long[] shape) => new Draws(3, name).Normal(0.2, shape);
    }

    private static TokenBatch Texts() => new(tensor(new long[] { 5, 6, 7, 8, 9, 3 }, [2, 3]), ones([2, 3], dtype: ScalarType.Int64), Padded: false)
    {
        DecoderIds = tensor(new long[] { 0, 4, 0, 2 }, [2, 2]),
    };

    [TestMethod]
    public void ADecoderIsNumberedBehindItsEncoder()
    {
        using Backbone backbone = Writing();
        Assert.AreEqual(4, backbone.Config.LayerCount);
        Assert.AreEqual(2, backbone.Config.DecoderStart);
        foreach (Site site in backbone.Sites)
        {
            string[] parts = site.Name.Split('.');
            if (parts.Length > 2 && parts[1] == "block") Assert.AreEqual(int.Parse(parts[2]) + (parts[0] == "decoder" ? 2 : 0), site.Layer, site.Name);
        }
        Assert.AreEqual(2, backbone.FindSite("encoder.final_layer_norm")!.Layer);
        Assert.AreEqual(4, backbone.FindSite("decoder.final_layer_norm")!.Layer);
        foreach (SiteRole role in (SiteRole[])[SiteRole.CrossAttentionCore, SiteRole.CrossAttentionBlock, SiteRole.CrossAttentionNorm, SiteRole.CrossAttentionResidual])
            CollectionAssert.AreEqual(new[] { 2, 3 }, backbone.Sites.Where(s => s.Role == role).Select(s => s.Layer).ToArray(), role.ToString());
    }

    [TestMethod]
    public void NothingBelowTheLowestPatchHasAGraph()
    {
        using Backbone backbone = Writing();
        using PeftAdaptation adaptation = new LoraOptions { TargetPattern = @"decoder\.block\.1\..*EncDecAttention\.[qv]" }.Attach(backbone, 1);
        using var scope = NewDisposeScope();
        var pass = new Pass(adaptation.Table(), training: true, seed: 1) { KeepHiddenStates = true };
        BackboneOutput output = backbone.Forward(Texts(), pass);
        Assert.AreEqual(3, pass.Patches.LowestTrainable);
        Assert.IsFalse(output.Encoder!.Last.requires_grad);
        CollectionAssert.AreEqual(new[] { false, false, true }, output.HiddenStates!.Select(h => h.requires_grad).ToArray());
        Assert.IsTrue(output.Last.requires_grad);
    }

    [TestMethod]
    public void AnEncodedTextIsNotEncodedAgain()
    {
        using Backbone backbone = Writing();
        using var scope = NewDisposeScope();
        using var off = no_grad();
        BackboneOutput encoded = backbone.Encode(Texts(), new Pass());
        Tensor whole = backbone.Forward(Texts(), new Pass()).Last, again = backbone.Forward(Texts() with { Encoded = encoded }, new Pass()).Last;
        Assert.AreEqual(0.0, Deviations.Distance(whole, again));
        Assert.ThrowsExactly<ArgumentException>(() => backbone.Forward(Texts() with { DecoderIds = null }, new Pass()));
        using Backbone bert = MatrixModel.Make(CPU);
        Assert.ThrowsExactly<InvalidOperationException>(() => bert.Encode(Texts(), new Pass()));
        Assert.ThrowsExactly<ArgumentException>(() => new SequenceToSequenceHead(bert));
    }

    [TestMethod]
    public void RowsOfABatchKeepTheirParts()
    {
        using Backbone backbone = Writing();
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Tensor second = tensor(new long[] { 1 });
        Tensor whole = backbone.Forward(Texts(), new Pass()).Last.narrow(0, 1, 1), alone = backbone.Forward(Texts().Rows(second), new Pass()).Last;
        Assert.IsLessThan(1e-5, Deviations.Distance(whole, alone));
        using Backbone vit = Make("vit");
        TokenBatch images = TokenBatch.OfImages(new Draws(1, "images").Normal(1, 2, 3, 8, 8));
        Assert.IsLessThan(1e-5, Deviations.Distance(vit.Forward(images, new Pass()).Last.narrow(0, 1, 1), vit.Forward(images.Rows(second), new Pass()).Last));
    }

    [TestMethod]
    public void ATiedHeadFollowsAReplacedTable()
    {
        using Backbone backbone = Writing();
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var table = (WeightSite)backbone.FindSite("shared")!;
        using Backbone other = backbone.With(new Dictionary<Site, (Tensor, Tensor?)> { [table] = (table.Weight * 2, null) });
        var head = (Projection)other.Sites.Single(s => s.Role == SiteRole.LanguageHead);
        Assert.AreEqual(0.0, Deviations.Distance(table.Weight * 2, head.Weight));
        Assert.AreEqual(0.0, Deviations.Distance(((WeightSite)backbone.FindSite("encoder.block.0.layer.0.SelfAttention.q")!).Weight, ((WeightSite)other.FindSite("encoder.block.0.layer.0.SelfAttention.q")!).Weight));
    }

    [TestMethod]
    public void ImagesThatDoNotFitAreRefused()
    {
        using Backbone vit = Make("vit");
        using var scope = NewDisposeScope();
        void Refused(TokenBatch batch, string words) => StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => vit.Forward(batch, new Pass())).Message, words);
        Refused(Texts(), "OfImages");
        Refused(TokenBatch.OfImages(zeros([1, 1, 8, 8])), "[batch, 3, height, width]");
        Refused(TokenBatch.OfImages(zeros([3, 8, 8])), "[batch, 3, height, width]");
        Refused(TokenBatch.OfImages(zeros([1, 3, 12, 8])), "12x8");
        Refused(TokenBatch.OfImages(zeros([1, 3, 2, 8]), interpolatePositions: true), "smaller than one patch");
        Assert.AreEqual(7, vit.Forward(TokenBatch.OfImages(zeros([1, 3, 12, 8]), interpolatePositions: true), new Pass()).Last.shape[1]);
    }

    [TestMethod]
    [DataRow("vit", "image_size", "9", "multiple of patch_size")]
    [DataRow("vit", "image_size", "[8, 0]", "height and width")]
    [DataRow("vit", "num_attention_heads", "5", "not divisible")]
    [DataRow("vit", "hidden_act", "\"cubic\"", "Unknown activation")]
    [DataRow("deit", "patch_size", "5", "multiple of patch_size")]
    [DataRow("beit", "drop_path_rate", "1", "a share in [0, 1)")]
    [DataRow("beit", "use_relative_position_bias", "3", "true or false")]
    [DataRow("dinov2", "mlp_ratio", "0", "a positive number")]
    [DataRow("dinov2", "mlp_ratio", "0.01", "width")]
    [DataRow("dinov2", "num_channels", "0", "a whole number of at least 1")]
    [DataRow("videomae", "num_frames", "3", "multiple of tubelet_size")]
    [DataRow("videomae", "tubelet_size", "0", "a whole number of at least 1")]
    [DataRow("clip_vision_model", "attention_dropout", "2", "a share in [0, 1)")]
    [DataRow("clip_text_model", "hidden_act", "\"cubic\"", "Unknown activation")]
    [DataRow("clip_text_model", "num_attention_heads", "3", "not divisible")]
    [DataRow("siglip_vision_model", "image_size", "17", "multiple of patch_size")]
    [DataRow("blip_2_qformer", "cross_attention_frequency", "0", "a whole number of at least 1")]
    [DataRow("blip_2_qformer", "num_attention_heads", "3", "not divisible")]
    [DataRow("t5", "feed_forward_proj", "\"gated-gelu-new\"", "feed_forward_proj")]
    [DataRow("t5", "feed_forward_proj", "\"plain-relu\"", "feed_forward_proj")]
    [DataRow("t5", "relative_attention_max_distance", "16", "relative_attention_num_buckets")]
    [DataRow("t5", "relative_attention_num_buckets", "2", "at least 4")]
    public void SettingsThatCannotBeAreRefused(string family, string field, string value, string words)
    {
        var config = new JsonObject { ["model_type"] = family, ["d_model"] = 8, ["hidden_size"] = 8, ["num_attention_heads"] = 2 };
        config[field] = JsonNode.Parse(value);
        // Through text: a configuration comes from a file.
        JsonObject read = JsonNode.Parse(config.ToJsonString())!.AsObject();
        var e = Assert.Throws<Exception>(() => BackboneLoader.Build(read, new Tied()));
        Assert.IsTrue(e is CheckpointFormatException or NotSupportedException, e.ToString());
        StringAssert.Contains(e.Message, words);
    }

    [TestMethod]
    public void VideosThatDoNotFitAreRefused()
    {
        using Backbone backbone = BackboneLoader.Build(
            JsonNode.Parse("""{"model_type": "videomae", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8, "image_size": 8, "patch_size": 4, "num_frames": 4}""")!.AsObject(),
            new Tied());
        using var scope = NewDisposeScope();
        foreach (long[] shape in (long[][])[[1, 3, 8, 8], [1, 2, 3, 8, 8], [1, 4, 1, 8, 8], [1, 4, 3, 12, 8]])
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => backbone.Forward(TokenBatch.OfImages(zeros(shape)), new Pass())).Message, "[batch, 4, 3, 8, 8]");
        Assert.AreEqual(8, backbone.Forward(TokenBatch.OfImages(zeros([1, 4, 3, 8, 8])), new Pass()).Last.shape[1]);
    }

    [TestMethod]
    public void FeatureMapsNeedTheStates()
    {
        using var dinov2 = (ImageEncoder)Make("dinov2");
        using var scope = NewDisposeScope();
        TokenBatch images = TokenBatch.OfImages(new Draws(1, "images").Normal(1, 2, 3, 8, 12));
        Assert.ThrowsExactly<InvalidOperationException>(() => dinov2.FeatureMap(dinov2.Forward(images, new Pass()), 0, new Pass()));
        var pass = new Pass { KeepHiddenStates = true };
        BackboneOutput output = dinov2.Forward(images, pass);
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => dinov2.FeatureMap(output, 3, pass));
        CollectionAssert.AreEqual(new long[] { 2, 32, 2, 3 }, dinov2.FeatureMap(output, 2, pass).shape);
    }

    [TestMethod]
    public void RelativePositionsFollowTheSizeOfImages()
    {
        using Backbone beit = Make("beit");
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Assert.AreEqual(7, beit.Forward(TokenBatch.OfImages(ones([1, 3, 12, 8]), interpolatePositions: true), new Pass()).Last.shape[1]);
        // At the own size nothing is scaled.
        TokenBatch images = TokenBatch.OfImages(new Draws(1, "images").Normal(1, 1, 3, 8, 8));
        Tensor asked = beit.Forward(images with { InterpolatePositions = true }, new Pass()).Last, unasked = beit.Forward(images, new Pass()).Last;
        Assert.AreEqual(0.0, Deviations.Distance(asked, unasked));
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
            foreach (bool checkpointing in (bool[])[false, true])
            {
                using Backbone t5 = Writing(), vit = Make("vit");
                using var scope = NewDisposeScope();
                using PeftAdaptation texts = new LoraOptions { Targets = ["q", "v", "shared"] }.Attach(t5, 1), images = new LoraOptions { Targets = ["Query"] }.Attach(vit, 1);
                using var head = new SequenceToSequenceHead(t5);
                var pass = new Pass(texts.Table(), training: true, seed: 1) { Checkpointing = checkpointing };
                SequenceToSequenceHead.Loss(head.Forward(t5, t5.Forward(Texts(), pass), pass), tensor(new long[] { 4, 1, 2, 1 }, [2, 2])).backward();
                pass = new Pass(images.Table(), training: true, seed: 1) { Checkpointing = checkpointing };
                vit.Forward(TokenBatch.OfImages(ones([2, 3, 8, 8])), pass).First().sum().backward();
                using var cache = new KeyValueCache();
                t5.Forward(Texts(), new Pass { Cache = cache });
                t5.Forward(Texts(), new Pass { Cache = cache });
            }
        }
    }

    [TestMethod]
    public void ATextClassifierRefusesThem()
    {
        foreach (string name in (string[])["t5", "vit"])
        {
            var e = Assert.ThrowsExactly<ArgumentException>(() => TextClassificationTask.Instance.Assemble(Make(name), new LoraOptions(), 2, Pooling.Family, 0, null));
            StringAssert.Contains(e.Message, $"model_type {name}");
        }
    }
}
