// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>The command line over folders and tables of images and sounds.</summary>
[TestClass]
public sealed class MediaCliTests : CliRuns
{
    private static readonly string[] _kinds = ["praise", "blame", "wonder"];

    // A folder a class, with files that are no images or sounds among them.
    private string ClassFolders(TinyTask tiny, string name, int count, int seed = 1)
    {
        foreach (string kind in _kinds) Directory.CreateDirectory(At(Path.Combine(name, kind, "more")));
        Review[] rows = TinyTexts.Rows(count, seed);
        for (int i = 0; i < rows.Length; i++)
        {
            string file = tiny == TinyTask.Image ? rows[i].Image : rows[i].Sound;
            File.Copy(file, At(Path.Combine(name, rows[i].Label, i % 5 == 0 ? "more" : "", FormattableString.Invariant($"{i:000}{Path.GetExtension(file)}"))));
        }
        File.WriteAllText(At(Path.Combine(name, "praise", "notes.txt")), "no picture");
        File.WriteAllText(At(Path.Combine(name, "praise", ".hidden.png")), "no picture");
        return At(name);
    }

    private static string[] Train(TinyTask tiny, string data, string model, params string[] more)
    {
        (string, string)[] usual = [("--data", data), ("--backbone", tiny.Folder), ("--epochs", "6"), ("--batch", "8"), ("--learning-rate", "0.01"), ("--out", model)];
        return ["train", tiny.Name, .. usual.Where(u => !more.Contains(u.Item1)).SelectMany(u => (string[])[u.Item1, u.Item2]), .. more];
    }

    [TestMethod]
    [DataRow("image")]
    [DataRow("audio")]
    public void TrainsEvaluatesPredictsAndDraws(string kind)
    {
        TinyTask tiny = kind == "image" ? TinyTask.Image : TinyTask.Audio;
        string train = ClassFolders(tiny, "train", 60), test = ClassFolders(tiny, "test", 30, seed: 2), model = At("model.zip");
        Succeeds(Train(tiny, train, model, "--validation-share", "0.2", "--eval", test, "--report", At("train.json"), "--set", "rank=4"));
        JsonObject report = Json("train.json"), metrics = report["metrics"]!.AsObject();
        Assert.IsGreaterThan(0.8, (double)metrics["accuracy"]!);
        Assert.IsGreaterThan(0, (double)report["evalRowsPerSecond"]!);
        Assert.IsNull(report["evalTokensPerSecond"]);
        Assert.AreEqual(6 * 6, report["losses"]!.AsArray().Count, "48 of 60 rows in batches of 8");
        Assert.AreEqual(0, (int)report["skippedRows"]!);

        Succeeds(["evaluate", model, "--data", test, "--report", At("evaluate.json")]);
        foreach ((string name, JsonNode? value) in metrics) Assert.AreEqual((double)value!, (double)Json("evaluate.json")["metrics"]![name]!, 1e-6, name);

        // A table beside the files, with paths from there on, says the same.
        string[] files = [.. Directory.GetFiles(test, "*", SearchOption.AllDirectories).Where(f => f.EndsWith(".png", StringComparison.Ordinal) || f.EndsWith(".wav", StringComparison.Ordinal))
            .Where(f => !Path.GetFileName(f).StartsWith('.')).Order(StringComparer.Ordinal)];
        Assert.HasCount(30, files);
        string Kind(string file) => Path.GetRelativePath(test, file).Split(Path.DirectorySeparatorChar)[0];
        File.WriteAllLines(Path.Combine(test, "table.tsv"), ["file\tclass", .. files.Select(f => Path.GetRelativePath(test, f) + "\t" + Kind(f))]);
        Succeeds(["evaluate", model, "--data", Path.Combine(test, "table.tsv"), "--report", At("table.json")]);
        Assert.AreEqual((double)metrics["accuracy"]!, (double)Json("table.json")["metrics"]!["accuracy"]!, 1e-9);

        Succeeds(["predict", model, "--data", test, "--out", At("out.tsv"), "--scores"]);
        CheckPredictions(model, files, File.ReadAllLines(At("out.tsv")), metrics, Kind);
        (int code, string output, string error) = Peft(["predict", model, "--data", files[3]]);
        Assert.AreEqual(0, code, error);
        StringAssert.StartsWith(output.TrimEnd('\n').Split('\n')[1], string.Join('\t', File.ReadAllLines(At("out.tsv"))[4].Split('\t')[..2]) + '\t');
        (code, output, error) = Peft(["predict", model, "--data", "-"], files[3] + "\n" + files[4] + "\n");
        Assert.AreEqual(0, code, error);
        Assert.HasCount(3, output.TrimEnd('\n').Split('\n'));

        (code, output, error) = Peft(["inspect", model]);
        Assert.AreEqual(0, code, error);
        foreach (string part in (string[])[tiny.Name.Replace('-', ' '), "lora", "3: blame, praise, wonder", kind == "image" ? "16 x 16 pixels" : "16000 samples a second"])
            Assert.Contains(part, Unwrapped(output), part);
        Succeeds(["inspect", model, "--picture", At("sheet.png"), "--data", test, "--rows", "10"]);
        PixelImage sheet = ImageReader.Read(At("sheet.png"));
        Assert.AreEqual((8 + (4 * 120), 8 + (3 * 150)), (sheet.Width, sheet.Height));
        Assert.IsGreaterThan(100, sheet.Pixels.Chunk(3).Select(p => (p[0], p[1], p[2])).Distinct().Count() + (kind == "audio" ? 100 : 0));
    }

