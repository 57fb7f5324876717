// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Training through ML.NET, the same for every task: it learns, evaluates, starts anew each time, follows the context's seed, stops when asked.</summary>
public abstract class FitTests : OneThread
{
    private readonly MLContext _ml = new(1);

    private protected abstract TinyTask Tiny { get; }

    [TestMethod]
    public void ThreeKindsAreLearnt()
    {
        IDataView train = TinyTexts.View(_ml, 150), test = TinyTexts.View(_ml, 60, seed: 2);
        ITransformer model = Tiny.Pipeline(_ml, o => (o.Training.Epochs, o.Training.LearningRate) = (6, 1e-2)).Fit(train);
        IDataView scored = model.Transform(test);
        MulticlassClassificationMetrics metrics = _ml.MulticlassClassification.Evaluate(scored);
        Assert.IsGreaterThan(0.85, metrics.MicroAccuracy);
        Assert.IsLessThan(Math.Log(3), metrics.LogLoss);
        Review[] rows = TinyTexts.Rows(60, seed: 2);
        Scored[] made = [.. _ml.Data.CreateEnumerable<Scored>(scored, reuseRowObject: false)];
        Assert.AreEqual(metrics.MicroAccuracy, rows.Zip(made).Count(p => p.First.Label == p.Second.PredictedLabel) / 60.0, 1e-12);
        foreach (Scored row in made) Assert.AreEqual(1, row.Score.Sum(s => (double)s), 1e-6);
    }

    [TestMethod]
    public void BooleanLabelsAreLearntAndCalibrated()
    {
        IDataView train = TinyTexts.View(_ml, 150), test = TinyTexts.View(_ml, 60, seed: 2);
        using ClassificationTransformer model = Tiny.Fit(_ml, train, o => (o.LabelColumnName, o.Training.Epochs, o.Training.LearningRate) = ("Good", 6, 1e-2));
        IDataView scored = model.Transform(test);
        CalibratedBinaryClassificationMetrics metrics = _ml.BinaryClassification.Evaluate(scored, "Good");
        Assert.IsGreaterThan(0.85, metrics.Accuracy);
        Assert.IsGreaterThan(0.9, metrics.AreaUnderRocCurve);
        foreach (ScoredBinary row in _ml.Data.CreateEnumerable<ScoredBinary>(scored, reuseRowObject: false))
        {
            Assert.AreEqual(1 / (1 + Math.Exp(-row.Score)), row.Probability, 1e-5);
            Assert.AreEqual(row.Score > 0, row.PredictedLabel);
        }
    }

    [TestMethod]
    public void FitBeginsAnewAndChangesNoOption()
    {
        IDataView data = TinyTexts.Keyed(_ml, TinyTexts.View(_ml));
        ClassificationOptions options = Tiny.Options();
        string before = System.Text.Json.JsonSerializer.Serialize(options.Training);
        Action<TrainingProgress>? progress = options.Training.Progress;
        IEstimator<ClassificationTransformer> trainer = Tiny.Trainer(_ml, options);
        using ClassificationTransformer first = trainer.Fit(data), second = trainer.Fit(data);
        Assert.IsTrue(TinyTexts.Same(TinyTexts.Parameters(first), TinyTexts.Parameters(second)));
        TinyTexts.AreSame(TinyTexts.Scores(first, data), TinyTexts.Scores(second, data));
        Assert.AreEqual(before, System.Text.Json.JsonSerializer.Serialize(options.Training));
        Assert.AreEqual(progress, options.Training.Progress);
        // Later changes of the options do not reach a trainer that was made.
        options.Training.Epochs = 1;
        options.LabelColumnName = "Nowhere";
        using ClassificationTransformer third = trainer.Fit(data);
        Assert.AreEqual(first.Training!.Steps, third.Training!.Steps);
    }

