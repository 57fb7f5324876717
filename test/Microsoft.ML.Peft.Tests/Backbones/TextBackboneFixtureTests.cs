// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>Every case of fixtures/text-backbones whose family exists here; the others are listed by name.</summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class TextBackboneFixtureTests
{
    public TestContext TestContext { get; set; } = null!;

    public static IEnumerable<object[]> Families => Cases(c => c.Text("head") is not null);

    public static IEnumerable<object[]> Loads => Cases(c => c.Text("head") is null && c.Text("expect") is not null);

    private static IEnumerable<object[]> Cases(Func<FixtureCase, bool> wanted)
    {
        if (!Shared.Exists) yield break;
        foreach (string folder in Shared.Cases("text-backbones"))
        {
            using var c = new FixtureCase(folder);
            if (wanted(c) && BackboneLoader.ModelTypes.Contains(ModelType(c))) yield return [c.Name];
        }
    }

    private static string ModelFolder(FixtureCase c) =>
        c.Text("base") is { } b ? Path.Combine(Path.GetDirectoryName(c.Folder)!, b) : Path.Combine(c.Folder, "model");

    private static string? ModelType(FixtureCase c)
    {
        string file = Path.Combine(ModelFolder(c), "config.json");
        return File.Exists(file) ? (string?)JsonNode.Parse(File.ReadAllText(file))!["model_type"] : null;
    }

    [TestMethod]
    public void CasesOfOtherFamiliesAreListed()
    {
        _ = Shared.Root;
        string[] all = [.. Shared.Cases("text-backbones").Select(f => Path.GetFileName(f)!)];
        string[] here = [.. Families.Concat(Loads).Select(c => (string)c[0])];
        foreach (string name in all.Except(here)) TestContext.WriteLine($"{name}: a family or a part of later work, or not a model folder");
        TestContext.WriteLine($"{here.Length} of {all.Length} cases run");
        Assert.IsNotEmpty(here);
    }

    [TestMethod]
    [DynamicData(nameof(Families))]
    public void FamilyEqualsReference(string name)
    {
        using var c = new FixtureCase(Path.Combine(Shared.Fixtures, "text-backbones", name));
        using var scope = NewDisposeScope();
        if (c.Has("left.input_ids") || c.Text("head") == "clm")
        {
            new DecoderRun(c, ModelFolder(c)).Run(TestContext);
            return;
        }
        using CheckpointFolder folder = CheckpointFolder.Open(ModelFolder(c));
        if (c.Text("head") == "seq2seq")
        {
            SequenceToSequenceRun.Run(c, ModelFolder(c), TestContext);
            return;
        }
        using Backbone backbone = BackboneLoader.Load(folder);
        var run = new Run(c, backbone, folder);
        run.Forward();
        run.Gradients();
        run.Worst.Done(TestContext);
    }

    [TestMethod]
    [DynamicData(nameof(Loads))]
    public void LoadingDoesAsExpected(string name)
    {
        using var c = new FixtureCase(Path.Combine(Shared.Fixtures, "text-backbones", name));
        using var scope = NewDisposeScope();
        string expect = c.Text("expect")!;
        if (expect.StartsWith("an error", StringComparison.Ordinal))
        {
            using CheckpointFolder bad = CheckpointFolder.Open(ModelFolder(c));
            var e = Assert.ThrowsExactly<CheckpointFormatException>(() => BackboneLoader.Load(bad));
            TestContext.WriteLine(e.Message);
            string what = c.Text("what")!;
            string tensor = what.Split(' ').First(w => w.Contains("encoder.layer", StringComparison.Ordinal)).TrimEnd('.', ':', ',');
            StringAssert.Contains(e.Message, tensor.Replace("bert.", "", StringComparison.Ordinal));
            foreach (string shape in what.Split('[').Skip(1).Select(s => s.Split(']')[0])) StringAssert.Contains(e.Message, shape);
            return;
        }
        using CheckpointFolder folder = CheckpointFolder.Open(ModelFolder(c));
        using Backbone backbone = BackboneLoader.Load(folder);
        if (c.Text("what")!.Contains("that no BERT has", StringComparison.Ordinal))
        {
            string extra = c.Text("what")!.Split(": ")[^1];
            CollectionAssert.Contains(backbone.UnusedTensors.ToArray(), extra);
        }
        var run = new Run(c, backbone, folder);
        run.Loaded();
        run.Worst.Done(TestContext);
    }

    private sealed class Run(FixtureCase c, Backbone backbone, CheckpointFolder folder)
    {
        private readonly double _tolerance = c.Json.GetProperty("tolerance").GetDouble();

        public Worst Worst { get; } = new();

        private TokenBatch Batch() => new(
            c["input_ids"], c["attention_mask"],
            c.Has("token_type_ids") ? c["token_type_ids"] : null,
            c.Has("position_ids") ? c["position_ids"] : null);

        private Head? MakeHead()
        {
            int labels = c.Has("logits") ? (int)c["logits"].shape[^1] : 2;
            Head? head = c.Text("head") switch
            {
                "base" => null,
                "seqcls" => new SequenceClassificationHead(backbone, labels),
                "tokcls" => new TokenHead(backbone, labels),
                "qa" => new TokenHead(backbone, 2, "qa_outputs"),
                "mlm" => new MaskedLanguageHead(backbone),
                "discriminator" => new DiscriminatorHead(backbone),
                string other => throw new AssertFailedException($"{c.Name}: unknown head '{other}'"),
                null => new SequenceClassificationHead(backbone, labels),
            };
            if (head is not null && c.Text("head") is not null)
                CollectionAssert.AreEqual(Array.Empty<string>(), HeadWeights.Load(head, folder).ToArray());
            else if (head is not null) HeadWeights.Load(head, folder);
            return head;
        }

        public void Forward()
        {
            using Head? head = MakeHead();
            using var off = no_grad();
            var watch = new Watch(backbone);
            var pass = new Pass(watch.Table) { KeepHiddenStates = true };
            TokenBatch batch = Batch();
            BackboneOutput output = backbone.Forward(batch, pass);
            for (int i = 0; c.Has($"hidden_states.{i}"); i++)
                Worst.Compare($"{c.Name} hidden_states.{i}", output.HiddenStates![i], c[$"hidden_states.{i}"], _tolerance, batch.Mask);
            foreach (string name in c.Names.Where(n => n.StartsWith("attentions.", StringComparison.Ordinal)))
                Worst.Compare($"{c.Name} {name}", watch.Probabilities[int.Parse(name.Split('.')[1])], c[name], _tolerance, batch.Mask.unsqueeze(1));
            if (c.Has("pooler_output")) Worst.Compare($"{c.Name} pooler_output", backbone.Pool(output, pass), c["pooler_output"], _tolerance);
            if (head is not null) Scores(head.Forward(backbone, output, pass), batch);
            watch.Probabilities.ForEach(p => p.Dispose());
        }

        private void Scores(Tensor logits, TokenBatch batch)
        {
            if (c.Has("start_logits"))
            {
                Worst.Compare($"{c.Name} start_logits", logits.select(-1, 0), c["start_logits"], _tolerance);
                Worst.Compare($"{c.Name} end_logits", logits.select(-1, 1), c["end_logits"], _tolerance);
            }
            else
            {
                bool byToken = logits.dim() > 2 || logits.shape[1] == batch.Ids.shape[1];
                Worst.Compare($"{c.Name} logits", logits, c["logits"], _tolerance, byToken ? batch.Mask : null);
            }
            if (c.Has("loss")) Worst.Compare($"{c.Name} loss", Loss(logits, batch), c["loss"], _tolerance);
        }

        private Tensor Loss(Tensor logits, TokenBatch batch)
        {
            if (c.Text("head") == "qa")
            {
                long width = logits.shape[1];
                Tensor Side(int which, string at) => nn.functional.cross_entropy(logits.select(-1, which), c[at].clamp(0, width), ignore_index: width);
                return (Side(0, "start_positions") + Side(1, "end_positions")) / 2;
            }
            Tensor labels = c["labels"];
            if (c.Text("head") == "discriminator")
            {
                Tensor loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to_type(ScalarType.Float32), reduction: nn.Reduction.None);
                return (loss * batch.Mask).sum() / batch.Mask.sum();
            }
            if (labels.dtype == ScalarType.Float32)
                return logits.shape[^1] == 1
                    ? nn.functional.mse_loss(logits.squeeze(-1), labels)
                    : nn.functional.binary_cross_entropy_with_logits(logits, labels);
            return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[^1]), labels.reshape(-1), ignore_index: -100);
        }

        public void Gradients()
        {
            string[] wanted = [.. c.Names.Where(n => n.StartsWith("grad.", StringComparison.Ordinal))];
            if (wanted.Length == 0) return;
            using Head head = MakeHead()!;
            var copies = new Dictionary<string, Tensor>();
            var patches = new Dictionary<Site, Patch>();
            foreach (WeightSite site in backbone.Sites.OfType<WeightSite>())
            {
                var copy = new Copy(site);
                patches[site] = copy;
                copies[$"{backbone.Prefix}.{site.Name}.weight"] = copy.Weight;
                if (copy.Bias is not null) copies[$"{backbone.Prefix}.{site.Name}.bias"] = copy.Bias;
            }
            foreach (NamedParameter parameter in head.Parameters) copies[parameter.Name] = parameter.Value;
            var pass = new Pass(new PatchTable(patches));
            TokenBatch batch = Batch();
            Loss(head.Forward(backbone, backbone.Forward(batch, pass), pass), batch).backward();
            foreach (string name in wanted)
            {
                Tensor expected = c[name], found = copies[name[5..]].grad!;
                // The reference gives the padding row no gradient from lookups; a tied decoder still gives it one.
                if (name.EndsWith("word_embeddings.weight", StringComparison.Ordinal) && c.Text("head") != "mlm")
                    found = found.index_fill(0, tensor(new long[] { backbone.Config.PadId }), 0);
                if (name.EndsWith("word_embeddings.weight", StringComparison.Ordinal) && c.Text("head") == "mlm")
                {
                    long pad = backbone.Config.PadId;
                    Tensor others = ones(found.shape[0], 1).index_fill(0, tensor(new long[] { pad }), 0);
                    (found, expected) = (found * others, expected * others);
                }
                Worst.Compare($"{c.Name} {name}", found, expected, _tolerance);
            }
        }

        public void Loaded()
        {
            using Head? head = c.Has("logits") || c.Text("what")!.Contains("classif", StringComparison.Ordinal) ? MakeHead() : null;
            using var off = no_grad();
            var pass = new Pass();
            TokenBatch batch = Batch();
            BackboneOutput output = backbone.Forward(batch, pass);
            if (c.Has("last_hidden_state")) Worst.Compare($"{c.Name} last_hidden_state", output.Last, c["last_hidden_state"], _tolerance, batch.Mask);
            if (c.Has("pooler_output")) Worst.Compare($"{c.Name} pooler_output", backbone.Pool(output, pass), c["pooler_output"], _tolerance);
            if (head is null) return;
            Tensor logits = head.Forward(backbone, output, pass);
            if (c.Has("logits")) Worst.Compare($"{c.Name} logits", logits, c["logits"], _tolerance);
            else Worst.Compare($"{c.Name} finite logits of a new head", logits.isfinite().all().item<bool>() ? 0 : 1, 0.5);
            if (c.Has("logits.half")) Half(c["logits"], c["logits.half"]);
        }

        // In half precision only what the format can hold is promised: the reference's own distance from float32, doubled.
        private void Half(Tensor exact, Tensor reference)
        {
            ScalarType type = c.Name.Contains("bf16", StringComparison.Ordinal) ? ScalarType.BFloat16 : ScalarType.Float16;
            if (type == ScalarType.Float16) return;   // not every libtorch multiplies float16 matrices on a CPU
            using Backbone half = BackboneLoader.Load(folder, dtype: type);
            using var head = new SequenceClassificationHead(half, (int)exact.shape[1]);
            HeadWeights.Load(head, folder);
            var pass = new Pass();
            Tensor logits = head.Forward(half, half.Forward(Batch(), pass), pass);
            double allowed = 2 * (reference.to_type(ScalarType.Float64) - exact.to_type(ScalarType.Float64)).abs().max().item<double>() + 0.02;
            Worst.Compare($"{c.Name} logits in {type}", logits, exact, allowed);
        }
    }

    // A trainable copy of a site's numbers, to read gradients that a frozen site does not have.
    internal sealed class Copy : WeightPatch
    {
        public Copy(WeightSite site)
        {
            Weight = site.Weight.detach().clone().requires_grad_();
            Bias = site.Bias?.detach().clone().requires_grad_();
        }

        public Tensor Weight { get; }

        public Tensor? Bias { get; }

        public override PatchForm Form => PatchForm.Weight;

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) => (Weight, Bias);
    }

    // Looks at attention from inside: a patch that computes the probabilities and changes nothing.
    internal sealed class Watch
    {
        public Watch(Backbone backbone) => Table = new PatchTable(
            backbone.Sites.OfType<AttentionCore>().Select(s => KeyValuePair.Create<Site, Patch>(s, new Look(this, s))));

        public PatchTable Table { get; }

        public List<Tensor> Probabilities { get; } = [];

        private sealed class Look(Watch watch, AttentionCore core) : AttentionPatch
        {
            public override bool Trainable => false;

            public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
            {
                Tensor key = core.KeyHeads == core.Heads ? input.Key : input.Key.repeat_interleave(core.Heads / core.KeyHeads, 1);
                Tensor scores = input.Query.matmul(key.transpose(-1, -2)) * core.Scale;
                // The scope that is current here ends with its layer.
                watch.Probabilities.Add((input.Bias is null ? scores : scores + input.Bias).softmax(-1).DetachFromDisposeScope());
                return next(input);
            }
        }
    }
}