    private static void CheckPredictions(string model, string[] files, string[] lines, JsonObject metrics, Func<string, string> kind)
    {
        Assert.HasCount(files.Length + 1, lines);
        StringAssert.EndsWith(lines[0], "\tpredicted\tprobability\tp:blame\tp:praise\tp:wonder");
        var ml = new MLContext();
        var classifier = (ClassificationTransformer)((IEnumerable<ITransformer>)ml.Model.Load(model, out DataViewSchema schema)).First();
        CollectionAssert.AreEqual(classifier.InputColumns.ToArray(), schema.Select(c => c.Name).ToArray());
        int right = 0;
        for (int i = 0; i < files.Length; i++)
        {
            string[] cells = lines[i + 1].Split('\t');
            Assert.AreEqual(files[i], cells[0]);
            float[] shares = [.. cells.Skip(3).Select(c => float.Parse(c, CultureInfo.InvariantCulture))];
            Assert.AreEqual(shares.Max(), float.Parse(cells[2], CultureInfo.InvariantCulture), 1e-6);
            if (cells[1] == kind(files[i])) right++;
        }
        Assert.AreEqual((double)metrics["accuracy"]!, (double)right / files.Length, 1e-9);
    }

    [TestMethod]
    public void BadFilesStopTheRunOrAreCounted()
    {
        string data = ClassFolders(TinyTask.Image, "train", 24), bad = Path.Combine(data, "blame", "bad.png"), model = At("model.zip");
        File.WriteAllText(bad, "no picture");
        Fails(1, Train(TinyTask.Image, data, model), "Row ", bad, "to Skip");
        Succeeds(Train(TinyTask.Image, data, model, "--on-bad", "Skip", "--epochs", "1", "--eval", data, "--report", At("report.json")));
        Assert.AreEqual(1, (int)Json("report.json")["skippedRows"]!);
        (int code, string output, string error) = Peft(["evaluate", model, "--data", data]);
        Assert.AreEqual(0, code, error);
        StringAssert.Contains(output, "rows 24,");
        StringAssert.Contains(output, "1 rows could not be read");
        Succeeds(["predict", model, "--data", data, "--out", At("out.tsv")]);
        Assert.AreEqual(bad + "\t\t", File.ReadAllLines(At("out.tsv")).Single(l => l.StartsWith(bad, StringComparison.Ordinal)));
        Succeeds(["inspect", model, "--picture", At("sheet.png"), "--data", data]);
    }

