// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>The embeddings of text encoders at once against their parts, run one by one: numbers, dropped entries, gradients where they are asked for.</summary>
[TestClass]
public sealed class FusedEmbeddingTests
{
    private const string Small = "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"hidden_size\": 40, \"intermediate_size\": 48, \"vocab_size\": 101, \"max_position_embeddings\": 40";

    private static readonly Dictionary<string, string> _families = new()
    {
        ["bert"] = $$"""{"model_type": "bert", {{Small}}, "type_vocab_size": 3}""",
        ["electra, narrow"] = $$"""{"model_type": "electra", {{Small}}, "embedding_size": 24}""",
        ["albert"] = $$"""{"model_type": "albert", {{Small}}, "embedding_size": 40, "hidden_dropout_prob": 0.1}""",
        ["roberta"] = $$"""{"model_type": "roberta", {{Small}}, "type_vocab_size": 1, "pad_token_id": 1}""",
        ["mpnet"] = $$"""{"model_type": "mpnet", {{Small}}, "pad_token_id": 1}""",
        ["distilbert"] = """{"model_type": "distilbert", "n_layers": 2, "n_heads": 4, "dim": 40, "hidden_dim": 48, "vocab_size": 101, "max_position_embeddings": 40}""",
    };

    public static IEnumerable<object[]> Families => _families.Keys.Select(name => new object[] { name });

    [TestInitialize]
    public void TheLibraryIsThere()
    {
        if (!NativeKernels.On) Assert.Inconclusive($"Native kernels: {NativeKernels.Description}");
    }

    private static Tensor Numbers(string name, params long[] shape) => new Draws(9, name).Normal(1, shape);

    private static Tensor Ids(string name, long below, params long[] shape)
    {
        var draws = new Draws(2, name);
        return tensor(Enumerable.Range(0, (int)shape.Aggregate((a, b) => a * b)).Select(_ => (long)(draws.Next() * below)).ToArray(), shape);
    }

    private static Backbone Make(string family) => BackboneLoader.Build(JsonNode.Parse(_families[family])!.AsObject(), new MatrixModel.Random(CPU, ScalarType.Float32));

    private static float[] Values(Tensor x) => x.detach().contiguous().data<float>().ToArray();

    private static Pass Begun(bool training, PatchTable? worn = null)
    {
        var pass = new Pass(worn ?? PatchTable.Empty, training, seed: 7) { KeepHiddenStates = true };
        pass.BeginSegment(0);
        return pass;
    }

    // Any patch of the rows of words: the parts run one by one then.
    private sealed class Same : SequencePatch
    {
        public override Tensor Change(Tensor hidden, Pass pass) => hidden;
    }

    private static PatchTable PartsOf(Backbone backbone) => new([new(backbone.Sites.Single(s => s.Role == SiteRole.WordSequence), new Same())]);

    private static IEnumerable<(string What, TokenBatch Batch)> Batches(string family)
    {
        const int Rows = 3, Tokens = 17;
        bool types = family is "bert" or "albert" || family.StartsWith("electra", StringComparison.Ordinal);
        Tensor mask = tensor(Enumerable.Range(0, Rows * Tokens).Select(i => i % Tokens < Tokens - (i / Tokens * 6) ? 1L : 0L).ToArray(), [Rows, Tokens]);
        Tensor ids = (Ids("ids", 99, Rows, Tokens) + 2) * mask + (1 - mask);   // padding has the id 1
        yield return ("whole rows", new TokenBatch(Ids("ids", 101, Rows, Tokens), ones_like(mask), Padded: false));
        yield return ("padding", new TokenBatch(ids, mask));
        yield return ("one token", new TokenBatch(ids.narrow(1, 0, 1), mask.narrow(1, 0, 1), Padded: false));
        yield return ("rows that lie apart", new TokenBatch(ids.t().contiguous().t(), mask, types ? Ids("types", 2, Tokens, Rows).t() : null));
        yield return ("positions given for all", new TokenBatch(ids, mask, types ? Ids("types", 2, Rows, Tokens) : null, Ids("positions", 30, 1, Tokens)));
        yield return ("positions given for each", new TokenBatch(ids, mask, PositionIds: Ids("positions", 30, Rows, Tokens)));
    }

