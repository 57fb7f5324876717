// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.VisualStudio.TestTools.UnitTesting;
using static Microsoft.ML.Peft.Tests.Seam.MlNetRecords;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Evaluation gives the figures that the real ML.NET was recorded to give.</summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class MlNetMetricsTests
{
    private const double Tolerance = 1e-9;

    private readonly MLContext _ml = new(1);

    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    public void EveryRecordedFigureIsReproduced()
    {
        var worst = new Comparison();
        int cases = 0;
        foreach (var (name, root) in Files())
        {
            if (root is not JsonArray records || records.Count == 0 || records[0] is not JsonObject first || !first.ContainsKey("scores"))
                continue;
            for (int i = 0; i < records.Count; i++)
            {
                worst.Case = $"{name}[{i}]";
                Check(records[i]!.AsObject(), worst);
                cases++;
            }
        }

        TestContext.WriteLine($"{cases} evaluations, {worst.Figures} figures, worst difference {worst.Difference:g3} ({worst.Where})");
        Assert.IsGreaterThan(0, cases, $"no recorded evaluations under {Folder}");
        Assert.IsEmpty(worst.Failures, string.Join(Environment.NewLine, worst.Failures));
    }

    // What was recorded says which task it was.
    private void Check(JsonObject record, Comparison compare)
    {
        if (record.ContainsKey("ndcg"))
            Ranking(record, compare);
        else if (record.ContainsKey("classes"))
            Multiclass(record, compare);
        else if (record.ContainsKey("Accuracy"))
            Binary(record, compare);
        else if (record.ContainsKey("RSquared"))
            Regression(record, compare);
        else
            compare.Failures.Add($"{compare.Case}: a kind of evaluation that this test does not know");
    }

    private void Multiclass(JsonObject record, Comparison compare)
    {
        int classes = record["classes"]!.GetValue<int>();
        uint[] labels = record["labels"]!.AsArray().Select(x => x!.GetValue<uint>()).ToArray();
        MultiRow[] rows = record["scores"]!.AsArray()
            .Select((scores, i) => new MultiRow { Label = labels[i], Score = Singles(scores), PredictedLabel = First(Singles(scores)) }).ToArray();
        SchemaDefinition schema = SchemaDefinition.Create(typeof(MultiRow));
        schema["Label"].ColumnType = new KeyDataViewType(typeof(uint), classes);
        schema["PredictedLabel"].ColumnType = new KeyDataViewType(typeof(uint), classes);
        schema["Score"].ColumnType = new VectorDataViewType(NumberDataViewType.Single, classes);
        int topK = record["TopKAccuracyForAllK"]?.AsArray().Count ?? 0;
        MulticlassClassificationMetrics metrics = _ml.MulticlassClassification.Evaluate(_ml.Data.LoadFromEnumerable(rows, schema), topKPredictionCount: topK);
        compare.One("MicroAccuracy", record["MicroAccuracy"], metrics.MicroAccuracy);
        compare.One("MacroAccuracy", record["MacroAccuracy"], metrics.MacroAccuracy);
        compare.One("LogLoss", record["LogLoss"], metrics.LogLoss);
        compare.One("LogLossReduction", record["LogLossReduction"], metrics.LogLossReduction);
        compare.Many("PerClassLogLoss", record["PerClassLogLoss"], metrics.PerClassLogLoss);
        compare.One("TopKAccuracy", record["TopKAccuracy"], metrics.TopKAccuracy);
        if (topK > 0)
            compare.Many("TopKAccuracyForAllK", record["TopKAccuracyForAllK"], metrics.TopKAccuracyForAllK);
        Confusion(record, metrics.ConfusionMatrix, compare);
        compare.Many("precision", record["precision"], metrics.ConfusionMatrix.PerClassPrecision);
        compare.Many("recall", record["recall"], metrics.ConfusionMatrix.PerClassRecall);
    }

    private void Binary(JsonObject record, Comparison compare)
    {
        bool[] labels = record["labels"]!.AsArray().Select(x => x!.GetValue<bool>()).ToArray();
        float[] scores = Singles(record["scores"]);
        float[] probabilities = Singles(record["probabilities"]);
        IDataView data = _ml.Data.LoadFromEnumerable(labels.Select((label, i)
            => new BinaryRow { Label = label, Score = scores[i], Probability = probabilities[i], PredictedLabel = scores[i] > 0 }).ToArray());
        CalibratedBinaryClassificationMetrics metrics = _ml.BinaryClassification.Evaluate(data);
        foreach (BinaryClassificationMetrics both in new[] { metrics, _ml.BinaryClassification.EvaluateNonCalibrated(data) })
        {
            compare.One("Accuracy", record["Accuracy"], both.Accuracy);
            compare.One("AreaUnderRocCurve", record["AreaUnderRocCurve"], both.AreaUnderRocCurve);
            compare.One("AreaUnderPrecisionRecallCurve", record["AreaUnderPrecisionRecallCurve"], both.AreaUnderPrecisionRecallCurve);
            compare.One("F1Score", record["F1Score"], both.F1Score);
            compare.One("PositivePrecision", record["PositivePrecision"], both.PositivePrecision);
            compare.One("PositiveRecall", record["PositiveRecall"], both.PositiveRecall);
            compare.One("NegativePrecision", record["NegativePrecision"], both.NegativePrecision);
            compare.One("NegativeRecall", record["NegativeRecall"], both.NegativeRecall);
            Confusion(record, both.ConfusionMatrix, compare);
        }

        compare.One("LogLoss", record["LogLoss"], metrics.LogLoss);
        compare.One("LogLossReduction", record["LogLossReduction"], metrics.LogLossReduction);
        compare.One("Entropy", record["Entropy"], metrics.Entropy);
    }

    private void Regression(JsonObject record, Comparison compare)
    {
        float[] labels = Singles(record["labels"]);
        float[] scores = Singles(record["scores"]);
        RegressionMetrics metrics = _ml.Regression.Evaluate(_ml.Data.LoadFromEnumerable(
            labels.Select((label, i) => new RegressionRow { Label = label, Score = scores[i] }).ToArray()));
        compare.One("MeanAbsoluteError", record["MeanAbsoluteError"], metrics.MeanAbsoluteError);
        compare.One("MeanSquaredError", record["MeanSquaredError"], metrics.MeanSquaredError);
        compare.One("RootMeanSquaredError", record["RootMeanSquaredError"], metrics.RootMeanSquaredError);
        compare.One("RSquared", record["RSquared"], metrics.RSquared);
        compare.One("LossFunction", record["LossFunction"], metrics.LossFunction);
    }

    private void Ranking(JsonObject record, Comparison compare)
    {
        uint[] labels = record["labels"]!.AsArray().Select(x => x!.GetValue<uint>()).ToArray();
        uint[] groups = record["groups"]!.AsArray().Select(x => x!.GetValue<uint>()).ToArray();
        float[] scores = Singles(record["scores"]);
        SchemaDefinition schema = SchemaDefinition.Create(typeof(RankingRow));
        schema["Label"].ColumnType = new KeyDataViewType(typeof(uint), Math.Max(5, labels.Max()));
        schema["GroupId"].ColumnType = new KeyDataViewType(typeof(uint), groups.Max());
        IDataView data = _ml.Data.LoadFromEnumerable(
            labels.Select((label, i) => new RankingRow { Label = label, GroupId = groups[i], Score = scores[i] }).ToArray(), schema);
        var options = new RankingEvaluatorOptions { DcgTruncationLevel = record["ndcg"]!.AsArray().Count };
        RankingMetrics metrics = _ml.Ranking.Evaluate(data, options, rowGroupColumnName: "GroupId");
        compare.Many("ndcg", record["ndcg"], metrics.NormalizedDiscountedCumulativeGains);
        compare.Many("dcg", record["dcg"], metrics.DiscountedCumulativeGains);
    }

    private static void Confusion(JsonObject record, ConfusionMatrix matrix, Comparison compare)
    {
        JsonArray rows = record["confusion"]!.AsArray();
        if (rows.Count != matrix.NumberOfClasses)
            compare.Failures.Add($"{compare.Case}: {matrix.NumberOfClasses} classes, recorded {rows.Count}");
        for (int i = 0; i < Math.Min(rows.Count, matrix.NumberOfClasses); i++)
            compare.Many($"confusion[{i}]", rows[i], matrix.Counts[i]);
    }

    private static uint First(float[] scores) => (uint)Array.IndexOf(scores, scores.Max()) + 1;

    private sealed class Comparison
    {
        public string Case { get; set; } = "";

        public List<string> Failures { get; } = [];

        public double Difference { get; private set; }

        public string Where { get; private set; } = "none";

        public int Figures { get; private set; }

        public void Many(string figure, JsonNode? recorded, IReadOnlyList<double> given)
        {
            double[] expected = Numbers(recorded);
            if (expected.Length != given.Count)
                Failures.Add($"{Case} {figure}: {given.Count} figures, recorded {expected.Length}");
            for (int i = 0; i < Math.Min(expected.Length, given.Count); i++)
                One($"{figure}[{i}]", expected[i], given[i]);
        }

        public void One(string figure, JsonNode? recorded, double given) => One(figure, Number(recorded), given);

        private void One(string figure, double expected, double given)
        {
            Figures++;
            if (expected.Equals(given))
                return;
            double difference = Math.Abs(expected - given);
            if (difference > Difference)
                (Difference, Where) = (difference, $"{Case} {figure}");

            // Also where one of the two is not a number.
            if (!(difference <= Tolerance))
                Failures.Add($"{Case} {figure}: {given:r}, recorded {expected:r}");
        }
    }

    private sealed class MultiRow
    {
        public uint Label { get; set; }

        public uint PredictedLabel { get; set; }

        public float[] Score { get; set; } = [];
    }

    private sealed class BinaryRow
    {
        public bool Label { get; set; }

        public float Score { get; set; }

        public float Probability { get; set; }

        public bool PredictedLabel { get; set; }
    }

    private sealed class RegressionRow
    {
        public float Label { get; set; }

        public float Score { get; set; }
    }

    private sealed class RankingRow
    {
        public uint Label { get; set; }

        public uint GroupId { get; set; }

        public float Score { get; set; }
    }
}
