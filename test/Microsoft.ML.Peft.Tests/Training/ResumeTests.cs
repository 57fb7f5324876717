// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Diagnostics;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Training;
using Microsoft.VisualStudio.TestTools.UnitTesting;

namespace Microsoft.ML.Peft.Tests.Training;

[TestClass]
public class ResumeTests
{
    private static readonly CrossEntropyObjective _three = new(3);
    private string _folder = "";

    [TestInitialize]
    public void MakeFolder() => _folder = Directory.CreateTempSubdirectory("peft-resume-").FullName;

    [TestCleanup]
    public void RemoveFolder() => Directory.Delete(_folder, recursive: true);

    // Dropout, accumulation, a warm-up, evaluations in mid-epoch and an early stop: all that a run remembers.
    private static TrainingOptions Options(string? folder)
    {
        TrainingOptions options = Tiny.Options(5);
        (options.Accumulation, options.EvaluateEvery, options.EarlyStoppingPatience) = (2, 4, 2);
        (options.WarmupShare, options.LearningRate, options.BestMetric) = (0.4, 0.2, "accuracy");
        options.CheckpointFolder = folder;
        return options;
    }

    private static (byte[] Bits, TrainingResult Result) Run(TrainingOptions options, int stopAfter = int.MaxValue)
    {
        using AdaptedModel model = Tiny.Model(dropout: 0.2);
        using var cancel = new CancellationTokenSource();
        options.CancellationToken = cancel.Token;
        var trainer = new Trainer(options)
        {
            AfterStep = step =>
            {
                if (step == stopAfter) cancel.Cancel();
            },
        };
        TrainingResult result = trainer.Fit(model, Tiny.Rows(45), Tiny.Rows(15, 2), _three);
        return (Tiny.Bits(model), result);
    }

    [TestMethod]
    public void ResumedAtAnyStepItHasTheBitsOfTheWholeRun()
    {
        (byte[] bits, TrainingResult whole) = Run(Options(null));
        Assert.AreEqual(StopReason.EarlyStopped, whole.Stopped, "The case should stop early, else it shows less.");
        for (int stop = 1; stop < whole.Steps; stop++)
        {
            string folder = Path.Combine(_folder, $"at-{stop}");
            TrainingOptions options = Options(folder);
            (_, TrainingResult part) = Run(options, stop);
            Assert.AreEqual(StopReason.Cancelled, part.Stopped);
            Assert.AreEqual(stop, part.Steps);
            options = Options(folder);
            options.Resume = true;
            (byte[] resumed, TrainingResult result) = Run(options);
            CollectionAssert.AreEqual(bits, resumed, $"stopped after step {stop}");
            CollectionAssert.AreEqual(whole.Losses.ToArray(), result.Losses.ToArray(), $"losses, stopped after step {stop}");
            CollectionAssert.AreEqual(whole.LearningRates.ToArray(), result.LearningRates.ToArray());
            CollectionAssert.AreEqual(whole.GradientNorms.ToArray(), result.GradientNorms.ToArray());
            Assert.AreEqual(whole.Evaluations.Count, result.Evaluations.Count);
            Assert.AreEqual((whole.BestStep, whole.BestMetric, whole.Stopped, whole.Tokens, whole.Rows), (result.BestStep, result.BestMetric, result.Stopped, result.Tokens, result.Rows));
        }
    }

    [TestMethod]
    [DataRow(Precision.BFloat16)]
    [DataRow(Precision.Int8Frozen)]
    [DataRow(Precision.Auto)]
    public void ResumedInEveryPrecisionItHasTheBitsOfTheWholeRun(Precision precision)
    {
        TrainingOptions In(string? folder)
        {
            TrainingOptions options = Options(folder);
            options.Precision = precision;
            return options;
        }

        var notes = new List<string>();
        TrainingOptions first = In(_folder);
        (first.KeepCheckpoints, first.CheckpointEvery, first.Note) = (1000, 1, notes.Add);
        (byte[] bits, TrainingResult whole) = Run(first);
        if (precision != Precision.Auto) Assert.AreEqual((precision, null), (whole.Precision, whole.PrecisionReason));
        else Assert.AreEqual(whole.PrecisionReason, notes.Single());
        foreach (string later in Directory.GetDirectories(_folder).OrderByDescending(Step).Where(d => Step(d) % 4 == 3))
        {
            foreach (string newer in Directory.GetDirectories(_folder).Where(d => Step(d) > Step(later))) Directory.Delete(newer, recursive: true);
            TrainingOptions options = In(_folder);
            options.Resume = true;
            (byte[] resumed, TrainingResult result) = Run(options);
            CollectionAssert.AreEqual(bits, resumed, $"{precision}, resumed from {Path.GetFileName(later)}");
            CollectionAssert.AreEqual(whole.Losses.ToArray(), result.Losses.ToArray());
            Assert.AreEqual((whole.Precision, whole.PrecisionReason), (result.Precision, result.PrecisionReason));
        }
        if (precision == Precision.Auto || (precision == Precision.BFloat16 && !NativeKernels.HasBFloat16)) return;
        Assert.IsFalse(bits.AsSpan().SequenceEqual(Run(Options(null)).Bits), "It should differ from float32, else it shows nothing.");
    }

