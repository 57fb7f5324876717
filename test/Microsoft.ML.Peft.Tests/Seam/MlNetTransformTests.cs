// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.IO.Compression;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Transforms;
using Microsoft.VisualStudio.TestTools.UnitTesting;
using static Microsoft.ML.Peft.Tests.Seam.MlNetRecords;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>
/// Transforms make the columns, annotations and rows that the real ML.NET was recorded to make, load its saved models,
/// and save the same ones.
/// </summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class MlNetTransformTests
{
    private const string Unseen = "-unseen";

    // Schemas that a trainer of the real package makes; ours are checked where our trainers are.
    private static readonly HashSet<string> _trainers = ["multiclass-trainer-output", "binary-trainer-output", "regression-trainer-output"];

    private readonly MLContext _ml = new(1);

    public TestContext TestContext { get; set; } = null!;

    private Dictionary<string, IEstimator<ITransformer>> Pipelines => new()
    {
        ["map-value-to-key"] = _ml.Transforms.Conversion.MapValueToKey("Key", "Label"),
        ["map-value-to-key-sorted"] = _ml.Transforms.Conversion.MapValueToKey("Key", "Label",
            keyOrdinality: ValueToKeyMappingEstimator.KeyOrdinality.ByValue, maximumNumberOfKeys: 3),
        ["map-value-to-key-annotated"] = _ml.Transforms.Conversion.MapValueToKey("Key", "Label", addKeyValueAnnotationsAsText: true),
        ["map-float-to-key"] = _ml.Transforms.Conversion.MapValueToKey("Key", "X"),
        ["round-trip"] = _ml.Transforms.Conversion.MapValueToKey("Label").Append(_ml.Transforms.Conversion.MapKeyToValue("Back", "Label")),
        ["concatenate"] = _ml.Transforms.Concatenate("Features", "X", "V").Append(_ml.Transforms.CopyColumns("Copy", "Features"))
            .Append(_ml.Transforms.DropColumns("V")),
        ["select-convert"] = _ml.Transforms.Conversion.ConvertType("D", "X", DataKind.Double).Append(_ml.Transforms.SelectColumns("D", "Label")),
    };

    [TestMethod]
    public void FittedPipelinesMakeTheRecordedColumnsAndRows()
        => EachRecord((_, pipeline, data, _) => pipeline.Fit(data));

    [TestMethod]
    public void SavedModelsOfTheRealPackageLoadAndTransformAlike()
        => EachRecord((name, _, _, _) => _ml.Model.Load(Path.Combine(Folder, name + ".zip"), out _));

    [TestMethod]
    public void OwnSavedModelsLoadAndTransformAlike()
        => EachRecord((name, pipeline, data, folder) =>
        {
            string path = Path.Combine(folder, name + ".zip");
            _ml.Model.Save(pipeline.Fit(data), data.Schema, path);
            return new MLContext().Model.Load(path, out _);
        });

    [TestMethod]
    public void OwnSavedModelsAreBuiltLikeThoseOfTheRealPackage()
        => EachRecord((name, pipeline, data, folder) =>
        {
            string path = Path.Combine(folder, name + ".zip");
            ITransformer model = pipeline.Fit(data);
            _ml.Model.Save(model, data.Schema, path);
            SortedDictionary<string, string> real = Describe(Path.Combine(Folder, name + ".zip"));
            SortedDictionary<string, string> own = Describe(path);
            CollectionAssert.AreEqual(real.Keys.ToArray(), own.Keys.ToArray(), name);
            foreach (var (entry, content) in real)
                Assert.AreEqual(content, own[entry], $"{name}: {entry}");
            return model;
        });

    [TestMethod]
    public void EstimatorsPromiseTheColumnsThatTheyMake()
        => EachRecord((name, pipeline, data, _) =>
        {
            // A chain asks its estimators for their promises before it fits them.
            var probe = new ShapeProbe(_ml.Transforms.CopyColumns("Probe", "Label"));
            ITransformer model = pipeline.Fit(data);
            pipeline.Append(probe).Fit(data);
            string[] made = model.GetOutputSchema(data.Schema).Where(column => !column.IsHidden)
                .Select(column => $"{column.Name} {ShapeOf(column.Type)} {string.Join(",", column.Annotations.Schema.Select(a => a.Name).Order())}")
                .Order().ToArray();
            string[] promised = probe.Seen!
                .Select(column => $"{column.Name} {column.Kind} {column.ItemType} {column.IsKey} {string.Join(",", column.Annotations.Select(a => a.Name).Order())}")
                .Order().ToArray();
            CollectionAssert.AreEqual(made, promised, name + Environment.NewLine + string.Join(Environment.NewLine, promised));
            return model;
        });

    private static string ShapeOf(DataViewType type)
    {
        var kind = type is not VectorDataViewType vector ? SchemaShape.Column.VectorKind.Scalar
            : vector.IsKnownSize ? SchemaShape.Column.VectorKind.Vector : SchemaShape.Column.VectorKind.VariableVector;
        DataViewType item = (type as VectorDataViewType)?.ItemType ?? type;
        return $"{kind} {(item is KeyDataViewType key ? key.RawType.Name : item.ToString())} {item is KeyDataViewType}";
    }

    private void EachRecord(Func<string, IEstimator<ITransformer>, IDataView, string, ITransformer> makeModel)
    {
        JsonObject records = Files().Select(file => file.Root).OfType<JsonObject>()
            .FirstOrDefault(root => root.Any(pair => pair.Value is JsonObject value && value.ContainsKey("columns")))!;
        Assert.IsNotNull(records, $"no recorded transforms under {Folder}");
        string folder = Directory.CreateTempSubdirectory("transforms").FullName;
        try
        {
            IDataView data = InputOf(records, "");
            IDataView unseen = InputOf(records, Unseen);
            Dictionary<string, IEstimator<ITransformer>> pipelines = Pipelines;
            var failures = new List<string>();
            foreach (string name in records.Select(pair => pair.Key).Where(name => !name.EndsWith(Unseen, StringComparison.Ordinal)))
            {
                if (_trainers.Contains(name))
                    continue;
                if (!pipelines.TryGetValue(name, out IEstimator<ITransformer>? pipeline))
                {
                    failures.Add($"{name}: a pipeline that this test does not know");
                    continue;
                }

                ITransformer model = makeModel(name, pipeline, data, folder);
                Compare(name, records[name]!, model.Transform(data), failures);
                if (records.ContainsKey(name + Unseen))
                    Compare(name + Unseen, records[name + Unseen]!, model.Transform(unseen), failures);
            }

            TestContext.WriteLine($"{records.Count} records; left to the trainers' tests: {string.Join(", ", _trainers)}");
            Assert.IsEmpty(failures, string.Join(Environment.NewLine, failures));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    // The rows that all pipelines were given are those of a record that keeps every input column.
    private IDataView InputOf(JsonObject records, string suffix)
    {
        JsonArray rows = records["map-value-to-key" + suffix]!["rows"]!.AsArray();
        return _ml.Data.LoadFromEnumerable(rows.Select(row =>
        {
            Dictionary<string, string> cells = row!.AsArray().Select(cell => cell!.GetValue<string>().Split('=', 2)).ToDictionary(x => x[0], x => x[1]);
            string vector = cells["V"][(cells["V"].IndexOf(':') + 1)..^1];
            return new Row
            {
                Label = cells["Label"],
                X = Parse(cells["X"]),
                V = vector.Split(',').Select(Parse).ToArray(),
            };
        }).ToArray());
    }

    private static float Parse(string text) => float.Parse(text, System.Globalization.CultureInfo.InvariantCulture);

    private static void Compare(string name, JsonNode record, IDataView data, List<string> failures)
    {
        string[] columns = data.Schema.Select(column => $"{column.Name} {column.Type} hidden={column.IsHidden} {{"
            + string.Join("; ", column.Annotations.Schema.Select(a => $"{a.Name} {a.Type} = {Show(column.Annotations, a)}")) + "}").ToArray();
        string[] recorded = record["columns"]!.AsArray().Select(column => $"{column!["Name"]} {column["type"]} hidden={column["IsHidden"]!.GetValue<bool>()} {{"
            + string.Join("; ", column["annotations"]!.AsArray().Select(a => $"{a!["Name"]} {a["type"]} = {a["value"]}")) + "}").ToArray();
        Same(name, "column", recorded, columns, failures);
        string[] rows = data.Preview(maxRows: 100).RowView.Select(row => string.Join(" | ", row.Values.Select(pair => $"{pair.Key}={Show(pair.Value)}"))).ToArray();
        string[] recordedRows = record["rows"]!.AsArray().Select(row => string.Join(" | ", row!.AsArray().Select(cell => cell!.GetValue<string>()))).ToArray();
        Same(name, "row", recordedRows, rows, failures);
    }

    private static void Same(string name, string what, string[] recorded, string[] made, List<string> failures)
    {
        if (recorded.Length != made.Length)
            failures.Add($"{name}: {made.Length} {what}s, recorded {recorded.Length}");
        for (int i = 0; i < Math.Min(recorded.Length, made.Length); i++)
        {
            if (recorded[i] != made[i])
                failures.Add($"{name}: {what} {i} is{Environment.NewLine}  {made[i]}{Environment.NewLine}recorded{Environment.NewLine}  {recorded[i]}");
        }
    }

    // What each entry of a model says, less the identity of the assembly that wrote it.
    private static SortedDictionary<string, string> Describe(string path)
    {
        using ZipArchive zip = ZipFile.OpenRead(path);
        var entries = new SortedDictionary<string, string>(StringComparer.Ordinal);
        foreach (ZipArchiveEntry entry in zip.Entries)
        {
            using var memory = new MemoryStream();
            using (Stream stream = entry.Open())
                stream.CopyTo(memory);
            string name = entry.FullName.Replace('\\', '/');
            entries[name] = name.EndsWith("Model.key", StringComparison.Ordinal) ? DescribeModel(memory.ToArray())
                : name.EndsWith("Version.txt", StringComparison.Ordinal) ? "any version"
                : name.EndsWith(".txt", StringComparison.Ordinal) ? System.Text.Encoding.UTF8.GetString(memory.ToArray()).ReplaceLineEndings("\n")
                : Convert.ToHexString(memory.ToArray());
        }

        return entries;
    }

    // The head of a model: signatures and versions, and where its content, its strings and its loader's assembly lie.
    private static string DescribeModel(byte[] bytes)
    {
        long At(int offset) => BitConverter.ToInt64(bytes, offset);
        string assembly = System.Text.Encoding.Unicode.GetString(bytes, (int)At(0x90), (int)At(0x98)).Split(',')[0];
        return $"{Convert.ToHexString(bytes, 0, 0x80)} {assembly} {Convert.ToHexString(bytes, 0x100, (int)At(0x90) - 0x100)}";
    }

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

    private sealed class Row
    {
        public string Label { get; set; } = "";

        public float X { get; set; }

        [VectorType(2)]
        public float[] V { get; set; } = [];
    }
}
