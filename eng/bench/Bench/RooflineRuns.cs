// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Bench;

/// <summary>The measured processes of the roofline: single products at their best, and where the time of a run goes by kernel.</summary>
internal static class RooflineRuns
{
    // Rows, and widths of the result and of the input: the feed-forward maps of both networks.
    private static readonly (int Rows, int Out, int In)[] _products = [(2048, 1536, 384), (2048, 384, 1536), (2048, 3072, 768)];

    // Which function belongs to what: the first line whose words occur in library or function; the rest is "other".
    private static readonly (string Name, string[] Libraries, string[] Functions)[] _groups =
    [
        ("attention", ["PeftNative"], ["attend", "attention", "soften", "block<"]),
        ("norms", ["PeftNative"], ["norm"]),
        ("packing, rounding", ["PeftNative"], ["pack", "round", "quantise"]),
        ("products, with what follows in them", ["PeftNative"], ["product", "tile", "multiply"]),
        ("activations' slopes, dropout", ["PeftNative"], ["activation", "dropout"]),
        ("other kernels", ["PeftNative"], [""]),
        ("waiting of threads", ["gomp", "libomp", "iomp"], [""]),
        ("BLAS, oneDNN", ["openblas", "blas", "mkl", "dnnl"], [""]),
        ("libtorch", ["torch", "c10"], [""]),
        (".NET: compiling", ["clrjit"], [""]),
        (".NET: the rest", ["clr", "doublemapper", "perf-", "[JIT]", ".dll", "System."], [""]),
        ("the system: memory, threads", ["kernel"], [""]),
    ];

    /// <summary>GFLOP/s of the best call: our products in each precision, libtorch's in float32 and bfloat16.</summary>
    public static string Peak(Arguments arguments)
    {
        set_num_threads(arguments.Int("threads", Machine.Cores()));
        var numbers = new Dictionary<string, double>();
        using var off = no_grad();
        foreach ((int rows, int outputs, int inputs) in _products)
        {
            using var scope = NewDisposeScope();
            Tensor x = randn(rows, inputs), weight = randn(outputs, inputs);
            var site = new Projection("product", SiteRole.FeedForwardUp, 0, weight, zeros(outputs));
            void Best(string name, Action action) => numbers[name] = Math.Max(numbers.GetValueOrDefault(name), 2e-9 * rows * outputs * inputs / Quickest(action));
            foreach (string precision in arguments.List("precisions", [])) Best(precision, () => site.Forward(x, new Pass { Precision = Enum.Parse<Precision>(precision) }));
            Tensor half = x.to_type(ScalarType.BFloat16), halfWeight = weight.to_type(ScalarType.BFloat16);
            Best("libtorch f32", () => nn.functional.linear(x, weight));
            Best("libtorch bf16", () => nn.functional.linear(half, halfWeight));
        }
        return JsonSerializer.Serialize(new Report { Numbers = numbers }, Report.Form);
    }

    private static double Quickest(Action action)
    {
        double best = double.MaxValue;
        long end = Stopwatch.GetTimestamp() + Stopwatch.Frequency / 2;
        for (int i = 0; i < 20 || Stopwatch.GetTimestamp() < end; i++)
        {
            using var scope = NewDisposeScope();
            long began = Stopwatch.GetTimestamp();
            action();
            best = Math.Min(best, Stopwatch.GetElapsedTime(began).TotalSeconds);
        }
        return best;
    }

    /// <summary>Shares of a run's samples by kind of kernel; without perf the times of the parts, as text.</summary>
    public static string Kernels(string folder, string mode, Arguments arguments)
    {
        set_num_threads(arguments.Int("threads", Machine.Cores()));
        bool train = mode == "train";
        using AdaptedModel model = Material.Load(folder, dropout: true, train ? Material.Init : Material.Trained);
        Precision precision = model.Precision = Enum.Parse<Precision>(arguments.Text("precision", nameof(Precision.Float32)));
        Material material = Material.Read(folder, train ? "train" : "score");
        void Work(int steps)
        {
            if (train) OurSide.Train(model, precision, material.Rows, [.. material.Batches.Take(steps)], 0, 5e-4);
            else OurSide.Score(model, material.Rows, [.. material.Batches], 0, steps / 40.0);
        }

        // Long enough for .NET to have compiled what runs often.
        Work(230);
        Dictionary<string, double>? shares = Sampled(() => Work(arguments.Int("steps", 138)));
        if (shares is not null) return JsonSerializer.Serialize(new Report { Numbers = shares }, Report.Form);
        var text = new StringWriter(CultureInfo.InvariantCulture);
        Profile.Run(folder, arguments, text);
        return JsonSerializer.Serialize(new Report { Text = text.ToString() }, Report.Form);
    }

    // Null where there is no perf, or it may not look. All processes are sampled: watching one by its number took perf a core.
    private static Dictionary<string, double>? Sampled(Action work)
    {
        string file = Path.GetTempFileName();
        try
        {
            using Process record = Process.Start(new ProcessStartInfo("perf", ["record", "-a", "-q", "-F", "997", "-o", file]) { RedirectStandardError = true })!;
            Thread.Sleep(500);
            if (record.HasExited) return null;
            work();
            using (Process stop = Process.Start("kill", ["-INT", $"{record.Id}"])) stop.WaitForExit();
            record.WaitForExit();
            using Process report = Process.Start(new ProcessStartInfo("perf", ["report", "-i", file, "--stdio", "--pid", $"{Environment.ProcessId}", "-F", "overhead,dso,sym", "-t", ";", "--percent-limit", "0"])
            {
                RedirectStandardOutput = true,
                RedirectStandardError = true,
            })!;
            string[] lines = report.StandardOutput.ReadToEnd().Split('\n');
            report.WaitForExit();
            Dictionary<string, double> shares = Grouped(lines);
            return shares.Count == 0 ? null : shares;
        }
        catch (System.ComponentModel.Win32Exception)
        {
            return null;
        }
        finally
        {
            File.Delete(file);
        }
    }

    private static Dictionary<string, double> Grouped(string[] lines)
    {
        var shares = new Dictionary<string, double>();
        foreach (string[] fields in lines.Where(l => l.Length > 0 && l[0] != '#').Select(l => l.Split(';', 3)).Where(f => f.Length == 3))
        {
            string library = fields[1], function = fields[2];
            string name = _groups.FirstOrDefault(g => g.Libraries.Any(library.Contains) && g.Functions.Any(function.Contains)).Name ?? "other";
            shares[name] = shares.GetValueOrDefault(name) + double.Parse(fields[0].Trim().TrimEnd('%'), CultureInfo.InvariantCulture);
        }
        return shares;
    }
}
