// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Transforms;
using Microsoft.VisualStudio.TestTools.UnitTesting;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Transforms of vectors, keys, odd types and wrong columns: as the real ML.NET does them, saved and loaded or not.</summary>
[TestClass]
public sealed class MlNetTransformEdgeTests
{
    private readonly MLContext _ml = new(1);

    private TransformsCatalog.ConversionTransforms Convert => _ml.Transforms.Conversion;

    [TestMethod]
    public void ValuesOfVectorsShareOneListOfKeys()
        => Check(Convert.MapValueToKey("O", "Words"),
            "Vector<Key<UInt32, 0-3>, 3> {KeyValues: [x y z q]}", "[1 0 2]", "[2 1 3]", "[0 0 0]", "[4 0 0]");

    [TestMethod]
    public void KeysOfUnknownValuesAreSparse()
    {
        VBuffer<uint>[] keys = Apply(Convert.MapValueToKey("O", "Words")).GetColumn<VBuffer<uint>>("O").ToArray();
        CollectionAssert.AreEqual(new[] { true, true, false, true }, keys.Select(x => x.IsDense).ToArray());
    }

    [TestMethod]
    public void TheMaximumOfKeysCutsWithinARow()
        => Check(Convert.MapValueToKey("O", "Words", maximumNumberOfKeys: 2),
            "Vector<Key<UInt32, 0-1>, 3> {KeyValues: [x y]}", "[1 0 2]", "[2 1 0]", "[0 0 0]", "[0 0 0]");

    [TestMethod]
    public void KeysOfKeysKeepWhatTheInnerKeysStandFor()
    {
        Check(Convert.MapValueToKey("O", "Key"), "Key<UInt32, 0-2> {KeyValues: [three one two]}", "1", "2", "0", "3");
        Check(Convert.MapValueToKey("O", "Keys", keyOrdinality: ValueToKeyMappingEstimator.KeyOrdinality.ByValue, addKeyValueAnnotationsAsText: true),
            "Vector<Key<UInt32, 0-2>, 3> {KeyValues: [1.5 2.5 3.5]; SlotNames: [s0  s2]}", "[1 0 3]", "[2 2 2]", "[0 0 0]", "[3 1 0]");
    }

    [TestMethod]
    public void KeyValuesMayBeWrittenAsText()
    {
        Check(Convert.MapValueToKey("O", "Real", keyOrdinality: ValueToKeyMappingEstimator.KeyOrdinality.ByValue, addKeyValueAnnotationsAsText: true),
            "Key<UInt32, 0-2> {KeyValues: [-0 2.5 1E+10]}", "2", "0", "1", "3");
        Check(Convert.MapValueToKey("O", "Flag", keyOrdinality: ValueToKeyMappingEstimator.KeyOrdinality.ByValue, addKeyValueAnnotationsAsText: true),
            "Key<UInt32, 0-1> {KeyValues: [0 1]}", "2", "1", "2", "2");
    }

    [TestMethod]
    public void KeyDataFixesTheKeys()
    {
        Check(Convert.MapValueToKey("O", "Text", keyData: Terms("Z", "", "b", "Z")), "Key<UInt32, 0-1> {KeyValues: [Z b]}", "2", "0", "0", "1");
        Check(Convert.MapValueToKey("O", "Text", keyOrdinality: ValueToKeyMappingEstimator.KeyOrdinality.ByValue, keyData: Terms("b", "a", "B")),
            "Key<UInt32, 0-2> {KeyValues: [B a b]}", "3", "2", "0", "0");
        Check(Convert.MapValueToKey("O", "Text", keyData: Terms("")), "Key<UInt32, 0-0> {}", "0", "0", "0", "0");
        Throws<ArgumentOutOfRangeException>("Input data's column must be of type 'Int32' but was 'String' (Parameter 'keyData')",
            () => Convert.MapValueToKey("O", "Number", keyData: Terms("b")).Fit(Data()));
        Throws<ArgumentOutOfRangeException>("Terms from input data type 'String' but mismatches column 'P' item type 'Int32' (Parameter 'keyData')",
            () => Convert.MapValueToKey([new InputOutputColumnPair("O", "Text"), new InputOutputColumnPair("P", "Number")], keyData: Terms("b")).Fit(Data()));
    }

