// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Runtime.InteropServices;
using System.Text;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>A built program of this repository in a process of its own; it lies beside the tests among the build's outputs.</summary>
internal sealed class Child : IDisposable
{
    private static readonly TimeSpan _limit = TimeSpan.FromMinutes(5);
    private readonly Process _process;
    private readonly StringBuilder _output = new(), _error = new();

    private Child(string project, string assembly, IEnumerable<string> arguments, string? folder, bool oneThread)
    {
        // .../bin/Microsoft.ML.Peft.Tests/CONFIGURATION/ has its neighbour in .../bin/PROJECT/CONFIGURATION/.
        var own = new DirectoryInfo(AppContext.BaseDirectory.TrimEnd(Path.DirectorySeparatorChar));
        string dll = Path.Combine(own.Parent!.Parent!.FullName, project, own.Name, assembly + ".dll");
        Assert.IsTrue(File.Exists(dll), $"{dll} is not built; build the tests with their references.");
        var start = new ProcessStartInfo
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            WorkingDirectory = folder ?? "",
        };
        string host = Environment.GetEnvironmentVariable("DOTNET_HOST_PATH") ?? "dotnet";
        if (oneThread) start.Environment["OMP_NUM_THREADS"] = "1";
        // A test run in the background may have SIGINT ignored, and children inherit that.
        (start.FileName, string[] before) = OperatingSystem.IsLinux() ? ("env", ["--default-signal=INT", host]) : (host, Array.Empty<string>());
        foreach (string argument in (string[])[.. before, dll, .. arguments]) start.ArgumentList.Add(argument);
        _process = Process.Start(start)!;
        _process.OutputDataReceived += (_, e) => Append(_output, e.Data);
        _process.ErrorDataReceived += (_, e) => Append(_error, e.Data);
        _process.BeginOutputReadLine();
        _process.BeginErrorReadLine();
    }

    /// <summary>Starts a program.</summary>
    /// <param name="project">Its project.</param>
    /// <param name="assembly">Its assembly.</param>
    /// <param name="arguments">What it is called with.</param>
    /// <param name="folder">Where it runs.</param>
    /// <param name="oneThread">True for networks that are too small to share out.</param>
    public static Child Start(string project, string assembly, IEnumerable<string> arguments, string? folder = null, bool oneThread = false) =>
        new(project, assembly, arguments, folder, oneThread);

    /// <summary>Runs a program to its end.</summary>
    public static (int Code, string Output, string Error) Run(string project, string assembly, IEnumerable<string> arguments, string? input = null, string? folder = null, bool oneThread = false)
    {
        using Child child = Start(project, assembly, arguments, folder, oneThread);
        if (input is not null) child._process.StandardInput.Write(input);
        child._process.StandardInput.Close();
        return (child.Wait(), child.Output, child.Error);
    }

    public string Output => Text(_output);

    public string Error => Text(_error);

    public bool HasExited => _process.HasExited;

    public int Wait()
    {
        if (!_process.WaitForExit(_limit)) Assert.Fail($"The process does not end.\n{Output}\n{Error}");
        _process.WaitForExit();
        return _process.ExitCode;
    }

    /// <summary>Waits until something holds or the process ends.</summary>
    public void Until(Func<bool> condition)
    {
        var clock = Stopwatch.StartNew();
        while (!condition())
        {
            if (HasExited || clock.Elapsed > _limit) Assert.Fail($"The process did not come so far.\n{Output}\n{Error}");
            Thread.Sleep(2);
        }
    }

    public void Kill() => _process.Kill();

    public void Interrupt() => Assert.AreEqual(0, kill(_process.Id, 2));

    private static void Append(StringBuilder text, string? line)
    {
        if (line is null) return;
        lock (text) text.Append(line).Append('\n');
    }

    private static string Text(StringBuilder text)
    {
        lock (text) return text.ToString();
    }

    public void Dispose()
    {
        if (!_process.HasExited) _process.Kill(entireProcessTree: true);
        _process.Dispose();
    }

    [DllImport("libc", SetLastError = true)]
    private static extern int kill(int process, int signal);
}
