// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>Decoders beside the reference values: caches, tied heads, positions, settings that are refused.</summary>
[TestClass]
public sealed class DecoderTests
{
    private const string Gpt2 = """
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 40, "vocab_size": 61}
        """;

    private const string Llama = """
        {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
         "intermediate_size": 48, "max_position_embeddings": 40, "vocab_size": 61, "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true}
        """;

    // Numbers that follow from the names; a head of its own is there where it is asked for.
    private sealed class Drawn(string? head = null) : IWeightSource
    {
        public List<string> Asked { get; } = [];

        public bool Has(string name) => name != "lm_head.weight" || head is not null;

        public Tensor Load(string name, params long[] shape)
        {
            Asked.Add(name);
            bool norm = shape.Length == 1 && name.EndsWith(".weight", StringComparison.Ordinal);
            Tensor noise = new Draws(2, name == "lm_head.weight" ? head! : name).Normal(norm ? 0.1 : 0.2, shape);
            return norm ? noise + 1 : noise;
        }
    }

    private static Backbone Make(string family, bool languageHead = false, string? head = null) =>
        BackboneLoader.Build(JsonNode.Parse(family == "gpt2" ? Gpt2 : Llama)!.AsObject(), new Drawn(head), languageHead);

    private static TokenBatch Batch(int rows = 3, int tokens = 9, bool padded = true)
    {
        Tensor ids = (arange(rows * tokens, ScalarType.Int64) * 7 + 3).remainder(61).view(rows, tokens);
        Tensor mask = ones_like(ids);
        if (padded)
            for (int row = 1; row < rows; row++) mask[row, (tokens - row)..] = 0;
        return new TokenBatch(ids, mask, Padded: padded);
    }

    private static Tensor Scores(Backbone backbone, TokenBatch batch, PatchTable? worn = null, KeyValueCache? cache = null)
    {
        var pass = new Pass(worn ?? PatchTable.Empty) { Cache = cache };
        return new CausalLanguageHead(backbone).Forward(backbone, backbone.Forward(batch, pass), pass);
    }

    private static float Distance(Tensor a, Tensor b) => (a.detach() - b.detach()).abs().max().item<float>();

    [TestMethod]
    [DataRow("gpt2")]
    [DataRow("llama")]
    public void ACacheGivesWhatTheWholePassGives(string family)
    {
        long before = LiveTensors.Count();
        using (var scope = NewDisposeScope())
        using (no_grad())
        {
            using Backbone backbone = Make(family, languageHead: true);
            using PeftAdaptation lora = new LoraOptions { Init = "false", Targets = ["all-linear"] }.Attach(backbone, 1);
            TokenBatch batch = Batch(padded: false);
            Tensor whole = Scores(backbone, batch, lora.Table());
            using var cache = new KeyValueCache();
            Tensor Step(Tensor ids) => Scores(backbone, new TokenBatch(ids, ones_like(ids), Padded: false), lora.Table(), cache);
            Tensor Part(long at, long count) => batch.Ids.narrow(1, at, count);
            Tensor stepped = cat([Step(Part(0, 5)), Step(Part(5, 3)), Step(Part(8, 1))], 1);
            Assert.IsLessThan(2e-5f, Distance(whole, stepped));
            Assert.AreEqual(9, cache.Tokens);

            // Rows in another order go on as those rows would.
            Tensor order = tensor(new long[] { 2, 2, 0 }), next = tensor(new long[] { 5, 9, 11 }, [3, 1]);
            cache.Reorder(order);
            Tensor longer = cat([batch.Ids.index_select(0, order), next], 1);
            Tensor expected = Scores(backbone, new TokenBatch(longer, ones_like(longer), Padded: false), lora.Table()).narrow(1, 9, 1);
            Assert.IsLessThan(2e-5f, Distance(expected, Step(next)));
        }
        Assert.AreEqual(before, LiveTensors.Count());
    }

