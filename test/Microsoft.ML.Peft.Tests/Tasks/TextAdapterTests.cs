// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Several trained classifiers over one backbone; a column names the adapter of each row.</summary>
[TestClass]
public sealed class TextAdapterTests : OneThread
{
    private sealed class RoutedReview
    {
        public string Text { get; set; } = "";

        public string Adapter { get; set; } = "";
    }

    private readonly MLContext _ml = new(1);

    private Dictionary<string, TextClassificationTransformer> Models() => new()
    {
        ["terms"] = TinyTexts.Train(_ml, TinyTexts.View(_ml)),
        ["blocks"] = TinyTexts.Train(_ml, TinyTexts.View(_ml), o => o.Method = new HoulsbyOptions { ReductionFactor = 4 }),
        ["frozen"] = TinyTexts.Train(_ml, TinyTexts.View(_ml), o => o.Method = new HeadOnlyOptions()),
    };

    private static RoutedReview[] Rows(IEnumerable<string> names) =>
        [.. TinyTexts.Rows(45, seed: 6).Zip(names.Repeat(45), (row, name) => new RoutedReview { Text = row.Text, Adapter = name })];

    [TestMethod]
    public void EachRowIsScoredByTheAdapterThatItNames()
    {
        Dictionary<string, TextClassificationTransformer> models = Models();
        using TextAdapterTransformer joined = _ml.Peft().TextClassificationByAdapter(models);
        RoutedReview[] rows = Rows(models.Keys);
        IDataView data = _ml.Data.LoadFromEnumerable(rows);
        float[][] scores = TinyTexts.Scores(joined, data);
        foreach ((string name, TextClassificationTransformer model) in models)
        {
            float[][] alone = TinyTexts.Scores(model, data);
            for (int i = 0; i < rows.Length; i++)
                if (rows[i].Adapter == name)
                    Assert.IsTrue(scores[i].Zip(alone[i], (a, b) => Math.Abs(a - b)).Max() < 1e-5, $"row {i} with {name}");
            model.Dispose();
        }
        // The joined model stands by itself, also in a zip that another context loads.
        using var zip = new MemoryStream();
        _ml.Model.Save(joined, data.Schema, zip);
        zip.Position = 0;
        using var loaded = (TextAdapterTransformer)new MLContext().Model.Load(zip, out _);
        CollectionAssert.AreEqual(joined.Adapters.ToArray(), loaded.Adapters.ToArray());
        TinyTexts.AreSame(scores, TinyTexts.Scores(loaded, data));
        using PredictionEngine<RoutedReview, Scored> engine = _ml.Model.CreatePredictionEngine<RoutedReview, Scored>(
            loaded.Append(_ml.Transforms.Conversion.MapKeyToValue("PredictedLabel").Fit(loaded.Transform(data))), new PredictionEngineOptions { OwnsTransformer = false });
        CollectionAssert.Contains(new[] { "praise", "blame", "wonder" }, engine.Predict(rows[0]).PredictedLabel);
    }

