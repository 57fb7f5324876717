// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Prompts and prefixes: places, positions, attention by hand, caches, limits.</summary>
[TestClass]
public class PromptTests
{
    private const string Bert = """
        {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 20, "vocab_size": 61}
        """;

    private const string Gpt2 = """
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 20, "vocab_size": 61}
        """;

    private const string Llama = """
        {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
         "intermediate_size": 48, "max_position_embeddings": 40, "vocab_size": 61}
        """;

    private sealed class Drawn : IWeightSource
    {
        public bool Has(string name) => name != "lm_head.weight";

        public Tensor Load(string name, params long[] shape)
        {
            bool norm = shape.Length == 1 && name.EndsWith(".weight", StringComparison.Ordinal);
            Tensor noise = new Draws(2, name).Normal(norm ? 0.1 : 0.2, shape);
            return norm ? noise + 1 : noise;
        }
    }

    private static Backbone Make(string config, int layers = 2) =>
        BackboneLoader.Build(JsonNode.Parse(config.Replace("\"num_hidden_layers\": 2", $"\"num_hidden_layers\": {layers}"))!.AsObject(), new Drawn());

    private static TokenBatch Batch(int rows = 3, int tokens = 9, bool padded = true)
    {
        Tensor ids = (arange(rows * tokens, ScalarType.Int64) * 7 + 3).remainder(61).view(rows, tokens);
        Tensor mask = ones_like(ids);
        if (padded)
            for (int row = 1; row < rows; row++) mask[row, (tokens - row)..] = 0;
        return new TokenBatch(ids, mask, Padded: padded);
    }

    private static BackboneOutput Run(Backbone backbone, PeftAdaptation? worn, TokenBatch batch, bool keep = false, KeyValueCache? cache = null) =>
        backbone.Forward(batch, new Pass(worn?.Table() ?? PatchTable.Empty) { KeepHiddenStates = keep, Cache = cache });

    private static float Distance(Tensor a, Tensor b) => (a - b).abs().max().item<float>();

    [TestMethod]
    public void CountsAreThoseOfThePapers()
    {
        using Backbone backbone = MatrixModel.ShapesOnly(hidden: 768, layers: 12, inner: 3072);
        Assert.AreEqual(15_360, new PromptTuningOptions().CountTrainable(backbone));
        Assert.AreEqual(368_640, new PrefixTuningOptions().CountTrainable(backbone));
        Assert.AreEqual(9_864_704, new PrefixTuningOptions { Projection = true }.CountTrainable(backbone));
        Assert.AreEqual(38_400, new VisualPromptTuningOptions { Length = 50, Deep = false }.CountTrainable(backbone));
        Assert.AreEqual(460_800, new VisualPromptTuningOptions { Length = 50 }.CountTrainable(backbone));
    }

