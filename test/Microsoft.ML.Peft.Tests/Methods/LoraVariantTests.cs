// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>What LoRA's variants have beside outputs and gradients: loss terms, recorded noise, a layer by itself, refusals.</summary>
[TestClass]
public class LoraVariantTests
{
    [TestMethod]
    [TestCategory("Fixtures")]
    public void LossTermsEqualPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if ((double?)fixture.Json["regulariser"] is not { } expected || HfPeftFixtureTests.Later(fixture) is not null || fixture.Text("peft_type") != "LORA") continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            using PeftAdaptation adaptation = file.Attach(tiny.Backbone, tiny.Head);
            Tensor loss = adaptation.ExtraLoss(new Pass(adaptation.Table(), training: true, seed: 1))!;
            deviations.Add("regulariser", fixture.Name, Math.Abs(loss.item<float>() - expected), 1e-6);
            loss.backward();
            foreach (NamedParameter p in adaptation.Parameters.Where(p => p.Trainable && p.Name.Contains("lora_", StringComparison.Ordinal)))
                Assert.IsNotNull(p.Value.grad, p.Name);
            count++;
        }
        Console.WriteLine($"{count} regularisers");
        deviations.Report();
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void TrainingWithRecordedNoiseEqualsPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Names.Any(n => n.StartsWith("train/z_mvn/", StringComparison.Ordinal)) || HfPeftFixtureTests.Later(fixture) is not null) continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            using PeftAdaptation adaptation = file.Attach(tiny.Backbone, tiny.Head);
            var variant = (MonteCloraVariant)((LoraOptions)adaptation.Method).Variant!;
            variant.DrawWith = (name, shape) =>
            {
                Tensor drawn = fixture[$"train/z_{name.Replace(".lora_A.weight", "", StringComparison.Ordinal)}"];
                CollectionAssert.AreEqual(shape, drawn.shape, name);
                return drawn;
            };
            var pass = new Pass(adaptation.Table(), training: true, seed: 5);
            Tensor logits = new FixtureBatch(fixture).Forward(tiny.Backbone, tiny.Head, pass, adaptation).Logits;
            deviations.Add("logits of a training pass", fixture.Name, logits, fixture["train/logits"], (double)fixture.Json["tolerance"]!["logits"]!);
            Tensor loss = adaptation.ExtraLoss(pass)!;
            deviations.Add("variational loss", fixture.Name, Math.Abs(loss.item<float>() - (double)fixture.Json["variational_loss_after_that_forward"]!), 1e-5);
            (logits.sum() + loss).backward();
            Assert.IsTrue(adaptation.Parameters.Where(p => p.Trainable).All(p => p.Value.grad is { } g && g.isfinite().all().item<bool>()));
            variant.DrawWith = null;
            count++;
        }
        Console.WriteLine($"{count} cases");
        deviations.Report();
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void ALayerByItselfEqualsPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Text("call") is not { } call || !call.StartsWith("QALoraLinearVariant", StringComparison.Ordinal)) continue;
            using var scope = NewDisposeScope();
            double Number(string name) => double.Parse(Regex.Match(call, $@"\b{name}=([0-9.]+)").Groups[1].Value, System.Globalization.CultureInfo.InvariantCulture);
            Tensor x = fixture["x"].requires_grad_(), a = fixture["lora_A.weight"].requires_grad_(), b = fixture["lora_B.weight"].requires_grad_();
            var variant = new QaLoraVariant { GroupSize = (int)Number("qalora_group_size") };
            double scale = Number("lora_alpha") / (call.Contains("use_rslora=True", StringComparison.Ordinal) ? Math.Sqrt(Number("r")) : Number("r"));
            Tensor y = fixture["frozen"] + new LowRankTerm(variant.Spread(a), b, scale).Apply(x, new Pass());
            deviations.Add("output", fixture.Name, y, fixture["y"], (double)fixture.Json["tolerance"]!["y"]!);
            (y * linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward();
            foreach ((string name, Tensor expected) in fixture.Under("grad/"))
            {
                Tensor of = name.EndsWith("lora_A.weight", StringComparison.Ordinal) ? a : name.EndsWith("lora_B.weight", StringComparison.Ordinal) ? b : x;
                deviations.Add("gradient", $"{fixture.Name} {name}", of.grad!, expected, (double)fixture.Json["tolerance"]!["grad"]!);
            }
            count++;
        }
        Console.WriteLine($"{count} layers");
        deviations.Report();
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void TrainingWithRecordedSharesEqualsPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Text("peft_type") != "POLY" || !fixture.Has("train/logits") || HfPeftFixtureTests.Later(fixture) is not null) continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            using PeftAdaptation adaptation = file.Attach(tiny.Backbone, tiny.Head);
            ((PolyOptions)adaptation.Method).DrawWith = (path, shape) =>
            {
                CollectionAssert.AreEqual(shape, fixture[$"train/uniform/{path}"].shape, path);
                return fixture[$"train/uniform/{path}"];
            };
            Tensor logits = new FixtureBatch(fixture).Forward(tiny.Backbone, tiny.Head, new Pass(adaptation.Table(), training: true, seed: 5), adaptation).Logits;
            deviations.Add("logits of a training pass", fixture.Name, logits, fixture["train/logits"], (double)fixture.Json["tolerance"]!["logits"]!);
            count++;
        }
        Console.WriteLine($"{count} cases");
        deviations.Report();
    }

    [TestMethod]
    public void ActivatedUpdatesBeginAtTheLastInvocation()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        using var scope = NewDisposeScope();
        using PeftAdaptation adaptation = new LoraOptions { Variant = new ActivatedVariant { InvocationTokens = [7, 8] }, Init = "gaussian", Targets = ["query", "value", "dense"] }.Attach(backbone, 1);
        using var off = no_grad();
        foreach (NamedParameter p in adaptation.Parameters) p.Load(new Draws(2, p.Name).Normal(0.5, p.Value.shape));
        Tensor ids = tensor(new long[] { 7, 8, 3, 7, 8, 9, 7, 1, 2, 3, 4, 5, 7, 8 }, [2, 7]);
        ids = cat([ids, tensor(new long[] { 7, 7, 9, 8, 7, 1, 7 }, [1, 7])], 0);
        var batch = new TokenBatch(ids, ones_like(ids), Padded: false);
        Tensor Run(PatchTable worn, bool before = true)
        {
            var pass = new Pass(worn) { KeepHiddenStates = true };
            if (before) adaptation.BeforePass(pass, batch);
            return backbone.Forward(batch, pass).HiddenStates![1];                 // after the first layer: keys and values mix tokens
        }
        // Attention spreads what begins late, so the query alone tells where: it writes only its own row.
        using PeftAdaptation queries = new LoraOptions { Variant = new ActivatedVariant { InvocationTokens = [7, 8] }, Targets = ["query"], Layers = [0] }.Attach(backbone, 1);
        foreach (NamedParameter p in queries.Parameters) p.Load(new Draws(2, p.Name).Normal(0.5, p.Value.shape));
        Tensor bare = Run(PatchTable.Empty), worn = Run(queries.Table());
        Tensor differs = (bare - worn).abs().amax([2]) > 1e-6;
        bool[] expected = [false, false, false, true, true, true, true, false, false, false, false, false, true, true, .. new bool[7]];
        CollectionAssert.AreEqual(expected, differs.reshape(-1).data<bool>().ToArray());
        Assert.ThrowsExactly<InvalidOperationException>(() => Run(adaptation.Table(), before: false));
        Assert.ThrowsExactly<NotSupportedException>(() => Merging.Merge(adaptation).Dispose());
    }

    [TestMethod]
    public void VeloraKeepsTheOutputAndTheInputsGradient()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        using var scope = NewDisposeScope();
        var site = (Projection)backbone.FindSite("encoder.layer.0.attention.self.query")!;
        LoraOptions Of(LoraVariant? variant) => new() { Variant = variant, Targets = ["query"], Layers = [0], Dropout = 0 };
        using PeftAdaptation plain = Of(null).Attach(backbone, 1), velora = Of(new VeloraVariant { Groups = 32, Scale = 1 }).Attach(backbone, 1);
        foreach (PeftAdaptation a in (PeftAdaptation[])[plain, velora])
            foreach (NamedParameter p in a.Parameters.Where(p => p.Trainable)) p.Load(new Draws(2, p.Name).Normal(0.5, p.Value.shape));
        Tensor x = new Draws(1, "x").Normal(1, 3, 5, 32) + 0.5;
        (Tensor Y, Tensor X, Tensor A, Tensor B) Run(PeftAdaptation worn)
        {
            Tensor input = x.detach().clone().requires_grad_();
            Tensor y = site.Forward(input, new Pass(worn.Table(), training: true, seed: 1));
            (y * y).sum().backward();
            NamedParameter A = worn.Parameters.First(p => p.Name.Contains("lora_A", StringComparison.Ordinal)), B = worn.Parameters.First(p => p.Name.Contains("lora_B", StringComparison.Ordinal));
            return (y, input.grad!, A.Value.grad!, B.Value.grad!);
        }
        var (y1, x1, a1, b1) = Run(plain);
        var (y2, x2, a2, b2) = Run(velora);
        Assert.IsLessThan(1e-5, Deviations.Distance(y1, y2));
        Assert.IsLessThan(1e-3, Deviations.Distance(x1, x2));
        Assert.IsLessThan(1e-3, Deviations.Distance(b1, b2));
        // As many groups as inputs: each group is one number, and its direction is 1 or -1; the projection keeps all.
        Assert.IsLessThan(1e-3, Deviations.Distance(a1, a2));
        using PeftAdaptation coarse = Of(new VeloraVariant { Groups = 4 }).Attach(backbone, 1);
        foreach (NamedParameter p in coarse.Parameters.Where(p => p.Trainable)) p.Load(new Draws(2, p.Name).Normal(0.5, p.Value.shape));
        Assert.IsGreaterThan(0.1, Deviations.Distance(a1, Run(coarse).A));
        Assert.AreEqual(1, coarse.Parameters.Single(p => p.Name.EndsWith("velora_embed", StringComparison.Ordinal)).Value.norm().item<float>(), 1e-5);
    }

    public static IEnumerable<object[]> BadVariants =>
    [
        [new LoraOptions { Variant = new KasaVariant { Beta = -1 } }, "Variant.Beta is -1"],
        [new LoraOptions { Variant = new KasaVariant(), UseDora = true }, "UseDora"],
        [new LoraOptions { Variant = new KasaVariant(), Init = "pissa" }, "Init"],
        [new LoraOptions { Variant = new KasaVariant(), Rank = 64 }, "at least rank 64"],
        [new LoraOptions { Variant = new BlockDiagonalVariant { Blocks = 0 } }, "Variant.Blocks is 0"],
        [new LoraOptions { Variant = new BlockDiagonalVariant { Blocks = 2 } }, "neither in BlocksInA nor in BlocksInB"],
        [new LoraOptions { Variant = new BlockDiagonalVariant { Blocks = 2, BlocksInA = ["query", "value"], BlocksInB = ["value"] } }, "both"],
        [new LoraOptions { Variant = new BlockDiagonalVariant { Blocks = 3, BlocksInA = ["query", "value"] } }, "3 blocks do not divide"],
        [new LoraOptions { Variant = new ActivatedVariant() }, "InvocationTokens"],
        [new LoraOptions { Variant = new ActivatedVariant { InvocationTokens = [-1] } }, "InvocationTokens"],
        [new LoraOptions { Variant = new VeloraVariant { Groups = 0 } }, "Groups is 0"],
        [new LoraOptions { Variant = new VeloraVariant { Scale = 0 } }, "Scale is 0"],
        [new LoraOptions { Variant = new MonteCloraVariant { Samples = 0 } }, "Samples is 0"],
        [new LoraOptions { Variant = new MonteCloraVariant { DirichletPrior = 0 } }, "DirichletPrior is 0"],
        [new LoraOptions { Variant = new QaLoraVariant { GroupSize = 5 } }, "groups of 5"],
        [new LoraOptions { Variant = new QaLoraVariant { GroupSize = 0 } }, "GroupSize is 0"],
        [new LoraOptions { Variant = new QaLoraVariant(), Targets = ["word_embeddings"] }, "linear map"],
        [new LoraOptions { TrainableTokens = { ["word_embeddings"] = [] } }, "TrainableTokens"],
        [new LoraOptions { TrainableTokens = { ["word_embeddings"] = [1, 1] } }, "different"],
        [new LoraOptions { TrainableTokens = { ["word_embeddings"] = [101] } }, "0 to 100"],
        [new LoraOptions { TrainableTokens = { ["words"] = [1] } }, "word_embeddings"],
    ];

    [TestMethod]
    [DynamicData(nameof(BadVariants))]
    public void BadVariantsAreRefused(PeftMethod method, string expected)
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => method.Attach(backbone, 0).Dispose()).Message, expected);
    }
}
