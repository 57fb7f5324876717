// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.IO.Compression;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Models through the zip: equal predictions for every method, by reference, damaged, of the future.</summary>
public abstract class ModelZipTests : OneThread
{
    private readonly MLContext _ml = new(1);
    private readonly string _folder = Directory.CreateTempSubdirectory("zips").FullName;

    private protected abstract TinyTask Tiny { get; }

    public TestContext TestContext { get; set; } = null!;

    [TestCleanup]
    public void Cleanup() => Directory.Delete(_folder, recursive: true);

    private protected string At(string name) => Path.Combine(_folder, name);

    private static Dictionary<string, PeftMethod> Methods => new()
    {
        ["lora"] = new LoraOptions { Rank = 4, Alpha = 8 },
        ["lora, dora"] = new LoraOptions { Rank = 4, UseDora = true },
        ["lora, pissa"] = new LoraOptions { Rank = 4, Init = "pissa" },
        ["lora, olora"] = new LoraOptions { Rank = 4, Init = "olora" },
        ["lora, all linear, rsLoRA, biases"] = new LoraOptions { Rank = 4, UseRsLora = true, Targets = [TargetedMethod.AllLinear], BiasMode = BiasMode.All },
        ["head-only"] = new HeadOnlyOptions(),
        ["full"] = PeftMethods.Create("full"),
        ["bitfit"] = PeftMethods.Create("bitfit"),
        ["bottleneck"] = PeftMethods.Create("bottleneck"),
        ["houlsby"] = PeftMethods.Create("houlsby"),
        ["pfeiffer"] = PeftMethods.Create("pfeiffer"),
    };

    [TestMethod]
    public void EveryMethodComesBackWithEqualBits()
    {
        IDataView data = TinyTexts.View(_ml, 24);
        foreach ((string name, PeftMethod method) in Methods)
        {
            using ClassificationTransformer model = Tiny.Train(_ml, data, o => (o.Method, o.Training.Epochs) = (method, 1));
            float[][] expected = TinyTexts.Scores(model, data);
            string first = At("first.zip"), second = At("second.zip");
            _ml.Model.Save(model, data.Schema, first);
            var fresh = new MLContext();
            using (var loaded = (ClassificationTransformer)fresh.Model.Load(first, out DataViewSchema schema))
            {
                Assert.AreEqual(data.Schema.Count, schema.Count, name);
                TinyTexts.AreSame(expected, TinyTexts.Scores(loaded, fresh.Data.LoadFromEnumerable(TinyTexts.Rows(24))), name);
                Assert.IsTrue(TinyTexts.Same(TinyTexts.Parameters(model), TinyTexts.Parameters(loaded)), name);
                Assert.AreEqual(PeftMethods.ToJson(method), PeftMethods.ToJson(loaded.Method));
                Assert.AreEqual((model.TrainableParameters, model.TotalParameters), (loaded.TrainableParameters, loaded.TotalParameters), name);
                fresh.Model.Save(loaded, schema, second);
            }
            AreEqualEntries(first, second, name);
        }
    }

    [TestMethod]
    public void LabelsOfEveryTypeComeBack()
    {
        foreach (string label in (string[])["Label", "Stars", "Kind", "Good", "Id"])
        {
            IDataView data = TinyTexts.View(_ml, 12);
            if (label != "Kind") data = _ml.Transforms.Conversion.MapValueToKey(label).Fit(data).Transform(data);
            using ClassificationTransformer model = Tiny.Fit(_ml, data, o => (o.LabelColumnName, o.Training.Epochs) = (label, 1));
            _ml.Model.Save(model, data.Schema, At("model.zip"));
            using var loaded = (ClassificationTransformer)new MLContext().Model.Load(At("model.zip"), out _);
            CollectionAssert.AreEqual(model.Labels.ToArray(), loaded.Labels.ToArray(), label);
            CollectionAssert.AreEqual(Annotations(model.Transform(data)), Annotations(loaded.Transform(data)), label);
        }

        static string[] Annotations(IDataView scored) =>
        [
            .. new[] { "PredictedLabel", "Score" }.SelectMany(name => scored.Schema[name].Annotations.Schema
                .Select(a => $"{name} {a.Name} {a.Type} {Seam.MlNetRecords.Show(scored.Schema[name].Annotations, a)}")),
        ];
    }

