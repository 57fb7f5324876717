// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>Networks that hear, where no reference values reach: rows alone and in a batch, masks in training, words for what does not fit.</summary>
[TestClass]
public class SoundTests
{
    private const string Waves =
        """
        "model_type": "wav2vec2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "conv_dim": [12, 16], "conv_kernel": [8, 3], "conv_stride": [4, 2], "num_conv_pos_embeddings": 4, "hidden_dropout": 0,
        "attention_dropout": 0, "activation_dropout": 0, "num_conv_pos_embedding_groups": 2, "mask_time_length": 3, "mask_time_prob": 0.3,
        "mask_feature_prob": 0.2, "mask_feature_length": 4
        """;

    private const string PreNorm = $$"""{{{Waves}}, "feat_extract_norm": "layer", "do_stable_layer_norm": true}""";

    private static Backbone Make(string config)
    {
        using var scope = NewDisposeScope();
        return BackboneLoader.Build(JsonNode.Parse(config)!.AsObject(), new MatrixModel.Random(CPU, ScalarType.Float32));
    }

    private static Tensor Sound(params long[] shape) => new Draws(7, "sound").Normal(1, shape);

    [TestMethod]
    public void ARowDoesNotDependOnItsPadding()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone backbone = Make(PreNorm);
        Tensor whole = Sound(2, 120), mask = tensor(new long[] { 120, 61 }).unsqueeze(1).gt(arange(120, ScalarType.Int64).unsqueeze(0)).to_type(ScalarType.Int64);
        var pass = new Pass();
        Tensor together = backbone.ClassifierFeatures(backbone.Forward(TokenBatch.OfSound(whole * mask, mask), pass), pass);
        Tensor alone = backbone.ClassifierFeatures(backbone.Forward(TokenBatch.OfSound(whole.narrow(0, 1, 1).narrow(1, 0, 61)), pass), pass);
        Assert.IsLessThan(1e-5f, (together.narrow(0, 1, 1) - alone).abs().max().item<float>());
    }

    [TestMethod]
    public void FramesAreMaskedWhereABatchAsksForIt()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone backbone = Make(PreNorm);
        TokenBatch plain = TokenBatch.OfSound(Sound(2, 200)), asks = plain with { MaskFrames = true };
        Tensor Run(TokenBatch batch, bool training, ulong seed) => backbone.Forward(batch, new Pass(PatchTable.Empty, training, seed)).Last;
        bool Same(Tensor a, Tensor b) => (a - b).abs().max().item<float>() == 0;
        Assert.IsTrue(Same(Run(plain, true, 1), Run(plain, false, 1)), "off unless asked");
        Assert.IsTrue(Same(Run(asks, false, 1), Run(plain, false, 1)), "off unless training");
        Assert.IsFalse(Same(Run(asks, true, 1), Run(plain, true, 1)));
        Assert.IsTrue(Same(Run(asks, true, 1), Run(asks, true, 1)), "by the seed alone");
        Assert.IsFalse(Same(Run(asks, true, 2), Run(asks, true, 1)));
        Tensor mask = new FrameMasks(0.3, 3, 2).Draw([20, 7, 2], 20, 5)!;
        long[] counts = [.. mask.to_type(ScalarType.Int64).sum(1).data<long>()];
        Assert.IsTrue(counts[0] is >= 3 and <= 9 && counts[1] is >= 3 and <= 6 && counts[2] == 0, string.Join(", ", counts));
        Assert.IsFalse(mask[1].narrow(0, 7, 13).any().item<bool>(), "padding is no frame");
    }

    [TestMethod]
    public void WhatDoesNotFitIsRefusedInWords()
    {
        using var scope = NewDisposeScope();
        string Words(string config, TokenBatch batch)
        {
            using Backbone backbone = Make(config);
            return Assert.ThrowsExactly<ArgumentException>(() => backbone.Forward(batch, new Pass())).Message;
        }
        const string Whisper = """{"model_type": "whisper", "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "max_source_positions": 8, "num_mel_bins": 10}""";
        const string Ast = """{"model_type": "audio-spectrogram-transformer", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 4, "frequency_stride": 3, "time_stride": 3, "max_length": 13, "num_mel_bins": 10}""";
        StringAssert.Contains(Words(PreNorm, TokenBatch.OfSound(Sound(1, 15))), "needs at least 16");
        StringAssert.Contains(Words(PreNorm, TokenBatch.OfSound(Sound(1, 9, 9))), "expected [batch, samples]");
        StringAssert.Contains(Words(PreNorm, TokenBatch.OfImages(Sound(1, 3, 9, 9))), "TokenBatch.OfSound");
        StringAssert.Contains(Words(Whisper, TokenBatch.OfSound(Sound(1, 10, 12))), "12 frames, but this backbone is for 16");
        StringAssert.Contains(Words(Whisper, TokenBatch.OfSound(Sound(1, 11, 16))), "10 mel bins");
        StringAssert.Contains(Words(Ast, TokenBatch.OfSound(Sound(1, 20, 10))), "20 frames, but this backbone is for 13");
        StringAssert.Contains(Words(Ast, TokenBatch.OfSound(Sound(1, 3, 10))), "fewer than one patch");
        using Backbone whisper = Make(Whisper);
        Assert.AreEqual(6L, whisper.Forward(TokenBatch.OfSound(Sound(1, 10, 12)) with { CutPositions = true }, new Pass()).Last.shape[1]);
        foreach (string bad in (string[])["\"conv_kernel\": [8]", "\"conv_stride\": \"no\"", "\"feat_extract_norm\": \"batch\"", "\"add_adapter\": true", "\"num_conv_pos_embedding_groups\": 5"])
        {
            JsonObject config = JsonNode.Parse(PreNorm)!.AsObject();
            JsonObject other = JsonNode.Parse("{" + bad + "}")!.AsObject();
            (string key, JsonNode? value) = other.Single();
            config[key] = value!.DeepClone();
            StringAssert.Contains(Assert.ThrowsExactly<CheckpointFormatException>(() => BackboneLoader.Build(config, new MatrixModel.Random(CPU, ScalarType.Float32))).Message, key);
        }
    }
}
