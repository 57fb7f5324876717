// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Diagnostics;
using System.Reflection;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>Each public member of a stand-in assembly exists in the real package with the same signature.</summary>
[TestClass]
[TestCategory("ApiCheck")]
public class ApiCheckTests
{
    private static readonly Lazy<string> s_checker = new(Build);

    public TestContext TestContext { get; set; } = null!;

    [TestMethod]
    [DataRow("TorchSharp", "TorchSharp.txt")]
    [DataRow("Microsoft.ML", "Microsoft.ML-5.0.0.txt", "Microsoft.ML.DataView-5.0.0.txt", "Microsoft.ML.ImageAnalytics-5.0.0.txt")]
    [DataRow("Microsoft.ML.ImageAnalytics", "Microsoft.ML.ImageAnalytics-5.0.0.txt", "Microsoft.ML-5.0.0.txt", "Microsoft.ML.DataView-5.0.0.txt")]
    [DataRow("Microsoft.ML.Tokenizers", "Microsoft.ML.Tokenizers-2.0.0.txt")]
    public void TheStandInIsASubset(string assembly, params string[] lists)
    {
        if (Source != "local")
        {
            TestContext.WriteLine($"Nothing to check: the packages are the real ones (PeftPackages is {Source}).");
            return;
        }
        string api = Path.Combine(Shared.Root, "api");
        string all = Path.Combine(Path.GetTempPath(), $"peft-api-{assembly}-{Environment.ProcessId}.txt");
        try
        {
            File.WriteAllLines(all, lists.SelectMany(list => File.ReadLines(Path.Combine(api, list))));
            var (code, output) = Run(s_checker.Value, "check", all, Path.Combine(AppContext.BaseDirectory, assembly + ".dll"));
            TestContext.WriteLine(output);
            Assert.AreEqual(0, code, output);
        }
        finally
        {
            File.Delete(all);
        }
    }

    private static string? Source => typeof(ApiCheckTests).Assembly.GetCustomAttributes<AssemblyMetadataAttribute>()
        .FirstOrDefault(metadata => metadata.Key == "PeftPackages")?.Value;

    // The shared folder may be read-only, so the checker is built in a copy.
    private static string Build()
    {
        string source = Path.Combine(Shared.Root, "tools", "apicheck");
        string copy = Path.Combine(Path.GetTempPath(), $"peft-apicheck-{Environment.UserName}");
        Directory.CreateDirectory(copy);
        foreach (string file in Directory.GetFiles(source))
            File.WriteAllBytes(Path.Combine(copy, Path.GetFileName(file)), File.ReadAllBytes(file));
        var (code, output) = Run("build", copy, "-c", "Release", "-o", Path.Combine(copy, "out"), "-v", "q", "--nologo", "-nodeReuse:false");
        Assert.AreEqual(0, code, output);
        return Path.Combine(copy, "out", "apicheck.dll");
    }

    private static (int Code, string Output) Run(params string[] arguments)
    {
        var start = new ProcessStartInfo("dotnet", arguments) { RedirectStandardOutput = true, RedirectStandardError = true };
        // What the test host sets for itself would steer the build.
        foreach (string name in start.Environment.Keys.Where(key => key.StartsWith("MSBUILD", StringComparison.OrdinalIgnoreCase)).ToList())
            start.Environment.Remove(name);
        using var process = Process.Start(start)!;
        var errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, output + errors.Result);
    }
}
