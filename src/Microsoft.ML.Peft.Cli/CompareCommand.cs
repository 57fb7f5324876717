// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>peft compare</c>: the same data, one training a method, each in a process of its own, so that memory and failures are its own.</summary>
internal static class CompareCommand
{
    private const string Frozen = "head-only";

    private static readonly Option<string> _methods = new("--methods") { Description = "Names with commas between; 'all' for all others. A rate and options of a method after it: lora@5e-3:rank=16:alpha=32.", DefaultValueFactory = _ => "all" };
    private static readonly Option<string> _data = new("--data") { Description = "Training data, as for 'peft train'.", Required = true };
    private static readonly Option<string> _eval = new("--eval") { Description = "Data to evaluate on.", Required = true };
    private static readonly Option<string> _task = new("--task") { Description = "text-classification, image-classification or audio-classification.", DefaultValueFactory = _ => "text-classification" };
    private static readonly Option<string?> _text = new("--text") { Description = "Column with the text." };
    private static readonly Option<string?> _text2 = new("--text2") { Description = "Column with the second text of a pair." };
    private static readonly Option<string?> _path = new("--path") { Description = "Column with the paths, for images and sounds in a table." };
    private static readonly Option<string?> _label = new("--label") { Description = "Column with the label." };
    private static readonly Option<string?> _backbone = new("--backbone") { Description = "Hugging Face folder; the embedded all-MiniLM-L6-v2 where none is named." };
    private static readonly Option<int> _epochs = new("--epochs") { Description = "Passes over the data.", DefaultValueFactory = _ => 1 };
    private static readonly Option<int> _rows = new("--rows") { Description = "Training rows, the first of the table; 0 for all." };
    private static readonly Option<double?> _rate = new("--learning-rate") { Description = "Learning rate of all methods; each one's own where none is given." };
    private static readonly Option<int> _batch = new("--batch") { Description = "Rows in a batch.", DefaultValueFactory = _ => 16 };
    private static readonly Option<int> _maxTokens = new("--max-tokens") { Description = "Longest text in tokens.", DefaultValueFactory = _ => 128 };
    private static readonly Option<int> _seed = new("--seed") { Description = "Seed of all random numbers.", DefaultValueFactory = _ => 1 };
    private static readonly Option<string?> _out = new("--out") { Description = "Markdown file to write." };
    private static readonly Option<string?> _chart = new("--chart") { Description = "SVG file to write: accuracy against trained share." };

    public static System.CommandLine.Command Make()
    {
        var command = new System.CommandLine.Command("compare", "Train several methods on the same data and compare them.")
        {
            _task, _methods, _data, _eval, _text, _text2, _path, _label, _backbone, _epochs, _rows, _rate, _batch, _maxTokens, _seed, _out, _chart,
        };
        command.SetAction(Run);
        return command;
    }

    /// <summary>One trained method, or why it was not.</summary>
    internal sealed record Entry(string Name, double Accuracy, double MacroF1, double Share, double Seconds, double PeakMiB, long Bytes, string? Failure);