    [TestMethod]
    public void AChainPredictsTheSameAfterwards()
    {
        IDataView data = TinyTexts.View(_ml, 24);
        ITransformer model = Tiny.Pipeline(_ml).Fit(data);
        _ml.Model.Save(model, data.Schema, At("chain.zip"));
        var fresh = new MLContext();
        ITransformer loaded = fresh.Model.Load(At("chain.zip"), out _);
        TinyTexts.AreSame(TinyTexts.Scores(model, data), TinyTexts.Scores(loaded, data));
        using var engine = fresh.Model.CreatePredictionEngine<Review, Scored>(loaded);
        using var own = _ml.Model.CreatePredictionEngine<Review, Scored>(model);
        foreach (Review row in TinyTexts.Rows(12, seed: 8))
        {
            Scored a = own.Predict(row), b = engine.Predict(row);
            Assert.AreEqual(a.PredictedLabel, b.PredictedLabel);
            CollectionAssert.AreEqual(a.Score, b.Score);
        }
    }

    [TestMethod]
    public void ASecondProcessPredictsTheSameBits()
    {
        IDataView data = TinyTexts.View(_ml, 24);
        using ClassificationTransformer model = Tiny.Train(_ml, data);
        _ml.Model.Save(model, data.Schema, At("model.zip"));
        (int code, string output, string error) = Child.Run("Microsoft.ML.Peft.Tests", "Microsoft.ML.Peft.Tests", ["score", At("model.zip")], oneThread: true);
        Assert.AreEqual(0, code, error);
        CollectionAssert.AreEqual(TinyTexts.Scores(model, data).Select(Bits).ToArray(), output.TrimEnd('\n').Split('\n'));
    }

    /// <summary>The other process: nothing of this library has been called there before the model is loaded.</summary>
    internal static void ScoreInChild(string zip)
    {
        var ml = new MLContext();
        ITransformer model = ml.Model.Load(zip, out _);
        foreach (float[] row in TinyTexts.Scores(model, TinyTexts.View(ml, 24))) Console.WriteLine(Bits(row));
    }

    private static string Bits(float[] row) => string.Join(' ', row.Select(x => BitConverter.SingleToUInt32Bits(x).ToString("x8")));

    [TestMethod]
    public void ByReferenceTheFolderIsCheckedByItsHash()
    {
        string backbone = Directory.CreateDirectory(At("backbone")).FullName, moved = At("moved");
        Tiny.Write(backbone, 1);
        IDataView data = TinyTexts.View(_ml, 12);
        using (ClassificationTransformer model = Tiny.Train(_ml, data, o => (o.BackboneFolder, o.EmbedBackbone) = (backbone, false)))
        {
            _ml.Model.Save(model, data.Schema, At("small.zip"));
            Assert.IsLessThan(new FileInfo(Path.Combine(backbone, "model.safetensors")).Length, new FileInfo(At("small.zip")).Length);
            using var loaded = (ClassificationTransformer)new MLContext().Model.Load(At("small.zip"), out _);
            TinyTexts.AreSame(TinyTexts.Scores(model, data), TinyTexts.Scores(loaded, data));
            // Saved again it is still by reference.
            _ml.Model.Save(loaded, data.Schema, At("again.zip"));
            AreEqualEntries(At("small.zip"), At("again.zip"), "by reference");
        }

        Directory.Move(backbone, moved);
        StringAssert.Contains(Failure(At("small.zip")).Message, $"refers to the backbone folder '{backbone}', which does not exist");
        Directory.Move(moved, backbone);
        Tiny.AlterSmallFile(backbone);
        StringAssert.Contains(Failure(At("small.zip")).Message, $"not the one that the model was trained on: changed are '{Tiny.SmallFile}'");
        Tiny.Write(backbone, 2);
        StringAssert.Contains(Failure(At("small.zip")).Message, "not the one that the model was trained on: SHA-256");
        Tiny.Write(backbone, 1);
        new MLContext().Model.Load(At("small.zip"), out _);
    }

    [TestMethod]
    public void TruncatedZipsAreRefused()
    {
        byte[] whole = SavedBytes(out _);
        for (int part = 0; part < 32; part++)
        {
            File.WriteAllBytes(At("cut.zip"), whole[..(whole.Length * part / 32)]);
            Clear(Failure(At("cut.zip")), $"cut to {part}/32");
        }
        File.WriteAllBytes(At("cut.zip"), whole[..^1]);
        Clear(Failure(At("cut.zip")), "one byte short");
    }