    [TestMethod]
    public void WrongCallsAndDataAreNamed()
    {
        string data = ClassFolders(TinyTask.Image, "train", 12), model = At("model.zip");
        Directory.CreateDirectory(At("empty"));
        Directory.CreateDirectory(At("bare/one"));
        Fails(1, Train(TinyTask.Image, At("empty"), model), "has no folders", "one folder a class");
        Fails(1, Train(TinyTask.Image, At("bare"), model), "holds no images", ".png");
        Fails(1, Train(TinyTask.Audio, data, model), "holds no sounds", ".wav");
        Fails(1, Train(TinyTask.Image, At("nowhere"), model), "does not exist");
        Fails(1, Train(TinyTask.Image, data, model, "--backbone", TinyBert.Folder), "which reads texts");
        Fails(2, Train(TinyTask.Image, data, model, "--validation-share", "2"), "--validation-share is 2");
        Fails(2, Train(TinyTask.Image, data, model, "--validation-share", "0.5", "--validation", data), "give one of them");
        Fails(2, Train(TinyTask.Image, data, model, "--text", "Text"), "--text");
        Fails(2, ["inspect", TinyTask.Image.Folder, "--picture", At("sheet.png")], "--picture needs --data");
        Fails(2, ["compare", "--task", "image", "--data", data, "--eval", data], "unknown task 'image'", "image-classification");
        Assert.IsFalse(File.Exists(model));
    }

    [TestMethod]
    public void MethodsAreComparedOnImages()
    {
        string data = ClassFolders(TinyTask.Image, "train", 36);
        (int code, string output, string error) = Peft(["compare", "--task", "image-classification", "--methods", "lora:rank=4", "--data", data, "--eval", data,
            "--backbone", TinyTask.Image.Folder, "--batch", "8", "--learning-rate", "1e-2"]);
        Assert.AreEqual(0, code, error);
        foreach (string part in (string[])["head-only", "lora:rank=4", "accuracy"]) StringAssert.Contains(output, part);
        Assert.DoesNotContain("ended with code", output);
    }

    [TestMethod]
    public void KilledAndResumedItWritesTheSameModel()
    {
        string data = ClassFolders(TinyTask.Image, "train", 48);
        string[] Call(string model, params string[] more) =>
            Train(TinyTask.Image, data, At(model), ["--epochs", "20", "--checkpoint-every", "3", "--mixup", "0.4", "--report", At(model + ".json"), "--seed", "5", .. more]);
        using (Child killed = Child.Start("Microsoft.ML.Peft.Cli", "peft", Call("resumed.zip", "--checkpoints", At("kept")), Folder, oneThread: true))
        {
            killed.Until(() => Directory.Exists(At("kept")) && Directory.GetDirectories(At("kept"), "checkpoint-*").Any(d => !d.EndsWith(".tmp", StringComparison.Ordinal)));
            killed.Kill();
            Assert.AreNotEqual(0, killed.Wait());
        }
        Succeeds(Call("resumed.zip", "--checkpoints", At("kept"), "--resume"));
        Succeeds(Call("whole.zip"));
        CollectionAssert.AreEqual(Entry(At("whole.zip"), "adapter.safetensors"), Entry(At("resumed.zip"), "adapter.safetensors"));
        Assert.AreEqual(Json("whole.zip.json")["losses"]!.ToJsonString(), Json("resumed.zip.json")["losses"]!.ToJsonString());
        Fails(1, [.. Call("resumed.zip", "--checkpoints", At("kept"), "--resume"), "--no-augmentation"], "belongs to another run", "input:");
        // Other pictures under the same names are other data.
        File.Copy(TinyMedia.Picture(2, 3), Directory.GetFiles(At("train/praise"), "*.png").Order(StringComparer.Ordinal).First(f => !Path.GetFileName(f).StartsWith('.')), overwrite: true);
        Fails(1, Call("resumed.zip", "--checkpoints", At("kept"), "--resume"), "belongs to another run", "data:");
    }
}