    [TestMethod]
    public void ThePromptStandsWhereItIsPutAndHeadsReadTheRowsOwnToken()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone backbone = Make(Bert);
        foreach (PromptInsertion insertion in Enum.GetValues<PromptInsertion>())
        {
            Tensor FirstOf(PromptOrder order, bool read, out Layout layout)
            {
                using PeftAdaptation worn = new PromptTuningOptions { Length = 4, Insertion = insertion, Order = order, HeadReadsPrompt = read }.Attach(backbone, 1);
                BackboneOutput output = Run(backbone, worn, Batch());
                Assert.AreEqual(13, output.Last.shape[1]);
                layout = output.Layout;
                Assert.IsTrue(layout.Own(layout.Mask).Equals(Batch().Mask), "the own tokens' mask");
                Assert.AreEqual(0, Distance(output.First(), output.Last.select(1, order == PromptOrder.Front && !read ? 4 : 0)));
                return output.First();
            }
            Tensor own = FirstOf(PromptOrder.Front, false, out _), prompt = FirstOf(PromptOrder.Front, true, out _);
            Assert.IsGreaterThan(1e-3f, Distance(own, prompt));
            Tensor behind = FirstOf(PromptOrder.AfterFirst, false, out Layout after);
            Assert.AreEqual(1, after.InsertedAt);
            // Behind the embeddings places do not count; among the words they are positions.
            if (insertion == PromptInsertion.PostEmbedding) Assert.IsLessThan(1e-5f, Distance(own, behind));
            else Assert.IsGreaterThan(1e-3f, Distance(own, behind));
        }
    }

    [TestMethod]
    public void APrefixIsAGateBetweenTwoAttentions()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone backbone = Make(Bert);
        using PeftAdaptation worn = new PrefixTuningOptions { Length = 3, ShiftPositions = false }.Attach(backbone, 1);
        var core = backbone.Sites.OfType<AttentionCore>().ElementAt(1);
        Tensor q = new Draws(1, "q").Normal(1, 2, 4, 5, 8), k = new Draws(1, "k").Normal(1, 2, 4, 5, 8), v = new Draws(1, "v").Normal(1, 2, 4, 5, 8);
        Tensor bias = zeros([2, 1, 1, 5]);
        bias[1, 0, 0, 3..] = -1e30f;
        static Tensor Attend(AttentionInput a) => (a.Query.matmul(a.Key.transpose(2, 3)) / Math.Sqrt(8) + a.Bias!).softmax(-1).matmul(a.Value);
        var pass = new Pass(worn.Table());
        Tensor found = ((AttentionPatch)worn.Patches[core]).Around(new AttentionInput(q, k, v, bias), Attend, pass);

        // Slots 2 and 3 of [P, 2 layers, heads, head width] are this layer's keys and values.
        Tensor table = worn.Parameters[0].Value.detach().view(3, 4, 4, 8);
        Tensor pk = table.select(1, 2).transpose(0, 1).unsqueeze(0), pv = table.select(1, 3).transpose(0, 1).unsqueeze(0);
        Tensor own = (q.matmul(k.transpose(2, 3)) / Math.Sqrt(8) + bias).exp(), prefix = (q.matmul(pk.transpose(2, 3)) / Math.Sqrt(8)).exp();
        Tensor gate = prefix.sum(-1, keepdim: true) / (prefix.sum(-1, keepdim: true) + own.sum(-1, keepdim: true));
        Tensor expected = (1 - gate) * Attend(new AttentionInput(q, k, v, bias)) + gate * (prefix / prefix.sum(-1, keepdim: true)).matmul(pv);
        Assert.IsLessThanOrEqualTo(1e-5f, Distance(found, expected));
    }

    private sealed class Hide(int length) : AttentionPatch
    {
        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
        {
            Tensor bias = input.Bias!.clone();
            bias[.., .., .., ..length] = -1e30f;
            return next(input with { Bias = bias });
        }
    }

    [TestMethod]
    public void AHiddenPrefixIsNoPrefix()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (string config in (string[])[Bert, Gpt2, Llama])
        {
            using Backbone backbone = Make(config);
            using PeftAdaptation worn = new PrefixTuningOptions { Length = 3, ShiftPositions = false }.Attach(backbone, 1);
            var hidden = worn.Patches.ToDictionary(p => p.Key, p => PatchStack.Of(p.Key, new Hide(3), p.Value));
            Tensor bare = Run(backbone, null, Batch()).Last, masked = backbone.Forward(Batch(), new Pass(new PatchTable(hidden))).Last;
            Assert.IsLessThanOrEqualTo(1e-6f, Distance(bare, masked), config);
            Assert.IsGreaterThan(1e-3f, Distance(bare, Run(backbone, worn, Batch()).Last), config);
        }
    }

    [TestMethod]
    public void PaddingAndPositionsDoNotChangeAPrefixedRow()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (string config in (string[])[Bert, Gpt2, Llama])
        {
            using Backbone backbone = Make(config);
            using PeftAdaptation worn = new PrefixTuningOptions { Length = 3, ShiftPositions = true }.Attach(backbone, 1);
            TokenBatch all = Batch();
            Tensor whole = Run(backbone, worn, all).Last[2, ..7];
            Tensor alone = Run(backbone, worn, new TokenBatch(all.Ids[2, ..7].unsqueeze(0), all.Mask[2, ..7].unsqueeze(0), Padded: false)).Last[0];
            Assert.IsLessThanOrEqualTo(1e-5f, Distance(whole, alone), config);
            Tensor counted = (arange(9, ScalarType.Int64)).unsqueeze(0).expand(3, 9);
            Assert.IsLessThanOrEqualTo(1e-5f, Distance(Run(backbone, worn, all).Last, Run(backbone, worn, all with { PositionIds = counted }).Last), config);
        }
    }

    [TestMethod]
    public void DecodingByACacheIsTheWholePass()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        PeftMethod[] methods = [new PrefixTuningOptions { Length = 3 }, new CartridgeOptions { Length = 3, InitTokenIds = [4, 5] }, new PromptTuningOptions { Length = 3 }, new AdaptionPromptOptions { Length = 3 }];
        foreach (string config in (string[])[Gpt2, Llama])
        {
            using Backbone backbone = Make(config);
            foreach (PeftMethod method in methods)
            {
                using PeftAdaptation worn = method.Attach(backbone, 1);
                foreach (NamedParameter gate in worn.Parameters.Where(p => p.Name.EndsWith("gate", StringComparison.Ordinal))) gate.Value.fill_(0.7);
                TokenBatch batch = Batch(padded: false);
                BackboneOutput whole = Run(backbone, worn, batch);
                Tensor expected = whole.Layout.Own(whole.Last);
                using var cache = new KeyValueCache();
                for (int from = 0, to = 4; from < 9; from = to, to++)
                {
                    var part = new TokenBatch(batch.Ids[.., from..to], batch.Mask[.., from..to], Padded: false);
                    BackboneOutput output = Run(backbone, worn, part, cache: cache);
                    Tensor found = output.Last.narrow(1, output.Last.shape[1] - (to - from), to - from);
                    Assert.IsLessThanOrEqualTo(1e-4f, Distance(found, expected[.., from..to]), $"{method.Id} {from}");
                }
            }
        }
    }

    [TestMethod]
    public void DeepPromptsKeepTheLengthAndAreShallowInOneLayer()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone two = Make(Bert), one = Make(Bert, layers: 1);
        using PeftAdaptation worn = new VisualPromptTuningOptions { Length = 5 }.Attach(two, 1);
        foreach (Tensor state in Run(two, worn, Batch(), keep: true).HiddenStates!) Assert.AreEqual(14, state.shape[1]);
        using PeftAdaptation deep = new VisualPromptTuningOptions { Length = 5 }.Attach(one, 1), shallow = new VisualPromptTuningOptions { Length = 5, Deep = false }.Attach(one, 1);
        Assert.AreEqual(0, Distance(Run(one, deep, Batch()).Last, Run(one, shallow, Batch()).Last));
        using PeftAdaptation fewer = new VisualPromptTuningOptions { Length = 5, Deep = false }.Attach(two, 1);
        Assert.IsGreaterThan(1e-4f, Distance(Run(two, worn, Batch()).Last, Run(two, fewer, Batch()).Last));
    }

    [TestMethod]
    public void WhatCannotBeIsRefusedInWords()
    {
        using Backbone bert = Make(Bert), gpt2 = Make(Gpt2);
        static void Refused(Action act, params string[] parts)
        {
            string message = Assert.Throws<ArgumentException>(act).Message;
            foreach (string part in parts) StringAssert.Contains(message, part);
        }
        void Attach(PeftMethod method, Backbone to) => method.Attach(to, 0).Dispose();
        Refused(() => Attach(new PromptTuningOptions { Length = 0 }, bert), "Length", "1 or more");
        Refused(() => Attach(new PromptTuningOptions { Init = PromptInit.Text }, bert), "InitText", "InitTokenIds");
        Refused(() => Attach(new PromptTuningOptions { Init = PromptInit.Text, InitText = "a text" }, bert), "Tokenizer");
        Refused(() => Attach(new PromptTuningOptions { Init = PromptInit.Text, InitTokenIds = [61] }, bert), "token 61", "61 tokens");
        Refused(() => Attach(new PromptTuningOptions { Order = PromptOrder.AfterFirst }, gpt2), "Order", "Front");
        Refused(() => Attach(new VisualPromptTuningOptions(), gpt2), "gpt2");
        Refused(() => Attach(new PTuningOptions { EncoderLayers = 0 }, bert), "EncoderLayers");
        Refused(() => Attach(new PrefixTuningOptions { LeaveOut = [0, 1] }, bert), "LeaveOut");
        Refused(() => Attach(new PrefixTuningOptions { Projection = true, InitTokenIds = [1] }, bert), "InitTokenIds");
        Refused(() => Attach(new CartridgeOptions { Length = 3, FrozenTokens = 3 }, bert), "FrozenTokens", "0 to 2");
        Refused(() => Attach(new CptOptions { TokenIds = [1, 2], TokenTypes = [1] }, gpt2), "TokenTypes");
        Refused(() => Attach(new AdaptionPromptOptions { AdapterLayers = 3 }, gpt2), "AdapterLayers", "at most 2");
        Refused(() => Attach(new MultitaskPromptTuningOptions { Tasks = 2, Task = 2 }, bert), "Task");
        foreach (PeftMethod method in (PeftMethod[])[new PromptTuningOptions { Length = 12, Insertion = PromptInsertion.WordEmbedding }, new PrefixTuningOptions { Length = 12, ShiftPositions = true }])
        {
            using PeftAdaptation worn = method.Attach(bert, 0);
            Refused(() => Run(bert, worn, Batch()), "9 tokens", "12 of a prompt", "20");
        }
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void TheAuthorsGateEqualsTheFormula()
    {
        foreach (string folder in Shared.Cases("adapterhub"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Has("param/gate.0") || !fixture.Has("out/tanh_per_head.last_hidden_state")) continue;
            using var scope = NewDisposeScope();
            using var tiny = new TinyBase(Path.Combine(Path.GetDirectoryName(folder)!, fixture.Text("base")!));
            double tolerance = (double)fixture.Json["tolerance"]!, gradients = (double)fixture.Json["tolerances"]!["grad"]!;
            var deviations = new Deviations();
            int length = (int)fixture["param/prompt.0"].shape[0];
            foreach (AdaptionGate gate in Enum.GetValues<AdaptionGate>())
            {
                using PeftAdaptation worn = new AdaptionPromptOptions { Length = length, Gate = gate }.Attach(tiny.Backbone, 0);
                deviations.Add("fresh", fixture.Name, Run(tiny.Backbone, worn, AdapterHubCase.Batch(fixture)).Last, fixture["out/zero.last_hidden_state"], tolerance);
                NamedParameter[] prompts = [.. worn.Parameters.Where(p => p.Name.EndsWith("prompt", StringComparison.Ordinal))], gates = [.. worn.Parameters.Except(prompts)];
                for (int i = 0; i < prompts.Length; i++)
                {
                    prompts[i].Load(fixture[$"param/prompt.{i}"].unsqueeze(0));
                    gates[i].Load(fixture[$"param/gate.{i}"].narrow(0, 0, gates[i].Value.shape[0]));
                }
                BackboneOutput output = Run(tiny.Backbone, worn, AdapterHubCase.Batch(fixture));
                deviations.Add("output", fixture.Name, output.Last, fixture[gate == AdaptionGate.Scalar ? "out/scalar.last_hidden_state" : "out/tanh_per_head.last_hidden_state"], tolerance);
                if (gate == AdaptionGate.Scalar) continue;
                Tensor loss = AdapterHubCase.MeanSquare(fixture, output);
                deviations.Add("loss", fixture.Name, Math.Abs(loss.item<float>() - (double)fixture.Json["loss_at_stored_weights"]!), 1e-5);
                loss.backward();
                for (int i = 0; i < prompts.Length; i++)
                {
                    deviations.Add("gradient", fixture.Name, prompts[i].Value.grad!.squeeze(0), fixture[$"grad/prompt.{i}"], gradients);
                    deviations.Add("gradient", fixture.Name, gates[i].Value.grad!, fixture[$"grad/gate.{i}"], gradients);
                }
            }
            deviations.Report();
        }
    }
}
