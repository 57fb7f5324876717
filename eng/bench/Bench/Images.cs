// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Bench;

/// <summary>Images read and resized a second, beside Pillow in Python on the same files: each measurement in a process of its own, in turns.</summary>
internal static class Images
{
    private static readonly (string Kind, string Work, string Text)[] Works =
    [
        ("jpg", "resize", "JPEG, decoded and resized to 224 x 224 (bicubic)"),
        ("png", "resize", "PNG, likewise"),
        ("webp", "resize", "WebP, likewise"),
        ("jpg", "input", "JPEG to a model's input (short side 256, crop 224, normalised)"),
    ];

    /// <summary>One measurement of our side; the bytes of the first results go to a file.</summary>
    public static string Run(string folder, string kind, string work, int workers, double seconds, string results)
    {
        string[] paths = [.. Directory.GetFiles(folder, "*." + kind).Order(StringComparer.Ordinal)];
        using (FileStream file = File.Create(results))
            foreach (string path in paths)
                file.Write(ImageResizer.Resize(ImageReader.Read(path), 224, 224, ResizeFilter.Bicubic).Pixels);
        var processor = new ImageProcessor(new()
        {
            Type = "BitImageProcessor",
            Size = new(0, 0, 256),
            CentreCrop = true,
            CropWidth = 224,
            CropHeight = 224,
            Mean = [0.485, 0.456, 0.406],
            Std = [0.229, 0.224, 0.225],
        });
        // Long enough for the runtime to have compiled the loops anew with what it learned of them.
        InThreads(workers, () => Loop(paths, work, processor, Math.Max(1, seconds / 3)));
        var watch = Stopwatch.StartNew();
        TimeSpan before = Process.GetCurrentProcess().TotalProcessorTime;
        int done = InThreads(workers, () => Loop(paths, work, processor, seconds));
        double cpu = (Process.GetCurrentProcess().TotalProcessorTime - before).TotalSeconds;
        return JsonSerializer.Serialize(new Report(done / watch.Elapsed.TotalSeconds, done / cpu, ""));
    }

    /// <summary>All measurements of both sides, and the page of results.</summary>
    public static int Compare(string folder, string python, string script, Arguments arguments)
    {
        int rounds = arguments.Int("rounds", 3), cores = Machine.Cores();
        double seconds = arguments.Number("seconds", 3);
        string output = arguments.Text("out", "eng/bench/RESULTS.images.md");
        Start(python, script, "make", folder);
        var lines = new List<string>();
        string version = "", load = Machine.LoadAverage();
        foreach (var (kind, work, text) in Works)
            foreach (int workers in (int[])[1, cores])
            {
                List<Report> ours = [], theirs = [];
                for (int round = 0; round < rounds; round++)
                {
                    string[] common = [folder, kind, work, workers.ToString(CultureInfo.InvariantCulture), seconds.ToString(CultureInfo.InvariantCulture)];
                    ours.Add(Read(Start(Environment.ProcessPath!, ["images-run", .. common, Path.Combine(folder, "ours.bin")])));
                    theirs.Add(Read(Start(python, [script, "run", .. common, Path.Combine(folder, "theirs.bin")])));
                    version = theirs[^1].Version;
                }

                lines.Add(FormattableString.Invariant($"| {text} | {workers} | {Pair(ours, theirs, r => r.PerSecond)} | {Pair(ours, theirs, r => r.PerCpuSecond)} | {Equality(folder)} |"));
                Console.WriteLine(lines[^1]);
            }

        File.WriteAllText(output, $"""
            # Images: this library beside Pillow in Python

            Written by `./eng/bench/run.sh --images`; numbers are images a second, medians of {rounds} rounds, in which both sides took
            turns, each measurement in a process of its own, {seconds.ToString(CultureInfo.InvariantCulture)} s after a pass to warm up. 24 generated pictures of 500 x 375 and 375 x 500
            pixels, read from files. Workers are threads here, processes there. A CPU second counts all threads, garbage collection
            included, and suffers less from whatever else runs on the machine.

            | work | workers | a second: here | Pillow | ratio | a CPU second: here | Pillow | ratio | resized pictures |
            |---|---:|---:|---:|---:|---:|---:|---:|---|
            {string.Join('\n', lines)}

            {version}, as Debian builds it (libjpeg-turbo; resizing without vector instructions). Before version 13 Pillow's horizontal pass always
            came first; in these pictures it does in both.
            {cores} cores; {Machine.InstructionSets()}. Load average (1, 5, 15 minutes) before the run {load}, after it {Machine.LoadAverage()}.
            """ + "\n");
        return 0;
    }

    private sealed record Report(double PerSecond, double PerCpuSecond, string Version);

    private static int InThreads(int workers, Func<int> work)
    {
        int[] done = new int[workers];
        Thread[] threads = [.. Enumerable.Range(0, workers).Select(worker => new Thread(() => done[worker] = work()))];
        foreach (Thread thread in threads) thread.Start();
        foreach (Thread thread in threads) thread.Join();
        return done.Sum();
    }

    private static int Loop(string[] paths, string work, ImageProcessor processor, double seconds)
    {
        float[] input = new float[3 * 224 * 224];
        int done = 0;
        var watch = Stopwatch.StartNew();
        while (watch.Elapsed.TotalSeconds < seconds)
        {
            Pass();
            done += paths.Length;
        }

        return done;

        void Pass()
        {
            foreach (string path in paths)
                if (work == "resize")
                    ImageResizer.Resize(ImageReader.Read(path), 224, 224, ResizeFilter.Bicubic);
                else
                    processor.Process(ImageReader.Read(path), input);
        }
    }

    private static string Pair(List<Report> ours, List<Report> theirs, Func<Report, double> value)
    {
        double a = ours.Select(value).Order().ElementAt(ours.Count / 2), b = theirs.Select(value).Order().ElementAt(theirs.Count / 2);
        return FormattableString.Invariant($"{a:0} | {b:0} | **{a / b:0.00}**");
    }

    private static Report Read(string json) => JsonSerializer.Deserialize<Report>(json)!;

    private static string Equality(string folder)
    {
        byte[] ours = File.ReadAllBytes(Path.Combine(folder, "ours.bin")), theirs = File.ReadAllBytes(Path.Combine(folder, "theirs.bin"));
        if (ours.Length != theirs.Length) return "of other sizes";
        int most = 0, off = 0;
        for (int i = 0; i < ours.Length; i++)
        {
            int difference = Math.Abs(ours[i] - theirs[i]);
            most = Math.Max(most, difference);
            if (difference > 0) off++;
        }

        return off == 0 ? "equal to the bit" : FormattableString.Invariant($"{100.0 * off / ours.Length:0.000} % differ, by {most} at most");
    }

    private static string Start(string program, params string[] words)
    {
        using Process process = Process.Start(new ProcessStartInfo(program, words) { RedirectStandardOutput = true })!;
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode == 0 ? output : throw new InvalidOperationException($"{program} {string.Join(' ', words)} ended with {process.ExitCode}.");
    }
}
