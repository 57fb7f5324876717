// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.IO.Compression;
using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>The command line as a process: training, evaluation, prediction, inspection; codes, messages, reports; killed and interrupted.</summary>
[TestClass]
public sealed class CliTests : CliRuns
{
    // A call with settings for the tiny backbone, less those that are given anew.
    private static string[] Train(string data, string model, params string[] more)
    {
        (string, string)[] usual =
        [
            ("--data", data), ("--text", "Text"), ("--label", "Label"), ("--backbone", TinyBert.Folder), ("--epochs", "2"), ("--batch", "8"),
            ("--learning-rate", "0.002"), ("--max-tokens", "32"), ("--out", model),
        ];
        return ["train", "text-classification", .. usual.Where(u => !more.Contains(u.Item1)).SelectMany(u => (string[])[u.Item1, u.Item2]), .. more];
    }

    private string Tsv(string name, IEnumerable<Review> rows)
    {
        File.WriteAllLines(At(name), ["Text\tTitle\tLabel", .. rows.Select(r => $"{r.Text}\t{r.Title}\t{r.Label}")]);
        return At(name);
    }

    [TestMethod]
    public void TrainsEvaluatesPredictsAndInspects()
    {
        string train = Tsv("train.tsv", TinyTexts.Rows(60)), test = Tsv("test.tsv", TinyTexts.Rows(30, seed: 2)), model = At("model.zip");
        Succeeds(Train(train, model, "--eval", test, "--report", At("train.json"), "--set", "rank=4", "--set", "alpha=8", "--set", "targets=query,key", "--epochs", "4"));
        JsonObject report = Json("train.json"), metrics = report["metrics"]!.AsObject();
        CollectionAssert.AreEqual(new[] { "accuracy", "macroF1", "mcc", "logLoss" }, metrics.Select(m => m.Key).ToArray());
        CollectionAssert.IsSubsetOf(
            new[] { "metrics", "trainableParameters", "totalParameters", "trainSeconds", "trainTokensPerSecond", "evalTokensPerSecond", "peakMemoryMb", "losses" },
            report.Select(m => m.Key).ToArray());
        foreach (string name in (string[])["trainSeconds", "trainTokensPerSecond", "evalTokensPerSecond", "peakMemoryMb"]) Assert.IsGreaterThan(0, (double)report[name]!, name);
        Assert.HasCount(8 * 4, report["losses"]!.AsArray());
        // Two terms of rank 4 at query and key of two layers; and the family's head.
        Assert.AreEqual((2 * 2 * 2 * 4 * TinyBert.Hidden) + Head(), (long)report["trainableParameters"]!);

        var ml = new MLContext();
        ITransformer loaded = ml.Model.Load(model, out DataViewSchema schema);
        CollectionAssert.AreEqual(new[] { "Text" }, schema.Select(c => c.Name).ToArray());
        Review[] rows = TinyTexts.Rows(30, seed: 2);
        Scored[] expected = [.. ml.Data.CreateEnumerable<Scored>(loaded.Transform(ml.Data.LoadFromEnumerable(rows)), reuseRowObject: false)];
        Assert.AreEqual(rows.Zip(expected).Count(p => p.First.Label == p.Second.PredictedLabel) / 30.0, (double)metrics["accuracy"]!, 1e-9);

        Succeeds(["evaluate", model, "--data", test, "--report", At("evaluate.json")]);
        JsonObject again = Json("evaluate.json")["metrics"]!.AsObject();
        foreach ((string name, JsonNode? value) in metrics) Assert.AreEqual((double)value!, (double)again[name]!, 1e-6, name);

        Succeeds(["predict", model, "--data", test, "--out", At("predictions.tsv"), "--scores"]);
        CheckPredictions(File.ReadAllLines(At("predictions.tsv")), rows, expected);
        (int code, string output, string error) = Peft(["predict", model, "--data", "-", "--scores"], string.Concat(rows.Select(r => r.Text + "\n")));
        Assert.AreEqual(0, code, error);
        CheckPredictions(output.TrimEnd('\n').Split('\n'), rows, expected);

        Succeeds(["predict", model, "--data", test, "--out", At("narrow.tsv"), "--scores", "--precision", "bfloat16"]);
        Assert.HasCount(rows.Length + 1, File.ReadAllLines(At("narrow.tsv")));
        if (NativeKernels.HasBFloat16) Assert.AreNotEqual(File.ReadAllText(At("predictions.tsv")), File.ReadAllText(At("narrow.tsv")));
        (code, output, error) = Peft(["predict", model, "--data", train, "--precision", "auto"]);
        Assert.AreEqual(0, code, error);
        Assert.Contains("Auto chose ", error);
        Succeeds(["evaluate", model, "--data", test, "--report", At("narrow.json"), "--precision", "int8frozen"]);
        Assert.AreEqual("Int8Frozen", (string?)Json("narrow.json")["precision"]);
        Assert.AreEqual("Float32", (string?)report["precision"]);
        Fails(2, ["evaluate", model, "--data", test, "--precision", "float8"], "float8");

        (code, output, error) = Peft(["inspect", model]);
        Assert.AreEqual(0, code, error);
        foreach (string part in (string[])["text classification", "lora", "\"rank\":4", "Text", "3: praise, blame, wonder", "bert, 2 layers, hidden 32", "32 tokens"])
            Assert.Contains(part, Unwrapped(output), part);
    }

