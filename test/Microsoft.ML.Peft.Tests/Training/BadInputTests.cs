// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Training;
using Microsoft.VisualStudio.TestTools.UnitTesting;

namespace Microsoft.ML.Peft.Tests.Training;

/// <summary>What is refused, and what the message says.</summary>
[TestClass]
public class BadInputTests
{
    private static readonly CrossEntropyObjective _three = new(3);

    public static IEnumerable<object[]> Options =>
    [
        ["LearningRate is 0; it must be above 0", (Action<TrainingOptions>)(o => o.LearningRate = 0)],
        ["LearningRate is -0.1", (Action<TrainingOptions>)(o => o.LearningRate = -0.1)],
        ["LearningRate is NaN", (Action<TrainingOptions>)(o => o.LearningRate = double.NaN)],
        ["BatchSize is 0; it must be at least 1", (Action<TrainingOptions>)(o => o.BatchSize = 0)],
        ["Accumulation is 0", (Action<TrainingOptions>)(o => o.Accumulation = 0)],
        ["Epochs is 0", (Action<TrainingOptions>)(o => o.Epochs = 0)],
        ["MaxSteps is -1", (Action<TrainingOptions>)(o => o.MaxSteps = -1)],
        ["MaxGradNorm is -1; it must be 0 (no limit) or more", (Action<TrainingOptions>)(o => o.MaxGradNorm = -1)],
        ["WarmupSteps is 20, longer than the 10 steps", (Action<TrainingOptions>)(o => (o.WarmupSteps, o.MaxSteps) = (20, 10))],
        ["WarmupShare is 1.5", (Action<TrainingOptions>)(o => o.WarmupShare = 1.5)],
        ["Beta2 is 1", (Action<TrainingOptions>)(o => o.Beta2 = 1)],
        ["LabelSmoothing is 1", (Action<TrainingOptions>)(o => o.LabelSmoothing = 1)],
        ["PadToMultiple is 0", (Action<TrainingOptions>)(o => o.PadToMultiple = 0)],
        ["EarlyStoppingPatience is -1", (Action<TrainingOptions>)(o => o.EarlyStoppingPatience = -1)],
        ["KeepCheckpoints is 0", (Action<TrainingOptions>)(o => o.KeepCheckpoints = 0)],
        ["Resume needs a CheckpointFolder", (Action<TrainingOptions>)(o => o.Resume = true)],
        ["ForceResume needs Resume", (Action<TrainingOptions>)(o => o.ForceResume = true)],
    ];

    [TestMethod]
    [DynamicData(nameof(Options))]
    public void OptionsOutOfRange(string message, Action<TrainingOptions> change)
    {
        var options = new TrainingOptions();
        change(options);
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => new Trainer(options)).Message, message);
    }

    public static IEnumerable<object[]> Data =>
    [
        ["training data have no rows", Array.Empty<Example>()],
        ["example 0 has no tokens", (Example[])[new Example { Ids = [] }]],
        ["row 7 has 65 tokens, the model takes at most 64", (Example[])[new Example { Ids = new int[65], Row = 7 }]],
        ["row 7 has token id 50; the vocabulary has 50 entries", (Example[])[new Example { Ids = [1, 50], Row = 7 }]],
        ["row 7 has token id -1", (Example[])[new Example { Ids = [-1], Row = 7 }]],
        ["row 7 has 1 token types for 2 tokens", (Example[])[new Example { Ids = [1, 2], TypeIds = [0], Row = 7 }]],
        ["label of row 7 is 3; labels must be 0 to 2", (Example[])[new Example { Ids = [1], Label = 3, Row = 7 }]],
        ["weight of row 7 is NaN", (Example[])[new Example { Ids = [1], Weight = float.NaN, Row = 7 }]],
        ["None of the 2 rows of the training data counts", (Example[])[new Example { Ids = [1], Label = -100 }, new Example { Ids = [1], Weight = 0 }]],
    ];

    [TestMethod]
    [DynamicData(nameof(Data))]
    public void RowsThatCannotBeLearnt(string message, Example[] rows)
    {
        using AdaptedModel model = Tiny.Model();
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => new Trainer(Tiny.Options()).Fit(model, rows, null, _three)).Message, message);
    }

    [TestMethod]
    public void WhatDoesNotFitTogether()
    {
        using AdaptedModel model = Tiny.Model();
        Example[] rows = Tiny.Rows(8);
        void Refused<T>(string message, TrainingOptions options, Example[]? held, Objective objective) where T : Exception =>
            StringAssert.Contains(Assert.ThrowsExactly<T>(() => new Trainer(options).Fit(model, rows, held, objective)).Message, message);

        TrainingOptions patient = Tiny.Options();
        patient.EarlyStoppingPatience = 1;
        Refused<ArgumentException>("needs validation data", patient, null, _three);
        Refused<ArgumentException>("validation data have no rows", Tiny.Options(), [], _three);
        TrainingOptions metric = Tiny.Options();
        metric.BestMetric = "accuracys";
        Refused<ArgumentException>("loss, accuracy, macro_f1, mcc, log_loss", metric, rows, _three);
        TrainingOptions warm = Tiny.Options();
        warm.WarmupSteps = 100;
        Refused<ArgumentException>("longer than the 4 steps", warm, null, _three);
        Refused<ArgumentException>("3 scores a row, but there are 4 classes", Tiny.Options(), null, new CrossEntropyObjective(4));
        Refused<ArgumentException>("3 scores a row; regression needs one", Tiny.Options(), null, new RegressionObjective());
        foreach (NamedParameter parameter in model.Parameters) parameter.SetTrainable(false);
        Refused<InvalidOperationException>("no trainable parameter", Tiny.Options(), null, _three);
    }

    [TestMethod]
    public void ObjectivesOutOfRange()
    {
        void Refused(string message, Func<Objective> make) => StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(make).Message, message);
        Refused("at least two classes, found 1", () => new CrossEntropyObjective(1));
        Refused("Found 2 class weights for 3 classes", () => new CrossEntropyObjective(3, 0, [1, 2]));
        Refused("A class weight is -1", () => new CrossEntropyObjective(3, 0, [1, -1, 2]));
        Refused("in [0, 1), found 1", () => new CrossEntropyObjective(3, 1));
        Refused("above 0, found 0", () => new BinaryObjective(0));
        var number = new Example { Ids = [1], Target = float.NaN, Row = 4 };
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => new RegressionObjective().Check(number)).Message, "row 4 is NaN");
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => new BinaryObjective().Check(number)).Message, "row 4 is NaN");
    }

    [TestMethod]
    public void RanksOutsideTheWorld()
    {
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => RowOrder.Shard([0, 1], 2, 2)).Message, "Rank 2 is outside a world of 2");
    }
}
