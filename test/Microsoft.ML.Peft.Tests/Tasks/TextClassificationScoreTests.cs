// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Scoring: lazy, batched, in order, the same by row; for all kinds of texts.</summary>
[TestClass]
public sealed class TextClassificationScoreTests : OneThread
{
    private static readonly MLContext _ml = new(1);
    private static readonly Lazy<TextClassificationTransformer> _model = new(() => TinyTexts.Train(_ml, TinyTexts.View(_ml)));

    private static TextClassificationTransformer Model => _model.Value;

    [ClassCleanup]
    public static void Cleanup()
    {
        if (_model.IsValueCreated) _model.Value.Dispose();
    }

    [TestMethod]
    public void APredictionEngineReadsTheRowThatItIsGiven()
    {
        using var engine = _ml.Model.CreatePredictionEngine<Review, Keyed>(Model, new PredictionEngineOptions { OwnsTransformer = false });
        Keyed one = engine.Predict(new Review { Text = "good" }), other = engine.Predict(new Review { Text = "awful awful" }), again = engine.Predict(new Review { Text = "good" });
        CollectionAssert.AreNotEqual(one.Score, other.Score);
        CollectionAssert.AreEqual(one.Score, again.Score);
        Assert.AreEqual((uint)Array.IndexOf(one.Score, one.Score.Max()) + 1, one.PredictedLabel);
        Keyed kept = one;
        engine.Predict(new Review { Text = "bad" }, ref one);
        Assert.AreSame(kept, one);
        CollectionAssert.AreNotEqual(again.Score, one.Score);
    }

    [TestMethod]
    public void EmptyAndLongAndForeignTextsAreScored()
    {
        string[] texts = ["", "   ", "good", new string('a', 5000), string.Join(' ', Enumerable.Repeat("great film", 500)), "日本語 \u0001 \ud83d\ude00", "\ud800"];
        float[][] scores = TinyTexts.Scores(Model, _ml.Data.LoadFromEnumerable(texts.Select(text => new Review { Text = text }).ToArray()));
        foreach (float[] row in scores) Assert.AreEqual(1, row.Sum(s => (double)s), 1e-6);
        Assert.IsLessThan(1e-6, TinyTexts.Gap([scores[0]], [scores[1]]));
        // Cut at MaxTokens: what comes later does not matter.
        string longer = string.Join(' ', Enumerable.Repeat("great film", 500)) + " awful";
        Assert.IsLessThan(1e-6, TinyTexts.Gap([scores[4]], TinyTexts.Scores(Model, _ml.Data.LoadFromEnumerable((Review[])[new() { Text = longer }]))));
        Assert.AreEqual(32, Model.CountTokens(longer));
        Assert.AreEqual(3, Model.CountTokens("good"));
    }

    [TestMethod]
    public void NullTextsAreEmptyTexts()
    {
        float[][] scores = TinyTexts.Scores(Model, _ml.Data.LoadFromEnumerable((Review[])[new() { Text = null! }, new() { Text = "" }]));
        CollectionAssert.AreEqual(scores[1], scores[0]);
    }

    private sealed class Keyed
    {
        [KeyType(3)]
        public uint PredictedLabel { get; set; }

        public float[] Score { get; set; } = [];
    }
}