    // Dense layer of the pooler where the family's head trains it, and the map to three classes.
    private static long Head()
    {
        var ml = new MLContext(1);
        using TextClassificationTransformer model = TinyTexts.Train(ml, TinyTexts.View(ml, 12), o => (o.Method, o.Training.Epochs) = (new HeadOnlyOptions(), 1));
        return model.TrainableParameters;
    }

    private static void CheckPredictions(string[] lines, Review[] rows, Scored[] expected)
    {
        Assert.AreEqual("Text\tpredicted\tprobability\tp:praise\tp:blame\tp:wonder", lines[0]);
        Assert.HasCount(rows.Length + 1, lines);
        for (int i = 0; i < rows.Length; i++)
        {
            string[] cells = lines[i + 1].Split('\t');
            Assert.AreEqual((rows[i].Text, expected[i].PredictedLabel), (cells[0], cells[1]), $"row {i}");
            Assert.AreEqual(expected[i].Score.Max(), float.Parse(cells[2], CultureInfo.InvariantCulture), 1e-5, $"row {i}");
            for (int k = 0; k < 3; k++) Assert.AreEqual(expected[i].Score[k], float.Parse(cells[3 + k], CultureInfo.InvariantCulture), 1e-5, $"row {i}, class {k}");
        }
    }

    [TestMethod]
    public void QuotedTablesAndPackedOnesAndPairsAreRead()
    {
        Review[] rows = TinyTexts.Rows(24);
        (rows[1].Text, rows[2].Text, rows[3].Text) = ("bad, \"very\" bad", "odd\nfilm", "good,");
        string Quote(string text) => '"' + text.Replace("\"", "\"\"", StringComparison.Ordinal) + '"';
        File.WriteAllText(At("train.csv"), "\"Id\",Label,\"Text\",Title\n"
            + string.Concat(rows.Select(r => $"{r.Id},{r.Label},{Quote(r.Text)},{r.Title}\n")), new UTF8Encoding(true));
        using (var packed = new GZipStream(File.Create(At("train.csv.gz")), CompressionLevel.Fastest)) packed.Write(File.ReadAllBytes(At("train.csv")));
        string[] pair = ["--text2", "Title", "--validation", At("train.csv"), "--epochs", "1"];
        Succeeds(Train(At("train.csv"), At("plain.zip"), pair));
        Succeeds(Train(At("train.csv.gz"), At("packed.zip"), pair));
        CollectionAssert.AreEqual(Entry(At("plain.zip"), "adapter.safetensors"), Entry(At("packed.zip"), "adapter.safetensors"));
        Succeeds(["predict", At("plain.zip"), "--data", At("train.csv"), "--out", At("out.tsv")]);
        string[] lines = File.ReadAllLines(At("out.tsv"));
        Assert.HasCount(25, lines);
        Assert.AreEqual("Text\tTitle\tpredicted\tprobability", lines[0]);
        StringAssert.StartsWith(lines[2], $"bad, \"very\" bad\t{rows[1].Title}\t");
        StringAssert.StartsWith(lines[3], "odd film\t");
        // The same through the library: the embedded line break is white space to the tokenizer.
        var ml = new MLContext();
        var engine = ml.Model.CreatePredictionEngine<Review, Scored>(ml.Model.Load(At("plain.zip"), out _));
        for (int i = 0; i < rows.Length; i++) Assert.AreEqual(engine.Predict(rows[i]).PredictedLabel, lines[i + 1].Split('\t')[2], $"row {i}");
        Succeeds(["evaluate", At("plain.zip"), "--data", At("train.csv.gz"), "--label", "Label"]);
    }

