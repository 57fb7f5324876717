// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Tests.Seam;
using Microsoft.ML.Transforms;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>What columns a text classifier adds, promises and annotates, beside those of the real package's trainers.</summary>
[TestClass]
public sealed class TextClassificationSchemaTests : OneThread
{
    private readonly MLContext _ml = new(1);

    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    [TestCategory("Fixtures")]
    public void KeyLabelsGiveTheColumnsOfTheRealMulticlassTrainers()
    {
        JsonNode record = Record("multiclass-trainer-output");
        string[] labels = record["rows"]!.AsArray().Select(row => Cell(row!, "Label")).Where(label => label.Length > 0).ToArray();
        Review[] rows = [.. labels.Select(label => new Review { Label = label, Text = "good film" })];
        using TextClassificationTransformer model = TinyTexts.Train(_ml, _ml.Data.LoadFromEnumerable(rows), o => o.Training.Epochs = 1);
        Compare(record, model.Transform(TinyTexts.Keyed(_ml, _ml.Data.LoadFromEnumerable(rows))), ["PredictedLabel", "Score"]);
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    public void BooleanLabelsGiveTheColumnsOfTheRealBinaryTrainers()
    {
        IDataView data = TinyTexts.View(_ml, 12);
        using TextClassificationTransformer model = Binary(data);
        Compare(Record("binary-trainer-output"), model.Transform(data), ["PredictedLabel", "Score", "Probability"]);
    }

    [TestMethod]
    public void PromisesAreKept()
    {
        IDataView data = TinyTexts.View(_ml, 12);
        var conversion = _ml.Transforms.Conversion;
        const ValueToKeyMappingEstimator.KeyOrdinality Sorted = ValueToKeyMappingEstimator.KeyOrdinality.ByValue;
        var cases = new Dictionary<string, (IEstimator<ITransformer>? Before, Action<TextClassificationOptions> Change)>
        {
            ["text key"] = (conversion.MapValueToKey("Label"), _ => { }),
            ["sorted text key"] = (conversion.MapValueToKey("Label", keyOrdinality: Sorted), _ => { }),
            ["number key"] = (conversion.MapValueToKey("Stars"), o => o.LabelColumnName = "Stars"),
            ["key of Boolean"] = (conversion.MapValueToKey("Good"), o => o.LabelColumnName = "Good"),
            ["key without values"] = (null, o => o.LabelColumnName = "Kind"),
            ["Boolean"] = (null, o => o.LabelColumnName = "Good"),
            ["pair"] = (null, o => (o.LabelColumnName, o.Sentence2ColumnName) = ("Good", "Title")),
            ["own names"] = (conversion.MapValueToKey("Target", "Label"),
                o => (o.LabelColumnName, o.ScoreColumnName, o.PredictedLabelColumnName) = ("Target", "Shares", "Guess")),
            ["own names, Boolean"] = (null, o => (o.LabelColumnName, o.ScoreColumnName, o.PredictedLabelColumnName, o.ProbabilityColumnName) = ("Good", "Odds", "Guess", "P")),
            ["output over an input"] = (conversion.MapValueToKey("Label"), o => o.PredictedLabelColumnName = "Title"),
        };
        foreach ((string name, (IEstimator<ITransformer>? before, Action<TextClassificationOptions> change)) in cases)
        {
            TextClassificationTrainer trainer = _ml.Peft().TextClassification(TinyTexts.Options(o =>
            {
                o.Training.Epochs = 1;
                change(o);
            }));
            var probe = new ShapeProbe(_ml.Transforms.CopyColumns("Probe", "Id"));
            EstimatorChain<ITransformer> pipeline = before is null
                ? new EstimatorChain<ITransformer>().Append<ITransformer>(trainer).Append<ITransformer>(probe)
                : before.Append<ITransformer>(trainer).Append<ITransformer>(probe);
            TransformerChain<ITransformer> model = pipeline.Fit(data);
            IDataView scored = model.Transform(data);
            Assert.AreEqual(model.GetOutputSchema(data.Schema).Count, scored.Schema.Count, name);
            string[] made = [.. scored.Schema.Where(c => !c.IsHidden && c.Name != "Probe").Select(Made).Order()];
            string[] promised = [.. probe.Seen!.Select(Promised).Order()];
            CollectionAssert.AreEqual(made, promised, $"{name}: made\n{string.Join('\n', made)}\npromised\n{string.Join('\n', promised)}");
            foreach (IDisposable part in model.OfType<IDisposable>()) part.Dispose();
        }
    }

    [TestMethod]
    public void SlotNamesAreTheLabels()
    {
        IDataView data = TinyTexts.View(_ml, 12);
        using TextClassificationTransformer model = TinyTexts.Train(_ml, data);
        DataViewSchema.Column score = model.Transform(data).Schema["Score"], predicted = model.Transform(data).Schema["PredictedLabel"];
        VBuffer<ReadOnlyMemory<char>> names = default, values = default;
        score.GetSlotNames(ref names);
        predicted.GetKeyValues(ref values);
        string[] expected = ["praise", "blame", "wonder"];
        CollectionAssert.AreEqual(expected, names.DenseValues().Select(n => n.ToString()).ToArray());
        CollectionAssert.AreEqual(expected, values.DenseValues().Select(n => n.ToString()).ToArray());
        CollectionAssert.AreEqual(expected, model.Labels.ToArray());
        Assert.IsTrue(score.HasSlotNames());
    }

    [TestMethod]
    public void NumbersAsKeyValuesComeBack()
    {
        IDataView data = TinyTexts.View(_ml, 12);
        ITransformer model = _ml.Transforms.Conversion.MapValueToKey("Stars", keyOrdinality: ValueToKeyMappingEstimator.KeyOrdinality.ByValue)
            .Append(_ml.Peft().TextClassification(TinyTexts.Options(o => o.LabelColumnName = "Stars")))
            .Append(_ml.Transforms.Conversion.MapKeyToValue("PredictedLabel")).Fit(data);
        IDataView scored = model.Transform(data);
        Assert.AreEqual(NumberDataViewType.Single, scored.Schema["PredictedLabel"].Type);
        float[] labels = [1, 3, 5];
        float[] predicted = [.. scored.GetColumn<float>("PredictedLabel")];
        float[][] scores = TinyTexts.Scores(scored);
        for (int i = 0; i < predicted.Length; i++) Assert.AreEqual(labels[Array.IndexOf(scores[i], scores[i].Max())], predicted[i], $"row {i}");
    }

    [TestMethod]
    public void KeysWithoutValuesArePredictedAsKeys()
    {
        IDataView data = TinyTexts.View(_ml, 24);
        using TextClassificationTransformer model = _ml.Peft().TextClassification(TinyTexts.Options(o => o.LabelColumnName = "Kind")).Fit(data);
        IDataView scored = model.Transform(data);
        Assert.AreEqual(new KeyDataViewType(typeof(uint), 3), scored.Schema["PredictedLabel"].Type);
        Assert.IsFalse(scored.Schema["Score"].HasSlotNames());
        Assert.IsTrue(scored.GetColumn<uint>("PredictedLabel").All(k => k is >= 1 and <= 3));
        Assert.AreEqual(3, _ml.MulticlassClassification.Evaluate(scored, "Kind").PerClassLogLoss.Count);
    }

    [TestMethod]
    public void ColumnsOfTheInputStayInTheirOrder()
    {
        IDataView data = TinyTexts.Keyed(_ml, TinyTexts.View(_ml, 12));
        using TextClassificationTransformer model = TinyTexts.Train(_ml, TinyTexts.View(_ml, 12));
        IDataView scored = model.Transform(data);
        CollectionAssert.AreEqual(
            data.Schema.Select(c => $"{c.Name} {c.Type} {c.IsHidden}").Concat([$"PredictedLabel {scored.Schema["PredictedLabel"].Type} False", $"Score {scored.Schema["Score"].Type} False"]).ToArray(),
            scored.Schema.Select(c => $"{c.Name} {c.Type} {c.IsHidden}").ToArray());
        CollectionAssert.AreEqual(data.GetColumn<string>("Text").ToArray(), scored.GetColumn<string>("Text").ToArray());
        CollectionAssert.AreEqual(data.GetColumn<int>("Id").ToArray(), scored.GetColumn<int>("Id").ToArray());
    }

    [TestMethod]
    public void ASecondTrainersColumnsHaveTheirOwnSetId()
    {
        IDataView data = TinyTexts.View(_ml, 12);
        using TextClassificationTransformer first = Binary(data);
        using TextClassificationTransformer second = _ml.Peft().TextClassification(TinyTexts.Options(o =>
            (o.LabelColumnName, o.ScoreColumnName, o.PredictedLabelColumnName, o.ProbabilityColumnName) = ("Good", "Score2", "PredictedLabel2", "Probability2"))).Fit(data);
        DataViewSchema schema = second.Transform(first.Transform(data)).Schema;
        uint one = 0, two = 0;
        schema["Score"].Annotations.GetValue("ScoreColumnSetId", ref one);
        schema["Score2"].Annotations.GetValue("ScoreColumnSetId", ref two);
        Assert.AreEqual((1u, 2u), (one, two));
    }

    private TextClassificationTransformer Binary(IDataView data) =>
        _ml.Peft().TextClassification(TinyTexts.Options(o => o.LabelColumnName = "Good")).Fit(data);

    private static JsonNode Record(string name) => MlNetRecords.Files().Select(f => f.Root).OfType<JsonObject>()
        .Select(root => root[name]).First(node => node is not null)!;

    private static string Cell(JsonNode row, string column) =>
        row.AsArray().Select(cell => cell!.GetValue<string>().Split('=', 2)).First(cell => cell[0] == column)[1];

    private void Compare(JsonNode record, IDataView scored, string[] names)
    {
        foreach (string name in names)
        {
            // Of the recorded columns of a name the trainer's own is the one with a score column's annotations.
            JsonNode recorded = record["columns"]!.AsArray().Single(c =>
                (string)c!["Name"]! == name && c["annotations"]!.AsArray().Any(a => (string)a!["Name"]! == "ScoreColumnKind"))!;
            string[] expected = [.. recorded["annotations"]!.AsArray().Select(a => $"{a!["Name"]} {a["type"]} = {a["value"]}").Order()];
            DataViewSchema.Column column = scored.Schema[name];
            string[] made = [.. column.Annotations.Schema.Select(a => $"{a.Name} {a.Type} = {MlNetRecords.Show(column.Annotations, a)}").Order()];
            Assert.AreEqual((string)recorded["type"]!, column.Type.ToString(), name);
            CollectionAssert.AreEqual(expected, made, $"{name}: {string.Join("; ", made)} where {string.Join("; ", expected)} is recorded");
            TestContext.WriteLine($"{name} {column.Type}: {string.Join("; ", made)}");
        }
    }

    private static string Made(DataViewSchema.Column column)
    {
        DataViewType type = column.Type, item = (type as VectorDataViewType)?.ItemType ?? type;
        var kind = type is not VectorDataViewType vector ? SchemaShape.Column.VectorKind.Scalar
            : vector.IsKnownSize ? SchemaShape.Column.VectorKind.Vector : SchemaShape.Column.VectorKind.VariableVector;
        return $"{column.Name} {kind} {(item is KeyDataViewType key ? key.RawType.Name : item.ToString())} {item is KeyDataViewType} {string.Join(",", column.Annotations.Schema.Select(a => a.Name).Order())}";
    }

    private static string Promised(SchemaShape.Column column) =>
        $"{column.Name} {column.Kind} {column.ItemType} {column.IsKey} {string.Join(",", column.Annotations.Select(a => a.Name).Order())}";

    // Notes what the estimators before it promise.
    private sealed class ShapeProbe(IEstimator<ITransformer> last) : IEstimator<ITransformer>
    {
        public SchemaShape? Seen { get; private set; }

        public ITransformer Fit(IDataView input) => last.Fit(input);

        public SchemaShape GetOutputSchema(SchemaShape inputSchema)
        {
            Seen = inputSchema;
            return last.GetOutputSchema(inputSchema);
        }
    }
}
