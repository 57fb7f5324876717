// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Training;
using Microsoft.ML.Peft.Training;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>AdaLoRA over a whole training: budget, scores, choices, the final file.</summary>
[TestClass]
[TestCategory("Fixtures")]
public class AdaLoraScheduleTests
{
    [TestMethod]
    public void WholeTrainingsEqualPeft()
    {
        var deviations = new Deviations();
        List<string> done = [];
        foreach (string folder in Shared.Cases("hf-peft"))
        {
            using var fixture = new Fixture(folder);
            if (fixture.Text("peft_type") != "ADALORA" || fixture.Json["steps"] is not JsonArray) continue;
            using var scope = NewDisposeScope();
            Run(fixture, deviations);
            done.Add(fixture.Name);
        }
        Console.WriteLine($"{done.Count} cases run: {string.Join(", ", done)}");
        deviations.Report();
    }

    private static void Run(Fixture fixture, Deviations deviations)
    {
        using TinyBase tiny = HfBases.Load(fixture);
        using AdapterFolder file = AdapterFolder.Open(fixture.PathOf("adapter"));
        JsonObject config = file.Config.DeepClone().AsObject();
        config["rank_pattern"] = null;                                            // as it was before the final choice
        var method = new AdaLoraOptions();
        method.ReadHuggingFace(config);
        using var adaptation = (AdaLoraAdaptation)method.Attach(tiny.Backbone, seed: 0);
        foreach ((string key, Tensor value) in fixture.Under("start/")) HfBases.Find(key, adaptation, tiny)!.Load(value);
        Assert.AreEqual((long)fixture.Json["initial_budget"]!, adaptation.Budget(0));
        NamedParameter[] parameters = [.. adaptation.Parameters, .. tiny.Head!.Parameters];
        var optimizer = new PlainAdamW(double.Parse(Regex.Match(fixture.Text("optimizer")!, @"\blr=([0-9.e-]+)").Groups[1].Value, CultureInfo.InvariantCulture), 0);
        var batch = new FixtureBatch(fixture);
        foreach (JsonNode? node in fixture.Json["steps"]!.AsArray()) Step(fixture, deviations, node!.AsObject(), adaptation, tiny, batch, parameters, optimizer);
        optimizer.Dispose();

        foreach ((string key, Tensor value) in fixture.Under("end/")) deviations.Add("end", $"{fixture.Name} {key}", HfBases.Find(key, adaptation, tiny)!.Value, value, 1e-4);
        using (no_grad()) deviations.Add("logits", fixture.Name, batch.Forward(tiny.Backbone, tiny.Head, new Pass(adaptation.Table())).Logits, fixture["logits"], 1e-4);
        CompareFile(fixture, deviations, adaptation, tiny, file, batch);
    }

    private static void Step(Fixture fixture, Deviations deviations, JsonObject record, AdaLoraAdaptation adaptation, TinyBase tiny, FixtureBatch batch, NamedParameter[] parameters, PlainAdamW optimizer)
    {
        using var scope = NewDisposeScope();
        long step = (long)record["step"]!;
        string where = $"{fixture.Name} step {step}";
        double tolerance = (double)fixture.Json["tolerance"]!["losses"]!;
        var pass = new Pass(adaptation.Table());
        Tensor task = batch.Loss(batch.Forward(tiny.Backbone, tiny.Head, pass).Logits), orthogonality = adaptation.ExtraLoss(pass);
        Tensor loss = task + orthogonality;
        double weight = ((AdaLoraOptions)adaptation.Method).OrthogonalityWeight;
        deviations.Add("task loss", where, Math.Abs(task.item<float>() - (double)record["task_loss"]!), tolerance);
        deviations.Add("orthogonality", where, Math.Abs((orthogonality.item<float>() / weight) - (double)record["orthogonality"]!), tolerance);
        deviations.Add("loss", where, Math.Abs(loss.item<float>() - (double)record["loss"]!), tolerance);
        PlainAdamW.ZeroGradients(parameters);
        loss.backward();
        optimizer.Step(parameters);
        adaptation.AfterStep(step);

        if (adaptation.Budget(step) != (long)record["budget"]!) deviations.Fail($"{where}: budget {adaptation.Budget(step)}, expected {record["budget"]}");
        int[][] live = [.. adaptation.Triplets.Select(t => t.E.Value.detach().data<float>().ToArray().Select(v => v != 0 ? 1 : 0).ToArray())];
        int[] counts = [.. live.Select(l => l.Sum())];
        if (!counts.SequenceEqual(record["nonzero_E"]!.AsArray().Select(n => (int)n!))) deviations.Fail($"{where}: live triplets {string.Join(",", counts)}, expected {record["nonzero_E"]!.ToJsonString()}");
        if (record["masks"] is JsonObject masks)
            foreach ((AdaLoraTriplets triplets, int[] mask) in adaptation.Triplets.Zip(live))
                if (!mask.SequenceEqual(masks[triplets.Path]!.AsArray().Select(n => (int)n!))) deviations.Fail($"{where} {triplets.Path}: other triplets than {masks[triplets.Path]!.ToJsonString()}");
        if (fixture.Has($"score/{step}"))
        {
            Tensor expected = fixture[$"score/{step}"];
            deviations.Add("scores, relative", where, ((adaptation.Scores() - expected).abs() / expected.abs().max()).max().item<float>(), 1e-3);
        }
        foreach ((string key, Tensor value) in fixture.Under($"E/{step}/")) deviations.Add("E", $"{where} {key}", HfBases.Find(key, adaptation, tiny)!.Value, value, 1e-3);
        foreach ((string key, Tensor value) in fixture.Under($"sensitivity/{step}/"))
            deviations.Add("mean importance, relative", $"{where} {key}", HfBases.Find(key + ".importance", adaptation, tiny)!.Value / value.max(), value / value.max(), 1e-3);
    }

