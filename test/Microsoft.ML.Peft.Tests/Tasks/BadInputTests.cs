// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Mistakes in data, columns, options and folders, each with a message that says what was found and what to do.</summary>
[TestClass]
public sealed class BadInputTests : OneThread
{
    private readonly MLContext _ml = new(1);

    private IDataView Data => TinyTexts.View(_ml, 12);

    private void Fails<T>(IDataView data, Action<TextClassificationOptions> change, params string[] parts) where T : Exception
    {
        long before = LiveTensors.Count();
        T error = Assert.Throws<T>(() => _ml.Peft().TextClassification(TinyTexts.Options(change)).Fit(data));
        foreach (string part in parts) StringAssert.Contains(error.Message, part);
        Assert.AreEqual(before, LiveTensors.Count(), "tensors left");
    }

    private void FailsKeyed<T>(IEnumerable<Review> rows, Action<TextClassificationOptions> change, params string[] parts) where T : Exception =>
        Fails<T>(TinyTexts.Keyed(_ml, _ml.Data.LoadFromEnumerable(rows.ToArray())), change, parts);

    [TestMethod]
    public void MissingColumnsAreNamedWithNearNames()
    {
        IDataView keyed = TinyTexts.Keyed(_ml, Data);
        Fails<ArgumentOutOfRangeException>(keyed, o => o.Sentence1ColumnName = "text", "The text column 'text' was not found", "'Text'");
        Fails<ArgumentOutOfRangeException>(keyed, o => o.Sentence2ColumnName = "Tilte", "The text column 'Tilte' was not found", "'Title'");
        Fails<ArgumentOutOfRangeException>(keyed, o => o.LabelColumnName = "Labels", "The label column 'Labels' was not found", "'Label'");
    }

    [TestMethod]
    public void ColumnsOfTheWrongTypeAreNamed()
    {
        IDataView keyed = TinyTexts.Keyed(_ml, Data);
        Fails<ArgumentOutOfRangeException>(keyed, o => o.Sentence1ColumnName = "Stars", "text column 'Stars': expected String, got Single");
        Fails<ArgumentOutOfRangeException>(Data, _ => { }, "label column 'Label': expected Key or Boolean, got String", "MapValueToKey");
        Fails<ArgumentOutOfRangeException>(Data, o => o.LabelColumnName = "Stars", "label column 'Stars': expected Key or Boolean, got Single");
        IDataView vectors = _ml.Transforms.Concatenate("Words", "Text", "Title").Fit(keyed).Transform(keyed);
        Fails<ArgumentOutOfRangeException>(vectors, o => o.Sentence1ColumnName = "Words", "text column 'Words': expected String, got Vector<String, 2>");
    }

    [TestMethod]
    public void PipelinesAreRefusedBeforeAnythingIsTrained()
    {
        void Refused(Action<TextClassificationOptions> change, params string[] parts)
        {
            IEstimator<ITransformer> pipeline = _ml.Transforms.CopyColumns("Copy", "Id").Append(_ml.Peft().TextClassification(TinyTexts.Options(change)))
                .Append(_ml.Transforms.CopyColumns("Copy2", "Id"));
            var error = Assert.Throws<ArgumentOutOfRangeException>(() => pipeline.Fit(Data));
            foreach (string part in parts) StringAssert.Contains(error.Message, part);
        }

        Refused(_ => { }, "label column 'Label': expected Key or Boolean, got String", "MapValueToKey");
        Refused(o => o.LabelColumnName = "Labels", "The label column 'Labels' was not found", "'Label'");
        Refused(o => o.Sentence1ColumnName = "Id", "text column 'Id': expected String, got Int32");
    }

    [TestMethod]
    public void ScoringWithoutTheTextIsRefused()
    {
        using TextClassificationTransformer model = TinyTexts.Train(_ml, Data, o => o.Training.Epochs = 1);
        IDataView without = _ml.Transforms.DropColumns("Text").Fit(Data).Transform(Data);
        StringAssert.Contains(Assert.Throws<ArgumentOutOfRangeException>(() => model.Transform(without)).Message, "The text column 'Text' was not found");
        Assert.Throws<ArgumentOutOfRangeException>(() => model.GetOutputSchema(without.Schema));
        Assert.Throws<ArgumentOutOfRangeException>(() => model.GetRowToRowMapper(without.Schema));
        Assert.Throws<ArgumentNullException>(() => model.Transform(null!));
        Assert.Throws<ArgumentNullException>(() => _ml.Peft().TextClassification(TinyTexts.Options()).Fit(null!));
        Assert.Throws<ArgumentNullException>(() => ((MLContext)null!).Peft());
    }