    [TestMethod]
    public void TheContextsSeedDecides()
    {
        SortedDictionary<string, float[]> Weights(int? context, long training)
        {
            var ml = new MLContext(context);
            using ClassificationTransformer model = Tiny.Train(ml, TinyTexts.View(ml), o => o.Training.Seed = training);
            return TinyTexts.Parameters(model);
        }

        SortedDictionary<string, float[]> one = Weights(1, 7);
        Assert.IsTrue(TinyTexts.Same(one, Weights(1, 8)), "the context's seed takes the place of the options' one");
        Assert.IsFalse(TinyTexts.Same(one, Weights(2, 7)), "another seed of the context");
        SortedDictionary<string, float[]> own = Weights(null, 7);
        Assert.IsTrue(TinyTexts.Same(own, Weights(null, 7)), "the options' seed where the context has none");
        Assert.IsFalse(TinyTexts.Same(own, Weights(null, 8)), "another seed of the options");
    }

    [TestMethod]
    public void ValidationDataStopTrainingAndChooseTheWeights()
    {
        IDataView data = TinyTexts.View(_ml), held = TinyTexts.View(_ml, 30, seed: 5);
        ITransformer keys = _ml.Transforms.Conversion.MapValueToKey("Label").Fit(data);
        using ClassificationTransformer model = Tiny.Fit(_ml, keys.Transform(data), o =>
        {
            o.ValidationSet = keys.Transform(held);
            o.Training = new TrainingOptions
            {
                Epochs = 40,
                BatchSize = 8,
                LearningRate = 0.3,
                Schedule = ScheduleKind.Constant,
                EarlyStoppingPatience = 2,
            };
        });
        TrainingResult result = model.Training!;
        Assert.AreEqual(StopReason.EarlyStopped, result.Stopped);
        Assert.IsLessThan(40 * 5, result.Steps);
        EvaluationPoint best = result.Evaluations.Last(e => e.Better);
        Assert.AreEqual(result.BestStep, best.Step);
        // The transformer has the weights of the best evaluation, not the last ones.
        MulticlassClassificationMetrics metrics = _ml.MulticlassClassification.Evaluate(model.Transform(keys.Transform(held)));
        Assert.AreEqual(best.Evaluation.Metrics["log_loss"], metrics.LogLoss, 1e-4);
        Assert.AreEqual(best.Evaluation.Metrics["accuracy"], metrics.MicroAccuracy, 1e-9);
    }

    [TestMethod]
    public void ValidationRowsOfUnknownLabelsAreLeftOut()
    {
        IDataView data = TinyTexts.View(_ml);
        Review[] held = TinyTexts.Rows(12, seed: 5);
        held[0].Label = "never seen";
        ITransformer keys = _ml.Transforms.Conversion.MapValueToKey("Label").Fit(data);
        var warnings = new List<string>();
        _ml.Log += (_, e) => { if (e.Kind == Runtime.ChannelMessageKind.Warning) warnings.Add(e.RawMessage); };
        using ClassificationTransformer model = Tiny.Fit(_ml, keys.Transform(data), o => o.ValidationSet = keys.Transform(_ml.Data.LoadFromEnumerable(held)));
        Assert.AreEqual(11, model.Training!.Evaluations[0].Evaluation.Rows);
        Assert.IsTrue(warnings.Any(w => w.Contains("1 of 12 validation rows have a label that the training data lacks")), string.Join('\n', warnings));
    }