    [TestMethod]
    public void InspectsFoldersMachineAndMethods()
    {
        var ml = new MLContext(1);
        using (TextClassificationTransformer model = TinyTexts.Train(ml, TinyTexts.View(ml, 12), o => o.Training.Epochs = 1)) model.SaveAdapter(At("adapter"));
        foreach ((string[] arguments, string[] parts) in new (string[], string[])[]
        {
            (["inspect", At("adapter")], ["peft_type", "LORA", "SEQ_CLS", "tensors"]),
            (["inspect", TinyBert.Folder], ["bert", "layers", "hidden", "32", "SHA-256", "query", "parameters"]),
            (["inspect", "--machine"], ["processors", "libtorch threads", "BLAS", "GFLOP/s", "native kernels", "CUDA devices"]),
            (["inspect", "--methods"], ["lora", "head-only", "full", "bitfit", "bottleneck", "\"rank\":8"]),
            (["--help"], ["train", "evaluate", "predict", "inspect"]),
            (["train", "text-classification", "--help"], ["--data", "--set", "--resume", "--report"]),
        })
        {
            (int code, string output, string error) = Peft(arguments);
            Assert.AreEqual(0, code, error);
            foreach (string part in parts) Assert.Contains(part, Unwrapped(output), $"{string.Join(' ', arguments)}\n{output}");
        }
        Fails(1, ["inspect", Folder], "holds neither adapter_config.json nor config.json");
        Fails(1, ["inspect", At("nowhere")], "does not exist");
    }

    [TestMethod]
    public void WrongCallsGiveCodeTwo()
    {
        string data = Tsv("train.tsv", TinyTexts.Rows(12)), model = At("model.zip");
        Fails(2, [], "Required command was not provided");
        Fails(2, ["train", "text-classification", "--text", "Text"], "--data", "--label", "--out");
        Fails(2, Train(data, model, "--epoch", "2"), "--epoch");
        Fails(2, Train(data, model, "--batch", "many"), "many");
        Fails(2, Train(data, model, "--method", "lorra"), "Unknown method 'lorra'", "head-only, ");
        Fails(2, Train(data, model, "--set", "rnak=4"), "has no option 'rnak'", "'Rank'");
        Fails(2, Train(data, model, "--set", "rank=four"), "'four' does not fit option Rank");
        Fails(2, Train(data, model, "--set", "rank"), "expected NAME=VALUE");
        Fails(2, Train(data, model, "--set", "rank=0"), "Rank is 0");
        Fails(2, Train(data, model, "--resume"), "--resume needs --checkpoints DIR");
        Fails(2, Train(data, At("nowhere/model.zip")), "does not exist");
        Fails(2, ["inspect"], "Name a model zip or a folder");
        Fails(2, ["predict"], "--data", "'predict'");
        Assert.IsFalse(File.Exists(model));
    }

    [TestMethod]
    public void FailuresGiveCodeOneAndOneLine()
    {
        string data = Tsv("train.tsv", TinyTexts.Rows(12)), model = At("model.zip");
        Fails(1, Train(At("missing.tsv"), model), "missing.tsv' does not exist");
        Fails(1, Train(data, model, "--text2", "Tilte"), "no column 'Tilte'", "'Title'");
        File.WriteAllText(At("empty.tsv"), "");
        Fails(1, Train(At("empty.tsv"), model), "is empty; expected a header line");
        Fails(1, Train(Tsv("header.tsv", []), model), "no rows");
        Fails(1, Train(Tsv("one.tsv", TinyTexts.Rows(12).Where(r => r.Label == "blame")), model), "same label");
        Review[] rows = TinyTexts.Rows(12);
        rows[4].Label = "";
        Fails(1, Train(Tsv("unlabelled.tsv", rows), model), "1 of 12 rows have no label", "row 4");
        Fails(1, Train(data, model, "--backbone", Folder), "config.json");
        Fails(1, ["predict", At("missing.zip"), "--data", data], "missing.zip' does not exist");
        File.WriteAllBytes(At("broken.zip"), [0x50, 0x4b, 3, 4, 0, 0]);
        Fails(1, ["predict", At("broken.zip"), "--data", data], "peft: ");
        Assert.IsFalse(File.Exists(model));
        Assert.IsEmpty(Directory.GetFiles(Folder, "*.tmp"));
    }

    [TestMethod]
    public void MethodsAreProbedOnABackbone()
    {
        Succeeds(["methods", "--backbone", TinyBert.Folder, "--out", At("methods.md")]);
        string[] lines = File.ReadAllLines(At("methods.md"));
        foreach (string id in PeftMethods.Ids.Where(id => PeftMethods.TypeOf(id).Assembly == typeof(PeftMethods).Assembly))
            Assert.IsTrue(lines.Any(l => l.StartsWith($"| {id} ", StringComparison.Ordinal)), id);
        string lora = lines.Single(l => l.StartsWith("| lora ", StringComparison.Ordinal));
        foreach (string part in (string[])["2 Query, 2 Value", "| yes ", "LORA"]) StringAssert.Contains(lora, part);
    }

