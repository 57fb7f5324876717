// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Runtime.InteropServices;
using System.Text;

namespace TorchSharp.Bridge;

/// <summary>
/// Debian's libtorch takes whichever BLAS the system prefers: a reference one that is 50 times slower, or OpenBLAS's pthread
/// variant, whose threads fight with libtorch's OpenMP ones. The loader reuses a library that is already there under the wanted
/// name, so the openmp variant is loaded first, by path. An installed PyTorch brings its own BLAS and is left alone.
/// </summary>
internal static class Blas
{
    private static readonly string[] s_names = ["libopenblas.so.0", "libblas.so.3", "liblapack.so.3"];

    internal static void Prefer(string bridge)
    {
        if (!OperatingSystem.IsLinux())
            return;
        foreach (string triplet in new[] { "x86_64-linux-gnu", "aarch64-linux-gnu" })
        {
            string system = $"/usr/lib/{triplet}";
            string folder = $"{system}/openblas-openmp";
            if (!Directory.Exists(folder) || !UsesLibtorchOf(bridge, system))
                continue;
            foreach (string name in s_names)
                NativeLibrary.TryLoad($"{folder}/{name}", out _);
            return;
        }
    }

    // The bridge's run path, a string in its file, is the folder of the libtorch that it was built for.
    private static bool UsesLibtorchOf(string bridge, string folder) =>
        File.ReadAllBytes(bridge).AsSpan().IndexOf(Encoding.UTF8.GetBytes("\0" + folder + "\0")) >= 0;
}
