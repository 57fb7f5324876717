// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Bench;

/// <summary>A very long table through the command line's <c>predict</c>: resident memory, and rows a second, from its beginning to its end.</summary>
internal sealed class Million(string folder, string cli, Arguments arguments)
{
    private const int Parts = 10;

    private sealed record Sample(double Seconds, double ResidentMiB, long Written);

    public int Run(string output)
    {
        int rows = arguments.Int("count", 1_000_000);
        string work = Path.Combine(folder, "rows"), table = Path.Combine(work, $"rows-{rows}.tsv"), results = Path.Combine(work, "predictions.tsv");
        Directory.CreateDirectory(work);
        string[] words = RowTable.Words(File.ReadLines(Path.Combine(Preparation.Small(folder), Preparation.Texts)));
        if (!File.Exists(table)) RowTable.Write(table, words, rows);
        bool whole = arguments.Text("model", "one-layer") != "one-layer";
        string zip = whole ? Path.Combine(Preparation.Small(folder), Preparation.Zip) : OneLayerZip(work, words);
        string before = Machine.LoadAverage();
        List<Sample> samples = Watch([cli, "predict", zip, "--data", table, "--out", results], work);
        long scored = File.ReadLines(results).LongCount() - 1;
        string text = Write(rows, scored, new FileInfo(table).Length, whole, samples, before);
        Console.WriteLine(text);
        File.WriteAllText(output, text);
        File.Delete(results);
        return scored == rows ? 0 : 1;
    }

    private string OneLayerZip(string work, string[] words)
    {
        string table = Path.Combine(work, "train.tsv"), zip = Path.Combine(work, "one-layer.zip");
        RowTable.Write(table, words, 1000);
        var ml = new MLContext(seed: 1);
        IDataView data = ml.Data.LoadFromTextFile<Sentence>(table, hasHeader: true);
        using TextClassificationTransformer model = GrowthRuns.Fit(ml, folder, data);
        ml.Model.Save(model, ml.Transforms.SelectColumns(nameof(Sentence.Text)).Fit(data).Transform(data).Schema, zip);
        return zip;
    }

    // Until the process ends; what it has written so far lies in the folder, under whatever name.
    private static List<Sample> Watch(string[] words, string work)
    {
        HashSet<string> there = [.. Directory.GetFiles(work)];
        var samples = new List<Sample>();
        var clock = Stopwatch.StartNew();
        using Process process = Process.Start("dotnet", words);
        while (!process.WaitForExit(250))
        {
            long written = Directory.GetFiles(work).Where(f => !there.Contains(f)).Sum(f => new FileInfo(f).Length);
            double resident = Machine.ResidentMiB(process.Id);
            if (resident > 0) samples.Add(new Sample(clock.Elapsed.TotalSeconds, resident, written));
        }
        return process.ExitCode == 0 ? samples : throw new InvalidOperationException($"{string.Join(' ', words)} ended with code {process.ExitCode}.");
    }

    private static string Write(int rows, long scored, long bytes, bool whole, List<Sample> samples, string loadBefore)
    {
        long written = samples[^1].Written;
        Sample[] ends = [.. Enumerable.Range(0, Parts + 1).Select(part => samples.First(s => s.Written >= written * (double)part / Parts && (part == 0 || s.Written > 0)))];
        // The first part holds the loading of the model and the compiling.
        IEnumerable<double> Speeds() => Enumerable.Range(0, Parts).Select(part => rows / (double)Parts / (ends[part + 1].Seconds - ends[part].Seconds));
        double Most(int part) => samples.Where(s => s.Seconds >= ends[part].Seconds && s.Seconds <= ends[part + 1].Seconds).Max(s => s.ResidentMiB);
        double[] speeds = [.. Speeds()], memory = [.. Enumerable.Range(0, Parts).Select(Most)];
        Verdict[] verdicts =
        [
            new("resident memory, most in the last tenth over most in the second", memory[^1] / memory[1], Goals.Flat, AtMost: true),
            new("time a row, last three tenths over the second to the fourth", speeds[1..4].Average() / speeds[^3..].Average(), Goals.Flat, AtMost: true),
        ];
        return FormattableString.Invariant($"""
            # A long table in flat memory

            Written by `./eng/bench/run.sh --rows`: `peft predict` over {rows:N0} generated rows of three to seven words ({bytes >> 20} MiB of text), with {(whole ? Preparation.SmallName : $"the first layer of {Preparation.SmallName}, so that reading, tokenizing and writing weigh more")}.
            {scored:N0} rows were written in {samples[^1].Seconds:0} s. Resident memory (VmRSS) was sampled four times a second.

            | goal | found | | |
            |---|---:|---:|---|
            {string.Join('\n', verdicts.Select(v => v.Row()))}

            | tenth of the rows | {string.Join(" | ", Enumerable.Range(1, Parts))} |
            |---|{string.Concat(Enumerable.Repeat("---:|", Parts))}
            | most resident memory, MiB | {string.Join(" | ", memory.Select(m => m.ToString("0", CultureInfo.InvariantCulture)))} |
            | rows a second | {string.Join(" | ", speeds.Select(s => s.ToString("0", CultureInfo.InvariantCulture)))} |

            {Machine.Cores()} cores of {Machine.Processor()}; variables: {Machine.Variables()}. Load average (1, 5, 15 minutes) before the run {loadBefore}, after it {Machine.LoadAverage()}.

            """);
    }
}
