// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>Where a head reads the first token alone, the last layer makes no other: scores and gradients stay.</summary>
[TestClass]
public sealed class FirstTokenTests
{
    private sealed class Drawn : IWeightSource
    {
        public bool Has(string name) => true;

        public Tensor Load(string name, params long[] shape) =>
            name.EndsWith("Norm.weight", StringComparison.Ordinal) ? ones(shape) : randn(shape) * 0.2;
    }

    private static JsonObject Config(string family) => JsonNode.Parse($$"""
        {"model_type": "{{family}}", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
         "vocab_size": 30, "max_position_embeddings": 20, "type_vocab_size": 2, "embedding_size": 8, "pad_token_id": 1,
         "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "hidden_act": "gelu",
         "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "dropout": 0, "attention_dropout": 0}
        """)!.AsObject();

    private static TokenBatch Batch()
    {
        Tensor ids = randint(2, 30, [3, 7], dtype: ScalarType.Int64), mask = ones([3, 7], dtype: ScalarType.Int64);
        foreach ((int row, int length) in (ReadOnlySpan<(int, int)>)[(1, 4), (2, 6)])
        {
            ids[row].narrow(0, length, 7 - length).fill_(1);
            mask[row].narrow(0, length, 7 - length).fill_(0);
        }
        return new TokenBatch(ids, mask);
    }

    private static (Tensor Scores, Tensor[] Gradients) Run(AdaptedModel model, Func<Pass, Tensor> forward)
    {
        Tensor scores = forward(new Pass(model.Patches));
        Tensor[] trained = [.. model.Parameters.Where(p => p.Trainable).Select(p => p.Value)];
        foreach (Tensor parameter in trained) parameter.grad = null;
        (scores * scores).sum().backward();
        return (scores.detach(), [.. trained.Select(p => p.grad is { } g ? g.clone() : zeros_like(p))]);
    }

    private static void AssertClose(Tensor expected, Tensor actual, string what) =>
        Assert.AreEqual(0, (expected - actual).abs().max().item<float>(), 1e-5 * (1 + expected.abs().max().item<float>()), what);

    [TestMethod]
    [DataRow("bert")]
    [DataRow("roberta")]
    [DataRow("distilbert")]
    [DataRow("albert")]
    [DataRow("electra")]
    [DataRow("mpnet")]
    public void Scores_and_gradients_are_those_of_the_whole_layer(string family)
    {
        using var scope = NewDisposeScope();
        random.manual_seed(3);
        foreach (PeftMethod method in (PeftMethod[])[
            new LoraOptions { Dropout = 0, Init = "false" }, new LoraOptions { Dropout = 0, Init = "false", UseDora = true }, new BitFitOptions()])
        {
            Backbone backbone = BackboneLoader.Build(Config(family), new Drawn());
            using var model = new AdaptedModel(
                backbone, method.Attach(backbone, 1), new SequenceClassificationHead(backbone, 2, Pooling.FirstToken, dropout: 0), ownsBackbone: true);
            TokenBatch batch = Batch();
            var seen = new Pass(model.Patches);
            model.Forward(batch, seen);
            Assert.IsTrue(seen.FirstTokenOnly);
            var whole = Run(model, pass => model.Head.Forward(backbone, backbone.Forward(batch, pass), pass));
            var first = Run(model, pass => model.Forward(batch, pass));
            AssertClose(whole.Scores, first.Scores, $"{method.Id} scores");
            for (int i = 0; i < whole.Gradients.Length; i++)
                AssertClose(whole.Gradients[i], first.Gradients[i], $"{method.Id} gradient {i}");
        }
    }

    [TestMethod]
    public void Only_the_first_token_is_made_where_nothing_could_tell()
    {
        using var scope = NewDisposeScope();
        Backbone backbone = BackboneLoader.Build(Config("bert"), new Drawn());
        using var low = new AdaptedModel(backbone, new LoraOptions().Attach(backbone, 1), new SequenceClassificationHead(backbone, 2));
        using var dora = new AdaptedModel(backbone, new LoraOptions { UseDora = true }.Attach(backbone, 1), new SequenceClassificationHead(backbone, 2), ownsBackbone: true);
        TokenBatch batch = Batch();
        long Tokens(AdaptedModel model) => backbone.Forward(batch, new Pass(model.Patches) { FirstTokenOnly = true }).Last.shape[1];
        Assert.AreEqual(1, Tokens(low));
        Assert.AreEqual(7, Tokens(dora));
        Assert.AreEqual(7, backbone.Forward(batch, new Pass(low.Patches) { FirstTokenOnly = true, KeepHiddenStates = true }).Last.shape[1]);
    }
}