    [TestMethod]
    public void DataWithoutRowsOrWithoutAChoiceAreRefused()
    {
        Review[] rows = TinyTexts.Rows(12);
        IDataView keyed = TinyTexts.Keyed(_ml, Data);
        Fails<InvalidOperationException>(_ml.Data.SkipRows(keyed, 100), _ => { }, "The data has no rows");
        FailsKeyed<InvalidOperationException>(rows.Where(r => r.Label == "blame"), _ => { }, "All 4 rows have the same label in column 'Label'", "at least two classes");
        Fails<InvalidOperationException>(_ml.Data.LoadFromEnumerable(rows.Select(r => new Review { Text = r.Text, Good = true }).ToArray()),
            o => o.LabelColumnName = "Good", "All 12 rows have the same label in column 'Good'");
        Fails<InvalidOperationException>(keyed, o => o.ValidationSet = _ml.Data.SkipRows(keyed, 100), "no rows");
        foreach (Review row in rows) row.Text = " ";
        FailsKeyed<InvalidOperationException>(rows, _ => { }, "All 12 texts of column 'Text' are empty");
    }

    [TestMethod]
    public void MissingLabelsAreCountedAndLocated()
    {
        Review[] rows = TinyTexts.Rows(12);
        rows[5].Label = rows[7].Label = "";
        // The stand-in and the real package map an empty text to a key of its own or to none; a filter makes it missing in both.
        IDataView data = _ml.Data.LoadFromEnumerable(rows);
        ITransformer keys = _ml.Transforms.Conversion.MapValueToKey("Label").Fit(_ml.Data.LoadFromEnumerable(TinyTexts.Rows(12)));
        Fails<InvalidOperationException>(keys.Transform(data), _ => { }, "2 of 12 rows have no label (key 0) in column 'Label', the first is row 5");
        rows[5].Stars = float.NaN;
        Fails<InvalidOperationException>(_ml.Transforms.Conversion.MapValueToKey("Stars").Fit(data).Transform(data), o => o.LabelColumnName = "Stars",
            "1 of 12 rows have no label (key 0) in column 'Stars', the first is row 5");
    }

    [TestMethod]
    public void OptionsOutOfRangeAreNamed()
    {
        void Refused(Action<TextClassificationOptions> change, params string[] parts)
        {
            var error = Assert.Throws<ArgumentException>(() => _ml.Peft().TextClassification(TinyTexts.Options(change)));
            foreach (string part in parts) StringAssert.Contains(error.Message, part);
        }

        Refused(o => o.LabelColumnName = "", "LabelColumnName is empty");
        Refused(o => o.ScoreColumnName = " ", "ScoreColumnName is empty");
        Refused(o => o.Sentence1ColumnName = null!, "Sentence1ColumnName is empty");
        Refused(o => o.Sentence2ColumnName = "", "Sentence2ColumnName is empty", "null for a single text");
        Refused(o => o.ScoreColumnName = "PredictedLabel", "each needs a name of its own");
        Refused(o => o.MaxTokens = 2, "MaxTokens is 2", "at least 3");
        Refused(o => o.Method = null!, "Method is null");
        Refused(o => o.Training = null!, "Training is null");
        Refused(o => o.Pooling = (Pooling)9, "Pooling is 9", "Mean");
        Refused(o => o.Training.BatchSize = 0, "BatchSize is 0");
        Refused(o => o.Training.LearningRate = double.NaN, "LearningRate is NaN", "above 0");
        Refused(o => o.Training.Resume = true, "Resume needs a CheckpointFolder");
        Refused(o => o.Method = new LoraOptions { Rank = 0 }, "Rank is 0");
        Refused(o => o.Method = new LoraOptions { Dropout = 1.5 }, "Dropout is 1.5");
        Refused(o => (o.BackboneFolder, o.EmbedBackbone) = (null, false), "EmbedBackbone is false, but no BackboneFolder is named");
        Assert.Throws<ArgumentNullException>(() => _ml.Peft().TextClassification((TextClassificationOptions)null!));
        StringAssert.Contains(Assert.Throws<ArgumentException>(() => _ml.Peft().LoraTextClassification(rank: -1)).Message, "Rank is -1");
        StringAssert.Contains(Assert.Throws<ArgumentException>(() => _ml.Peft().LoraTextClassification(maxEpochs: 0)).Message, "Epochs is 0");
    }

    [TestMethod]
    public void MethodsThatDoNotFitTheBackboneAreNamed()
    {
        IDataView keyed = TinyTexts.Keyed(_ml, Data);
        Fails<ArgumentException>(keyed, o => o.Method = new LoraOptions { Targets = ["q_proj"] }, "q_proj", "query");
        Fails<ArgumentException>(keyed, o => o.Method = new LoraOptions { Layers = [7] }, "No module of this bert backbone matches the default (layers: 7)");
        Fails<ArgumentException>(keyed, o => o.Training.BestMetric = "accurracy", "BestMetric 'accurracy'", "accuracy");
        Fails<ArgumentException>(keyed, o => o.Training.EarlyStoppingPatience = 1, "EarlyStoppingPatience needs validation data");
        Fails<ArgumentException>(keyed, o => o.Training.ClassWeights = [1, 2], "2", "3");
    }