    private static long Step(string folder) => long.Parse(Path.GetFileName(folder)["checkpoint-".Length..], null);

    // What was chosen when the run began stands in the checkpoint: a faster or busier machine does not change it.
    [TestMethod]
    public void AResumedRunTakesWhatAutoChose()
    {
        TrainingOptions options = Options(_folder);
        options.Precision = Precision.Auto;
        (_, TrainingResult part) = Run(options, 3);
        Assert.IsNotNull(part.PrecisionReason);
        string state = Path.Combine(Directory.GetDirectories(_folder).Single(), "trainer_state.json"), text = File.ReadAllText(state);
        string chosen = $"\"Precision\": \"{part.Precision}\"";
        Assert.Contains(chosen, text);
        File.WriteAllText(state, text.Replace(chosen, "\"Precision\": \"Int8Frozen\"", StringComparison.Ordinal));
        options = Options(_folder);
        (options.Precision, options.Resume) = (Precision.Auto, true);
        (_, TrainingResult resumed) = Run(options);
        Assert.AreEqual(Precision.Int8Frozen, resumed.Precision);
        options = Options(_folder);
        (options.Precision, options.Resume) = (Precision.BFloat16, true);
        Assert.Contains("Precision", Assert.ThrowsExactly<InvalidOperationException>(() => Run(options)).Message);
    }

    [TestMethod]
    public void ResumedAfterTheEndNothingIsTrainedAgain()
    {
        (byte[] bits, TrainingResult whole) = Run(Options(_folder));
        TrainingOptions options = Options(_folder);
        options.Resume = true;
        (byte[] again, TrainingResult result) = Run(options);
        CollectionAssert.AreEqual(bits, again);
        Assert.AreEqual((whole.Steps, whole.Stopped), (result.Steps, result.Stopped));
    }

    [TestMethod]
    public void KeepsTheNewestAndTheBest()
    {
        TrainingOptions options = Options(_folder);
        (options.CheckpointEvery, options.KeepCheckpoints, options.EarlyStoppingPatience) = (2, 2, 0);
        (_, TrainingResult result) = Run(options);
        long[] kept = [.. Directory.GetDirectories(_folder).Select(d => long.Parse(Path.GetFileName(d)["checkpoint-".Length..], null)).Order()];
        long[] expected = [.. ((long[])[result.Steps - 2 + result.Steps % 2, result.Steps, result.BestStep!.Value]).Distinct().Order()];
        CollectionAssert.IsSubsetOf(new[] { result.Steps }, kept);
        Assert.IsTrue(kept.Length is 2 or 3, string.Join(' ', kept));
        if (result.BestStep % 2 == 0) CollectionAssert.Contains(kept, result.BestStep!.Value);
        Assert.IsTrue(expected.Length >= 2);
    }