    private static void CompareFile(Fixture fixture, Deviations deviations, PeftAdaptation adaptation, TinyBase tiny, AdapterFolder file, FixtureBatch batch)
    {
        string saved = HfBases.Temporary();
        AdapterFolder.Save(saved, adaptation, tiny.Head, new AdapterSaveOptions { LoadedFrom = file.Config });
        using AdapterFolder ours = AdapterFolder.Open(saved);
        if (File.ReadAllText(Path.Combine(saved, "adapter_config.json")) != File.ReadAllText(fixture.PathOf("adapter", "adapter_config.json"))) deviations.Fail($"{fixture.Name}: adapter_config.json differs");
        if (!ours.Names.SequenceEqual(file.Names)) deviations.Fail($"{fixture.Name}: keys differ");
        foreach (string name in ours.Names.Intersect(file.Names))
            if (!ours.Shape(name).SequenceEqual(file.Shape(name))) deviations.Fail($"{fixture.Name} {name}: shape differs");
        using PeftAdaptation ourAgain = ours.Attach(tiny.Backbone, tiny.Head), theirs = file.Attach(tiny.Backbone, tiny.Head);
        using var off = no_grad();
        Assert.IsLessThan(adaptation.TrainableCount, theirs.TrainableCount);
        deviations.Add("logits of the pruned file", fixture.Name, batch.Forward(tiny.Backbone, tiny.Head, new Pass(theirs.Table())).Logits, fixture["logits"], 1e-4);
        foreach (NamedParameter parameter in ourAgain.Parameters.Where(p => p.Exchanged))
            deviations.Add("pruned file", $"{fixture.Name} {parameter.Name}", parameter.Value, theirs.Find(parameter.Name)!.Value, 1e-4);
        // Loading and saving the pruned form again changes nothing.
        string twice = HfBases.Temporary();
        AdapterFolder.Save(twice, theirs, tiny.Head, new AdapterSaveOptions { LoadedFrom = file.Config });
        foreach (string name in (string[])["adapter_config.json", "adapter_model.safetensors"])
            if (!File.ReadAllBytes(Path.Combine(twice, name)).AsSpan().SequenceEqual(File.ReadAllBytes(fixture.PathOf("adapter", name)))) deviations.Fail($"{fixture.Name}: {name} changes when it is loaded and saved");
    }
}

/// <summary>AdaLoRA under the trainer: it learns the number of steps from the run, and a resumed run makes the same choices.</summary>
[TestClass]
public class AdaLoraTrainingTests
{
    private string _folder = "";

    [TestInitialize]
    public void MakeFolder() => _folder = Directory.CreateTempSubdirectory("peft-adalora-").FullName;

    [TestCleanup]
    public void RemoveFolder() => Directory.Delete(_folder, recursive: true);

    private static (byte[] Bits, int Live) Run(string? folder, bool resume, int stopAfter = int.MaxValue)
    {
        using var scope = NewDisposeScope();
        var backbone = new TinyBackbone();
        PeftAdaptation adaptation = new AdaLoraOptions { Targets = ["FeedForwardUp", "FeedForwardDown"], InitialRank = 4, TargetRank = 2, StepsBetween = 2 }.Attach(backbone, 5);
        using var model = new AdaptedModel(backbone, adaptation, new TinyHead(backbone, 3), ownsBackbone: true);
        using var cancel = new CancellationTokenSource();
        TrainingOptions options = Tiny.Options();
        (options.CheckpointFolder, options.Resume, options.CancellationToken) = (folder, resume, cancel.Token);
        var trainer = new Trainer(options) { AfterStep = step => { if (step == stopAfter) cancel.Cancel(); } };
        trainer.Fit(model, Tiny.Rows(45), null, new CrossEntropyObjective(3));
        return (Tiny.Bits(model), adaptation.Parameters.Where(p => p.Name.EndsWith(".lora_E", StringComparison.Ordinal)).Sum(p => p.Value.detach().data<float>().ToArray().Count(v => v != 0)));
    }

    [TestMethod]
    public void ARunKnowsItsStepsAndResumesToTheSameBits()
    {
        (byte[] bits, int live) = Run(null, false);
        Assert.AreEqual(4 * 2, live, "triplets at the end");
        foreach (int stop in (int[])[3, 9, 18])
        {
            string folder = Path.Combine(_folder, $"at-{stop}");
            Run(folder, false, stop);
            CollectionAssert.AreEqual(bits, Run(folder, true).Bits, $"stopped after step {stop}");
        }
    }

    [TestMethod]
    public void AScheduleThatDoesNotFitIsRefused()
    {
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => new AdaLoraOptions { TotalSteps = 10, InitialSteps = 5, FinalSteps = 5 }.Validate()).Message, "InitialSteps is 5");
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation adaptation = new AdaLoraOptions().Attach(backbone, 1);
        StringAssert.Contains(Assert.ThrowsExactly<InvalidOperationException>(() => adaptation.AfterStep(0)).Message, "TotalSteps");
    }
}