    [TestMethod]
    [DataRow("gpt2")]
    [DataRow("llama")]
    public void NoTokenSeesALaterOneNorPadding(string family)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone backbone = Make(family);
        TokenBatch batch = Batch();
        Tensor hidden = backbone.Forward(batch, new Pass()).Last;
        Tensor changed = batch.Ids.clone();
        changed[TensorIndex.Colon, 6..] = 60;
        Tensor other = backbone.Forward(batch with { Ids = changed }, new Pass()).Last;
        Assert.AreEqual(0, Distance(hidden.narrow(1, 0, 6), other.narrow(1, 0, 6)));
        Assert.IsGreaterThan(1e-3f, Distance(hidden.narrow(1, 6, 1), other.narrow(1, 6, 1)));
        for (long row = 0; row < 3; row++)
        {
            long length = 9 - row;
            var alone = new TokenBatch(batch.Ids.narrow(0, row, 1).narrow(1, 0, length), batch.Mask.narrow(0, row, 1).narrow(1, 0, length), Padded: false);
            Assert.IsLessThan(1e-5f, Distance(hidden.narrow(0, row, 1).narrow(1, 0, length), backbone.Forward(alone, new Pass()).Last));
        }
        BackboneOutput output = backbone.Forward(batch, new Pass());
        for (int row = 0; row < 3; row++) Assert.AreEqual(0, Distance(output.LastReal()[row], output.Last[row, 8 - row]));
    }

    [TestMethod]
    public void RotaryScoresDependOnDistancesAlone()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone backbone = Make("llama");
        TokenBatch batch = Batch(padded: false);
        Tensor counted = arange(9, ScalarType.Int64).unsqueeze(0).expand(3, 9);
        Tensor plain = backbone.Forward(batch, new Pass()).Last;
        Assert.AreEqual(0, Distance(plain, backbone.Forward(batch with { PositionIds = counted }, new Pass()).Last));
        Assert.IsLessThan(2e-5f, Distance(plain, backbone.Forward(batch with { PositionIds = counted + 17 }, new Pass()).Last));
        Assert.IsGreaterThan(1e-3f, Distance(plain, backbone.Forward(batch with { PositionIds = counted * 2 }, new Pass()).Last));
    }

    [TestMethod]
    [DataRow("gpt2")]
    [DataRow("llama")]
    public void ATiedHeadIsTheTable(string family)
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = Make(family, languageHead: true), bare = Make(family);
        var head = (Projection)backbone.FindSite("lm_head")!;
        Embedding words = backbone.Sites.OfType<Embedding>().First();
        Assert.AreSame(words, head.TiedTo);
        Assert.AreEqual(bare.ParameterCount, backbone.ParameterCount);
        Assert.AreEqual("lm_head", backbone.PathOf(head));

        // Trained whole, the two places keep one table.
        using (PeftAdaptation full = new FullFineTuningOptions().Attach(backbone, 0))
        {
            Assert.AreEqual(backbone.ParameterCount, full.TrainableCount);
            Assert.AreEqual(new FullFineTuningOptions().CountTrainable(backbone), full.TrainableCount);
            CausalLanguageHead.Loss(Scores(backbone, Batch(padded: false), full.Table()), Batch().Ids).backward();
            NamedParameter table = full.Find(backbone.PathOf(words) + ".weight")!;
            Assert.IsTrue(table.Value.grad!.ne(0).any(1).all().item<bool>(), "every row has a gradient, by the head");
            using var off = no_grad();
            table.Value.mul_(1.5);
            Tensor worn = Scores(backbone, Batch(), full.Table());
            using Backbone merged = Merging.Merge(full);
            Assert.IsLessThan(1e-5f, Distance(worn, Scores(merged, Batch())));
        }

        // A patch of the head alone unties it where it is merged.
        using PeftAdaptation lora = new LoraOptions { Targets = ["lm_head"], Init = "false" }.Attach(backbone, 1);
        using (no_grad())
        {
            Tensor worn = Scores(backbone, Batch(), lora.Table());
            using Backbone merged = Merging.Merge(lora);
            Assert.IsLessThan(1e-5f, Distance(worn, Scores(merged, Batch())));
            Assert.IsNull(((Projection)merged.FindSite("lm_head")!).TiedTo);
            Assert.AreEqual(0, Distance(words.Weight, merged.Sites.OfType<Embedding>().First().Weight));
        }
    }

    [TestMethod]
    public void AStoredHeadIsTiedOnlyWhereItIsTheTable()
    {
        using var scope = NewDisposeScope();
        using Backbone same = Make("gpt2", languageHead: true, head: "wte.weight"), own = Make("gpt2", languageHead: true, head: "another"), without = Make("gpt2", head: "another");
        Assert.IsNotNull(((Projection)same.FindSite("lm_head")!).TiedTo);
        Assert.IsNull(((Projection)own.FindSite("lm_head")!).TiedTo);
        Assert.AreEqual(61 * 32, own.ParameterCount - same.ParameterCount);
        Assert.IsNull(without.FindSite("lm_head"));
        // All linear maps, but not the head.
        using PeftAdaptation all = new LoraOptions { Targets = ["all-linear"] }.Attach(own, 0);
        Assert.IsFalse(all.Patches.Keys.Any(site => site.Role == SiteRole.LanguageHead));
        Assert.HasCount(8, all.Patches);
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => new CausalLanguageHead(without)).Message, "languageHead: true");
    }

    [TestMethod]
    [DataRow("gpt2")]
    [DataRow("llama")]
    public void LayersThatRunAgainGiveTheSameGradients(string family)
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = Make(family, languageHead: true);
        using PeftAdaptation lora = new LoraOptions { Init = "false", Targets = ["all-linear"], Dropout = 0.2 }.Attach(backbone, 1);
        TokenBatch batch = Batch() with { PositionIds = Batch().Mask.cumsum(1) + 4 };
        Tensor[] Gradients(bool again)
        {
            var pass = new Pass(lora.Table(), training: true, seed: 5) { Checkpointing = again };
            foreach (NamedParameter p in lora.Parameters) p.Value.grad = null;
            CausalLanguageHead.Loss(new CausalLanguageHead(backbone).Forward(backbone, backbone.Forward(batch, pass), pass), batch.Ids).backward();
            return [.. lora.Parameters.Select(p => p.Value.grad!.clone())];
        }
        foreach ((Tensor kept, Tensor again) in Gradients(false).Zip(Gradients(true))) Assert.IsLessThan(1e-6f, Distance(kept, again));
    }

    [TestMethod]
    [DataRow("gpt2")]
    [DataRow("llama")]
    public void LayersAreStackedAnew(string family)
    {
        long before = LiveTensors.Count();
        using (var scope = NewDisposeScope())
        using (no_grad())
        {
            using Backbone backbone = Make(family, languageHead: true);
            using Backbone deep = backbone.Restacked([0, 1, 1]), same = backbone.Restacked([0, 1]), swapped = backbone.Restacked([1, 0]);
            TokenBatch batch = Batch();
            Tensor plain = Scores(backbone, batch);
            Assert.AreEqual(0, Distance(plain, Scores(same, batch)));
            Assert.IsGreaterThan(1e-3f, Distance(plain, Scores(swapped, batch)));
            Assert.AreEqual(3, deep.Config.LayerCount);
            // The first two layers are those of the original; the third is the second once more.
            IReadOnlyList<Tensor> states = deep.Forward(batch, new Pass { KeepHiddenStates = true }).HiddenStates!;
            Assert.AreEqual(0, Distance(backbone.Forward(batch, new Pass { KeepHiddenStates = true }).HiddenStates![2], states[2]));
            Assert.AreEqual(0, Distance(((WeightSite)deep.Sites.Last(s => s.Role == SiteRole.FeedForwardUp)).Weight, ((WeightSite)backbone.Sites.Last(s => s.Role == SiteRole.FeedForwardUp)).Weight));
            Assert.IsGreaterThan(1e-3f, Distance(states[2], states[3]));
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => backbone.Restacked([0, 2])).Message, "0 to 1");

            var method = new LoraOptions { LayerReplication = [[0, 2], [1, 2]], Init = "false" };
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => method.Attach(backbone, 0)).Message, "Restack");
            using Backbone stack = method.Restack(backbone)!;
            using PeftAdaptation lora = method.Attach(stack, 0);
            Assert.HasCount(family == "gpt2" ? 3 : 6, lora.Patches);
            Tensor worn = Scores(stack, batch, lora.Table());
            using Backbone merged = Merging.Merge(lora);
            Assert.IsLessThan(2e-5f, Distance(worn, Scores(merged, batch)));
        }
        Assert.AreEqual(before, LiveTensors.Count());
    }

    [TestMethod]
    public void HalfPrecisionIsNearFloat32()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (string name in (string[])["_base-gpt2", "_base-llama"])
        {
            using CheckpointFolder folder = CheckpointFolder.Open(Path.Combine(Shared.Root, "fixtures", "text-backbones", name));
            using Backbone full = BackboneLoader.Load(folder, languageHead: true), half = BackboneLoader.Load(folder, dtype: ScalarType.BFloat16, languageHead: true);
            TokenBatch batch = Batch();
            Tensor expected = full.Forward(batch, new Pass()).Last, found = half.Forward(batch, new Pass()).Last;
            Assert.AreEqual(ScalarType.BFloat16, found.dtype);
            Assert.IsLessThan(0.04f, (found.to_type(ScalarType.Float32) - expected).norm().item<float>() / expected.norm().item<float>());
        }
    }

    [TestMethod]
    [DataRow("""{"rope_scaling": {"rope_type": "longrope", "factor": 2}}""", "longrope", "llama3")]
    [DataRow("""{"rope_scaling": {"type": "linear"}}""", "linear", "'factor'")]
    [DataRow("""{"rope_parameters": {"rope_type": "llama3", "factor": 8}}""", "llama3", "low_freq_factor")]
    [DataRow("""{"rope_parameters": {"full_attention": {"rope_type": "default"}}}""", "rope_parameters", "one object")]
    [DataRow("""{"rope_scaling": {"type": "yarn", "factor": -1}}""", "'factor'", "positive")]
    [DataRow("""{"partial_rotary_factor": 0.5}""", "partial_rotary_factor", "not supported")]
    [DataRow("""{"num_key_value_heads": 3}""", "4 attention heads", "3 key")]
    [DataRow("""{"head_dim": 7}""", "7", "even")]
    [DataRow("""{"hidden_size": 30, "head_dim": null}""", "hidden_size 30", "head_dim")]
    [DataRow("""{"hidden_act": "snake"}""", "snake", "silu")]
    [DataRow("""{"model_type": "gpt2", "add_cross_attention": true}""", "add_cross_attention", "gpt2")]
    [DataRow("""{"model_type": "gpt2", "n_head": 5, "n_embd": 32}""", "32", "5 attention heads")]
    [DataRow("""{"model_type": "gpt3"}""", "gpt3", "gpt2")]
    public void SettingsAreRefusedByName(string change, string found, string expected)
    {
        JsonObject config = JsonNode.Parse(change.Contains("gpt2", StringComparison.Ordinal) ? Gpt2 : Llama)!.AsObject();
        foreach ((string name, JsonNode? value) in JsonNode.Parse(change)!.AsObject()) config[name] = value?.DeepClone();
        long before = LiveTensors.Count();
        var e = Assert.Throws<Exception>(() => BackboneLoader.Build(config, new Drawn()));
        Assert.IsTrue(e is CheckpointFormatException or NotSupportedException, e.ToString());
        StringAssert.Contains(e.Message, found);
        StringAssert.Contains(e.Message, expected);
        Assert.AreEqual(before, LiveTensors.Count());
    }

    [TestMethod]
    public void APositionTableHasItsLimitAndRotaryPositionsHaveNone()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using Backbone gpt2 = Make("gpt2", languageHead: true), llama = Make("llama");
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => gpt2.Forward(Batch(tokens: 41), new Pass())).Message, "at most 40");
        using var cache = new KeyValueCache();
        Scores(gpt2, Batch(tokens: 38, padded: false), cache: cache);
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => Scores(gpt2, Batch(tokens: 3, padded: false), cache: cache)).Message, "a cache");
        Assert.IsTrue(llama.Forward(Batch(tokens: 60), new Pass()).Last.isfinite().all().item<bool>());
    }
}
