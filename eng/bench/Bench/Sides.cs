// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Text.Json;
using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Bench;

/// <summary>Starts the measured processes: this program, Python, Node.</summary>
/// <param name="python">The Python that imports torch.</param>
/// <param name="libraries">Folder of the BLAS that Python shall use, as ours finds it by itself; empty for its own.</param>
/// <param name="scripts">Folder of the other sides' programs.</param>
/// <param name="threads">Threads of every side.</param>
internal sealed class Sides(string python, string libraries, string scripts, int threads)
{
    public const string TorchFloat = "PyTorch f32", TorchBFloat16 = "PyTorch bf16 autocast", OnnxFloat = "ONNX Runtime f32", OnnxInt8 = "ONNX Runtime dynamic int8";

    private const string Loop = "pytorch_loop.py";

    public int Threads => threads;

    /// <summary>The same with another number of threads.</summary>
    public Sides With(int other) => new(python, libraries, scripts, other);

    /// <summary>Whether ONNX Runtime can be measured: ONNXRUNTIME_NODE names a folder with its package.</summary>
    public static bool HasOnnxRuntime => Environment.GetEnvironmentVariable("ONNXRUNTIME_NODE") is { Length: > 0 };

    /// <summary>Ours in each of the precisions.</summary>
    public IEnumerable<Contender> Ours(IEnumerable<string> precisions, string mode, string folder, params string[] more) =>
        precisions.Select(p => new Contender(p, ours: true, () => Ours(mode, folder, ["--precision", p, .. more])));

    /// <summary>PyTorch in float32 and under autocast.</summary>
    public IEnumerable<Contender> Torch(string mode, string folder, params string[] more) => TorchScript(Loop, [mode, folder, .. more]);

    /// <summary>The same with another script.</summary>
    public IEnumerable<Contender> TorchScript(string script, params string[] words) =>
    [
        new(TorchFloat, ours: false, () => Python(script, autocast: false, words)),
        new(TorchBFloat16, ours: false, () => Python(script, autocast: true, words)),
    ];

    /// <summary>ONNX Runtime on the exported file and on its quantised form; none where it is not there.</summary>
    public IEnumerable<Contender> Onnx(string mode, string folder, int warm = 0, int seconds = 0) => !HasOnnxRuntime ? [] :
    [
        new(OnnxFloat, ours: false, () => Onnx(mode, folder, Preparation.OnnxFile, warm, seconds)),
        new(OnnxInt8, ours: false, () => Onnx(mode, folder, Preparation.QuantisedFile, warm, seconds)),
    ];

    public Measured Ours(string mode, string folder, params string[] more) =>
        Start(Environment.ProcessPath!, [mode, folder, "--threads", $"{threads}", .. more]);

    public Measured Torch(string mode, string folder, bool autocast, params string[] more) => Python(Loop, autocast, [mode, folder, .. more]);

    private Measured Python(string script, bool autocast, params string[] words) => Start(
        python, [Path.Combine(scripts, script), .. words, "--threads", $"{threads}", .. autocast ? ["--autocast"] : Array.Empty<string>()]);

    private Measured Onnx(string mode, string folder, string file, int warm, int seconds) =>
        Start("node", [Path.Combine(scripts, "onnx_score.mjs"), mode, folder, file, $"{threads}", $"{warm}", $"{seconds}"]);

    private Measured Start(string program, string[] words)
    {
        var start = new ProcessStartInfo(program, words) { RedirectStandardOutput = true };
        if (libraries.Length > 0 && program == python) start.Environment["LD_LIBRARY_PATH"] = libraries;
        // One thread that is set by call alone counts as none set: the first backbone takes all cores then.
        start.Environment["OMP_NUM_THREADS"] = $"{threads}";
        long began = Stopwatch.GetTimestamp();
        using Process process = Process.Start(start)!;
        string line = process.StandardOutput.ReadLine() ?? "";
        double seconds = Stopwatch.GetElapsedTime(began).TotalSeconds;
        process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        if (process.ExitCode != 0 || line.Length == 0)
            throw new InvalidOperationException($"{Path.GetFileName(program)} {string.Join(' ', words)} ended with code {process.ExitCode}.");
        return new Measured(JsonSerializer.Deserialize<Report>(line, Report.Form)!, seconds);
    }

    /// <summary>All precisions that there are, or those that are asked for.</summary>
    public static string[] Precisions(string? asked) => string.IsNullOrEmpty(asked)
        ? Enum.GetNames<Precision>()
        : [.. asked.Split(',').Select(name => Enum.Parse<Precision>(name, ignoreCase: true).ToString())];
}