    [TestMethod]
    public void CrossValidationWorksWithAClassThatAFoldLacks()
    {
        Review[] rows = [.. TinyTexts.Rows(30).Where(r => r.Label != "wonder"), .. TinyTexts.Rows(3).Where(r => r.Label == "wonder")];
        IDataView data = _ml.Data.LoadFromEnumerable(rows);
        IDataView keyed = TinyTexts.Keyed(_ml, data);
        var folds = _ml.MulticlassClassification.CrossValidate(
            keyed, Tiny.Trainer(_ml, o => o.Training.Epochs = 1), numberOfFolds: 3);
        Assert.HasCount(3, folds);
        Assert.IsTrue(folds.All(f => f.Metrics.MicroAccuracy is >= 0 and <= 1 && f.Metrics.PerClassLogLoss.Count == 3));
        Assert.IsTrue(folds.Select(f => f.ScoredHoldOutSet.GetColumn<int>("Id").Count()).Sum() == rows.Length);
        // With the mapping inside each fold one fold does not even know the third class.
        var inside = _ml.MulticlassClassification.CrossValidate(
            data, _ml.Transforms.Conversion.MapValueToKey("Label").Append(Tiny.Trainer(_ml, o => o.Training.Epochs = 1)), numberOfFolds: 3);
        Assert.Contains(2, inside.Select(f => f.Metrics.PerClassLogLoss.Count).ToArray());
        foreach (ITransformer model in folds.Concat(inside).Select(f => f.Model)) (model as IDisposable)?.Dispose();
    }

    [TestMethod]
    public void CancellationKeepsTheBestSoFarAndCanBeResumed()
    {
        string folder = Directory.CreateTempSubdirectory("cancelled").FullName;
        try
        {
            IDataView data = TinyTexts.View(_ml), held = TinyTexts.View(_ml, 30, seed: 5);
            ITransformer keys = _ml.Transforms.Conversion.MapValueToKey("Label").Fit(data);
            ClassificationTransformer Fit(string? checkpoints, bool resume, Action<TrainingProgress>? progress, CancellationToken token) =>
                Tiny.Fit(_ml, keys.Transform(data), o => (o.ValidationSet, o.Training) = (keys.Transform(held), new TrainingOptions
                {
                    Epochs = 6,
                    BatchSize = 8,
                    LearningRate = 5e-3,
                    EvaluateEvery = 5,
                    LogEvery = 1,
                    CheckpointEvery = 5,
                    CheckpointFolder = checkpoints,
                    Resume = resume,
                    Progress = progress,
                    CancellationToken = token,
                }));

            using var cancel = new CancellationTokenSource();
            using ClassificationTransformer cut = Fit(folder, false, p => { if (p.Step == 13) cancel.Cancel(); }, cancel.Token);
            Assert.AreEqual(StopReason.Cancelled, cut.Training!.Stopped);
            Assert.AreEqual(13, cut.Training.Steps);
            Assert.IsNotNull(cut.Training.BestStep);
            AreTheSaved(cut, Path.Combine(folder, $"checkpoint-{cut.Training.BestStep}", "adapter.safetensors"));

            using ClassificationTransformer whole = Fit(null, false, null, default), resumed = Fit(folder, true, null, default);
            Assert.AreEqual(30, resumed.Training!.Steps);
            CollectionAssert.AreEqual(whole.Training!.Losses.ToArray(), resumed.Training.Losses.ToArray());
            Assert.IsTrue(TinyTexts.Same(TinyTexts.Parameters(whole), TinyTexts.Parameters(resumed)));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [TestMethod]
    public void ACancellationBeforeTheFirstStepLeavesTheFreshModel()
    {
        using var cancel = new CancellationTokenSource();
        cancel.Cancel();
        using ClassificationTransformer model = Tiny.Train(_ml, TinyTexts.View(_ml), o => o.Training.CancellationToken = cancel.Token);
        Assert.AreEqual((StopReason.Cancelled, 0L), (model.Training!.Stopped, model.Training.Steps));
        Assert.HasCount(36, TinyTexts.Scores(model, TinyTexts.View(_ml)));
    }

    private static void AreTheSaved(ClassificationTransformer model, string file)
    {
        using SafetensorsFile saved = SafetensorsFile.Open(file);
        SortedDictionary<string, float[]> held = TinyTexts.Parameters(model);
        foreach (string name in saved.Names)
        {
            using var scope = TorchSharp.torch.NewDisposeScope();
            CollectionAssert.AreEqual(saved.Load(name).data<float>().ToArray(), held[name], name);
        }
    }
}