    [TestMethod]
    public void CompositionsHaveNamesThatRowsMayHold()
    {
        Dictionary<string, TextClassificationTransformer> models = Models();
        using TextClassificationTransformer second = TinyTexts.Train(new MLContext(9), TinyTexts.View(_ml), o => o.Method = new PfeifferOptions { ReductionFactor = 4 });
        models["second"] = second;
        var mixes = new Dictionary<string, Composition>
        {
            ["one after the other"] = Composition.Stack("blocks", "second"),
            ["mean"] = Composition.Average([1, 3], true, "blocks", "second"),
            ["all terms"] = Composition.Average("terms", "terms"),
        };
        using TextAdapterTransformer joined = _ml.Peft().TextClassificationByAdapter(models, compositions: mixes);
        foreach (TextClassificationTransformer model in models.Values) model.Dispose();
        CollectionAssert.AreEqual(new[] { "terms", "blocks", "frozen", "second", "one after the other", "mean", "all terms" }, joined.Adapters.ToArray());
        float[][] Scores(TextAdapterTransformer model, params string[] names) => TinyTexts.Scores(model, _ml.Data.LoadFromEnumerable(Rows(names)));
        // The mean of an adapter and itself is that adapter.
        Assert.IsLessThan(1e-5, TinyTexts.Gap(Scores(joined, "terms"), Scores(joined, "all terms")));
        Assert.IsGreaterThan(1e-6, TinyTexts.Gap(Scores(joined, "second"), Scores(joined, "one after the other")));
        float[][] mixed = Scores(joined, [.. joined.Adapters]);
        using var zip = new MemoryStream();
        _ml.Model.Save(joined, _ml.Data.LoadFromEnumerable(Rows(["terms"])).Schema, zip);
        zip.Position = 0;
        using var loaded = (TextAdapterTransformer)new MLContext().Model.Load(zip, out _);
        TinyTexts.AreSame(mixed, Scores(loaded, [.. joined.Adapters]));
        Parallel.For(0, 6, new ParallelOptions { MaxDegreeOfParallelism = 6 }, _ => TinyTexts.AreSame(mixed, Scores(loaded, [.. joined.Adapters])));
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => _ml.Peft().TextClassificationByAdapter(
            new Dictionary<string, TextClassificationTransformer>(), compositions: mixes)).Message, "no model");
    }

    [TestMethod]
    public void ThreadsScoreWhatOneDoes()
    {
        Dictionary<string, TextClassificationTransformer> models = Models();
        using TextAdapterTransformer joined = _ml.Peft().TextClassificationByAdapter(models);
        foreach (TextClassificationTransformer model in models.Values) model.Dispose();
        IDataView data = _ml.Data.LoadFromEnumerable(Rows(models.Keys));
        float[][] expected = TinyTexts.Scores(joined, data);
        long live = LiveTensors.Count();
        Parallel.For(0, 8, new ParallelOptions { MaxDegreeOfParallelism = 8 }, _ => TinyTexts.AreSame(expected, TinyTexts.Scores(joined, data)));
        Assert.AreEqual(live, LiveTensors.Count());
    }

    [TestMethod]
    public void WhatDoesNotFitIsTold()
    {
        Dictionary<string, TextClassificationTransformer> models = Models();
        using TextAdapterTransformer joined = _ml.Peft().TextClassificationByAdapter(models);
        IDataView unknown = _ml.Data.LoadFromEnumerable(Rows(["terms", "term"]));
        string message = Assert.ThrowsExactly<ArgumentException>(() => TinyTexts.Scores(joined, unknown)).Message;
        StringAssert.Contains(message, "no adapter 'term'");
        StringAssert.Contains(message, "blocks");
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => joined.Transform(TinyTexts.View(_ml)));
        Assert.ThrowsExactly<ArgumentException>(() => _ml.Peft().TextClassificationByAdapter(new Dictionary<string, TextClassificationTransformer>()));
        using TextClassificationTransformer other = TinyTexts.Train(_ml, TinyTexts.View(_ml), o => o.Sentence2ColumnName = nameof(Review.Title));
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => _ml.Peft().TextClassificationByAdapter(new Dictionary<string, TextClassificationTransformer>(models) { ["pairs"] = other })).Message, "text columns");
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => _ml.Peft().TextClassificationByAdapter(new Dictionary<string, TextClassificationTransformer> { [AdapterSet.Bare] = other })).Message, AdapterSet.Bare);
        foreach (TextClassificationTransformer model in models.Values) model.Dispose();
    }

    [TestMethod]
    public void NoTensorLeaks()
    {
        void Once()
        {
            Dictionary<string, TextClassificationTransformer> models = Models();
            using TextAdapterTransformer joined = _ml.Peft().TextClassificationByAdapter(models);
            foreach (TextClassificationTransformer model in models.Values) model.Dispose();
            TinyTexts.Scores(joined, _ml.Data.LoadFromEnumerable(Rows(models.Keys)));
        }

        Once();
        long before = LiveTensors.Count();
        Once();
        Assert.AreEqual(before, LiveTensors.Count());
    }
}

internal static class Repeating
{
    /// <summary>The items over and over, so many in all.</summary>
    public static IEnumerable<T> Repeat<T>(this IEnumerable<T> items, int count)
    {
        T[] all = [.. items];
        for (int i = 0; i < count; i++) yield return all[i % all.Length];
    }
}
