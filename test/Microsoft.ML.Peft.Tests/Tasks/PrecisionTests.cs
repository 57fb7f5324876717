// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>In what numbers a transformer scores: near float32, told by the user, no part of what is saved.</summary>
[TestClass]
public sealed class PrecisionTests : OneThread
{
    private readonly MLContext _ml = new(1);

    private static IEnumerable<Precision> All => Enum.GetValues<Precision>();

    /// <summary>How far probabilities of the tiny networks, whose weights are random, may be from those of float32.</summary>
    private static double Allowed(Precision precision) => precision == Precision.Float32 ? 0 : 0.05;

    private static bool Differs(Precision precision) => precision is Precision.Int8Frozen || (precision == Precision.BFloat16 && NativeKernels.HasBFloat16);

    [TestMethod]
    [DataRow("text")]
    [DataRow("image")]
    [DataRow("audio")]
    public void EveryPrecisionScoresNearFloat32(string task)
    {
        TinyTask tiny = task == "text" ? TinyTask.Text : task == "image" ? TinyTask.Image : TinyTask.Audio;
        IDataView data = TinyTexts.View(_ml, 40);
        using ClassificationTransformer model = tiny.Train(_ml, data);
        Assert.AreEqual(Precision.Float32, model.ScoringPrecision);
        float[][] wide = TinyTexts.Scores(model, data);
        foreach (Precision precision in All)
        {
            model.ScoringPrecision = precision;
            Assert.AreEqual(precision, model.ScoringPrecision);
            float[][] narrow = TinyTexts.Scores(model, data);
            Assert.IsLessThanOrEqualTo(Allowed(precision), TinyTexts.Gap(wide, narrow), precision.ToString());
            if (Differs(precision)) Assert.IsGreaterThan(0, TinyTexts.Gap(wide, narrow), precision.ToString());
            TinyTexts.AreSame(narrow, TinyTexts.Scores(model, data), $"{precision}, again");
        }
        // Without the kernels int8 has the same steps; bfloat16 is float32.
        model.ScoringPrecision = Precision.Int8Frozen;
        float[][] steps = TinyTexts.Scores(model, data);
        bool enabled = NativeKernels.Enabled;
        try
        {
            NativeKernels.Enabled = false;
            Assert.IsLessThanOrEqualTo(0.01, TinyTexts.Gap(steps, TinyTexts.Scores(model, data)), "without kernels");
        }
        finally
        {
            NativeKernels.Enabled = enabled;
        }
        model.ScoringPrecision = Precision.Float32;
        TinyTexts.AreSame(wide, TinyTexts.Scores(model, data), "back in float32");
    }

    [TestMethod]
    public void AutoDecidesByTheFirstRowsAndSaysWhy()
    {
        using ClassificationTransformer model = TinyTask.Text.Train(_ml, TinyTexts.View(_ml));
        float[][] wide = TinyTexts.Scores(model, TinyTexts.View(_ml, 60));
        model.ScoringPrecision = Precision.Auto;
        float[][] few = TinyTexts.Scores(model, TinyTexts.View(_ml, 20));
        Assert.IsNull(model.ScoringPrecisionChoice);
        TinyTexts.AreSame(wide[..20], few, "too few rows to choose by");
        float[][] narrow = TinyTexts.Scores(model, TinyTexts.View(_ml, 60));
        PrecisionChoice choice = model.ScoringPrecisionChoice!;
        Assert.IsNotNull(choice);
        Assert.AreEqual(Precision.Auto, model.ScoringPrecision);
        Assert.AreEqual(choice.Precision, model.Model.Precision);
        Assert.AreEqual(32, choice.Rows);
        Assert.Contains($"Auto chose {choice.Precision}", choice.ToString());
        Assert.IsLessThanOrEqualTo(Allowed(choice.Precision), TinyTexts.Gap(wide, narrow));
        Assert.AreEqual(NativeKernels.On ? NativeKernels.HasBFloat16 ? 2 : 1 : 0, choice.Trials.Count + Later(choice));
        model.ScoringPrecision = Precision.BFloat16;
        Assert.IsNull(model.ScoringPrecisionChoice);
    }

    // Those slower than what was chosen are not tried.
    private static int Later(PrecisionChoice choice) =>
        choice.Precision != Precision.Float32 && choice.Trials.Count == 1 && NativeKernels.HasBFloat16 ? 1 : 0;

    [TestMethod]
    [DataRow(0.0, 1.0)]
    [DataRow(0.05, 1.0)]
    [DataRow(0.3, 0.75)]
    public void AutoMeasuresScoresAgainstTheirSpread(double off, double agreement)
    {
        float[][] wide = [[1, -1], [-1, 1], [1, -1], [-1, 1]], narrow = [.. wide.Select(r => r.ToArray())];
        for (int row = 0; row < 4; row++) narrow[row][0] += (float)(row % 2 == 0 ? off : -off);
        if (agreement < 1) narrow[3] = [1, 0.5f];
        (double deviation, double same) = PrecisionChoice.Compare(wide, narrow);
        if (agreement == 1) Assert.AreEqual(off / Math.Sqrt(2), deviation, 1e-6);
        else Assert.IsGreaterThan(off / Math.Sqrt(2), deviation);
        Assert.AreEqual(agreement, same);
        Assert.AreEqual(double.PositiveInfinity, PrecisionChoice.Compare([[float.NaN, float.NaN]], [[1, 2]]).Deviation);
        narrow[0][0] = float.NaN;
        Assert.AreEqual(double.PositiveInfinity, PrecisionChoice.Compare(wide, narrow).Deviation);
    }

