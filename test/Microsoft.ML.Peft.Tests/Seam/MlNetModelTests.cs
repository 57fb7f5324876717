// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Globalization;
using System.IO.Compression;
using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Models that the real ML.NET saved load, work as they did, and are saved as they were.</summary>
[TestClass]
public sealed class MlNetModelTests
{
    [TestMethod]
    [TestCategory("Fixtures")]
    public void RecordedModelsTransformAsRecorded()
    {
        JsonObject records = MlNetFixtures.Named("transforms.json");
        foreach (string zip in MlNetFixtures.Models())
        {
            string name = Path.GetFileNameWithoutExtension(zip);
            var ml = new MLContext(1);
            ITransformer model = ml.Model.Load(zip, out DataViewSchema schema);
            foreach (string suffix in new[] { "", "-unseen" })
            {
                IDataView data = ml.Data.LoadFromEnumerable(Rows(records["map-value-to-key" + suffix]!).ToList());
                Assert.AreEqual(Signature(schema), Signature(data.Schema), name + ": input schema");
                Assert.AreEqual(records[name + suffix]!.ToJsonString(), MlNetFixtures.Dump(model.Transform(data)).ToJsonString(), name + suffix);
            }
        }
    }

    // Every input row is seen in the record of a transform that keeps all of its input.
    private static IEnumerable<Input> Rows(JsonNode record)
    {
        foreach (JsonNode? row in record["rows"]!.AsArray())
        {
            var values = row!.AsArray().Select(x => x!.GetValue<string>().Split('=', 2)).ToDictionary(x => x[0], x => x[1]);
            yield return new Input
            {
                Label = values["Label"],
                X = float.Parse(values["X"], CultureInfo.InvariantCulture),
                V = values["V"].Trim(']').Split(": ")[1].Split(',').Select(x => float.Parse(x, CultureInfo.InvariantCulture)).ToArray(),
            };
        }
    }

    private static string Signature(DataViewSchema schema) => string.Join("; ", schema.Select(column => column.ToString()));

    [TestMethod]
    [TestCategory("Fixtures")]
    public void RecordedModelsAreSavedAsTheyWere()
    {
        foreach (string zip in MlNetFixtures.Models())
        {
            string name = Path.GetFileName(zip);
            var ml = new MLContext(1);
            ITransformer model = ml.Model.Load(zip, out DataViewSchema schema);
            using var saved = new MemoryStream();
            ml.Model.Save(model, schema, saved);
            var expected = Entries(File.OpenRead(zip));
            var found = Entries(saved);
            CollectionAssert.AreEqual(expected.Keys.ToArray(), found.Keys.ToArray(), name + ": entries in order");
            foreach ((string entry, byte[] bytes) in expected)
            {
                if (entry.EndsWith("Model.key", StringComparison.Ordinal))
                    Assert.AreEqual(Convert.ToHexString(WithoutAssembly(bytes)), Convert.ToHexString(WithoutAssembly(found[entry])), $"{name}: {entry}");
                else if (entry != "TrainingInfo/Version.txt")
                    CollectionAssert.AreEqual(bytes, found[entry], $"{name}: {entry}");
            }
        }
    }

    private static Dictionary<string, byte[]> Entries(Stream stream)
    {
        using var archive = new ZipArchive(stream, ZipArchiveMode.Read);
        return archive.Entries.ToDictionary(entry => entry.FullName, entry =>
        {
            using Stream source = entry.Open();
            using var target = new MemoryStream();
            source.CopyTo(target);
            return target.ToArray();
        });
    }

    // A model names its loader's assembly with version and key, which differ between builds: only the simple name counts here.
    private static byte[] WithoutAssembly(byte[] model)
    {
        const int TailOffset = 0x80, LimitOffset = 0x88, NameOffset = 0x90, NameSizeOffset = 0x98;
        int at = (int)BitConverter.ToInt64(model, NameOffset);
        int size = BitConverter.ToInt32(model, NameSizeOffset);
        byte[] name = Encoding.Unicode.GetBytes(Encoding.Unicode.GetString(model, at, size).Split(',')[0]);
        byte[] result = [.. model[..at], .. name, .. model[(at + size)..]];
        foreach (int offset in new[] { TailOffset, LimitOffset, NameSizeOffset })
            Array.Clear(result, offset, offset == NameSizeOffset ? sizeof(int) : sizeof(long));
        return result;
    }