    [TestMethod]
    public void AlteredZipsAreRefusedOrPredictTheSame()
    {
        byte[] whole = SavedBytes(out float[][] expected);
        IDataView data = TinyTexts.View(_ml, 6);
        var random = new Random(11);
        var kinds = new SortedDictionary<string, int>(StringComparer.Ordinal);
        // PEFT_ALTERATIONS asks for more of them than every build can wait for.
        int count = int.Parse(Environment.GetEnvironmentVariable("PEFT_ALTERATIONS") ?? Tiny.Alterations, CultureInfo.InvariantCulture);
        for (int i = 0; i < count; i++)
        {
            byte[] altered = [.. whole];
            int changes = 1 + (i % 3);
            for (int c = 0; c < changes; c++) altered[random.Next(altered.Length)] = (byte)random.Next(256);
            string outcome = "equal";
            try
            {
                using var stream = new MemoryStream(altered);
                ITransformer loaded = new MLContext().Model.Load(stream, out _);
                using (loaded as IDisposable) TinyTexts.AreSame(expected, TinyTexts.Scores(loaded, data), $"alteration {i}");
            }
            catch (Exception e) when (e is not AssertFailedException)
            {
                Clear(e, $"alteration {i}");
                outcome = e.GetBaseException().GetType().Name;
            }
            kinds[outcome] = kinds.GetValueOrDefault(outcome) + 1;
        }
        TestContext.WriteLine(string.Join(", ", kinds.Select(k => $"{k.Key} {k.Value}")));
        Assert.IsGreaterThan(count / 2, count - kinds.GetValueOrDefault("equal"));
    }

    [TestMethod]
    public void EveryEntryIsVouchedFor()
    {
        SavedBytes(out _);
        foreach (string name in Entries(At("whole.zip")).Keys.Where(n => !n.EndsWith("Schema", StringComparison.Ordinal) && !n.EndsWith("Version.txt", StringComparison.Ordinal)))
        {
            foreach (string change in (string[])["removed", "altered", "emptied"])
            {
                Rewrite(At("whole.zip"), At("altered.zip"), (entry, bytes) => entry != name ? bytes
                    : change == "removed" ? null : change == "emptied" ? [] : [.. bytes[..^1], (byte)(bytes[^1] ^ 1)]);
                Exception e = Failure(At("altered.zip"));
                Clear(e, $"{name} {change}");
                if (!name.EndsWith("Model.key", StringComparison.Ordinal)) StringAssert.Contains(e.Message, Path.GetFileName(name), $"{name} {change}");
            }
        }
    }

    [TestMethod]
    public void AZipOfTheFutureSaysSo()
    {
        SavedBytes(out _);
        // Words 14 and 15 of the header: version that wrote it, oldest version that reads it.
        Rewrite(At("whole.zip"), At("future.zip"), (entry, bytes) =>
        {
            if (!entry.EndsWith("Model.key", StringComparison.Ordinal)) return bytes;
            int at = bytes.AsSpan().IndexOf(System.Text.Encoding.ASCII.GetBytes(Tiny.Signature));
            Assert.IsGreaterThan(0, at);
            BitConverter.TryWriteBytes(bytes.AsSpan(at + 8), 0x00090001u);
            BitConverter.TryWriteBytes(bytes.AsSpan(at + 12), 0x00090001u);
            return bytes;
        });
        string message = Failure(At("future.zip")).Message;
        StringAssert.Contains(message, "Update the Microsoft.ML.Peft package");
        StringAssert.Contains(message, "00010001");
    }

    [TestMethod]
    public void NothingStaysAlive()
    {
        IDataView data = TinyTexts.View(_ml, 24);
        void Run()
        {
            using (ClassificationTransformer model = Tiny.Train(_ml, data, o => o.ValidationSet = TinyTexts.Keyed(_ml, data)))
            {
                TinyTexts.Scores(model, data);
                _ml.Model.Save(model, data.Schema, At("model.zip"));
                ITransformer back = _ml.Transforms.Conversion.MapKeyToValue("PredictedLabel").Fit(model.Transform(data));
                using var engine = _ml.Model.CreatePredictionEngine<Review, Scored>(
                    new TransformerChain<ITransformer>(model, back), new PredictionEngineOptions { OwnsTransformer = false });
                engine.Predict(TinyTexts.Rows(1)[0]);
            }
            using var loaded = (ClassificationTransformer)_ml.Model.Load(At("model.zip"), out _);
            TinyTexts.Scores(loaded, data);
        }

        Run();
        long before = LiveTensors.Count();
        for (int i = 0; i < 3; i++) Run();
        Assert.AreEqual(before, LiveTensors.Count());
    }