    private static int Run(ParseResult call)
    {
        CheckTask(call);
        string[] names = Names(call.GetValue(_methods) ?? "all");
        if (names.Length == 0) throw new UsageException("--methods names no method.");
        foreach (string name in names)
        {
            (string id, string? rate) = Parts(name);
            if (!PeftMethods.Ids.Contains(id)) throw new UsageException($"--methods: unknown method '{id}'.{NearNames.Hint(id, PeftMethods.Ids)} Known: {string.Join(", ", PeftMethods.Ids)}.");
            if (rate is not null && !(double.TryParse(rate, NumberStyles.Float, CultureInfo.InvariantCulture, out double value) && value > 0)) throw new UsageException($"--methods: '{name}' has the learning rate '{rate}'; expected is a number above 0.");
        }
        if (!names.Any(n => Parts(n).Id == Frozen)) names = [Frozen, .. names];
        string folder = Directory.CreateTempSubdirectory("peft-compare-").FullName;
        try
        {
            string data = FirstRows(call.GetValue(_data)!, call.GetValue(_rows), folder);
            var entries = new List<Entry>();
            foreach (string name in names)
            {
                entries.Add(Train(call, name, data, folder));
                Console.Error.WriteLine(Progress(entries[^1]));
            }
            Write(call, entries);
            return entries.Any(e => e.Failure is null) ? 0 : 1;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    // A piece that does not begin with a letter goes on with the one before: lora,trainable-tokens:tokenIndices=101,102
    private static string[] Names(string list)
    {
        var names = new List<string>();
        foreach (string piece in list.Split(',', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries))
            if (names.Count > 0 && !char.IsAsciiLetter(piece[0])) names[^1] += "," + piece;
            else names.Add(piece);
        if (names.Remove("all")) names.AddRange(All().Where(name => !names.Any(given => Parts(given).Id == Parts(name).Id)));
        return [.. names];
    }

    // All that can be tried without more being said.
    private static IEnumerable<string> All()
    {
        foreach (string id in PeftMethods.Ids)
        {
            PeftMethod method = PeftMethods.Create(id);
            string name = string.Join(':', [id, .. method.ExampleSettings]);
            string? missing = null;
            try
            {
                foreach (string[] setting in method.ExampleSettings.Select(s => s.Split('=', 2))) PeftMethods.Set(method, setting[0], setting[1]);
                method.Validate();
            }
            catch (ArgumentException e)
            {
                missing = e.Message;
            }
            if (missing is null) yield return name;
            else Console.Error.WriteLine($"{id} is left out: {missing}");
        }
    }

    private static bool IsText(ParseResult call) => call.GetValue(_task) == "text-classification";

    private static void CheckTask(ParseResult call)
    {
        string[] known = [.. TrainTask.All.Select(t => t.Name)];
        string task = call.GetValue(_task)!;
        if (!known.Contains(task)) throw new UsageException($"--task: unknown task '{task}'.{NearNames.Hint(task, known)} Known: {string.Join(", ", known)}.");
        if (IsText(call) && (call.GetValue(_text) is null || call.GetValue(_label) is null)) throw new UsageException("Texts need --text and --label.");
        if (!IsText(call) && call.GetValue(_rows) > 0) throw new UsageException("--rows cuts tables of texts; leave it out for images and sounds.");
    }

    // lora@5e-3:rank=16 -> lora, 5e-3
    private static (string Id, string? Rate) Parts(string name)
    {
        string[] parts = name.Split(':')[0].Split('@', 2);
        return (parts[0], parts.Length > 1 ? parts[1] : null);
    }

    private static string Progress(Entry entry) => entry.Failure is { } failure ? $"{entry.Name}: {failure}"
        : FormattableString.Invariant($"{entry.Name}: accuracy {entry.Accuracy:0.000}, {entry.Share:0.000 %} trained, {entry.Seconds:0.0} s, {entry.PeakMiB:0} MiB");

    private static string FirstRows(string path, int rows, string folder)
    {
        if (rows <= 0) return path;
        using TableFile table = TableFile.Open(path);
        string cut = Path.Combine(folder, table.Separator == ',' ? "train.csv" : "train.tsv");
        // A quoted field may hold line ends, so a table with quotes is not cut by lines.
        if (table.Separator == ',') throw new UsageException("--rows cuts tab-separated tables only; give a shorter CSV, or leave --rows out.");
        File.WriteAllLines(cut, File.ReadLines(table.Path).Take(rows + 1));
        return cut;
    }

    private static Entry Train(ParseResult call, string name, string data, string folder)
    {
        string[] parts = name.Split(':');
        string report = Path.Combine(folder, "report.json"), model = Path.Combine(folder, "model.zip");
        File.Delete(report);
        List<string> words =
        [
            "train", call.GetValue(_task)!, "--data", data, "--eval", call.GetValue(_eval)!,
            "--method", Parts(name).Id, "--epochs", $"{call.GetValue(_epochs)}", "--batch", $"{call.GetValue(_batch)}",
            "--seed", $"{call.GetValue(_seed)}", "--out", model, "--report", report,
        ];
        if (call.GetValue(_label) is { } label) words.AddRange(["--label", label]);
        if (IsText(call)) words.AddRange(["--text", call.GetValue(_text)!, "--max-tokens", $"{call.GetValue(_maxTokens)}"]);
        else if (call.GetValue(_path) is { } path) words.AddRange(["--path", path]);
        if (call.GetValue(_text2) is { } second) words.AddRange(["--text2", second]);
        if (call.GetValue(_backbone) is { } backbone) words.AddRange(["--backbone", backbone]);
        if (Parts(name).Rate is { } own) words.AddRange(["--learning-rate", own, "--head-learning-rate", "1e-2"]);
        else if (call.GetValue(_rate) is { } rate) words.AddRange(["--learning-rate", rate.ToString(CultureInfo.InvariantCulture)]);
        foreach (string setting in parts.Skip(1)) words.AddRange(["--set", setting]);
        (int code, string error) = Start(words);
        if (code != 0 || !File.Exists(report)) return new Entry(name, 0, 0, 0, 0, 0, 0, error.Length == 0 ? $"ended with code {code}" : error);
        JsonObject figures = JsonNode.Parse(File.ReadAllText(report))!.AsObject();
        return new Entry(name, (double)figures["metrics"]!["accuracy"]!, (double)figures["metrics"]!["macroF1"]!,
            (double)figures["trainableParameters"]! / (double)figures["totalParameters"]!, (double)figures["trainSeconds"]!,
            (double)figures["peakMemoryMb"]!, (long)figures["modelBytes"]!, null);
    }

    private static (int Code, string Error) Start(List<string> words)
    {
        // The tool is a library run by dotnet, or a program of its own.
        string host = Environment.ProcessPath!;
        if (Path.GetFileNameWithoutExtension(host) == "dotnet") words.Insert(0, typeof(CompareCommand).Assembly.Location);
        var start = new ProcessStartInfo(host, words) { RedirectStandardError = true, RedirectStandardOutput = true };
        using Process process = Process.Start(start)!;
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        string error = process.StandardError.ReadToEnd();
        process.WaitForExit();
        _ = output.Result;
        string last = error.Split('\n', StringSplitOptions.RemoveEmptyEntries).LastOrDefault() ?? "";
        return (process.ExitCode, last.StartsWith("peft: ", StringComparison.Ordinal) ? last["peft: ".Length..] : last);
    }

    private static void Write(ParseResult call, List<Entry> entries)
    {
        Entry? frozen = entries.FirstOrDefault(e => Parts(e.Name).Id == Frozen && e.Failure is null), lora = entries.FirstOrDefault(e => Parts(e.Name).Id == "lora" && e.Failure is null);
        static string Number(double value, string form) => value.ToString(form, CultureInfo.InvariantCulture);
        string table = MarkdownTable.Make(
            ["method", "accuracy", "macro F1", "over frozen head", "trained", "seconds", lora is null ? "-" : "time over LoRA", "peak MiB", "file MiB"],
            entries.OrderByDescending(e => e.Accuracy).Select(e => e.Failure is { } failure
                ? [e.Name, failure, "-", "-", "-", "-", "-", "-", "-"]
                : (string[])[e.Name, Number(e.Accuracy, "0.000"), Number(e.MacroF1, "0.000"), frozen is null ? "-" : Number(100 * (e.Accuracy - frozen.Accuracy), "+0.0;-0.0;0.0"),
                    Number(e.Share, "0.000 %"), Number(e.Seconds, "0.0"), lora is null ? "-" : Number(e.Seconds / lora.Seconds, "0.00"), Number(e.PeakMiB, "0"), Number(e.Bytes / 1048576.0, "0.0")]));
        Console.Write(table);
        if (call.GetValue(_out) is { } path) AtomicFile.Write(path, stream => stream.Write(Encoding.UTF8.GetBytes(table)));
        if (call.GetValue(_chart) is { } chart) AtomicFile.Write(chart, stream => stream.Write(Encoding.UTF8.GetBytes(ScatterChart.Make(entries))));
    }
}