    [TestMethod]
    public void AModelIsGivenADefinitePrecision()
    {
        using ClassificationTransformer model = TinyTask.Text.Train(_ml, TinyTexts.View(_ml, 12));
        Assert.Contains("chosen by a trainer or a transformer", Assert.ThrowsExactly<ArgumentException>(() => model.Model.Precision = Precision.Auto).Message);
    }

    [TestMethod]
    public void TheModelZipDoesNotKnowThePrecision()
    {
        IDataView data = TinyTexts.View(_ml, 24);
        byte[]? expected = null;
        foreach (Precision precision in All)
        {
            using ClassificationTransformer model = TinyTask.Text.Train(_ml, data, o => o.ScoringPrecision = precision);
            Assert.AreEqual(precision, model.ScoringPrecision);
            float[][] scores = TinyTexts.Scores(model, data);
            using var zip = new MemoryStream();
            _ml.Model.Save(model, data.Schema, zip);
            using var loaded = (ClassificationTransformer)new MLContext().Model.Load(zip, out _);
            Assert.AreEqual(Precision.Float32, loaded.ScoringPrecision);
            byte[] trained = [.. TinyTexts.Parameters(loaded).Values.SelectMany(v => v.SelectMany(BitConverter.GetBytes))];
            CollectionAssert.AreEqual(expected ??= trained, trained, precision.ToString());
            _ml.Peft().SetScoringPrecision(loaded, precision);
            TinyTexts.AreSame(scores, TinyTexts.Scores(loaded, data), precision.ToString());
        }
    }

    [TestMethod]
    public void AChainIsToldAsAWhole()
    {
        IDataView data = TinyTexts.View(_ml, 24);
        ITransformer chain = TinyTask.Text.Pipeline(_ml).Fit(data);
        ClassificationTransformer inner = ((IEnumerable<ITransformer>)chain).OfType<ClassificationTransformer>().Single();
        _ml.Peft().SetScoringPrecision(chain, Precision.BFloat16);
        Assert.AreEqual(Precision.BFloat16, inner.ScoringPrecision);
        inner.Dispose();
    }

    [TestMethod]
    public void AdaptersARowHaveAPrecisionToo()
    {
        using TextClassificationTransformer first = TinyTexts.Train(_ml, TinyTexts.View(_ml)), second = TinyTexts.Train(_ml, TinyTexts.View(_ml, seed: 5));
        using TextAdapterTransformer joined = _ml.Peft().TextClassificationByAdapter(new Dictionary<string, TextClassificationTransformer> { ["a"] = first, ["b"] = second });
        IDataView data = _ml.Data.LoadFromEnumerable(TinyTexts.Rows(20).Select((row, i) => new Routed { Text = row.Text, Adapter = i % 2 == 0 ? "a" : "b" }));
        float[][] wide = TinyTexts.Scores(joined, data);
        foreach (Precision precision in All)
        {
            _ml.Peft().SetScoringPrecision(joined, precision);
            float[][] narrow = TinyTexts.Scores(joined, data);
            Assert.IsLessThanOrEqualTo(Allowed(precision), TinyTexts.Gap(wide, narrow), precision.ToString());
            if (Differs(precision)) Assert.IsGreaterThan(0, TinyTexts.Gap(wide, narrow), precision.ToString());
        }
    }

    private sealed class Routed
    {
        public string Text { get; set; } = "";

        public string Adapter { get; set; } = "";
    }

    [TestMethod]
    public void WhatIsNoPrecisionIsRefused()
    {
        using ClassificationTransformer model = TinyTask.Text.Train(_ml, TinyTexts.View(_ml, 12));
        var unknown = (Precision)99;
        foreach (Action call in (Action[])[() => model.ScoringPrecision = unknown, () => _ml.Peft().SetScoringPrecision(model, unknown)])
            Assert.Contains("allowed are Float32, BFloat16", Assert.ThrowsExactly<ArgumentOutOfRangeException>(call).Message);
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => TinyTask.Text.Trainer(_ml, o => o.ScoringPrecision = unknown));
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => TinyTask.Text.Trainer(_ml, o => o.Training.Precision = unknown));
        ITransformer other = _ml.Transforms.Conversion.MapValueToKey("Label").Fit(TinyTexts.View(_ml, 12));
        Assert.Contains("holds no transformer of this library", Assert.ThrowsExactly<ArgumentException>(() => _ml.Peft().SetScoringPrecision(other, Precision.Float32)).Message);
    }
}
