// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Text classification on decoders: train, evaluate, zip, load, predict, from folders as they are published.</summary>
[TestClass]
public sealed class DecoderClassificationTests : OneThread
{
    private readonly MLContext _ml = new(1);
    private readonly string _folder = Directory.CreateTempSubdirectory("decoders").FullName;

    [TestCleanup]
    public void Cleanup() => Directory.Delete(_folder, recursive: true);

    [TestMethod]
    [DataRow("gpt2", "transformer.h.0.attn.c_attn.lora_A.weight")]
    [DataRow("llama", "model.layers.0.self_attn.q_proj.lora_A.weight")]
    [DataRow("llama from sentencepiece", "model.layers.1.self_attn.v_proj.lora_B.weight")]
    public void TrainedSavedLoadedAndAsked(string kind, string parameter)
    {
        string backbone = TinyDecoders.Write(Path.Combine(_folder, "backbone"), kind);
        IDataView train = TinyTexts.View(_ml, 150), test = TinyTexts.View(_ml, 60, seed: 2);
        using TextClassificationTransformer model = TinyTexts.Train(_ml, train, o =>
        {
            (o.BackboneFolder, o.Method) = (backbone, new LoraOptions { Rank = 8, Alpha = 16 });
            (o.Training.Epochs, o.Training.LearningRate) = (8, 1e-2);
        });
        IDataView scored = model.Transform(TinyTexts.Keyed(_ml, test));
        Assert.IsGreaterThan(0.85, _ml.MulticlassClassification.Evaluate(scored).MicroAccuracy);
        CollectionAssert.IsSubsetOf(new[] { parameter, "score.weight" }, TinyTexts.Parameters(model).Keys.ToArray());

        string zip = Path.Combine(_folder, "model.zip");
        _ml.Model.Save(model, train.Schema, zip);
        Directory.Delete(backbone, recursive: true);
        var fresh = new MLContext();
        using var loaded = (TextClassificationTransformer)fresh.Model.Load(zip, out _);
        float[][] expected = TinyTexts.Scores(model, test);
        TinyTexts.AreSame(expected, TinyTexts.Scores(loaded, fresh.Data.LoadFromEnumerable(TinyTexts.Rows(60, seed: 2))));

        // A row by itself has no padding; what it scores is the same.
        using var engine = fresh.Model.CreatePredictionEngine<Review, RawScores>(loaded, new PredictionEngineOptions { OwnsTransformer = false });
        Review[] rows = TinyTexts.Rows(60, seed: 2);
        for (int i = 0; i < 10; i++)
            Assert.AreEqual(0, engine.Predict(rows[i]).Score.Zip(expected[i]).Max(p => Math.Abs(p.First - p.Second)), 1e-5f);
        foreach (string text in (string[])["", " ", "\ud83d\ude00 caf\u00e9 \u6211", string.Join(' ', Enumerable.Repeat("very", 300))])
            Assert.AreEqual(1, engine.Predict(new Review { Text = text }).Score.Sum(), 1e-5f, $"'{text}'");
    }

    [TestMethod]
    [DataRow("gpt2")]
    [DataRow("llama")]
    public void PairsAndMeansAreRead(string kind)
    {
        string backbone = TinyDecoders.Write(Path.Combine(_folder, "backbone"), kind);
        IDataView data = TinyTexts.View(_ml, 24);
        using TextClassificationTransformer model = TinyTexts.Train(_ml, data, o =>
            (o.BackboneFolder, o.Sentence2ColumnName, o.Pooling, o.Training.Epochs) = (backbone, "Title", Pooling.Mean, 1));
        Assert.IsTrue(TinyTexts.Scores(model, data).All(row => row.All(float.IsFinite)));
        CollectionAssert.Contains(TinyTexts.Parameters(model).Keys.ToArray(), "classifier.bias");
        var e = Assert.ThrowsExactly<ArgumentException>(() => TinyTexts.Train(_ml, data, o => (o.BackboneFolder, o.Pooling) = (backbone, Pooling.FirstToken)));
        StringAssert.Contains(e.Message, "sees nothing of the text");
    }

    [TestMethod]
    public void ADeeperStackOfTheSameLayersComesBack()
    {
        string backbone = TinyDecoders.Write(Path.Combine(_folder, "backbone"), "llama");
        IDataView data = TinyTexts.View(_ml, 24);
        using TextClassificationTransformer model = TinyTexts.Train(_ml, data, o =>
            (o.BackboneFolder, o.Method, o.Training.Epochs) = (backbone, new LoraOptions { Rank = 2, LayerReplication = [[0, 2], [1, 2], [0, 1]] }, 1));
        Assert.HasCount(4, TinyTexts.Parameters(model).Keys.Where(name => name.EndsWith("q_proj.lora_A.weight", StringComparison.Ordinal)).ToArray());
        string zip = Path.Combine(_folder, "model.zip");
        _ml.Model.Save(model, data.Schema, zip);
        using var loaded = (TextClassificationTransformer)new MLContext().Model.Load(zip, out _);
        TinyTexts.AreSame(TinyTexts.Scores(model, data), TinyTexts.Scores(loaded, data));
    }

    private sealed class RawScores
    {
        public float[] Score { get; set; } = [];
    }
}