    [TestMethod]
    public void FoldersThatAreNoBackboneAreNamed()
    {
        IDataView keyed = TinyTexts.Keyed(_ml, Data);
        string folder = Directory.CreateTempSubdirectory("backbones").FullName;
        try
        {
            string At(string name) => Path.Combine(folder, name);
            StringAssert.Contains(Assert.Throws<DirectoryNotFoundException>(() => _ml.Peft().LoraTextClassification(backboneFolder: At("nowhere"))).Message,
                $"BackboneFolder '{At("nowhere")}' does not exist");
            Fails<Exception>(keyed, o => o.BackboneFolder = Directory.CreateDirectory(At("empty")).FullName, "config.json");

            string pickled = TinyBert.Write(Directory.CreateDirectory(At("pickled")).FullName);
            File.Move(Path.Combine(pickled, "model.safetensors"), Path.Combine(pickled, "pytorch_model.bin"));
            Fails<CheckpointFormatException>(keyed, o => o.BackboneFolder = pickled, "pytorch_model.bin", "safetensors");

            string unknown = TinyBert.Write(Directory.CreateDirectory(At("unknown")).FullName);
            Edit(unknown, "\"bert\"", "\"bart\"");
            Fails<CheckpointFormatException>(keyed, o => o.BackboneFolder = unknown, "model_type 'bart'", "bert", "roberta");

            string larger = TinyBert.Write(Directory.CreateDirectory(At("larger")).FullName);
            Edit(larger, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
            Fails<CheckpointFormatException>(keyed, o => o.BackboneFolder = larger, "encoder.layer.2.attention.self.query.weight");

            string mute = TinyBert.Write(Directory.CreateDirectory(At("mute")).FullName);
            File.Delete(Path.Combine(mute, "vocab.txt"));
            Fails<CheckpointFormatException>(keyed, o => o.BackboneFolder = mute, "vocab.txt");

            string cut = TinyBert.Write(Directory.CreateDirectory(At("cut")).FullName);
            byte[] bytes = File.ReadAllBytes(Path.Combine(cut, "model.safetensors"));
            File.WriteAllBytes(Path.Combine(cut, "model.safetensors"), bytes[..^100]);
            Fails<CheckpointFormatException>(keyed, o => o.BackboneFolder = cut, "model.safetensors");
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }

        static void Edit(string folder, string from, string to)
        {
            string path = Path.Combine(folder, "config.json"), text = File.ReadAllText(path);
            StringAssert.Contains(text, from);
            File.WriteAllText(path, text.Replace(from, to, StringComparison.Ordinal));
        }
    }

    [TestMethod]
    public void ADivergingRunSaysWhatToDo()
    {
        IDataView keyed = TinyTexts.Keyed(_ml, TinyTexts.View(_ml));
        Fails<Peft.Training.TrainingDivergedException>(keyed, o => (o.Training.LearningRate, o.Training.MaxGradNorm, o.Training.Epochs) = (1e30, 0, 10),
            "is not finite", "Try a lower learning rate (now 1e+30)");
    }

    [TestMethod]
    public void AGpuThatIsNotThereIsNamed()
    {
        if (TorchSharp.torch.cuda.is_available()) return;
        var ml = new MLContext(1) { GpuDeviceId = 3, FallbackToCpu = false };
        StringAssert.Contains(Assert.Throws<InvalidOperationException>(() => TinyTexts.Train(ml, TinyTexts.View(ml, 12))).Message, "GpuDeviceId is 3");
        ml.FallbackToCpu = true;
        IDataView view = TinyTexts.View(ml, 12);
        using TextClassificationTransformer model = TinyTexts.Train(ml, view, o => o.Training.Epochs = 1);
        using TextAdapterTransformer joined = ml.Peft().TextClassificationByAdapter(new Dictionary<string, TextClassificationTransformer> { ["a"] = model });
        foreach (ITransformer saved in (ITransformer[])[model, joined])
        {
            using var zip = new MemoryStream();
            ml.Model.Save(saved, view.Schema, zip);
            ml.FallbackToCpu = false;
            zip.Position = 0;
            string refused = Assert.Throws<Exception>(() => ml.Model.Load(zip, out _)).GetBaseException().Message;
            StringAssert.Contains(refused, "GpuDeviceId is 3");
            Assert.IsFalse(refused.Contains("damaged"), refused);
            ml.FallbackToCpu = true;
            zip.Position = 0;
            ((IDisposable)ml.Model.Load(zip, out _)).Dispose();
        }
    }
}