    [TestMethod]
    public void DamagedCheckpointsArePassedOver()
    {
        (byte[] bits, _) = Run(Options(null));
        foreach (Action<string> damage in (Action<string>[])
        [
            folder => File.Delete(Path.Combine(folder, "optimizer.safetensors")),
            folder => File.WriteAllBytes(Path.Combine(folder, "adapter.safetensors"), File.ReadAllBytes(Path.Combine(folder, "adapter.safetensors"))[..^3]),
            folder => File.WriteAllText(Path.Combine(folder, "trainer_state.json"), "{ \"Format\": 1, "),
            folder => File.Delete(Path.Combine(folder, "trainer_state.json")),
        ])
        {
            string place = Path.Combine(_folder, Path.GetRandomFileName());
            TrainingOptions options = Options(place);
            options.CheckpointEvery = 1;
            Run(options, 5);
            damage(Path.Combine(place, "checkpoint-5"));
            // What a killed write leaves: a temporary folder, and a file of it torn.
            Directory.CreateDirectory(Path.Combine(place, "checkpoint-6.x.tmp"));
            File.WriteAllText(Path.Combine(place, "checkpoint-6.x.tmp", "adapter.safetensors"), "torn");
            var warnings = new List<string>();
            options = Options(place);
            (options.Resume, options.Warning, options.CheckpointEvery) = (true, warnings.Add, 1);
            (byte[] resumed, TrainingResult result) = Run(options);
            CollectionAssert.AreEqual(bits, resumed);
            Assert.AreEqual(1, warnings.Count);
            StringAssert.Contains(warnings[0], "checkpoint-5");
            CollectionAssert.AreEqual(warnings, result.Warnings.ToArray());
            Assert.AreEqual(0, Directory.GetDirectories(place, "*.tmp").Length);
        }
    }

    [TestMethod]
    public void OtherOptionsDataAndMethodsAreRefusedWithTheDifferences()
    {
        Run(Options(_folder), 3);
        TrainingOptions other = Options(_folder);
        (other.Resume, other.LearningRate, other.Seed) = (true, 0.1, 12);
        InvalidOperationException error = Assert.ThrowsExactly<InvalidOperationException>(() => Run(other));
        StringAssert.Contains(error.Message, "LearningRate: 0.2 there, 0.1 here");
        StringAssert.Contains(error.Message, "Seed: 11 there, 12 here");
        StringAssert.Contains(error.Message, "ForceResume");

        TrainingOptions same = Options(_folder);
        same.Resume = true;
        using (AdaptedModel model = Tiny.Model(dropout: 0.1))
        {
            error = Assert.ThrowsExactly<InvalidOperationException>(() => new Trainer(same).Fit(model, Tiny.Rows(44), Tiny.Rows(15, 2), _three));
            StringAssert.Contains(error.Message, "rows: 45 there, 44 here");
            StringAssert.Contains(error.Message, "method:");
        }

        (other.ForceResume, other.MaxSteps) = (true, 5);
        var warnings = new List<string>();
        other.Warning = warnings.Add;
        (_, TrainingResult result) = Run(other);
        Assert.AreEqual(5, result.Steps);
        StringAssert.Contains(warnings.Single(), "LearningRate");
    }

    // A process that is killed while it writes checkpoints as fast as it can leaves one that loads.
    [TestMethod]
    public void KilledWhileWritingItResumes()
    {
        (byte[] bits, TrainingResult whole) = Run(Options(null));
        int cut = 0;
        for (int attempt = 0; attempt < 4; attempt++)
        {
            string folder = Path.Combine(_folder, $"killed-{attempt}");
            Directory.CreateDirectory(folder);
            var start = new ProcessStartInfo("dotnet") { RedirectStandardError = true };
            foreach (string argument in (string[])["exec", typeof(ResumeTests).Assembly.Location, "train", folder]) start.ArgumentList.Add(argument);
            using Process process = Process.Start(start)!;
            var clock = Stopwatch.StartNew();
            while (!Directory.EnumerateDirectories(folder, "checkpoint-*").Any(d => !d.EndsWith(".tmp", StringComparison.Ordinal)))
            {
                if (process.HasExited || clock.Elapsed.TotalSeconds > 120) Assert.Fail("The child process wrote nothing: " + process.StandardError.ReadToEnd());
                Thread.Sleep(1);
            }
            Thread.Sleep(7 * attempt);
            process.Kill();
            process.WaitForExit();
            if (Directory.EnumerateDirectories(folder, $"checkpoint-{whole.Steps}").Any()) continue;
            cut++;
            TrainingOptions options = Options(folder);
            options.Resume = true;
            (byte[] resumed, TrainingResult result) = Run(options);
            CollectionAssert.AreEqual(bits, resumed);
            Assert.AreEqual(0, result.Warnings.Count, string.Join(' ', result.Warnings));
        }
        Assert.AreNotEqual(0, cut, "No child process was killed before its end.");
    }

    /// <summary>What the child process does.</summary>
    internal static void TrainInChild(string folder)
    {
        TrainingOptions options = Options(folder);
        (options.CheckpointEvery, options.KeepCheckpoints) = (1, 1);
        Run(options);
    }
}
