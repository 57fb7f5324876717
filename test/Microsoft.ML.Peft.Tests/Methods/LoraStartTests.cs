// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Starts that are made from data: recorded gradients, covariances and batches, and the whole way through the trainer.</summary>
[TestClass]
public class LoraStartTests
{
    private static LoraFactors At(PeftAdaptation adaptation, string path) =>
        ((LoraAdaptation)adaptation).Factors.First(f => adaptation.Backbone.PathOf(f.Site) == path || f.Site.Name == path);

    [TestMethod]
    [TestCategory("Fixtures")]
    public void StartsFromRecordedGradientsEqualPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Names.Any(n => n.StartsWith("loraga_grad/", StringComparison.Ordinal)) || HfPeftFixtureTests.Later(fixture) is not null) continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            var lora = (LoraOptions)file.Method;
            var start = (LoraGaStart)lora.DataStart!;
            using PeftAdaptation fresh = lora.Attach(tiny.Backbone, 0);
            double toleranceB = double.Parse(((string)fixture.Json["init_tolerance"]!["B"]!).Split(' ')[0], CultureInfo.InvariantCulture);
            foreach ((string path, Tensor recorded) in fixture.Under("loraga_grad/"))
            {
                LoraFactors f = At(fresh, path);
                bool turned = f.Site is Projection { StoredTransposed: true };
                (Tensor a, Tensor b) = start.FromGradient(turned ? recorded.t() : recorded, f.Site.Weight, (int)f.A.Value.shape[0], f.Scale, new Draws(0, path));
                Tensor theirs = fixture[$"init/base_model.model.{path}.lora_B.weight"];
                // The reference takes the axis as it is stored for the number of outputs.
                if (turned && start.Scale == LoraGaScale.Stable) theirs = theirs * Math.Pow((double)f.Site.Weight.shape[0] / f.Site.Weight.shape[1], 0.25);
                deviations.Add("|A|", $"{fixture.Name} {path}", a.abs(), fixture[$"init/base_model.model.{path}.lora_A.weight"].abs(), (double)fixture.Json["init_tolerance"]!["A"]!);
                deviations.Add("|B|", $"{fixture.Name} {path}", b.abs(), theirs.abs(), toleranceB * theirs.abs().max().item<float>());
            }
            count++;
        }
        Console.WriteLine($"{count} cases");
        deviations.Report();
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void StartsFromRecordedCovariancesEqualPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (!fixture.Names.Any(n => n.StartsWith("covariance/", StringComparison.Ordinal)) || HfPeftFixtureTests.Later(fixture) is not null) continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            var lora = (LoraOptions)file.Method;
            using PeftAdaptation fresh = lora.Attach(tiny.Backbone, 0);
            foreach ((string path, Tensor recorded) in fixture.Under("covariance/"))
            {
                LoraFactors f = At(fresh, path);
                (Tensor a, Tensor b) = ((CordaStart)lora.DataStart!).FromCovariance(recorded, f.Site.Weight, (int)f.A.Value.shape[0], f.Scale, path);
                Tensor product = fixture[$"init/base_model.model.{path}.lora_B.weight"].matmul(fixture[$"init/base_model.model.{path}.lora_A.weight"]);
                deviations.Add("s B A", $"{fixture.Name} {path}", b.matmul(a) * f.Scale, product * f.Scale, 2e-4);
                if (fixture.Has($"init_base/{path}.weight"))
                    deviations.Add("changed base", $"{fixture.Name} {path}", f.Site.Weight - b.matmul(a) * f.Scale, fixture[$"init_base/{path}.weight"], 2e-4);
            }
            count++;
        }
        Console.WriteLine($"{count} cases");
        deviations.Report();
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void StartsFromRecordedBatchesEqualPeft()
    {
        var deviations = new Deviations();
        int count = 0;
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Json["ranks"] is not JsonObject ranks || !fixture.Has("calibration/0/input_ids") || HfPeftFixtureTests.Later(fixture) is not null) continue;
            using var scope = NewDisposeScope();
            using TinyBase tiny = HfBases.Load(fixture);
            string call = fixture.Text("call")!;
            double Number(string name, double otherwise) => Regex.Match(call, $@"\b{name}=([0-9.eE+-]+)") is { Success: true } m ? double.Parse(m.Groups[1].Value, CultureInfo.InvariantCulture) : otherwise;
            var lora = new LoraOptions
            {
                Rank = (int)Number("r", 8),
                Alpha = Number("lora_alpha", 8),
                UseRsLora = call.Contains("use_rslora=True", StringComparison.Ordinal),
                Targets = [.. Regex.Matches(Regex.Match(call, @"target_modules=\[([^\]]*)\]").Groups[1].Value, "'([^']*)'").Select(m => m.Groups[1].Value)],
                DataStart = new EvaStart
                {
                    Rho = Number("rho", 2),
                    Tau = Number("tau", 0.99),
                    Whiten = call.Contains("whiten=True", StringComparison.Ordinal),
                    AdjustScaling = !call.Contains("adjust_scaling_factors=False", StringComparison.Ordinal),
                },
            };
            using PeftAdaptation adaptation = lora.Attach(tiny.Backbone, 0);
            adaptation.Calibrate(new Recorded(fixture, tiny));
            var made = (LoraOptions)adaptation.Method;
            Assert.IsNull(made.DataStart);
            foreach ((string path, JsonNode? rank) in ranks)
            {
                if (made.RankAt(path) != (int)rank! || made.AlphaAt(path) != (double)fixture.Json["alphas"]![path]!)
                    deviations.Fail($"{fixture.Name} {path}: rank {made.RankAt(path)}, alpha {made.AlphaAt(path)}, expected {rank}, {fixture.Json["alphas"]![path]}");
                else deviations.Add("start of A", $"{fixture.Name} {path}", At(adaptation, path).A.Value, fixture[$"init/base_model.model.{path}.lora_A.weight"], 2e-4);
            }
            using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
            foreach (string path in ranks.Select(r => r.Key))
                if (((LoraOptions)file.Method).RankAt(path) != made.RankAt(path)) deviations.Fail($"{fixture.Name} {path}: the file has another rank");
            count++;
        }
        Console.WriteLine($"{count} cases");
        deviations.Report();
    }

    private sealed class Recorded(Fixture fixture, TinyBase tiny) : Calibration
    {
        public override int Batches => fixture.Names.Count(n => n.StartsWith("calibration/", StringComparison.Ordinal) && n.EndsWith("/input_ids", StringComparison.Ordinal));

        public override Tensor Run(int batch, PatchTable worn)
        {
            Tensor? Of(string name) => fixture.Has($"calibration/{batch}/{name}") ? fixture[$"calibration/{batch}/{name}"] : null;
            Tensor mask = Of("attention_mask") ?? ones_like(Of("input_ids")!);
            tiny.Backbone.Forward(new TokenBatch(Of("input_ids")!, mask, Of("token_type_ids")), new Pass(worn));
            return Of("labels") is { } labels && labels.shape.SequenceEqual(mask.shape) ? mask * labels.ne(-100).to_type(mask.dtype) : mask;
        }

        public override Tensor Loss(int batch, PatchTable worn) => throw new NotSupportedException();
    }

    private static Example[] Rows(int count)
    {
        var draws = new Draws(3, "rows");
        return [.. Enumerable.Range(0, count).Select(i => new Example
        {
            Ids = [.. Enumerable.Range(0, 4 + (i % 5)).Select(_ => 1 + (int)(draws.Next() * 99))],
            Label = i % 3,
            Row = i,
        })];
    }

    private static TrainingOptions Options() => new() { Epochs = 1, BatchSize = 4, LearningRate = 1e-3, LogEvery = 1000 };

    public static IEnumerable<object[]> Starts =>
    [
        ["eva"], ["eva white"], ["lora-ga"], ["lora-ga arbr"], ["lora-ga random"], ["corda"], ["corda kept"],
    ];

    private static LoraOptions Of(string name) => new()
    {
        Rank = 4,
        Alpha = 4,
        Dropout = 0,
        Targets = ["query", "intermediate.dense", "output.dense"],
        DataStart = name switch
        {
            "eva" => new EvaStart { MostBatches = 4 },
            "eva white" => new EvaStart { MostBatches = 4, Whiten = true, AdjustScaling = false, Rho = 1.5 },
            "lora-ga" => new LoraGaStart(),
            "lora-ga arbr" => new LoraGaStart { Direction = LoraGaDirection.ArBr, Scale = LoraGaScale.WeightSvd },
            "lora-ga random" => new LoraGaStart { Direction = LoraGaDirection.Random, Scale = LoraGaScale.Unit },
            "corda" => new CordaStart(),
            _ => new CordaStart { Method = CordaMethod.KnowledgePreserved },
        },
    };

    [TestMethod]
    [DynamicData(nameof(Starts))]
    public void TheTrainerMakesTheStartOnce(string name)
    {
        using var model = new MatrixModel(Of(name), seed: 3);
        float[] bare = model.Score(bare: true);
        List<byte[]> frozen = model.FrozenBytes();
        Assert.IsGreaterThan(0, model.Adaptation!.CalibrationBatches);
        TrainingOptions still = Options();
        still.LearningRate = 1e-12;
        new Trainer(still).Fit(model.Model, Rows(24), null, new CrossEntropyObjective(3));
        Assert.AreEqual(0, model.Adaptation.CalibrationBatches);
        Assert.IsTrue(frozen.Zip(model.FrozenBytes()).All(p => p.First.AsSpan().SequenceEqual(p.Second)), "a frozen number changed");
        Assert.IsTrue(bare.Zip(model.Score()).All(p => Math.Abs(p.First - p.Second) < 1e-4f), "the start changed the output");
        long count = model.Adaptation.TrainableCount;
        Assert.AreEqual(model.Adaptation.Method.CountTrainable(model.Backbone), count);
        if (name.StartsWith("eva", StringComparison.Ordinal))
            Assert.AreEqual(8 * 4, ((LoraAdaptation)model.Adaptation).Factors.Sum(f => f.A.Value.shape[0]), "the ranks add up to those that were given");
        Dictionary<string, byte[]> start = model.TrainedBytes();
        Assert.IsTrue(model.Adaptation.Parameters.Any(p => p.Name.EndsWith("lora_A.weight", StringComparison.Ordinal) && p.Value.abs().max().item<float>() > 0));

        TrainingOptions options = Options();
        options.LearningRate = 1e-2;
        new Trainer(options).Fit(model.Model, Rows(24), null, new CrossEntropyObjective(3));
        foreach (NamedParameter p in model.Adaptation.Parameters.Where(p => p.InitialOf is not null))
            Assert.IsTrue(start[p.Name].AsSpan().SequenceEqual(model.TrainedBytes()[p.Name]), p.Name);
        Rebuilt(model);
        Exchanged(model);
        float[] worn = model.Score();
        using Backbone merged = Merging.Merge(model.Adaptation);
        Assert.IsTrue(worn.Zip(model.Score(bare: true, merged)).All(p => Math.Abs(p.First - p.Second) < 1e-4f));
    }

    private static void Rebuilt(MatrixModel model)
    {
        PeftMethod read = PeftMethods.FromJson(PeftMethods.ToJson(model.Adaptation!.Method));
        using var again = new MatrixModel(read, seed: 99);
        Assert.AreEqual(0, again.Adaptation!.CalibrationBatches);
        foreach (NamedParameter parameter in again.Model.Parameters) parameter.Load(model.Model.Parameters.Single(p => p.Name == parameter.Name).Value);
        CollectionAssert.AreEqual(model.Score(), again.Score());
    }

    private static void Exchanged(MatrixModel model)
    {
        string folder = HfBases.Temporary();
        AdapterFolder.Save(folder, model.Adaptation!, model.Model.Head);
        using var again = new MatrixModel(null);
        using AdapterFolder file = AdapterFolder.Open(folder);
        using PeftAdaptation loaded = file.Attach(again.Backbone, again.Model.Head);
        Assert.IsTrue(model.Score().Zip(again.Score(loaded.Table())).All(p => Math.Abs(p.First - p.Second) < 1e-4f), "plain LoRA on the unchanged base says the same");
    }

    /// <summary>In a union each start is the one that the part would make alone; the other parts stay as they were.</summary>
    [TestMethod]
    [DynamicData(nameof(Starts))]
    public void AUnionMakesTheStartsOfItsParts(string name)
    {
        TrainingOptions still = Options();
        still.LearningRate = 1e-12;
        using var alone = new MatrixModel(Of(name), seed: 3);
        new Trainer(still).Fit(alone.Model, Rows(24), null, new CrossEntropyObjective(3));
        using var model = new MatrixModel(new UnionOptions { Methods = [new PfeifferOptions(), Of(name)] }, seed: 3);
        int patches = model.Adaptation!.Patches.Count;
        Assert.AreEqual(alone.Adaptation!.Method is LoraOptions { DataStart: { } made } ? made.MostBatches : 4, model.Adaptation.CalibrationBatches);
        float[] before = model.Score();
        new Trainer(still).Fit(model.Model, Rows(24), null, new CrossEntropyObjective(3));
        Assert.AreEqual(0, model.Adaptation.CalibrationBatches);
        Assert.IsTrue(before.Zip(model.Score()).All(p => Math.Abs(p.First - p.Second) < 1e-4f), "the start changed the output");
        foreach (NamedParameter parameter in alone.Adaptation.Parameters)
            Assert.IsLessThan(1e-4, Deviations.Distance(parameter.Value, model.Adaptation.Find(parameter.Name)!.Value), parameter.Name);
        Assert.IsTrue(model.Adaptation.Patches.Count <= patches && model.Adaptation.Parameters.Any(p => p.Name.Contains("adapter_down", StringComparison.Ordinal)));
        Assert.AreEqual(model.Adaptation.Method.CountTrainable(model.Backbone), model.Adaptation.TrainableCount);
        Assert.AreEqual(alone.Adaptation.NeedsInitial, model.Adaptation.NeedsInitial);
        TrainingOptions options = Options();
        options.LearningRate = 1e-2;
        new Trainer(options).Fit(model.Model, Rows(24), null, new CrossEntropyObjective(3));
        Rebuilt(model);
    }

    [TestMethod]
    public void ANewStartLeavesNoTensors()
    {
        void Once(string name)
        {
            using var model = new MatrixModel(Of(name), seed: 3);
            new Trainer(Options()).Fit(model.Model, Rows(12), null, new CrossEntropyObjective(3));
        }
        foreach (string name in Starts.Select(s => (string)s[0]))
        {
            Once(name);
            long before = LiveTensors.Count();
            Once(name);
            Assert.AreEqual(before, LiveTensors.Count(), name);
        }
    }

    public static IEnumerable<object[]> BadStarts =>
    [
        [new LoraOptions { DataStart = new EvaStart { Rho = 0.5 } }, "DataStart.Rho is 0.5"],
        [new LoraOptions { DataStart = new EvaStart { Tau = 2 } }, "DataStart.Tau is 2"],
        [new LoraOptions { DataStart = new EvaStart { MostBatches = 0 } }, "MostBatches is 0"],
        [new LoraOptions { DataStart = new LoraGaStart { Gamma = 0 } }, "Gamma is 0"],
        [new LoraOptions { DataStart = new LoraGaStart(), UseDora = true }, "UseDora"],
        [new LoraOptions { DataStart = new CordaStart(), Init = "pissa" }, "Init"],
        [new LoraOptions { DataStart = new CordaStart(), LoraBias = true }, "LoraBias"],
        [new LoraOptions { DataStart = new CordaStart(), Variant = new KasaVariant() }, "Variant"],
        [new LoraOptions { RiemannianDamping = 0 }, "RiemannianDamping is 0"],
        [new LoraOptions { RiemannianDamping = 1, LoraFa = LoraFaMode.Freeze }, "RiemannianDamping"],
    ];

    [TestMethod]
    [DynamicData(nameof(BadStarts))]
    public void BadStartsAreRefused(PeftMethod method, string expected)
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => method.Attach(backbone, 0).Dispose()).Message, expected);
    }
}