    [TestMethod]
    public void KeysTurnBackIntoValuesOfTheirType()
    {
        Check(Convert.MapKeyToValue("O", "Keys"), "Vector<Single, 3> {SlotNames: [s0  s2]}", "[1.5 NaN 3.5]", "[2.5 2.5 2.5]", "[NaN NaN NaN]", "[3.5 1.5 NaN]");
        Check(Convert.MapKeyToValue("O", "Key"), "String {}", "three", "one", "", "two");
    }

    [TestMethod]
    public void ConversionsKeepWhatStillHolds()
    {
        Check(Convert.ConvertType("O", "Key", DataKind.Byte), "Key<Byte, 0-2> {KeyValues: [one two three]}", "3", "1", "0", "2");
        Check(Convert.ConvertType("O", "Flag"), "Single {IsNormalized: True}", "1", "0", "1", "1");
        Check(Convert.ConvertType("O", "Text"), "Single {}", "NaN", "NaN", "0", "NaN");
        Check(Convert.ConvertType("O", "Number", DataKind.SByte), "SByte {}", "3", "-3", "44", "3");
        Check(Convert.ConvertType("O", "Number", DataKind.String), "String {}", "3", "-3", "300", "3");
        Check(Convert.ConvertType("O", "Keys", DataKind.UInt64),
            "Vector<Key<UInt64, 0-2>, 3> {KeyValues: [1.5 2.5 3.5]; SlotNames: [s0  s2]}", "[1 0 3]", "[2 2 2]", "[0 0 0]", "[3 1 0]");
    }

    [TestMethod]
    public void ConcatenationNamesSlotsByColumn()
    {
        Check(_ml.Transforms.Concatenate("O", "Real", "Vector"),
            "Vector<Single, 4> {SlotNames: [Real Vector.f0 Vector.f1 Vector.f2]}", "[2.5 1 0 3]", "[NaN 0 0 0]", "[-0 5 0 0]", "[1E+10 5 1 2]");
        Check(_ml.Transforms.Concatenate("O", "Text", "Words", "Text"),
            "Vector<String, 5> {SlotNames: [Text    Text]}", "[b x  y b]", "[a y x z a]", "[    ]", "[Z q   Z]");
        Check(_ml.Transforms.Concatenate("O", "Vector"), "Vector<Single, 3> {SlotNames: [f0 f1 f2]}", "[1 0 3]", "[0 0 0]", "[5 0 0]", "[5 1 2]");
    }

    [TestMethod]
    public void HiddenColumnsAreKeptOnRequest()
    {
        IDataView data = _ml.Transforms.CopyColumns("Text", "Number").Append(_ml.Transforms.CopyColumns("Text", "Real")).Fit(Data()).Transform(Data());
        Assert.AreEqual("Text String True, Text Int32 True, Text Single False, Number Int32 False",
            Columns(_ml.Transforms.SelectColumns(["Text", "Number"], keepHidden: true).Fit(data).Transform(data)));
        Assert.AreEqual("Number Int32 False, Text Single False", Columns(_ml.Transforms.SelectColumns("Number", "Text").Fit(data).Transform(data)));

        static string Columns(IDataView view) => string.Join(", ", view.Schema.Select(column => $"{column.Name} {column.Type} {column.IsHidden}"));
    }

    [TestMethod]
    public void EnginesMapOneObject()
    {
        IDataView terms = Terms("a", "b");
        ITransformer model = Convert.MapValueToKey("Key", "Term").Append(Convert.MapKeyToValue("Back", "Key"))
            .Append(_ml.Transforms.Concatenate("Both", "Term", "Back")).Append(_ml.Transforms.SelectColumns("Key", "Back", "Both")).Fit(terms);
        using PredictionEngine<TermRow, EngineRow> engine = _ml.Model.CreatePredictionEngine<TermRow, EngineRow>(model);
        foreach (var (term, key, back) in new[] { ("b", 2u, "b"), ("other", 0u, ""), ("", 0u, ""), ("a", 1u, "a") })
        {
            EngineRow row = engine.Predict(new TermRow { Term = term });
            Assert.AreEqual(key, row.Key);
            Assert.AreEqual(back, row.Back);
            CollectionAssert.AreEqual(new[] { term, back }, row.Both);
        }
    }