    [TestMethod]
    public void FailedTrainingAndLoadingLeaveNothingAlive()
    {
        IDataView data = TinyTexts.View(_ml, 12);
        byte[] whole = SavedBytes(out _);
        long before = LiveTensors.Count();
        Assert.Throws<InvalidOperationException>(() => Tiny.Train(_ml, data, o => o.Training.LearningRate = 1e30));
        Assert.Throws<ArgumentException>(() => Tiny.Train(_ml, data, o => o.Method = new LoraOptions { Targets = ["no.such.module"] }));
        for (int i = 0; i < 16; i++)
        {
            byte[] altered = [.. whole];
            altered[whole.Length * (i + 1) / 18] ^= 0x55;
            try
            {
                using var stream = new MemoryStream(altered);
                (_ml.Model.Load(stream, out _) as IDisposable)?.Dispose();
            }
            catch (Exception e)
            {
                Clear(e, $"alteration {i}");
            }
        }
        Assert.AreEqual(before, LiveTensors.Count());
    }

    private byte[] SavedBytes(out float[][] scores)
    {
        IDataView data = TinyTexts.View(_ml, 6);
        using ClassificationTransformer model = Tiny.Train(_ml, TinyTexts.View(_ml, 24), o => o.Training.Epochs = 1);
        scores = TinyTexts.Scores(model, data);
        _ml.Model.Save(model, data.Schema, At("whole.zip"));
        return File.ReadAllBytes(At("whole.zip"));
    }

    // ML.NET makes transformers through reflection, which wraps what they throw.
    private static Exception Failure(string path) => Assert.Throws<Exception>(() => new MLContext().Model.Load(path, out _)) is var thrown
        && thrown is System.Reflection.TargetInvocationException { InnerException: { } cause } ? cause : thrown;

    // Clear: an exception that speaks of the file, not one of a slip in the code; and with a message.
    private static void Clear(Exception e, string what)
    {
        Exception cause = e.GetBaseException();
        Assert.IsFalse(cause is NullReferenceException or IndexOutOfRangeException or InvalidCastException or OutOfMemoryException or AccessViolationException
            or System.Runtime.InteropServices.SEHException, $"{what}: {e}");
        Assert.IsFalse(string.IsNullOrWhiteSpace(cause.Message), what);
    }

    private static SortedDictionary<string, byte[]> Entries(string path)
    {
        var entries = new SortedDictionary<string, byte[]>(StringComparer.Ordinal);
        using ZipArchive zip = ZipFile.OpenRead(path);
        foreach (ZipArchiveEntry entry in zip.Entries)
        {
            using var memory = new MemoryStream();
            using (Stream stream = entry.Open()) stream.CopyTo(memory);
            entries[entry.FullName.Replace('\\', '/')] = memory.ToArray();
        }
        return entries;
    }

    private static void AreEqualEntries(string first, string second, string what)
    {
        SortedDictionary<string, byte[]> a = Entries(first), b = Entries(second);
        CollectionAssert.AreEqual(a.Keys.ToArray(), b.Keys.ToArray(), what);
        foreach (string name in a.Keys) CollectionAssert.AreEqual(a[name], b[name], $"{what}: {name}");
    }

    private static void Rewrite(string source, string target, Func<string, byte[], byte[]?> change)
    {
        File.Delete(target);
        using ZipArchive from = ZipFile.OpenRead(source), to = ZipFile.Open(target, ZipArchiveMode.Create);
        foreach (ZipArchiveEntry entry in from.Entries)
        {
            using var memory = new MemoryStream();
            using (Stream stream = entry.Open()) stream.CopyTo(memory);
            if (change(entry.FullName, memory.ToArray()) is not { } bytes) continue;
            using Stream written = to.CreateEntry(entry.FullName).Open();
            written.Write(bytes);
        }
    }
}
