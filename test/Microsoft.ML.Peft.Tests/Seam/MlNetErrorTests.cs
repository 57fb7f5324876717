// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Text.Json.Nodes;
using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Common mistakes throw what the real ML.NET throws, type and message.</summary>
[TestClass]
public sealed class MlNetErrorTests
{
    private static readonly MLContext Ml = new(1);

    private static readonly IDataView Data = Ml.Data.LoadFromEnumerable(
        new[] { ("b", 1f), ("a", 2f) }.Select(x => new Row { Label = x.Item1, X = x.Item2, V = [x.Item2, -x.Item2] }).ToList());

    private static readonly Dictionary<string, Action> Mistakes = new()
    {
        ["MapValueToKey on a missing column: Fit"] = () => Ml.Transforms.Conversion.MapValueToKey("Key", "Nope").Fit(Data),
        ["MapKeyToValue on text: Fit"] = () => Ml.Transforms.Conversion.MapKeyToValue("Back", "Label").Fit(Data),
        ["Concatenate text and float: Fit"] = () => Ml.Transforms.Concatenate("Features", "X", "Label").Fit(Data).Transform(Data),
        ["Load a file that is not a zip"] = LoadNoZip,
        ["Load a missing file"] = () => Ml.Model.Load("missing.zip", out _),
        ["Evaluate without Score"] = () => Ml.MulticlassClassification.Evaluate(Data),
        ["CreatePredictionEngine with a missing input member"] = () => Ml.Model.CreatePredictionEngine<NoLabel, Keyed>(Ml.Transforms.Conversion.MapValueToKey("Key", "Label").Fit(Data)),
        ["CreatePredictionEngine with a missing output member"] = () => Ml.Model.CreatePredictionEngine<Row, WrongOutput>(Ml.Transforms.Conversion.MapValueToKey("Key", "Label").Fit(Data)),
        ["LoadFromTextFile of a missing file"] = () => Ml.Data.LoadFromTextFile<TextRow>("missing.tsv").Preview(),
        ["TrainTestSplit with fraction 0"] = () => Ml.Data.TrainTestSplit(Data, 0),
        ["TrainTestSplit with fraction 1"] = () => Ml.Data.TrainTestSplit(Data, 1),
        ["CrossValidationSplit with 1 fold"] = () => Ml.Data.CrossValidationSplit(Data, 1),
    };

    /// <summary>Mistakes that need a trainer of ML.NET's own; the library's trainers have tests of theirs.</summary>
    private static readonly string[] NotTried = ["trainer on text label: Fit"];

    [TestMethod]
    [TestCategory("Fixtures")]
    public void MistakesThrowWhatWasRecorded()
    {
        var failures = new List<string>();
        foreach (JsonNode? recorded in MlNetFixtures.Cases("errors.json"))
        {
            string what = recorded!["what"]!.GetValue<string>();
            if (NotTried.Contains(what))
            {
                Console.WriteLine("not tried, needs a trainer of ML.NET's: " + what);
                continue;
            }

            string expected = $"{recorded["type"]}: {recorded["message"]}";
            string found = Mistakes.TryGetValue(what, out Action? act) ? Outcome(act) : "unknown mistake";
            if (found != expected)
                failures.Add($"{what}\n  expected {expected}\n  found    {found}");
        }

        Assert.IsEmpty(failures, string.Join("\n", failures));
    }

    private static string Outcome(Action act)
    {
        try
        {
            act();
            return "none: ";
        }
        catch (Exception e)
        {
            return $"{e.GetType().FullName}: {e.Message.Replace(Directory.GetCurrentDirectory(), "FOLDER", StringComparison.Ordinal)}";
        }
    }

    private static void LoadNoZip()
    {
        string file = Path.GetTempFileName();
        try
        {
            File.WriteAllText(file, "not a zip");
            Ml.Model.Load(file, out _);
        }
        finally
        {
            File.Delete(file);
        }
    }

    [TestMethod]
    public void RowFiltersCheckTheirArguments()
    {
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Ml.Data.SkipRows(Data, 0));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Ml.Data.TakeRows(Data, 0));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Ml.Data.ShuffleRows(Data, shufflePoolSize: 0));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Ml.Data.FilterRowsByColumn(Data, "Label"));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Ml.Data.FilterRowsByMissingValues(Data, "Label"));
        Assert.ThrowsExactly<ArgumentNullException>(() => Ml.Data.LoadFromEnumerable<Row>(null!));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => Ml.Data.CreateEnumerable<WrongOutput>(Data, false));
    }

    private sealed class Row
    {
        public string Label = "";
        public float X;
        [VectorType(2)]
        public float[] V = [];
    }

    private sealed class NoLabel
    {
        public int Index { get; set; }

        public string Group = "";
    }

    private sealed class Keyed
    {
        public uint Key { get; set; }
    }

    private sealed class WrongOutput
    {
        public float Missing { get; set; }
    }

    private sealed class TextRow
    {
        [LoadColumn(0)]
        public string Text = "";
    }
}