    [TestMethod]
    public void CrossValidationScoresEveryRowOnce()
    {
        RegressionRow[] rows = Enumerable.Range(0, 40).Select(i => new RegressionRow { Label = i % 7, X = i % 5 }).ToArray();
        var folds = _ml.Regression.CrossValidate(_ml.Data.LoadFromEnumerable(rows), _ml.Transforms.CopyColumns("Score", "X"), numberOfFolds: 3);
        CollectionAssert.AreEqual(new[] { 0, 1, 2 }, folds.Select(fold => fold.Fold).ToArray());
        Assert.AreEqual(40, folds.Sum(fold => fold.ScoredHoldOutSet.GetColumn<float>("Score").Count()));
        double error = folds.Sum(fold => fold.Metrics.MeanAbsoluteError * fold.ScoredHoldOutSet.GetColumn<float>("Score").Count()) / 40;
        Assert.AreEqual(rows.Average(row => Math.Abs(row.Label - row.X)), error, 1e-9);
        Throws<ArgumentOutOfRangeException>("Must be more than 1 (Parameter 'numFolds')",
            () => _ml.Regression.CrossValidate(Data(), _ml.Transforms.CopyColumns("Score", "Real"), numberOfFolds: 1));
    }

    [TestMethod]
    public void MistakesAreNamedBeforeAndWhileFitting()
    {
        Throws<ArgumentOutOfRangeException>("Could not find input column 'Nope' (Parameter 'inputSchema')", () => _ml.Transforms.Concatenate("O", "Nope").Fit(Data()).GetOutputSchema(Data().Schema));
        Throws<ArgumentOutOfRangeException>("Could not find input column 'Nope,Other' (Parameter 'inputSchema')", () => _ml.Transforms.SelectColumns("Nope", "Text", "Other").Fit(Data()));
        Throws<ArgumentOutOfRangeException>("source column 'Real' with item type 'Single' is not compatible with destination type 'Int32' (Parameter 'inputSchema')",
            () => Convert.ConvertType("O", "Real", DataKind.Int32).Fit(Data()));
        Throws<ArgumentOutOfRangeException>("Don't know how to convert Real into Int32 (Parameter 'inputSchema')", () => InChain(Convert.ConvertType("O", "Real", DataKind.Int32)));
        Throws<ArgumentOutOfRangeException>("Schema mismatch for input column 'Text': expected KeyType, got String (Parameter 'inputSchema')", () => InChain(Convert.MapKeyToValue("O", "Text")));
        Throws<InvalidOperationException>("Column 'Key' is key. Concatenation of keys is unsupported.", () => InChain(_ml.Transforms.Concatenate("O", "Key")));
        Throws<InvalidOperationException>("Concatenated columns should have the same type. Column 'Real' has type of Single, but expected column type is Int32.",
            () => InChain(_ml.Transforms.Concatenate("O", "Number", "Real")));
        Throws<ArgumentOutOfRangeException>("Must be positive (Parameter 'MaxNumTerms')", () => Convert.MapValueToKey("O", "Text", maximumNumberOfKeys: 0).Fit(Data()));
        Throws<ArgumentOutOfRangeException>("Name of the result column 'O' specified multiple times (Parameter 'columns')",
            () => Convert.MapValueToKey([new InputOutputColumnPair("O", "Text"), new InputOutputColumnPair("O", "Number")]).Fit(Data()));
        Throws<ArgumentOutOfRangeException>("outputColumnName cannot be null or white space (Parameter 'outputColumnName')", () => Convert.MapValueToKey(" "));
        Throws<ArgumentOutOfRangeException>("Input columns not specified (Parameter 'inputColumnNames')", () => _ml.Transforms.Concatenate("O"));
        Throws<InvalidOperationException>("Neither keepColumns and dropColumns is set. Exactly one must be specified.", () => _ml.Transforms.DropColumns());

        void InChain(IEstimator<ITransformer> estimator) => new EstimatorChain<ITransformer>().Append(estimator).Fit(Data());
    }

    // The column O, as made and as made by the saved and loaded model.
    private void Check(IEstimator<ITransformer> estimator, string column, params string[] values)
    {
        ITransformer model = estimator.Fit(Data());
        using var stream = new MemoryStream();
        _ml.Model.Save(model, Data().Schema, stream);
        stream.Position = 0;
        foreach (ITransformer each in new[] { model, _ml.Model.Load(stream, out _) })
        {
            IDataView data = each.Transform(Data());
            DataViewSchema.Column made = data.Schema["O"];
            string annotations = string.Join("; ", made.Annotations.Schema.OrderBy(a => a.Name).Select(a => $"{a.Name}: {Show(AnnotationOf(made, a))}"));
            Assert.AreEqual(column, $"{made.Type} {{{annotations}}}");
            string[] found = data.Preview(100).RowView.Select(row => Show(row.Values[made.Index].Value)).ToArray();
            CollectionAssert.AreEqual(values, found, string.Join(", ", found));
        }
    }

