// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Tasks;

// The tests that are the same for all tasks, for each of them.
namespace Microsoft.ML.Peft.Tests.TextClassification;

[TestClass]
public sealed class TextFitTests : FitTests
{
    private protected override TinyTask Tiny => TinyTask.Text;
}

[TestClass]
public sealed class TextScoreTests : ScoreTests
{
    private protected override TinyTask Tiny => TinyTask.Text;
}

[TestClass]
public sealed class TextThreadsTests : ThreadsTests
{
    private protected override TinyTask Tiny => TinyTask.Text;
}

[TestClass]
public sealed class TextModelZipTests : ModelZipTests
{
    private protected override TinyTask Tiny => TinyTask.Text;

    [TestMethod]
    public void AllSettingsComeBack()
    {
        var ml = new MLContext(1);
        IDataView data = TinyTexts.View(ml, 24);
        using TextClassificationTransformer model = ml.Peft().TextClassification(TinyTexts.Options(o =>
            (o.LabelColumnName, o.Sentence2ColumnName, o.ScoreColumnName, o.PredictedLabelColumnName, o.ProbabilityColumnName, o.MaxTokens, o.Pooling)
                = ("Good", "Title", "Odds", "Guess", "Share", 17, Pooling.Mean))).Fit(data);
        ml.Model.Save(model, data.Schema, At("model.zip"));
        using var loaded = (TextClassificationTransformer)new MLContext().Model.Load(At("model.zip"), out _);
        CollectionAssert.AreEqual(new[] { "Text", "Title" }, loaded.TextColumns.ToArray());
        Assert.AreEqual(("Odds", "Guess", "Share", 17, true), (loaded.ScoreColumn, loaded.PredictedLabelColumn, loaded.ProbabilityColumn, loaded.MaxTokens, loaded.IsBinary));
        CollectionAssert.AreEqual(model.Transform(data).Schema.Select(c => $"{c.Name} {c.Type}").ToArray(), loaded.Transform(data).Schema.Select(c => $"{c.Name} {c.Type}").ToArray());
        Assert.IsNull(loaded.Training);
    }
}

[TestClass]
public sealed class ImageFitTests : FitTests
{
    private protected override TinyTask Tiny => TinyTask.Image;
}

[TestClass]
public sealed class ImageScoreTests : ScoreTests
{
    private protected override TinyTask Tiny => TinyTask.Image;
}

[TestClass]
public sealed class ImageThreadsTests : ThreadsTests
{
    private protected override TinyTask Tiny => TinyTask.Image;
}

[TestClass]
public sealed class ImageModelZipTests : ModelZipTests
{
    private protected override TinyTask Tiny => TinyTask.Image;

    [TestMethod]
    public void AllSettingsComeBack()
    {
        var ml = new MLContext(1);
        IDataView data = TinyTexts.View(ml, 24);
        using var model = (ImageClassificationTransformer)Tiny.Fit(ml, data, o =>
        {
            (o.LabelColumnName, o.ScoreColumnName, o.PredictedLabelColumnName, o.ProbabilityColumnName, o.Pooling) = ("Good", "Odds", "Guess", "Share", Pooling.Mean);
            var own = (ImageClassificationOptions)o;
            (own.ImageSize, own.OnBadImage, own.Folder) = (20, OnBadInput.Skip, TinyMedia.Folder);
        });
        ml.Model.Save(model, data.Schema, At("model.zip"));
        using var loaded = (ImageClassificationTransformer)new MLContext().Model.Load(At("model.zip"), out _);
        Assert.AreEqual(("Image", "Odds", "Guess", "Share", (20, 20), true), (loaded.ImageColumn, loaded.ScoreColumn, loaded.PredictedLabelColumn, loaded.ProbabilityColumn, loaded.ImageSize, loaded.IsBinary));
        // Skips what it cannot read, and finds what is named without its folder.
        Review[] rows = TinyTexts.Rows(3);
        rows[0].Image = "nowhere.png";
        rows[1].Image = Path.GetFileName(rows[1].Image);
        ScoredOdds[] scored = [.. ml.Data.CreateEnumerable<ScoredOdds>(loaded.Transform(ml.Data.LoadFromEnumerable(rows)), reuseRowObject: false)];
        Assert.IsTrue(float.IsNaN(scored[0].Odds) && float.IsFinite(scored[1].Odds) && float.IsFinite(scored[2].Odds));
        Assert.AreEqual(1, loaded.SkippedImages);
    }

    private sealed class ScoredOdds
    {
        public float Odds { get; set; }
    }
}

[TestClass]
public sealed class AudioFitTests : FitTests
{
    private protected override TinyTask Tiny => TinyTask.Audio;
}

[TestClass]
public sealed class AudioScoreTests : ScoreTests
{
    private protected override TinyTask Tiny => TinyTask.Audio;
}

[TestClass]
public sealed class AudioThreadsTests : ThreadsTests
{
    private protected override TinyTask Tiny => TinyTask.Audio;
}

[TestClass]
public sealed class AudioModelZipTests : ModelZipTests
{
    private protected override TinyTask Tiny => TinyTask.Audio;
}