    [TestMethod]
    public void MethodsAreComparedOnTheSameData()
    {
        string train = Tsv("train.tsv", TinyTexts.Rows(60)), test = Tsv("test.tsv", TinyTexts.Rows(30, seed: 2));
        string[] common = ["--data", train, "--eval", test, "--text", "Text", "--label", "Label", "--backbone", TinyBert.Folder];
        (int code, string output, string error) = Peft(["compare", "--methods", "lora:rank=4:targets=query,bitfit", .. common, "--rows", "40", "--out", At("table.md"), "--chart", At("chart.svg")]);
        Assert.AreEqual(0, code, output + error);
        Assert.AreEqual(File.ReadAllText(At("table.md")), output);
        string[] names = [.. output.Split('\n').Skip(2).Where(l => l.Length > 0).Select(l => l.Split('|')[1].Trim())];
        CollectionAssert.AreEquivalent(new[] { "head-only", "lora:rank=4:targets=query", "bitfit" }, names);
        var chart = System.Xml.Linq.XDocument.Parse(File.ReadAllText(At("chart.svg")));
        Assert.AreEqual(3, chart.Descendants().Count(e => e.Name.LocalName == "circle"));
        Fails(2, ["compare", "--methods", "lorra", .. common], "unknown method 'lorra'", "lora");
        (code, output, _) = Peft(["compare", "--methods", "lora:rank=0", .. common]);
        Assert.AreEqual(0, code, "the frozen head is there still");
        StringAssert.Contains(output, "Rank is 0");
    }

    [TestMethod]
    public void KilledAndResumedItWritesTheSameModel()
    {
        string data = Tsv("train.tsv", TinyTexts.Rows(48));
        string[] Call(string model, params string[] more) =>
            Train(data, At(model), ["--epochs", "30", "--checkpoint-every", "3", "--report", At(model + ".json"), "--seed", "5", .. more]);
        using (Child killed = Child.Start("Microsoft.ML.Peft.Cli", "peft", Call("resumed.zip", "--checkpoints", At("kept")), Folder, oneThread: true))
        {
            killed.Until(() => Directory.Exists(At("kept")) && Directory.GetDirectories(At("kept"), "checkpoint-*").Any(d => !d.EndsWith(".tmp", StringComparison.Ordinal)));
            killed.Kill();
            Assert.AreNotEqual(0, killed.Wait());
        }
        Assert.IsFalse(File.Exists(At("resumed.zip")));
        Succeeds(Call("resumed.zip", "--checkpoints", At("kept"), "--resume"));
        Succeeds(Call("whole.zip"));
        CollectionAssert.AreEqual(Entry(At("whole.zip"), "adapter.safetensors"), Entry(At("resumed.zip"), "adapter.safetensors"));
        Assert.AreEqual(Json("whole.zip.json")["losses"]!.ToJsonString(), Json("resumed.zip.json")["losses"]!.ToJsonString());
        Assert.HasCount(180, Json("whole.zip.json")["losses"]!.AsArray());
        // Other options are not silently mixed in.
        Fails(1, Call("resumed.zip", "--checkpoints", At("kept"), "--resume", "--learning-rate", "0.1"), "belongs to another run", "LearningRate");
    }

    [TestMethod]
    public void InterruptedItKeepsWhatItHas()
    {
        if (!OperatingSystem.IsLinux()) return;
        string data = Tsv("train.tsv", TinyTexts.Rows(48));
        using Child child = Child.Start("Microsoft.ML.Peft.Cli", "peft", Train(data, At("model.zip"), "--epochs", "100000", "--report", At("report.json")), Folder, oneThread: true);
        child.Until(() => child.Error.Contains("step ", StringComparison.Ordinal));
        child.Interrupt();
        Assert.AreEqual(0, child.Wait(), child.Error);
        Assert.AreEqual("Cancelled", (string)Json("report.json")["stopped"]!);
        Assert.AreEqual((long)Json("report.json")["steps"]!, Json("report.json")["losses"]!.AsArray().Count);
        Succeeds(["predict", At("model.zip"), "--data", data, "--out", At("out.tsv")]);
        Assert.HasCount(49, File.ReadAllLines(At("out.tsv")));
    }
}
