// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Training;
using Microsoft.VisualStudio.TestTools.UnitTesting;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Training;

[TestClass]
public class TrainerTests
{
    private static readonly CrossEntropyObjective _three = new(3);

    [TestMethod]
    public void LearnsAndLeavesTheBackboneAsItWas()
    {
        using AdaptedModel model = Tiny.Model();
        byte[] frozen = Tiny.BaseBits(model);
        Example[] train = Tiny.Rows(60), held = Tiny.Rows(30, 2);
        var trainer = new Trainer(Tiny.Options(8));
        Evaluation before = trainer.Evaluate(model, held, _three);
        var reports = new List<TrainingProgress>();
        TrainingOptions options = Tiny.Options(8);
        options.Progress = reports.Add;
        TrainingResult result = new Trainer(options).Fit(model, train, held, _three);
        Evaluation after = trainer.Evaluate(model, held, _three);
        Assert.IsTrue(after.Metrics["accuracy"] > 0.8 && after.Loss < before.Loss / 2, $"{before} -> {after}");
        Assert.AreEqual(8 * 15, result.Steps);
        Assert.AreEqual(8 * 60, result.Rows);
        Assert.AreEqual(8 * train.Sum(r => (long)r.Length), result.Tokens);
        Assert.AreEqual(8, result.Evaluations.Count);
        Assert.AreEqual(result.BestMetric, after.Loss, "The best weights are there at the end.");
        Assert.AreEqual(0, result.LearningRates[0]);
        CollectionAssert.AreEqual(frozen, Tiny.BaseBits(model));
        Assert.IsTrue(reports.Count >= 40 && reports[^1].Step == 120 && reports[^1].TotalSteps == 120 && reports[^1].TokensPerSecond > 0);
        Assert.AreEqual(8, reports.Count(r => r.Validation is not null));
        StringAssert.Contains(reports[^1].ToString(), "step 120/120");
    }

    [TestMethod]
    public void SameSeedSameBitsOtherSeedOtherBits()
    {
        byte[] Run(long seed, int prefetch)
        {
            using AdaptedModel model = Tiny.Model();
            TrainingOptions options = Tiny.Options();
            (options.Seed, options.Prefetch) = (seed, prefetch);
            new Trainer(options).Fit(model, Tiny.Rows(30), null, _three);
            return Tiny.Bits(model);
        }
        byte[] first = Run(1, 2);
        CollectionAssert.AreEqual(first, Run(1, 0));
        CollectionAssert.AreNotEqual(first, Run(2, 2));
    }

    [TestMethod]
    [DataRow(false)]
    [DataRow(true)]
    public void AccumulationEqualsTheLargeBatch(bool weighted)
    {
        var objective = new CrossEntropyObjective(3, 0.1, weighted ? [1f, 3f, 0.5f] : null);
        Example[] rows = [.. Tiny.Rows(28).Select((r, i) => new Example { Ids = r.Ids, Label = i % 9 == 0 ? Example.Ignored : r.Label, Weight = weighted ? 1 + i % 3 : 1, Row = i })];
        (float[] Weights, double[] Losses) Run(int batch, int accumulation)
        {
            using var scope = NewDisposeScope();
            using AdaptedModel model = Tiny.Model(dropout: 0);
            TrainingOptions options = Tiny.Options();
            (options.BatchSize, options.Accumulation, options.GroupByLength, options.Optimizer) = (batch, accumulation, false, OptimizerKind.Sgd);
            TrainingResult result = new Trainer(options).Fit(model, rows, null, objective);
            return ([.. model.Parameters.SelectMany(p => p.Value.detach().contiguous().data<float>().ToArray())], [.. result.Losses]);
        }
        var large = Run(12, 1);
        var parts = Run(3, 4);
        Assert.AreEqual(large.Losses.Length, parts.Losses.Length);
        for (int i = 0; i < large.Losses.Length; i++) Assert.AreEqual(large.Losses[i], parts.Losses[i], 2e-6);
        for (int i = 0; i < large.Weights.Length; i++) Assert.AreEqual(large.Weights[i], parts.Weights[i], 1e-6);
    }

