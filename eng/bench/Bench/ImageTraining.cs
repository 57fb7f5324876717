// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Bench;

/// <summary>Training of image networks by LoRA, beside a plain PyTorch loop on the same pixels and initial values: each measurement in a process of its own, in turns.</summary>
internal static class ImageTraining
{
    /// <summary>The mode of one measurement.</summary>
    public const string Mode = "image-train";

    private const string Script = "pytorch_vit_loop.py";

    /// <summary>One measurement of our side; its tokens are images.</summary>
    public static string Run(string folder, Arguments arguments)
    {
        ImageMaterial material = ImageMaterial.Named(Path.GetFileName(folder));
        using AdaptedModel model = material.Load(folder);
        // Behind the backbone: the first one takes all cores where only one thread was set.
        set_num_threads(arguments.Int("threads", get_num_threads()));
        Precision precision = Enum.Parse<Precision>(arguments.Text("precision", nameof(Precision.Float32)), ignoreCase: true);
        int steps = arguments.Int("steps", material.Steps), warmup = arguments.Int("warmup", material.Warmup);
        Report report = OurSide.Train(model, precision, material.Rows(folder), [.. material.Batches(steps)], warmup, ImageMaterial.Rate);
        return (report with { Tokens = (long)ImageMaterial.Batch * (steps - warmup) }).Line();
    }

    /// <summary>All measurements of all sides, and the page of results.</summary>
    public static int Compare(string folder, Sides sides, Arguments arguments)
    {
        int rounds = arguments.Int("rounds", 3);
        string[] precisions = Sides.Precisions(arguments.Text("precisions", $"{Precision.Float32},{Precision.BFloat16}"));
        int[] threads = [.. arguments.List("threads", [.. new[] { 1, Machine.Cores() }.Distinct().Select(n => $"{n}")]).Select(n => int.Parse(n, CultureInfo.InvariantCulture))];
        string before = Machine.LoadAverage();
        long began = Stopwatch.GetTimestamp();
        (ImageMaterial Material, Race[] Races)[] networks = [.. ImageMaterial.All.Select(material =>
        {
            string own = Path.Combine(folder, material.Name);
            material.Prepare(own);
            return (material, threads.Select(count => Race(material, own, sides.With(count), precisions)).ToArray());
        })];
        for (int round = 1; round <= rounds; round++)
        {
            Console.WriteLine($"round {round} of {rounds}");
            foreach (Race race in networks.SelectMany(n => n.Races))
            {
                race.Round();
                Console.WriteLine(race.Last(Speed));
            }
        }
        string text = Page(networks, rounds, before, Stopwatch.GetElapsedTime(began).TotalSeconds);
        Console.WriteLine(text);
        File.WriteAllText(arguments.Text("out", "eng/bench/RESULTS.image-training.md"), text);
        return 0;
    }

    private static Race Race(ImageMaterial material, string folder, Sides sides, string[] precisions)
    {
        string[] steps = ["--steps", $"{material.Steps}", "--warmup", $"{material.Warmup}"];
        string[] torch = [folder, .. steps, "--rate", ImageMaterial.Rate.ToString(CultureInfo.InvariantCulture), "--batch", $"{ImageMaterial.Batch}"];
        return new Race($"{material.Name}, {sides.Threads} thread(s)", "images/s", [.. sides.Ours(precisions, Mode, folder, steps), .. sides.TorchScript(Script, torch)]);
    }

    private static double Speed(Measured m) => m.Report.TokensPerSecond;

    private static string Page((ImageMaterial Material, Race[] Races)[] networks, int rounds, string before, double seconds)
    {
        Race first = networks[0].Races[0];
        return $"""
            # Training on images: this library beside a plain PyTorch loop in Python

            Written by `./eng/bench/run.sh --image-training`; numbers are medians of {rounds} rounds, in which all sides took turns, each measurement in
            a process of its own. LoRA of rank {ImageMaterial.Rank} (alpha {ImageMaterial.Alpha}, no dropout) on query and value and a linear head, batches of {ImageMaterial.Batch}, AdamW at
            {ImageMaterial.Rate.ToString(CultureInfo.InvariantCulture)} with linear decay. All sides read the same pixels, labels, weights and initial values from files, and use the same libtorch and
            BLAS. A quarter of the steps is not counted: the runtime still compiles then. Ratios above 1 are in this library's favour.

            {string.Join("\n\n", networks.Select(n => Section(n.Material, n.Races)))}

            {Machine.Section("", (first.Ours.First().First, first.Theirs.First().First), before, seconds)}

            """;
    }

    private static string Section(ImageMaterial material, Race[] races) => $"""
        ## {material.Title}

        {material.Steps} steps.

        {string.Join("\n\n", races.Select(r => r.Table(Speed)))}

        Seconds suffer from whatever else runs on the machine; CPU seconds, those of all threads, do so less (waiting threads count, where
        they spin):

        {string.Join("\n\n", races.Select(r => new Race(r.What, "images a CPU second", r.Contenders).Table(m => m.Report.TokensPerCpuSecond)))}

        Peak memory (VmHWM):

        {string.Join("\n\n", races.Take(1).Select(r => new Race(r.What, "MiB", r.Contenders).Table(m => m.Report.PeakMemoryMiB, higher: false)))}

        | losses of the same steps | first | last | largest difference to {Sides.TorchFloat} |
        |---|---:|---:|---:|
        {string.Join('\n', races[0].Contenders.Select(c => LossRow(c, races[0][Sides.TorchFloat])))}
        """;

    private static string LossRow(Contender contender, Contender torch)
    {
        double[] losses = contender.First.Losses;
        double gap = losses.Zip(torch.First.Losses, (a, b) => Math.Abs(a - b)).Max();
        return FormattableString.Invariant($"| {(contender.Ours ? "this library, " : "")}{contender.Name} | {losses[0]:0.0000} | {losses[^1]:0.0000} | {gap:0.0e+0} |");
    }
}
