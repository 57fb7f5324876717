// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Text.Json.Nodes;
using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Loading, splitting and shuffling give what the real ML.NET gave, row for row.</summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class MlNetDataTests
{
    [TestMethod]
    public void TextLoaderReadsWhatWasRecorded()
    {
        var failures = new List<string>();
        int index = 0;
        foreach (JsonNode? recorded in MlNetFixtures.Cases("text-loader.json"))
        {
            string found = Outcome(Load(recorded!));
            string expected = Outcome((recorded!["rows"]!.AsArray().Select(Describe).ToArray(), recorded["error"]?.GetValue<string>()));
            if (found != expected)
                failures.Add($"case {index}: {recorded["text"]!.ToJsonString()}\n  expected {expected}\n  found    {found}");
            index++;
        }

        Assert.IsEmpty(failures, string.Join("\n", failures));
        Console.WriteLine($"{index} text loader cases");

        static string Outcome((string[] Rows, string? Error) outcome) => outcome.Error ?? string.Join(" ", outcome.Rows);
        static string Describe(JsonNode? row) => Row(row!["Text"]!.GetValue<string>(), MlNetFixtures.Single(row["Number"]), row["Flag"]!.GetValue<bool>(),
            row["Rest"]!.AsArray().Select(MlNetFixtures.Single));
    }

    private static string Row(string text, float number, bool flag, IEnumerable<float> rest) => FormattableString.Invariant($"<{text}|{number:R}|{flag}|{string.Join(",", rest)}>");

    private static (string[] Rows, string? Error) Load(JsonNode recorded)
    {
        string file = Path.GetTempFileName();
        try
        {
            File.WriteAllText(file, recorded["text"]!.GetValue<string>());
            var ml = new MLContext(1);
            IDataView data = ml.Data.LoadFromTextFile(file, new TextLoader.Options
            {
                HasHeader = recorded["header"]!.GetValue<bool>(),
                Separators = [recorded["sep"]!.GetValue<string>()[0]],
                AllowQuoting = recorded["quoting"]!.GetValue<bool>(),
                TrimWhitespace = recorded["trim"]!.GetValue<bool>(),
                AllowSparse = recorded["sparse"]!.GetValue<bool>(),
                ReadMultilines = recorded["multiline"]!.GetValue<bool>(),
                Columns =
                [
                    new TextLoader.Column("Text", DataKind.String, 0),
                    new TextLoader.Column("Number", DataKind.Single, 1),
                    new TextLoader.Column("Flag", DataKind.Boolean, 2),
                    new TextLoader.Column("Rest", DataKind.Single, 3, 4),
                ],
            });
            return (ml.Data.CreateEnumerable<Loaded>(data, false).Select(x => Row(x.Text, x.Number, x.Flag, x.Rest)).ToArray(), null);
        }
        catch (Exception e) when (e is not AssertFailedException)
        {
            return ([], e.GetType().Name + ": " + e.Message.Replace(file, "FILE", StringComparison.Ordinal));
        }
        finally
        {
            File.Delete(file);
        }
    }

    [TestMethod]
    public void SplitsAndShufflesGiveTheRecordedRows()
    {
        int count = 0;
        foreach (JsonNode? recorded in MlNetFixtures.Cases("splits.json"))
        {
            int? seed = recorded!["contextSeed"]?.GetValue<int>();
            int n = recorded["n"]!.GetValue<int>();
            string name = $"seed {seed}, {n} rows";
            var ml = new MLContext(seed);
            IDataView data = ml.Data.LoadFromEnumerable(Enumerable.Range(0, n).Select(i => new Indexed { Index = i, Group = "g" + (i % 17) }).ToList());

            DataOperationsCatalog.TrainTestData split = new MLContext(seed).Data.TrainTestSplit(data, 0.2);
            Same(recorded, "test", split.TestSet);
            Same(recorded, "train", split.TrainSet);
            Same(recorded, "testSeed7", new MLContext(seed).Data.TrainTestSplit(data, 0.3, seed: 7).TestSet);
            Same(recorded, "testByGroup", new MLContext(seed).Data.TrainTestSplit(data, 0.3, samplingKeyColumnName: "Group").TestSet);
            Same(recorded, "shuffled", new MLContext(seed).Data.ShuffleRows(data, seed: 5));
            Same(recorded, "take3skip2", ml.Data.TakeRows(ml.Data.SkipRows(data, 2), 3));
            IReadOnlyList<DataOperationsCatalog.TrainTestData> folds = new MLContext(seed).Data.CrossValidationSplit(data, recorded["folds"]!.AsArray().Count);
            for (int fold = 0; fold < folds.Count; fold++)
                CollectionAssert.AreEqual(Indices(recorded["folds"]![fold]!), Indices(ml, folds[fold].TestSet), $"{name}: fold {fold}");
            count++;

            void Same(JsonNode expected, string what, IDataView found) => CollectionAssert.AreEqual(Indices(expected[what]!), Indices(ml, found), $"{name}: {what}");
        }

        Console.WriteLine($"{count} split cases");
    }

    [TestMethod]
    public void SplitsLeaveOutTheirHelperColumnAndKeepEveryRowOnce()
    {
        var ml = new MLContext(3);
        IDataView data = ml.Data.LoadFromEnumerable(Enumerable.Range(0, 500).Select(i => new Indexed { Index = i, Group = "g" }).ToList());
        DataOperationsCatalog.TrainTestData split = ml.Data.TrainTestSplit(data, 0.25);
        CollectionAssert.AreEqual(new[] { "Index", "Group" }, split.TestSet.Schema.Select(column => column.Name).ToArray());
        CollectionAssert.AreEqual(Enumerable.Range(0, 500).ToArray(), Indices(ml, split.TrainSet).Concat(Indices(ml, split.TestSet)).Order().ToArray());
        // The same rows again from the same views: a split is not drawn anew by each cursor.
        CollectionAssert.AreEqual(Indices(ml, split.TestSet), Indices(ml, split.TestSet));
    }

    private static int[] Indices(JsonNode recorded) => recorded.AsArray().Select(x => x!.GetValue<int>()).ToArray();

    private static int[] Indices(MLContext ml, IDataView data) => ml.Data.CreateEnumerable<Indexed>(data, false, true).Select(x => x.Index).ToArray();

    private sealed class Loaded
    {
        public string Text { get; set; } = "";

        public float Number { get; set; }

        public bool Flag { get; set; }

        [VectorType(2)]
        public float[] Rest { get; set; } = [];
    }

    private sealed class Indexed
    {
        public int Index;
        public string Group = "";
    }
}
