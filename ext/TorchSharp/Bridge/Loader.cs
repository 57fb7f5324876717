// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TorchSharp.Bridge;

/// <summary>Finds the bridge over libtorch, and sees to it that libtorch meets the fast BLAS.</summary>
internal static class Loader
{
    internal const string Library = "PeftTorch";

    private static readonly Lock s_gate = new();
    private static nint s_bridge;

    [ModuleInitializer]
    internal static void Initialize() =>
        NativeLibrary.SetDllImportResolver(typeof(Loader).Assembly, (name, _, _) => name == Library ? Bridge() : 0);

    private static nint Bridge()
    {
        lock (s_gate)
        {
            if (s_bridge != 0)
                return s_bridge;
            string path = Candidates().FirstOrDefault(File.Exists)
                ?? throw new DllNotFoundException(
                    $"The bridge to libtorch, {FileName}, is neither beside the application ({AppContext.BaseDirectory}) nor named by PEFT_TORCH_BRIDGE: run ./eng/setup.sh and build again.");
            Blas.Prefer(path);
            s_bridge = NativeLibrary.Load(path);
            return s_bridge;
        }
    }

    private static string FileName =>
        OperatingSystem.IsWindows() ? "PeftTorch.dll" : OperatingSystem.IsMacOS() ? "libPeftTorch.dylib" : "libPeftTorch.so";

    private static IEnumerable<string> Candidates()
    {
        if (Environment.GetEnvironmentVariable("PEFT_TORCH_BRIDGE") is { Length: > 0 } named)
            yield return named;
        yield return Path.Combine(AppContext.BaseDirectory, FileName);
        if (Path.GetDirectoryName(Assembly.GetExecutingAssembly().Location) is { Length: > 0 } folder)
            yield return Path.Combine(folder, FileName);
    }
}
