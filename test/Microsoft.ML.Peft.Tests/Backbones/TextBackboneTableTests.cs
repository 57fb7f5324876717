// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>Published geometries, activations, positions and buckets, and the real MiniLM, against fixtures/text-backbones.</summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class TextBackboneTableTests
{
    public TestContext TestContext { get; set; } = null!;

    private static string Area => Path.Combine(Shared.Fixtures, "text-backbones");

    [TestMethod]
    public void PublishedGeometriesHaveTheirParameters()
    {
        JsonObject models = JsonNode.Parse(File.ReadAllText(Path.Combine(Shared.Root, "fixtures", "text-backbones", "parameter-counts.json")))!["models"]!.AsObject();
        int compared = 0;
        foreach ((string name, JsonNode? model) in models)
        {
            JsonObject config = model!["config"]!.AsObject();
            if (!BackboneLoader.ModelTypes.Contains((string)config["model_type"]!)) continue;
            string kind = (string)model["class"]!;
            bool head = kind.EndsWith("LMHeadModel", StringComparison.Ordinal) || kind.EndsWith("ForCausalLM", StringComparison.Ordinal)
                || kind.EndsWith("ForConditionalGeneration", StringComparison.Ordinal);
            if (!head && !kind.EndsWith("Model", StringComparison.Ordinal)) continue;
            using var scope = NewDisposeScope();
            var shapes = new Shapes([.. model["tied"]?.AsArray().Select(t => (string)t!) ?? []]);
            using Backbone backbone = BackboneLoader.Build(config, shapes, languageHead: head);
            Assert.AreEqual((long)model["parameters"]!, backbone.ParameterCount, name);
            Assert.AreEqual((int)model["tensors"]!, shapes.Count, name);
            foreach ((string tensor, JsonNode? shape) in model["first_layer_shapes"]!.AsObject())
                if (shapes.ByName.TryGetValue(tensor, out long[]? found)
                    || shapes.ByName.TryGetValue(tensor.Replace(backbone.Prefix + ".", "", StringComparison.Ordinal), out found))
                    CollectionAssert.AreEqual(shape!.AsArray().Select(s => (long)s!).ToArray(), found, $"{name} {tensor}");
            compared++;
        }
        TestContext.WriteLine($"{compared} of {models.Count} geometries");
        Assert.IsGreaterThan(0, compared);
    }

    // Any shape in one number of memory.
    private sealed class Shapes(HashSet<string> tied) : IWeightSource
    {
        public Dictionary<string, long[]> ByName { get; } = [];

        public int Count => ByName.Count;

        public bool Has(string name) => !tied.Contains(name);

        public Tensor Load(string name, params long[] shape)
        {
            ByName[name] = shape;
            return empty([1]).expand(shape);
        }

        public Tensor LoadTransposed(string name, long rows, long columns) => Load(name, columns, rows).t();
    }

    [TestMethod]
    public void ActivationsEqualReference()
    {
        using var c = new FixtureCase(Path.Combine(Shared.Root, "fixtures", "text-backbones", "tables"));
        using var scope = NewDisposeScope();
        var worst = new Worst();
        Tensor x = c["activation.x"];
        foreach (string name in c.Names.Where(n => n.StartsWith("activation.", StringComparison.Ordinal) && n != "activation.x"))
            worst.Compare(name, Activations.Get(name["activation.".Length..])(x), c[name], 2e-6);
        worst.Done(TestContext);
    }

    [TestMethod]
    public void RotaryFrequenciesEqualReference()
    {
        using var c = new FixtureCase(Path.Combine(Shared.Root, "fixtures", "text-backbones", "tables"));
        using var scope = NewDisposeScope();
        var worst = new Worst();
        var later = new List<string>();
        foreach (JsonProperty setting in c.Json.GetProperty("config").GetProperty("rope").EnumerateObject())
        {
            JsonObject rope = JsonNode.Parse(setting.Value.GetProperty("rope").GetRawText())!.AsObject();
            var raw = new JsonObject { ["rope_parameters"] = rope };
            int width = setting.Value.GetProperty("head_dim").GetInt32(), longest = setting.Value.GetProperty("max_position_embeddings").GetInt32();
            if (!RotaryAngles.Types.Contains((string?)rope["rope_type"]))
            {
                StringAssert.Contains(Assert.ThrowsExactly<CheckpointFormatException>(() => RotaryAngles.Read(raw, width, longest)).Message, (string)rope["rope_type"]!);
                later.Add(setting.Name);
                continue;
            }
            RotaryAngles angles = RotaryAngles.Read(raw, width, longest);
            Tensor expected = c[$"rope.{setting.Name}.inv_freq"];
            Tensor found = tensor(angles.Inverse(setting.Value.TryGetProperty("seq_len", out JsonElement length) ? length.GetInt64() : 0));
            worst.Compare(setting.Name, found / expected, ones_like(expected), 1e-6);
            worst.Compare($"{setting.Name} multiplier", angles.Multiplier - setting.Value.GetProperty("cos_sin_multiplier").GetDouble(), 1e-9);
        }
        TestContext.WriteLine($"not supported, refused by name: {string.Join(", ", later)}");
        worst.Done(TestContext);
    }

    [TestMethod]
    public void PositionsAndBucketsEqualReference()
    {
        using var c = new FixtureCase(Path.Combine(Shared.Root, "fixtures", "text-backbones", "tables"));
        using var scope = NewDisposeScope();
        Tensor ids = c["roberta.ids"];
        using (Backbone roberta = Open("roberta-seqcls"))
        {
            Tensor positions = Seen(roberta, SiteRole.PositionEmbedding, ids);
            CollectionAssert.AreEqual(Numbers(c["roberta.position_ids"]), Numbers(positions));
        }
        using Backbone mpnet = Open("mpnet-seqcls");
        long tokens = mpnet.Config.MaxTokens;
        Tensor buckets = Seen(mpnet, SiteRole.RelativePosition, full([1, tokens], 5L, dtype: ScalarType.Int64));
        var table = Numbers(c["buckets.delta"]).Zip(Numbers(c["buckets.mpnet"])).ToDictionary(p => p.First, p => p.Second);
        long[] found = Numbers(buckets);
        for (long q = 0; q < tokens; q++)
            for (long k = 0; k < tokens; k++)
                Assert.AreEqual(table[k - q], found[q * tokens + k], $"bucket of {k - q}");
    }

    [TestMethod]
    public void BucketsOfT5EqualReference()
    {
        using var c = new FixtureCase(Path.Combine(Shared.Root, "fixtures", "text-backbones", "tables"));
        using var scope = NewDisposeScope();
        long[] deltas = Numbers(c["buckets.delta"]);
        int tables = 0;
        foreach (string name in c.Names.Where(n => n.StartsWith("buckets.t5.", StringComparison.Ordinal)))
        {
            string[] parts = name.Split('.');
            var buckets = new RelativeBuckets(int.Parse(parts[2]), int.Parse(parts[3]), Both: parts[4] == "bidirectional");
            CollectionAssert.AreEqual(Numbers(c[name]), buckets.Table(deltas[0], 1, deltas.Length), name);
            // A window of the table is the table of the window.
            long[] window = buckets.Table(-3, 4, 9);
            for (int query = 0; query < 4; query++)
                for (int key = 0; key < 9; key++)
                    Assert.AreEqual(Numbers(c[name])[key - query - 3 - deltas[0]], window[query * 9 + key], name);
            tables++;
        }
        Assert.IsGreaterThan(0, tables);
    }

    private static Backbone Open(string name)
    {
        using CheckpointFolder folder = CheckpointFolder.Open(Path.Combine(Shared.Root, "fixtures", "text-backbones", name, "model"));
        return BackboneLoader.Load(folder);
    }

    private static long[] Numbers(Tensor tensor) => tensor.reshape(-1).to_type(ScalarType.Int64).contiguous().data<long>().ToArray();

    // What a table is asked for: a patch around it looks at its input.
    private static Tensor Seen(Backbone backbone, SiteRole role, Tensor ids)
    {
        var look = new Look();
        var table = new PatchTable([KeyValuePair.Create<Site, Patch>(backbone.Sites.First(s => s.Role == role), look)]);
        using var off = no_grad();
        backbone.Forward(new TokenBatch(ids, ones_like(ids)), new Pass(table));
        return look.Input!;
    }

    private sealed class Look : WeightPatch
    {
        public Tensor? Input { get; private set; }

        public override bool Trainable => false;

        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Input = x;
            return next(x);
        }
    }

    [TestMethod]
    public void RealMiniLmEqualsReference()
    {
        string folder = Path.Combine(Shared.Root, "fixtures", "text-backbones", "minilm");
        using var c = new FixtureCase(folder);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        double tolerance = c.Json.GetProperty("tolerance").GetDouble();
        int longest = c.Json.GetProperty("config").GetProperty("max_length").GetInt32();
        string weights = Path.Combine(Shared.Root, c.Text("base")!);
        using CheckpointFolder checkpoint = CheckpointFolder.Open(weights);
        using Backbone backbone = BackboneLoader.Load(checkpoint);
        TextTokenizer tokenizer = TextTokenizer.Load(checkpoint.Files);
        JsonElement texts = JsonDocument.Parse(File.ReadAllText(Path.Combine(folder, "texts.json"))).RootElement;
        foreach (JsonElement pair in texts.GetProperty("pairs").EnumerateArray())
            CollectionAssert.AreEqual(
                pair.GetProperty("ids").EnumerateArray().Select(i => i.GetInt32()).ToArray(),
                tokenizer.Encode(pair.GetProperty("first").GetString()!, pair.GetProperty("second").GetString(), longest).Ids);
        var worst = new Worst();
        var batch = new TokenBatch(c["input_ids"], c["attention_mask"]);
        var pass = new Pass { KeepHiddenStates = true };
        BackboneOutput output = backbone.Forward(batch, pass);
        for (int i = 0; i < output.HiddenStates!.Count; i++)
            worst.Compare($"norms of hidden state {i}", output.HiddenStates[i].norm(dim: -1), c["hidden_states.norm"].select(1, i), tolerance * 20, batch.Mask);
        worst.Compare("last hidden state, first 8", output.Last.narrow(2, 0, 8), c["last_hidden_state.first8"], tolerance, batch.Mask);
        worst.Compare("pooler", backbone.Pool(output, pass), c["pooler_output"], tolerance);
        Tensor mask = batch.Mask.to_type(ScalarType.Float32).unsqueeze(-1);
        Tensor mean = (output.Last * mask).sum(1L) / mask.sum(1L);
        worst.Compare("mean pooled", mean, c["mean_pooled"], tolerance);
        Tensor embeddings = mean / mean.norm(dim: -1).unsqueeze(-1);
        worst.Compare("embeddings", embeddings, c["embeddings"], tolerance);
        worst.Compare("cosines", embeddings.matmul(embeddings.t()), c["cosine"], tolerance);
        worst.Done(TestContext);
    }
}