    [TestMethod]
    [DynamicData(nameof(Families))]
    public void AFamilyGivesWhatItsPartsGive(string family)
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = Make(family);
        bool projected = backbone.Sites.Any(s => s.Role == SiteRole.EmbeddingProjection);
        Norm norm = backbone.Sites.OfType<Norm>().Single(s => s.Role == SiteRole.EmbeddingNorm);
        Embedding[] tables = [.. backbone.Sites.OfType<Embedding>().Where(s => s.Role != SiteRole.RelativePosition)];
        Assert.IsTrue(FusedEmbedding.Fits(tables, norm, 0.1, Begun(true)), "the kernel does not fit");
        foreach ((string what, TokenBatch batch) in Batches(family))
            foreach (bool training in (bool[])[false, true])
            {
                (float[] First, float[] Last) Run(PatchTable? worn)
                {
                    BackboneOutput output = backbone.Forward(batch, Begun(training, worn));
                    return (Values(output.HiddenStates![0]), Values(output.Last));
                }

                (float[] first, float[] last) = Run(null);
                (float[] theirs, float[] lastOfParts) = Run(PartsOf(backbone));
                // To the bit, and what is drawn afterwards too.
                CollectionAssert.AreEqual(theirs, first, $"{family}, {what}, training {training}");
                CollectionAssert.AreEqual(lastOfParts, last, $"{family}, {what}, training {training}: the end");
                using NativeKernels.OffScope off = NativeKernels.Off();
                (float[] expected, _) = Run(null);
                Assert.HasCount(expected.Length, first);
                for (int i = 0; i < expected.Length; i++) Assert.AreEqual(expected[i], first[i], 1e-5, $"{family}, {what}, training {training}: {i}");
                if (!projected) Assert.AreEqual(training, expected.Contains(0), "dropped entries");
            }
    }

    private static Embedding Table(string name, long rows, long width, int index) =>
        new(name, SiteRole.WordEmbedding, -1, Numbers(name, rows, width)) { Index = index };

    [TestMethod]
    [DataRow(1, 1, 8)]
    [DataRow(16, 24, 384)]
    [DataRow(3, 7, 33)]
    [DataRow(5, 130, 96)]
    public void SumsOfRowsAreNormedAndDroppedOutWhateverTheThreads(int batch, int tokens, int width)
    {
        using var scope = NewDisposeScope();
        Embedding a = Table("a", 50, width, 0), b = Table("b", 200, width, 1), c = Table("c", 3, width, 2);
        var norm = new Norm("n", SiteRole.EmbeddingNorm, -1, Numbers("w", width), Numbers("s", width), 1e-5) { Index = 3 };
        Tensor ids = Ids("ids", 50, batch, tokens), types = Ids("types", 3, batch, tokens), counted = arange(5, 5 + tokens, ScalarType.Int64).unsqueeze(0);
        int before = get_num_threads();
        foreach (double dropout in (double[])[0, 0.3])
            try
            {
                Pass pass = Begun(training: true);
                Tensor sum = a.Forward(ids, pass) + c.Forward(types, pass) + b.Forward(counted, pass);
                float[] expected = Values(pass.Dropout(norm.Forward(sum, pass), dropout));
                foreach (int threads in (int[])[1, 2, 3])
                {
                    set_num_threads(threads);
                    float[] found = Values(FusedEmbedding.Apply([new(a, ids), new(c, types), new(b, null, 5, Counted: true)], norm, dropout, batch, tokens, Begun(training: true))!);
                    CollectionAssert.AreEqual(expected, found, $"{threads} threads, dropout {dropout}");
                    Tensor alone = a.Forward(ids, pass) + c.Weight[2];
                    found = Values(FusedEmbedding.Apply([new(a, ids), new(c, null, 2)], norm, 0, batch, tokens, Begun(training: true))!);
                    CollectionAssert.AreEqual(Values(norm.Forward(alone, pass)), found, $"{threads} threads, one row for all");
                }
            }
            finally
            {
                set_num_threads(before);
            }
    }

    [TestMethod]
    public void IdsOutsideOfATableAreNotRead()
    {
        using var scope = NewDisposeScope();
        Embedding a = Table("a", 5, 16, 0);
        var norm = new Norm("n", SiteRole.EmbeddingNorm, -1, Numbers("w", 16), null, 1e-5) { Index = 1 };
        Tensor? Of(params long[] ids) => FusedEmbedding.Apply([new(a, tensor(ids, [1, ids.Length]))], norm, 0, 1, ids.Length, Begun(training: false));
        Assert.IsNotNull(Of(0, 4));
        Assert.IsNull(Of(0, 5));
        Assert.IsNull(Of(-1, 4));
        Assert.ThrowsExactly<InvalidOperationException>(() => FusedEmbedding.Apply([new(a, null, 3, Counted: true)], norm, 0, 1, 3, Begun(training: false)));
        // As without the kernels, libtorch says so.
        using Backbone backbone = Make("bert");
        Exception by = Fails(), without;
        using (NativeKernels.Off()) without = Fails();
        Assert.AreEqual(without.GetType(), by.GetType());
        Assert.AreEqual(without.Message.Split('\n')[0], by.Message.Split('\n')[0]);

        Exception Fails()
        {
            try
            {
                backbone.Forward(new TokenBatch(tensor(new[] { 3L, 101L }, [1, 2]), ones([1, 2], ScalarType.Int64), Padded: false), new Pass());
            }
            catch (Exception e)
            {
                return e;
            }
            throw new AssertFailedException("An id outside of the vocabulary was read.");
        }
    }

    [TestMethod]
    public void WhatIsWornOrTrainedRunsOneByOne()
    {
        using var scope = NewDisposeScope();
        Embedding a = Table("a", 5, 16, 0), wide = Table("b", 5, 17, 1);
        var norm = new Norm("n", SiteRole.EmbeddingNorm, -1, Numbers("w", 16), Numbers("s", 16), 1e-5) { Index = 2 };
        bool Fits(Pass pass, params Embedding[] tables) => FusedEmbedding.Fits(tables, norm, 0.1, pass);
        PatchTable On(Site site) => new([new(site, new Nothing())]);
        Assert.IsTrue(Fits(Begun(true), a));
        Assert.IsFalse(Fits(Begun(true, On(a)), a), "a patched table");
        Assert.IsFalse(Fits(Begun(true, On(norm)), a), "a patched norm");
        Assert.IsFalse(Fits(Begun(true), a, wide), "another width");
        Assert.IsFalse(Fits(new Pass(PatchTable.Empty, training: true), a), "libtorch's own dropout");
        Assert.IsFalse(FusedEmbedding.Fits([a], new Norm("n", SiteRole.EmbeddingNorm, -1, norm.Weight, null, 1e-5, rootMeanSquare: true) { Index = 2 }, 0, Begun(true)));
        foreach (Tensor numbers in (Tensor[])[a.Weight, norm.Weight, norm.Bias!])
        {
            numbers.requires_grad_();
            Assert.IsFalse(Fits(Begun(true), a), "a gradient is asked for");
            using (no_grad()) Assert.IsTrue(Fits(Begun(true), a), "a gradient that nobody writes down");
            numbers.requires_grad_(false);
        }
        using NativeKernels.OffScope off = NativeKernels.Off();
        Assert.IsFalse(Fits(Begun(true), a));
    }

    private sealed class Nothing : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;
    }

    [TestMethod]
    public void PatchedTablesAreTrained()
    {
        Dictionary<string, float[]> Gradients()
        {
            using var model = new MatrixModel(new LoraOptions { Targets = ["word_embeddings", "token_type_embeddings", "query"], Dropout = 0.1, Init = "false" });
            return model.Gradients(checkpointing: false);
        }

        Dictionary<string, float[]> found = Gradients();
        float largest = 0;
        using NativeKernels.OffScope off = NativeKernels.Off();
        foreach ((string name, float[] expected) in Gradients())
        {
            for (int i = 0; i < expected.Length; i++) Assert.AreEqual(expected[i], found[name][i], 1e-4 * (1 + expected.Max(Math.Abs)), name);
            if (name.Contains("word_embeddings", StringComparison.Ordinal)) largest = Math.Max(largest, expected.Max(Math.Abs));
        }
        Assert.IsGreaterThan(0, largest, "the gradient of the words");
    }

    [TestMethod]
    public void ATableOfWhichAGradientIsAskedGetsIt()
    {
        using var scope = NewDisposeScope();
        using Backbone backbone = Make("bert");
        Tensor table = backbone.Sites.OfType<Embedding>().First(s => s.Role == SiteRole.WordEmbedding).Weight.requires_grad_();
        TokenBatch batch = Batches("bert").ElementAt(1).Batch with { Embeddings = zeros(1).requires_grad_() };   // a graph from the start
        Tensor Gradient()
        {
            table.grad = null;
            Tensor last = backbone.Forward(batch, Begun(training: true)).Last;
            (last * Numbers("weights", last.shape)).sum().backward();
            return table.grad!.clone();
        }

        Tensor found = Gradient();
        using NativeKernels.OffScope off = NativeKernels.Off();
        Tensor expected = Gradient();
        Assert.IsGreaterThan(1e-3, expected.abs().max().item<float>());
        Assert.IsLessThan(1e-4 * (1 + expected.abs().max().item<float>()), Deviations.Distance(expected, found));
    }
}