    [TestMethod]
    public void SchemasSurviveSavingWithAnnotationsHiddenColumnsAndKeys()
    {
        var ml = new MLContext(1);
        var annotations = new DataViewSchema.Annotations.Builder();
        annotations.Add("SlotNames", new VectorDataViewType(TextDataViewType.Instance, 3),
            (ref VBuffer<ReadOnlyMemory<char>> value) => value = new VBuffer<ReadOnlyMemory<char>>(3, new[] { "eins".AsMemory(), default, "漢".AsMemory() }));
        annotations.AddPrimitiveValue("IsNormalized", BooleanDataViewType.Instance, true);
        annotations.AddPrimitiveValue("ScoreColumnSetId", new KeyDataViewType(typeof(uint), 7), 3u);
        annotations.AddPrimitiveValue("Weight", NumberDataViewType.Double, 0.25);
        annotations.Add("Sparse", new VectorDataViewType(NumberDataViewType.Single, 9),
            (ref VBuffer<float> value) => value = new VBuffer<float>(9, 2, [1.5f, -2f], [3, 8]));
        var builder = new DataViewSchema.Builder();
        builder.AddColumn("Twice", NumberDataViewType.Int16);
        builder.AddColumn("Twice", new VectorDataViewType(NumberDataViewType.Single, 3), annotations.ToAnnotations());
        builder.AddColumn("Key", new KeyDataViewType(typeof(byte), 200));
        builder.AddColumn("Matrix", new VectorDataViewType(BooleanDataViewType.Instance, 2, 5));
        builder.AddColumn("Any", new VectorDataViewType(TextDataViewType.Instance));
        builder.AddColumn("Time", DateTimeOffsetDataViewType.Instance);
        DataViewSchema schema = builder.ToSchema();

        using var stream = new MemoryStream();
        ml.Model.Save(new TransformerChain<ITransformer>(), schema, stream);
        ml.Model.Load(stream, out DataViewSchema loaded);

        Assert.AreEqual(Signature(schema), Signature(loaded));
        Assert.IsTrue(loaded[0].IsHidden);
        DataViewSchema.Annotations read = loaded[1].Annotations;
        VBuffer<ReadOnlyMemory<char>> names = default;
        read.GetValue("SlotNames", ref names);
        CollectionAssert.AreEqual(new[] { "eins", "", "漢" }, names.DenseValues().Select(x => x.ToString()).ToArray());
        bool normalized = false;
        read.GetValue("IsNormalized", ref normalized);
        uint set = 0;
        read.GetValue("ScoreColumnSetId", ref set);
        double weight = 0;
        read.GetValue("Weight", ref weight);
        VBuffer<float> sparse = default;
        read.GetValue("Sparse", ref sparse);
        Assert.AreEqual((true, 3u, 0.25, false), (normalized, set, weight, sparse.IsDense));
        CollectionAssert.AreEqual(new float[] { 0, 0, 0, 1.5f, 0, 0, 0, 0, -2 }, sparse.DenseValues().ToArray());
    }

    [TestMethod]
    public void ModelsWithALoaderReadFilesAgain()
    {
        string data = Path.GetTempFileName(), model = Path.GetTempFileName();
        try
        {
            File.WriteAllText(data, "Label;A;B\nx;1;2\ny;3;?\n");
            var ml = new MLContext(1);
            TextLoader loader = ml.Data.CreateTextLoader(
                [new TextLoader.Column("Label", DataKind.String, 0), new TextLoader.Column("Features", DataKind.Single, 1, 2)],
                separatorChar: ';', hasHeader: true, dataSample: new MultiFileSource(data));
            ITransformer fitted = ml.Transforms.Conversion.MapValueToKey("Key", "Label").Fit(loader.Load(new MultiFileSource(data)));
            ml.Model.Save(fitted, loader, model);

            ITransformer again = new MLContext(1).Model.LoadWithDataLoader(model, out IDataLoader<IMultiStreamSource> reader);
            IDataView view = again.Transform(reader.Load(new MultiFileSource(data)));
            Assert.AreEqual("Key<UInt32, 0-1>", view.Schema["Key"].Type.ToString());
            Assert.IsTrue(view.Schema["Features"].HasSlotNames());
            CollectionAssert.AreEqual(new uint[] { 1, 2 }, view.GetColumn<uint>("Key").ToArray());
            float[][] features = view.GetColumn<float[]>("Features").ToArray();
            CollectionAssert.AreEqual(new[] { 3f, float.NaN }, features[1]);
            // A model with a loader also loads as a plain model.
            Assert.IsNotNull(ml.Model.Load(model, out DataViewSchema schema));
            CollectionAssert.AreEqual(new[] { "Label", "Features" }, schema.Select(column => column.Name).ToArray());
        }
        finally
        {
            File.Delete(data);
            File.Delete(model);
        }
    }

    [TestMethod]
    public void DamagedModelsAreRefused()
    {
        var ml = new MLContext(1);
        IDataView data = ml.Data.LoadFromEnumerable(new[] { new Input { Label = "a", V = [1, 2] } });
        using var stream = new MemoryStream();
        ml.Model.Save(ml.Transforms.Conversion.MapValueToKey("Key", "Label").Fit(data), data.Schema, stream);
        byte[] whole = stream.ToArray();
        Assert.ThrowsExactly<FormatException>(() => ml.Model.Load(new MemoryStream(whole[..(whole.Length / 2)]), out _));

        // What the frame shows is refused there; a foreign signature by the component, whose error the loader wraps.
        foreach (int offset in new[] { 0, 0x0C, 0x18, 0x40, 0x80 })
        {
            using var copy = new MemoryStream();
            copy.Write(whole);
            using (var archive = new ZipArchive(copy, ZipArchiveMode.Update, leaveOpen: true))
            {
                using Stream key = archive.GetEntry("TransformerChain/Model.key")!.Open();
                key.Position = offset;
                key.Write([0x5A, 0x5A, 0x5A, 0x5A]);
            }

            copy.Position = 0;
            Exception refused = Assert.Throws<Exception>(() => ml.Model.Load(copy, out _));
            Assert.AreEqual(offset == 0x40 ? typeof(InvalidOperationException) : typeof(FormatException), refused.GetType(), $"header damaged at {offset}: {refused.Message}");
        }
    }

    private sealed class Input
    {
        public string Label = "";
        public float X;
        [VectorType(2)]
        public float[] V = [];
    }
}
