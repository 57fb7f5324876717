// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;

namespace Microsoft.ML.Peft.Bench;

/// <summary>Runs the sections, all of them once a round, and writes the page of results.</summary>
internal sealed class Comparison(string folder, Sides sides, Arguments arguments)
{
    private static readonly string[] _all = ["minilm", "base", "latency", "start", "roofline", "growth"];

    public int Run(string output)
    {
        string before = Machine.LoadAverage();
        long began = Stopwatch.GetTimestamp();
        int rounds = arguments.Int("rounds", 5);
        Section[] sections = Make([.. Asked()]);
        foreach (Section section in sections) section.Begin();
        for (int round = 1; round <= rounds; round++)
        {
            Console.WriteLine($"round {round} of {rounds}");
            foreach (Section section in sections.Where(s => round <= s.Rounds)) section.Round();
        }
        string text = Write(sections, rounds, before, Stopwatch.GetElapsedTime(began).TotalSeconds);
        Console.WriteLine(text);
        File.WriteAllText(output, text);
        return 0;
    }

    private IEnumerable<string> Asked()
    {
        string[] only = arguments.List("only", _all), without = arguments.List("without", []);
        if (only.Concat(without).FirstOrDefault(s => !_all.Contains(s)) is { } unknown)
            throw new ArgumentException($"There is no section '{unknown}'; there are {string.Join(", ", _all)}.");
        return only.Except(without);
    }

    private Section[] Make(string[] names)
    {
        string[] precisions = Sides.Precisions(arguments.Text("precisions", ""));
        string small = Preparation.Small(folder);
        var minilm = new Throughput(Preparation.SmallName, small, sides, precisions, arguments.Int("steps", 230), arguments.Int("loss-steps", 30), int.MaxValue, hasGoals: true);
        return Array.ConvertAll<string, Section>(names, name => name switch
        {
            "minilm" => minilm,
            "base" => new Throughput(
                "BERT-base's geometry", Preparation.Base(folder), sides, precisions, arguments.Int("base-steps", 12), lossSteps: 3, arguments.Int("base-rounds", 3), hasGoals: false),
            "latency" => new Latency(small, sides, precisions),
            "roofline" => new Roofline(small, sides, precisions, minilm, alone: !names.Contains("minilm")),
            "start" => new Start(small, sides),
            _ => new Growth(folder, sides, [.. arguments.List("growth-rows", ["1000", "10000", "100000"]).Select(n => int.Parse(n, CultureInfo.InvariantCulture))]),
        });
    }

    private string Write(Section[] sections, int rounds, string loadBefore, double seconds) => $"""
        # Benchmark: this library beside PyTorch in Python and ONNX Runtime

        Written by `./eng/bench/run.sh`; numbers are medians of {rounds} round(s), fewer where it is said, in which all sides took turns, each measurement in a
        process of its own.
        All sides read the same token ids, the same composition of batches and the same values from files, use {sides.Threads} thread(s) and the same
        environment; PyTorch runs on the same libtorch and BLAS as this library.{(Sides.HasOnnxRuntime ? "" : " ONNX Runtime was not there: set ONNXRUNTIME_NODE to a folder with the npm package onnxruntime-node.")}

        {WriteGoals([.. sections.SelectMany(s => s.Verdicts)])}

        {string.Join("\n\n", sections.Select(s => s.Write()))}

        {WriteMachine(sections, loadBefore, seconds)}

        """;

    private static string WriteGoals(Verdict[] verdicts) => verdicts.Length == 0 ? "No goal belongs to what was measured." : $"""
        ## Goals

        | ratio, above 1 in this library's favour | found | goal | |
        |---|---:|---:|---|
        {string.Join('\n', verdicts.Select(v => v.Row()))}
        """;

    private string WriteMachine(Section[] sections, string loadBefore, double seconds)
    {
        string what = $"Rows: {File.ReadAllText(Path.Combine(folder, "name"))}. {sides.Threads} thread(s) on ";
        return Machine.Section(what, sections.Select(s => s.Libraries).FirstOrDefault(l => l is not null), loadBefore, seconds);
    }
}