    private IDataView Apply(IEstimator<ITransformer> estimator) => estimator.Fit(Data()).Transform(Data());

    private static object AnnotationOf(DataViewSchema.Column column, DataViewSchema.Column annotation)
    {
        if (annotation.Type is BooleanDataViewType)
            return Get<bool>();
        return annotation.Type is VectorDataViewType { ItemType: TextDataViewType } ? Get<VBuffer<ReadOnlyMemory<char>>>() : Get<VBuffer<float>>();

        T Get<T>()
        {
            T value = default!;
            column.Annotations.GetValue(annotation.Name, ref value);
            return value;
        }
    }

    private static string Show(object? value) => value switch
    {
        VBuffer<float> x => $"[{string.Join(" ", x.DenseValues().Select(y => Show(y)))}]",
        VBuffer<uint> x => $"[{string.Join(" ", x.DenseValues())}]",
        VBuffer<ulong> x => $"[{string.Join(" ", x.DenseValues())}]",
        VBuffer<ReadOnlyMemory<char>> x => $"[{string.Join(" ", x.DenseValues())}]",
        IFormattable x => x.ToString(null, System.Globalization.CultureInfo.InvariantCulture),
        _ => $"{value}",
    };

    private static void Throws<T>(string message, Action action)
        where T : Exception
        => Assert.AreEqual(message, Assert.ThrowsExactly<T>(action).Message);

    private IDataView Terms(params string[] terms) => _ml.Data.LoadFromEnumerable(terms.Select(term => new TermRow { Term = term }).ToArray());

    private IDataView Data()
    {
        SchemaDefinition schema = SchemaDefinition.Create(typeof(Row));
        schema["Key"].ColumnType = new KeyDataViewType(typeof(uint), 3);
        schema["Key"].AddAnnotation("KeyValues", Names("one", "two", "three"), new VectorDataViewType(TextDataViewType.Instance, 3));
        schema["Keys"].ColumnType = new VectorDataViewType(new KeyDataViewType(typeof(uint), 3), 3);
        schema["Keys"].AddAnnotation("KeyValues", new VBuffer<float>(3, [1.5f, 2.5f, 3.5f]), new VectorDataViewType(NumberDataViewType.Single, 3));
        schema["Keys"].AddAnnotation("SlotNames", Names("s0", "", "s2"), new VectorDataViewType(TextDataViewType.Instance, 3));
        schema["Vector"].AddAnnotation("SlotNames", Names("f0", "f1", "f2"), new VectorDataViewType(TextDataViewType.Instance, 3));
        // A key is counted from 0 in an object and from 1 in its column, but in a vector as in its column.
        return _ml.Data.LoadFromEnumerable(new Row[]
        {
            new() { Text = "b", Number = 3, Real = 2.5f, Flag = true, Key = 2, Keys = [1, 0, 3], Vector = [1, 0, 3], Words = ["x", "", "y"] },
            new() { Text = "a", Number = -3, Real = float.NaN, Flag = false, Key = 0, Keys = [2, 2, 2], Vector = [0, 0, 0], Words = ["y", "x", "z"] },
            new() { Text = "", Number = 300, Real = -0f, Flag = true, Key = 3, Keys = [0, 0, 0], Vector = [5, 0, 0], Words = ["", "", ""] },
            new() { Text = "Z", Number = 3, Real = 1e10f, Flag = true, Key = 1, Keys = [3, 1, 0], Vector = [5, 1, 2], Words = ["q", "", ""] },
        }, schema);

        static VBuffer<ReadOnlyMemory<char>> Names(params string[] names) => new(names.Length, names.Select(name => name.AsMemory()).ToArray());
    }

    private sealed class Row
    {
        public string Text { get; set; } = "";

        public int Number { get; set; }

        public float Real { get; set; }

        public bool Flag { get; set; }

        public uint Key { get; set; }

        [VectorType(3)]
        public uint[] Keys { get; set; } = [];

        [VectorType(3)]
        public float[] Vector { get; set; } = [];

        [VectorType(3)]
        public string[] Words { get; set; } = [];
    }

    private sealed class TermRow
    {
        public string Term { get; set; } = "";
    }

    private sealed class EngineRow
    {
        public uint Key { get; set; }

        public string Back { get; set; } = "";

        public string[] Both { get; set; } = [];
    }

    private sealed class RegressionRow
    {
        public float Label { get; set; }

        public float X { get; set; }
    }
}
