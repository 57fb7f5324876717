// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Scoring, the same for every task: lazy, batched, in order, equal row by row.</summary>
public abstract class ScoreTests : OneThread
{
    private static readonly MLContext _ml = new(1);
    private static readonly Dictionary<string, ClassificationTransformer> _models = [];

    private protected abstract TinyTask Tiny { get; }

    // Trained once for all tests of a task.
    private ClassificationTransformer Model => _models.TryGetValue(Tiny.Name, out ClassificationTransformer? model)
        ? model
        : _models[Tiny.Name] = Tiny.Train(_ml, TinyTexts.View(_ml));

    [ClassCleanup(InheritanceBehavior.BeforeEachDerivedClass)]
    public static void Cleanup()
    {
        foreach (ClassificationTransformer model in _models.Values) model.Dispose();
        _models.Clear();
    }

    [TestMethod]
    public void NothingIsReadBeforeACursorMoves()
    {
        int read = 0;
        IEnumerable<Review> Rows()
        {
            foreach (Review row in TinyTexts.Rows(700))
            {
                read++;
                yield return row;
            }
        }

        IDataView scored = Model.Transform(_ml.Data.LoadFromEnumerable(Rows()));
        Assert.AreEqual(0, read);
        using DataViewRowCursor cursor = scored.GetRowCursor([scored.Schema["Score"]]);
        ValueGetter<VBuffer<float>> getter = cursor.GetGetter<VBuffer<float>>(scored.Schema["Score"]);
        Assert.AreEqual(0, read);
        Assert.IsTrue(cursor.MoveNext());
        // A window ahead, and the row itself; never the whole data.
        Assert.IsTrue(read is > 1 and < 700, $"{read} rows read");
        VBuffer<float> value = default;
        getter(ref value);
        Assert.AreEqual(3, value.Length);
    }

    [TestMethod]
    public void BatchesScoreAsSingleRowsDo()
    {
        Review[] rows = TinyTexts.Rows(40, seed: 9);
        float[][] batched = TinyTexts.Scores(Model, _ml.Data.LoadFromEnumerable(rows));
        using var engine = _ml.Model.CreatePredictionEngine<Review, Scores>(Model, new PredictionEngineOptions { OwnsTransformer = false });
        float[][] single = [.. rows.Select(row => engine.Predict(row).Score)];
        Assert.IsLessThan(1e-5, TinyTexts.Gap(batched, single));
        float[][] alone = [.. rows.Select(row => TinyTexts.Scores(Model, _ml.Data.LoadFromEnumerable((Review[])[row]))[0])];
        Assert.IsLessThan(1e-5, TinyTexts.Gap(batched, alone));
        foreach (float[] row in batched) Assert.AreEqual(1, row.Sum(s => (double)s), 1e-6);
    }

    [TestMethod]
    public void CursorsOfOneViewAreIndependent()
    {
        IDataView scored = Model.Transform(TinyTexts.View(_ml, 30));
        float[][] expected = TinyTexts.Scores(scored);
        DataViewSchema.Column score = scored.Schema["Score"];
        using DataViewRowCursor first = scored.GetRowCursor([score]), second = scored.GetRowCursor([score]);
        ValueGetter<VBuffer<float>> one = first.GetGetter<VBuffer<float>>(score), two = second.GetGetter<VBuffer<float>>(score);
        VBuffer<float> value = default;
        for (int i = 0; i < 20; i++)
        {
            Assert.IsTrue(first.MoveNext());
            if (i % 2 == 1) continue;
            Assert.IsTrue(second.MoveNext());
            two(ref value);
            CollectionAssert.AreEqual(expected[i / 2], value.DenseValues().ToArray(), $"second cursor, row {i / 2}");
            one(ref value);
            CollectionAssert.AreEqual(expected[i], value.DenseValues().ToArray(), $"first cursor, row {i}");
        }
    }

    [TestMethod]
    public void CursorSetsGiveEveryRowOnce()
    {
        IDataView scored = Model.Transform(TinyTexts.View(_ml, 30));
        float[][] expected = TinyTexts.Scores(scored);
        DataViewSchema.Column score = scored.Schema["Score"], id = scored.Schema["Id"];
        var seen = new SortedDictionary<int, float[]>();
        foreach (DataViewRowCursor cursor in scored.GetRowCursorSet([score, id], 4))
        {
            using (cursor)
            {
                ValueGetter<VBuffer<float>> getScore = cursor.GetGetter<VBuffer<float>>(score);
                ValueGetter<int> getId = cursor.GetGetter<int>(id);
                while (cursor.MoveNext())
                {
                    int number = 0;
                    VBuffer<float> value = default;
                    getId(ref number);
                    getScore(ref value);
                    Assert.IsTrue(seen.TryAdd(number, [.. value.DenseValues()]), $"row {number} twice");
                }
            }
        }
        TinyTexts.AreSame(expected, [.. seen.Values]);
    }

    [TestMethod]
    public void NoRowsGiveNoScores() => Assert.IsEmpty(TinyTexts.Scores(Model, _ml.Data.LoadFromEnumerable(Array.Empty<Review>())));

    [TestMethod]
    public void FiltersAndSplitsMayComeBeforeAndBehind()
    {
        IDataView data = TinyTexts.View(_ml, 40);
        float[][] all = TinyTexts.Scores(Model, data);
        Assert.IsLessThan(1e-5, TinyTexts.Gap(all[10..20], TinyTexts.Scores(Model, _ml.Data.TakeRows(_ml.Data.SkipRows(data, 10), 10))));
        TinyTexts.AreSame(all[..5], TinyTexts.Scores(_ml.Data.TakeRows(Model.Transform(data), 5)));
        IDataView shuffled = Model.Transform(_ml.Data.ShuffleRows(data, seed: 3));
        int[] order = [.. shuffled.GetColumn<int>("Id")];
        CollectionAssert.AreNotEqual(Enumerable.Range(0, 40).ToArray(), order);
        Assert.IsLessThan(1e-5, TinyTexts.Gap([.. order.Select(i => all[i])], TinyTexts.Scores(shuffled)));
        TinyTexts.AreSame(all, TinyTexts.Scores(_ml.Data.Cache(Model.Transform(data))));
    }

    [TestMethod]
    public void ADisposedTransformerSaysSo()
    {
        ClassificationTransformer model = Tiny.Train(_ml, TinyTexts.View(_ml, 12), o => o.Training.Epochs = 1);
        IDataView scored = model.Transform(TinyTexts.View(_ml, 3));
        model.Dispose();
        model.Dispose();
        var error = Assert.ThrowsExactly<ObjectDisposedException>(() => TinyTexts.Scores(scored));
        StringAssert.Contains(error.Message, "OwnsTransformer = false");
    }

    private sealed class Scores
    {
        public float[] Score { get; set; } = [];
    }
}