    [TestMethod]
    public void EveryRowOnceAnEpochAndLittlePadding()
    {
        var random = new Random(5);
        // Lengths of texts are close to log-normal.
        int[] lengths = [.. Enumerable.Range(0, 2000).Select(_ => Math.Clamp((int)Math.Exp(3 + 0.7 * Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble())), 1, 256))];
        Example[] rows = [.. lengths.Select((l, i) => new Example { Ids = new int[l], Row = i })];
        var plan = new BatchPlan(rows, new TrainingOptions { BatchSize = 16 });
        for (int epoch = 0; epoch < 3; epoch++)
        {
            int[] order = [.. plan.Epoch(epoch).SelectMany(b => b)];
            CollectionAssert.AreEqual(Enumerable.Range(0, 2000).ToArray(), order.Order().ToArray());
        }
        CollectionAssert.AreNotEqual(plan.Epoch(0)[0], plan.Epoch(1)[0]);
        int[] grouped = [.. plan.Epoch(0).SelectMany(b => b)];
        double without = RowOrder.PaddingShare(RowOrder.Permutation(2000, 42, 0), lengths, 16), with = RowOrder.PaddingShare(grouped, lengths, 16);
        Assert.IsTrue(with <= 0.6 * without, $"padding {without} -> {with}");
        Assert.AreEqual(lengths.Max(), lengths[grouped[0]], "The longest row comes first.");
    }

    // Written down once: a change of the generator would break resumption across versions.
    [TestMethod]
    public void PermutationsStayTheSameOverVersions()
    {
        CollectionAssert.AreEqual(RowOrder.Permutation(10, 42, 0), RowOrder.Permutation(10, 42, 0));
        Assert.AreEqual(PermutationOf42, string.Join(' ', RowOrder.Permutation(10, 42, 0)));
        Assert.AreEqual(10, RowOrder.Permutation(10, 42, 1).Distinct().Count());
    }

    private const string PermutationOf42 = "4 7 2 1 3 8 0 9 5 6";

    [TestMethod]
    public void FeaturesAreComputedOnceWhereOnlyTheHeadLearns()
    {
        Example[] train = Tiny.Rows(40), held = Tiny.Rows(12, 3);
        (byte[] Bits, int Runs) Run(bool cache)
        {
            using AdaptedModel model = Tiny.Model(headOnly: true, dropout: 0);
            TrainingOptions options = Tiny.Options(5);
            options.CacheFeatures = cache;
            new Trainer(options).Fit(model, train, held, _three);
            return (Tiny.Bits(model), ((TinyBackbone)model.Backbone).Runs);
        }
        var cached = Run(true);
        var plain = Run(false);
        // One pass over 52 rows in batches of 8, two layers each, against five epochs.
        Assert.AreEqual(7 * 2, cached.Runs);
        Assert.IsTrue(plain.Runs > 5 * 10 * 2, $"{plain.Runs} runs");
        float[] a = [.. System.Runtime.InteropServices.MemoryMarshal.Cast<byte, float>(cached.Bits)], b = [.. System.Runtime.InteropServices.MemoryMarshal.Cast<byte, float>(plain.Bits)];
        for (int i = 0; i < a.Length; i++) Assert.AreEqual(b[i], a[i], 1e-4, $"number {i}");
    }

    [TestMethod]
    public void NothingBelowTheLowestPatchHasAGraph()
    {
        using AdaptedModel model = Tiny.Model(layers: 4, firstLayer: 3);
        new Trainer(Tiny.Options(1)).Fit(model, Tiny.Rows(8), null, _three);
        var backbone = (TinyBackbone)model.Backbone;
        Assert.AreEqual(2 * 4, backbone.Runs);
        Assert.AreEqual(2, backbone.GraphRuns);
    }

    [TestMethod]
    public void EarlyStoppingStopsAndRestoresTheBest()
    {
        using AdaptedModel model = Tiny.Model();
        TrainingOptions options = Tiny.Options(50);
        (options.LearningRate, options.EarlyStoppingPatience, options.EvaluateEvery, options.BestMetric) = (0.1, 2, 5, "accuracy");
        Example[] held = Tiny.Rows(30, 2);
        TrainingResult result = new Trainer(options).Fit(model, Tiny.Rows(60), held, _three);
        Assert.AreEqual(StopReason.EarlyStopped, result.Stopped);
        Assert.AreEqual(2, result.Evaluations[^1].Counter);
        Assert.AreEqual(result.Evaluations.Max(e => e.Evaluation.Metrics["accuracy"]), result.BestMetric);
        Assert.AreEqual(result.BestMetric!.Value, new Trainer(options).Evaluate(model, held, _three).Metrics["accuracy"]);
    }

    [TestMethod]
    public void RegressionAndOneLogitLearn()
    {
        using (AdaptedModel model = Tiny.Model(outputs: 1))
        {
            TrainingResult result = new Trainer(Tiny.Options(20)).Fit(model, Tiny.Rows(60), Tiny.Rows(30, 2), new RegressionObjective());
            Evaluation end = result.Evaluations[^1].Evaluation;
            Assert.IsTrue(end.Metrics["pearson"] > 0.8 && end.Metrics["mse"] < 0.4, end.ToString());
            Assert.AreEqual(end.Loss, end.Metrics["mse"], 1e-6);
        }
        using (AdaptedModel model = Tiny.Model(outputs: 1))
        {
            Example[] Binary(int count, int seed) => Tiny.Rows(count, seed, classes: 2);
            TrainingResult result = new Trainer(Tiny.Options(20)).Fit(model, Binary(60, 1), Binary(30, 2), new BinaryObjective());
            Evaluation end = result.Evaluations[^1].Evaluation;
            Assert.IsTrue(end.Metrics["accuracy"] > 0.85, end.ToString());
            Assert.AreEqual(end.Loss, end.Metrics["log_loss"], 1e-5);
        }
    }

    [TestMethod]
    public void MetricsFollowTheirFormulas()
    {
        MetricSums sums = _three.NewMetrics();
        int[] wanted = [0, 0, 1, 1, 2, 2], predicted = [0, 1, 1, 1, 2, 0];
        for (int i = 0; i < 6; i++)
        {
            float[] scores = new float[3];
            scores[predicted[i]] = MathF.Log(2);
            sums.Add(scores, [new Example { Ids = [1], Label = wanted[i] }], 1.5, 1);
        }
        Evaluation result = sums.Result();
        Assert.AreEqual(1.5, result.Loss, 1e-12);
        Assert.AreEqual(4.0 / 6, result.Metrics["accuracy"], 1e-12);
        Assert.AreEqual((0.5 + 0.8 + 2.0 / 3) / 3, result.Metrics["macro_f1"], 1e-12);
        Assert.AreEqual((4 * 6 - (2 * 2 + 2 * 3 + 2 * 1)) / Math.Sqrt((36.0 - 12) * (36 - 14)), result.Metrics["mcc"], 1e-12);
        Assert.AreEqual((4 * Math.Log(2) + 2 * Math.Log(4)) / 6, result.Metrics["log_loss"], 1e-6);
    }

    [TestMethod]
    public void NonFiniteLossStopsWithAdviceAndKeepsTheBest()
    {
        using AdaptedModel model = Tiny.Model();
        Example[] train = Tiny.Rows(20), held = Tiny.Rows(10, 2);
        TrainingOptions options = Tiny.Options(4);
        byte[]? best = null;
        NamedParameter bias = model.Head.Parameters[1];
        var trainer = new Trainer(options)
        {
            AfterStep = step =>
            {
                if (step == 6) best = null;
                if (step != 7) return;
                using var off = no_grad();
                bias.Value.fill_(float.NaN);
            },
        };
        options.Progress = p => best = p.Validation is not null ? Tiny.Bits(model) : best;
        TrainingDivergedException error = Assert.ThrowsExactly<TrainingDivergedException>(() => trainer.Fit(model, train, held, _three));
        Assert.AreEqual(7, error.Step);
        Assert.AreEqual(4, error.Rows.Count);
        StringAssert.Contains(error.Message, "lower learning rate");
        StringAssert.Contains(error.Message, string.Join(", ", error.Rows));
        float[] kept = [.. System.Runtime.InteropServices.MemoryMarshal.Cast<byte, float>(Tiny.Bits(model))];
        Assert.IsTrue(kept.All(float.IsFinite), "The weights of the best evaluation are back.");
    }

    [TestMethod]
    public void CheckpointedGradientsHaveTheSameBitsWithDropout()
    {
        Example[] rows = Tiny.Rows(16);
        byte[] Run(bool checkpointing)
        {
            using AdaptedModel model = Tiny.Model(layers: 5, firstLayer: 1, dropout: 0.2);
            TrainingOptions options = Tiny.Options();
            (options.GradientCheckpointing, options.Accumulation) = (checkpointing, 2);
            new Trainer(options).Fit(model, rows, null, _three);
            return Tiny.Bits(model);
        }
        CollectionAssert.AreEqual(Run(false), Run(true));
    }

    [TestMethod]
    public void CheckpointingKeepsFewActivations()
    {
        long Held(bool checkpointing)
        {
            using var scope = NewDisposeScope();
            using AdaptedModel model = Tiny.Model(layers: 12, hidden: 64, inner: 256, dropout: 0.1);
            BatchArrays arrays = BatchArrays.Of(Tiny.Rows(256, longest: 60), model.Backbone.Config, 8);
            TokenBatch batch = MiniBatch.ToTokens(arrays, CPU);
            var pass = new Pass(model.Patches, true, 1) { Checkpointing = checkpointing };
            long before = Memory.Resident();
            Tensor loss = model.Forward(batch, pass).sum();
            long held = Memory.Resident() - before;
            loss.backward();
            return held;
        }
        Held(true);
        long with = Held(true), without = Held(false);
        Assert.IsTrue(without > 3 * Math.Max(with, 1 << 20), $"activations {without >> 20} MiB, checkpointed {with >> 20} MiB");
    }

    [TestMethod]
    public void LongRunsHoldTheirMemoryAndLeaveNoTensor()
    {
        long tensors = LiveTensors.Count(), early = 0, late = 0, live = 0, liveLate = 0;
        using (AdaptedModel model = Tiny.Model())
        {
            TrainingOptions options = Tiny.Options();
            options.MaxSteps = 1000;
            var trainer = new Trainer(options)
            {
                AfterStep = step =>
                {
                    if (step == 100) (early, live) = (Memory.Settled(), LiveTensors.Count());
                    if (step == 1000) (late, liveLate) = (Memory.Settled(), LiveTensors.Count());
                },
            };
            trainer.Fit(model, Tiny.Rows(40), Tiny.Rows(8, 2), _three);
        }
        Assert.AreEqual(live, liveLate);
        Assert.AreEqual(tensors, LiveTensors.Count());
        Assert.IsTrue(late <= early * 1.02, $"resident {early >> 10} KiB after 100 steps, {late >> 10} KiB after 1000");
    }

    [TestMethod]
    public void PlanSaysWhatWillBeDone()
    {
        using AdaptedModel model = Tiny.Model();
        Example[] rows = Tiny.Rows(30);
        TrainingPlan plan = TrainingPlan.Make(model, rows, Tiny.Options(3));
        Assert.AreEqual(2 * (4 * 16 + 32 * 4) + 3 * 16 + 3, plan.TrainableParameters);
        Assert.AreEqual(3 * 16 + 3, plan.HeadParameters);
        Assert.AreEqual(24, plan.Steps);
        Assert.AreEqual(3 * rows.Sum(r => (long)r.Length), plan.Tokens);
        CollectionAssert.AreEqual((string[])["layer.0.up", "layer.1.up"], plan.Sites.ToArray());
        StringAssert.Contains(plan.ToString(), "tiny-lora on 2 sites");
        Assert.IsTrue(plan.ActivationBytes > 0 && plan.TrainableBytes == 16 * plan.TrainableParameters);
    }
}

internal static class Memory
{
    /// <summary>Resident bytes of this process.</summary>
    public static long Resident()
    {
        string line = File.ReadLines("/proc/self/status").First(l => l.StartsWith("VmRSS:", StringComparison.Ordinal));
        return 1024 * long.Parse(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[^2], System.Globalization.CultureInfo.InvariantCulture);
    }

    /// <summary>Resident bytes after a collection.</summary>
    public static long Settled()
    {
        GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);
        GC.WaitForPendingFinalizers();
        return Resident();
    }
}
