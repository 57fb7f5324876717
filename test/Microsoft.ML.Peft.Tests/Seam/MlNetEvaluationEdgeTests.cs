// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.VisualStudio.TestTools.UnitTesting;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Evaluation where data is missing, tied, of other types or degenerate: as the real ML.NET does it.</summary>
[TestClass]
public sealed class MlNetEvaluationEdgeTests
{
    private readonly MLContext _ml = new(1);

    [TestMethod]
    public void MulticlassLeavesOutWhatItCannotCount()
    {
        MulticlassClassificationMetrics metrics = _ml.MulticlassClassification.Evaluate(Data<FloatLabelRow>(
            new() { Label = 0, Score = [0.5f, 0.3f, 0.2f] },
            new() { Label = 2, Score = [0.4f, 0.3f, 0.3f] }, // ties rank in order of the classes: third
            new() { Label = 1, Score = [0.4f, 0.4f, 0.2f] }, // the first of equal scores is the prediction
            new() { Label = 7, Score = [0.2f, 0.7f, 0.1f] }, // a class that the scores do not have
            new() { Label = float.NaN, Score = [1, 0, 0] },
            new() { Label = -1, Score = [1, 0, 0] },
            new() { Label = 1.5f, Score = [1, 0, 0] },
            new() { Label = 1, Score = [float.NaN, 0, 0] },
            new() { Label = 1, Score = [float.PositiveInfinity, 0, 0] }), topKPredictionCount: 3);
        double unknown = -Math.Log(1e-15f);
        double[] losses = [-Math.Log(0.5f), -Math.Log(0.4f), -Math.Log(0.3f)];
        double loss = (losses.Sum() + unknown) / 4;
        double prior = -3 * Math.Log(0.25) / 4;
        Near(0.25, metrics.MicroAccuracy);
        Near(1 / 3d, metrics.MacroAccuracy);
        Near(loss, metrics.LogLoss);
        Near((prior - loss) / prior, metrics.LogLossReduction);
        Near(losses, metrics.PerClassLogLoss);
        Near([0.25, 0.5, 0.75], metrics.TopKAccuracyForAllK);
        Near([1, 0, 0], metrics.ConfusionMatrix.Counts[0]);
        Near([1, 0, 0], metrics.ConfusionMatrix.Counts[1]);
        Near([1, 0, 0], metrics.ConfusionMatrix.Counts[2]);
        Near(1, metrics.ConfusionMatrix.GetCountForClassPair(predictedClassIndicatorIndex: 0, actualClassIndicatorIndex: 2));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => metrics.ConfusionMatrix.GetCountForClassPair(3, 0));
    }

    [TestMethod]
    public void MulticlassWithoutRowsHasNoAccuracyAndNoReduction()
    {
        MulticlassClassificationMetrics metrics = _ml.MulticlassClassification.Evaluate(
            Data<FloatLabelRow>(new FloatLabelRow { Label = float.NaN, Score = [0.5f, 0.3f, 0.2f] }));
        Near(0, metrics.MicroAccuracy);
        Near(0, metrics.MacroAccuracy);
        Near(0, metrics.LogLoss);
        Assert.IsTrue(double.IsNaN(metrics.LogLossReduction));
        Near([0, 0, 0], metrics.PerClassLogLoss);
        Assert.IsNull(metrics.TopKAccuracyForAllK);
        Near(0, metrics.TopKAccuracy);
        Assert.AreEqual(0, metrics.TopKPredictionCount);
    }

    [TestMethod]
    public void BinaryCountsTiesHalf()
    {
        CalibratedBinaryClassificationMetrics metrics = _ml.BinaryClassification.Evaluate(Data<BinaryRow>(
            new() { Label = true, Score = 1, Probability = 0.5f },
            new() { Label = false, Score = 1, Probability = 0.5f },
            new() { Label = true, Score = 1, Probability = 0.5f },
            new() { Label = false, Score = 0, Probability = 0.5f }, // a score of 0 predicts the negative class
            new() { Label = true, Score = float.NaN, Probability = 0.9f },
            new() { Label = true, Score = float.NegativeInfinity, Probability = 0.9f }));
        Near(0.75, metrics.AreaUnderRocCurve);
        Near(0.75, metrics.Accuracy);
        Near(2 / 3d, metrics.PositivePrecision);
        Near(1, metrics.PositiveRecall);
        Near(1, metrics.NegativePrecision);
        Near(0.5, metrics.NegativeRecall);
        Near(0.8, metrics.F1Score);
        Near(1, metrics.LogLoss);
        Near(0, metrics.LogLossReduction);
        Near(1, metrics.Entropy);
        Near((1 * 0.5) + (0.5 * ((0.5 + (2 / 3d)) / 2)), metrics.AreaUnderPrecisionRecallCurve);
    }

    [TestMethod]
    public void BinaryNeedsBothClasses()
    {
        IDataView positives = Data<BinaryRow>(new BinaryRow { Label = true, Score = 1, Probability = 0.5f });
        IDataView negatives = Data<BinaryRow>(new BinaryRow { Label = false, Score = 1, Probability = 0.5f });
        Throws<ArgumentOutOfRangeException>("AUC is not defined when there is no negative class in the data (Parameter 'NegSample')",
            () => _ml.BinaryClassification.Evaluate(positives));
        Throws<ArgumentOutOfRangeException>("AUC is not defined when there is no positive class in the data (Parameter 'PosSample')",
            () => _ml.BinaryClassification.EvaluateNonCalibrated(negatives));
    }

    [TestMethod]
    public void BinaryProbabilityThatIsNotANumberSpoilsOnlyTheLogLoss()
    {
        CalibratedBinaryClassificationMetrics metrics = _ml.BinaryClassification.Evaluate(Data<BinaryRow>(
            new() { Label = true, Score = 1, Probability = float.NaN },
            new() { Label = false, Score = -1, Probability = 0.5f }));
        Near(1, metrics.Accuracy);
        Assert.IsTrue(double.IsNaN(metrics.LogLoss));
        Near(1, metrics.Entropy);
    }

    [TestMethod]
    public void BinaryLabelsMayBeKeysOfTwo()
    {
        IDataView data = _ml.Transforms.Conversion.MapValueToKey("Label").Fit(TextLabels()).Transform(TextLabels());
        BinaryClassificationMetrics metrics = _ml.BinaryClassification.EvaluateNonCalibrated(data);

        // The second key is the positive class; the first row of the matrix is the positive class all the same.
        Near([1, 0], metrics.ConfusionMatrix.Counts[0]);
        Near([1, 1], metrics.ConfusionMatrix.Counts[1]);
        Near(2 / 3d, metrics.Accuracy);
        StringAssert.Contains(metrics.ConfusionMatrix.GetFormattedConfusionTable(), "good");

        IDataView TextLabels() => Data<TextLabelRow>(
            new() { Label = "good", Score = -1 }, new() { Label = "bad", Score = 1 }, new() { Label = "good", Score = 2 });
    }

    [TestMethod]
    public void ConfusionTablesAreLaidOutAlike()
    {
        string binary = _ml.BinaryClassification.EvaluateNonCalibrated(Data<BinaryRow>(
            new() { Label = true, Score = 1 }, new() { Label = false, Score = 1 }, new() { Label = false, Score = -1 }))
            .ConfusionMatrix.GetFormattedConfusionTable();
        Lines(binary,
            "TEST POSITIVE RATIO:\t0.3333 (1.0/(1.0+2.0))",
            "Confusion table",
            "          ||======================",
            "PREDICTED || positive | negative | Recall",
            "TRUTH     ||======================",
            " positive ||        1 |        0 | 1.0000",
            " negative ||        1 |        1 | 0.5000",
            "          ||======================",
            "Precision ||   0.5000 |   1.0000 |",
            "");
        string multiclass = _ml.MulticlassClassification.Evaluate(Data<FloatLabelRow>(
            new() { Label = 0, Score = [0.5f, 0.3f, 0.2f] }, new() { Label = 2, Score = [0.4f, 0.3f, 0.3f] }))
            .ConfusionMatrix.GetFormattedConfusionTable();
        Lines(multiclass,
            "",
            "Confusion table",
            "          ||========================",
            "PREDICTED ||     0 |     1 |     2 | Recall",
            "TRUTH     ||========================",
            "        0 ||     1 |     0 |     0 | 1.0000",
            "        1 ||     0 |     0 |     0 | 0.0000",
            "        2 ||     1 |     0 |     0 | 0.0000",
            "          ||========================",
            "Precision ||0.5000 |0.0000 |0.0000 |",
            "");
    }

    [TestMethod]
    public void LongClassNamesAreNumberedInTheHead()
    {
        SchemaDefinition schema = SchemaDefinition.Create(typeof(FloatLabelRow));
        schema["Score"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, 3);
        var names = new VBuffer<ReadOnlyMemory<char>>(3, ["a long name".AsMemory(), "b".AsMemory(), "another".AsMemory()]);
        schema["Score"].AddAnnotation("SlotNames", names, new VectorDataViewType(TextDataViewType.Instance, 3));
        IDataView data = _ml.Data.LoadFromEnumerable(new FloatLabelRow[]
        {
            new() { Label = 0, Score = [0.5f, 0.3f, 0.2f] }, new() { Label = 2, Score = [0.4f, 0.3f, 0.3f] },
        }, schema);
        Lines(_ml.MulticlassClassification.Evaluate(data).ConfusionMatrix.GetFormattedConfusionTable(),
            "",
            "Confusion table",
            "               ||========================",
            "PREDICTED      ||     0 |     1 |     2 | Recall",
            "TRUTH          ||========================",
            "0. a long name ||     1 |     0 |     0 | 1.0000",
            "1.           b ||     0 |     0 |     0 | 0.0000",
            "2.     another ||     1 |     0 |     0 | 0.0000",
            "               ||========================",
            "Precision      ||0.5000 |0.0000 |0.0000 |",
            "");
    }

    [TestMethod]
    public void RegressionLeavesOutWhatIsMissing()
    {
        RegressionMetrics metrics = _ml.Regression.Evaluate(Data<RegressionRow>(
            new() { Label = 1, Score = 2 }, new() { Label = 3, Score = 3 },
            new() { Label = float.NaN, Score = 3 }, new() { Label = 3, Score = float.NaN }));
        Near(0.5, metrics.MeanAbsoluteError);
        Near(0.5, metrics.MeanSquaredError);
        Near(Math.Sqrt(0.5), metrics.RootMeanSquaredError);
        Near(0.5, metrics.LossFunction);
        Near(0.5, metrics.RSquared);
        Assert.IsTrue(double.IsNaN(_ml.Regression.Evaluate(Data<RegressionRow>(new RegressionRow { Label = 2, Score = 2 })).RSquared));
    }

    [TestMethod]
    public void RankingGivesTiesToTheLessRelevantRow()
    {
        IDataView data = _ml.Transforms.Conversion.MapValueToKey("GroupId").Fit(Rows()).Transform(Rows());
        var options = new RankingEvaluatorOptions { DcgTruncationLevel = 2, LabelGains = "0,1,4" };
        RankingMetrics metrics = _ml.Ranking.Evaluate(data, options);
        double second = 1 / Math.Log(3);
        double first = 1 / Math.Log(2);

        // Group a: gains 1, 4 in the order of ties. Group b has no gain at all.
        Near([first * 1 / 2, (first + (4 * second)) / 2], metrics.DiscountedCumulativeGains);
        Near([1 / 4d / 2, (first + (4 * second)) / ((4 * first) + second) / 2], metrics.NormalizedDiscountedCumulativeGains);
        Throws<ArgumentOutOfRangeException>("DCG Truncation Level must be greater than 0 (Parameter 'DcgTruncationLevel')",
            () => _ml.Ranking.Evaluate(data, new RankingEvaluatorOptions { DcgTruncationLevel = 0 }));
        Throws<ArgumentOutOfRangeException>("Label Gains must be of floating or integral type (Parameter 'LabelGains')",
            () => _ml.Ranking.Evaluate(data, new RankingEvaluatorOptions { LabelGains = "1,x" }));

        IDataView Rows() => Data<RankingRow>(
            new() { Label = 2, GroupId = "a", Score = 1 }, new() { Label = 1, GroupId = "a", Score = 1 }, new() { Label = 0, GroupId = "b", Score = 3 });
    }

    [TestMethod]
    public void WrongColumnsAreNamed()
    {
        IDataView multiclass = Data<FloatLabelRow>(new FloatLabelRow { Label = 0, Score = [0.5f, 0.3f, 0.2f] });
        Throws<ArgumentOutOfRangeException>("Nope column 'Label' not found (Parameter 'schema')",
            () => _ml.MulticlassClassification.Evaluate(multiclass, labelColumnName: "Nope"));
        Throws<ArgumentOutOfRangeException>("Nope column 'PredictedLabel' not found (Parameter 'schema')",
            () => _ml.MulticlassClassification.Evaluate(multiclass, predictedLabelColumnName: "Nope"));
        Throws<ArgumentOutOfRangeException>("Schema mismatch for score column 'Label': expected vector of two or more items of type Single, got Single (Parameter 'schema')",
            () => _ml.MulticlassClassification.Evaluate(multiclass, scoreColumnName: "Label"));
        Throws<ArgumentOutOfRangeException>("Schema mismatch for label column 'Score': expected Single or Key, got Vector<Single, 3> (Parameter 'schema')",
            () => _ml.MulticlassClassification.Evaluate(multiclass, labelColumnName: "Score"));
        Throws<ArgumentOutOfRangeException>("Must be non-negative (Parameter 'topKPredictionCount')",
            () => _ml.MulticlassClassification.Evaluate(multiclass, topKPredictionCount: -1));
        Throws<ArgumentOutOfRangeException>("labelColumnName cannot be null or empty (Parameter 'labelColumnName')",
            () => _ml.MulticlassClassification.Evaluate(multiclass, labelColumnName: ""));
        Assert.ThrowsExactly<ArgumentNullException>(() => _ml.MulticlassClassification.Evaluate(null));

        IDataView binary = Data<TextLabelRow>(new TextLabelRow { Label = "x", Score = 1 });
        Throws<ArgumentOutOfRangeException>("Probability column 'Probability' not found (Parameter 'schema')",
            () => _ml.BinaryClassification.Evaluate(binary));
        Throws<ArgumentOutOfRangeException>("Schema mismatch for label column 'Label': expected Single, Double, Boolean, or a Key with cardinality 2, got String (Parameter 'schema')",
            () => _ml.BinaryClassification.EvaluateNonCalibrated(binary));
        Throws<ArgumentOutOfRangeException>("Schema mismatch for score column 'Label': expected Single, got String (Parameter 'schema')",
            () => _ml.Regression.Evaluate(binary, scoreColumnName: "Label"));
        Throws<ArgumentOutOfRangeException>("Schema mismatch for group column 'Score': expected Key, got Single (Parameter 'GroupIdColumn')",
            () => _ml.Ranking.Evaluate(Data<RankingRow>(new RankingRow()), rowGroupColumnName: "Score"));
    }

    private static void Lines(string table, params string[] expected)
        => Assert.AreEqual(string.Join("\n", expected), table.ReplaceLineEndings("\n"));

    private static void Near(double expected, double given) => Assert.AreEqual(expected, given, 1e-9);

    private static void Near(double[] expected, IReadOnlyList<double> given)
    {
        Assert.HasCount(expected.Length, given);
        for (int i = 0; i < expected.Length; i++)
            Assert.AreEqual(expected[i], given[i], 1e-9, $"[{i}]");
    }

    private static void Throws<T>(string message, Action action)
        where T : Exception
        => Assert.AreEqual(message, Assert.ThrowsExactly<T>(action).Message);

    private IDataView Data<T>(params T[] rows)
        where T : class
    {
        SchemaDefinition schema = SchemaDefinition.Create(typeof(T));
        if (typeof(T) == typeof(FloatLabelRow))
            schema["Score"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, 3);
        return _ml.Data.LoadFromEnumerable(rows, schema);
    }

    private sealed class FloatLabelRow
    {
        public float Label { get; set; }

        public float[] Score { get; set; } = [];

        public uint PredictedLabel { get; set; }
    }

    private sealed class BinaryRow
    {
        public bool Label { get; set; }

        public float Score { get; set; }

        public float Probability { get; set; }

        public bool PredictedLabel { get; set; }
    }

    private sealed class TextLabelRow
    {
        public string Label { get; set; } = "";

        public float Score { get; set; }

        public bool PredictedLabel { get; set; }
    }

    private sealed class RegressionRow
    {
        public float Label { get; set; }

        public float Score { get; set; }
    }

    private sealed class RankingRow
    {
        public float Label { get; set; }

        public string GroupId { get; set; } = "";

        public float Score { get; set; }
    }
}
