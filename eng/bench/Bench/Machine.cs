// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections;
using System.Globalization;
using System.Runtime.InteropServices;
using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Bench;

/// <summary>What is said of the machine: nothing by which it could be found.</summary>
internal static class Machine
{
    private static readonly string[] _sets = ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd", "sve", "bf16"];

    public static int Cores()
    {
        try
        {
            return Enumerable.Range(0, Environment.ProcessorCount)
                .Select(cpu => File.ReadAllText($"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).Distinct().Count();
        }
        catch (IOException)
        {
            return Environment.ProcessorCount;
        }
    }

    public static string LoadAverage() =>
        File.Exists("/proc/loadavg") ? string.Join(", ", File.ReadAllText("/proc/loadavg").Split(' ').Take(3)) : "unknown";

    public static string InstructionSets()
    {
        if (!File.Exists("/proc/cpuinfo")) return "instruction sets unknown";
        string? line = File.ReadLines("/proc/cpuinfo").FirstOrDefault(l => l.StartsWith("flags", StringComparison.Ordinal) || l.StartsWith("Features", StringComparison.Ordinal));
        HashSet<string> flags = [.. (line ?? "").Split(' ')];
        return string.Join(", ", _sets.Where(flags.Contains));
    }

    /// <summary>The processor's name, as the system gives it.</summary>
    public static string Processor() => !File.Exists("/proc/cpuinfo") ? RuntimeInformation.ProcessArchitecture.ToString() :
        File.ReadLines("/proc/cpuinfo").FirstOrDefault(l => l.StartsWith("model name", StringComparison.Ordinal))?.Split(':')[1].Trim() ?? RuntimeInformation.ProcessArchitecture.ToString();

    /// <summary>Environment variables by which the libraries of either side choose their code or their threads.</summary>
    public static string Variables()
    {
        string[] prefixes = ["OPENBLAS_", "OMP_", "KMP_", "GOMP_", "MKL_", "BLIS_", "DNNL_", "ONEDNN_", "ATEN_", "PEFT_NATIVE", "DOTNET_T", "DOTNET_gc", "DOTNET_GC", "MALLOC_", "LD_PRELOAD"];
        string[] found = [.. Environment.GetEnvironmentVariables().Cast<DictionaryEntry>().Select(e => (Name: (string)e.Key, e.Value))
            .Where(e => prefixes.Any(p => e.Name.StartsWith(p, StringComparison.Ordinal)) && e.Name != "PEFT_NATIVE_LIBRARY")
            .Select(e => $"{e.Name}={e.Value}").Order(StringComparer.Ordinal)];
        return found.Length == 0 ? "none" : string.Join(", ", found);
    }

    /// <summary>The section that ends a page of results.</summary>
    /// <param name="what">What stands before the cores.</param>
    /// <param name="libraries">A report of each side; null where none says which libraries it used.</param>
    /// <param name="loadBefore">Load average before the run.</param>
    /// <param name="seconds">What the run took.</param>
    public static string Section(string what, (Report Ours, Report Theirs)? libraries, string loadBefore, double seconds)
    {
        string used = libraries is not var (ours, theirs) ? "" : $"""
            PyTorch {theirs.Torch}; BLAS here {ours.Blas}, there {theirs.Blas};
            libtorch {(ours.Library.Length > 0 && ours.Library == theirs.Library ? "is the same file on both sides" : "is NOT the same file on both sides")}.
            """;
        return $"""
            ## The machine

            {what}{Cores()} cores of {Processor()}; {InstructionSets()}.
            Native kernels: {NativeKernels.Description}. {used}
            Variables that change the speed of libraries, the same for all sides: {Variables()}.
            {DateTime.UtcNow.ToString("yyyy-MM-dd", CultureInfo.InvariantCulture)}. Load average (1, 5, 15 minutes) before the run {loadBefore}, after it {LoadAverage()}; the run took {seconds.ToString("0", CultureInfo.InvariantCulture)} s.
            """;
    }

    /// <summary>The most memory that this process has had.</summary>
    public static double PeakMemoryMiB() => StatusMiB("self", "VmHWM:");

    /// <summary>The memory that a process has now; 0 where it has ended.</summary>
    public static double ResidentMiB(int process) => StatusMiB(process.ToString(CultureInfo.InvariantCulture), "VmRSS:");

    private static double StatusMiB(string process, string field)
    {
        string path = $"/proc/{process}/status";
        string? line = null;
        try
        {
            if (File.Exists(path)) line = File.ReadLines(path).FirstOrDefault(l => l.StartsWith(field, StringComparison.Ordinal));
        }
        catch (IOException)
        {
            // It ended while it was read.
        }
        return line is null ? 0 : double.Parse(line.Split(' ', '\t').First(w => w.Length > 0 && char.IsDigit(w[0])), CultureInfo.InvariantCulture) / 1024;
    }

    /// <summary>The file of a loaded library whose name starts so; empty where there is none.</summary>
    public static string Loaded(string name) => !File.Exists("/proc/self/maps") ? "" :
        File.ReadLines("/proc/self/maps").Select(l => l.Split(' ')[^1]).FirstOrDefault(p => Path.GetFileName(p).StartsWith(name, StringComparison.Ordinal)) ?? "";

    /// <summary>Which BLAS is loaded: the name of its folder, which says the variant on Debian, of its file, and the kind of processor that it works for.</summary>
    public static unsafe string Blas()
    {
        string path = Loaded("libopenblas");
        if (path.Length == 0) path = Loaded("libblas");
        if (path.Length == 0) path = Loaded("libmkl");
        if (path.Length == 0) return "libtorch's own";
        string name = $"{Path.GetFileName(Path.GetDirectoryName(path))}/{Path.GetFileName(path)}";
        return NativeLibrary.TryLoad(path, out nint library) && NativeLibrary.TryGetExport(library, "openblas_get_corename", out nint core)
            ? $"{name} ({Marshal.PtrToStringUTF8((nint)((delegate* unmanaged<byte*>)core)())})"
            : name;
    }
}
