// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// libtorch counts physical cores and takes some virtual machines' cores for hyper-threads: on two of them it starts with
/// one thread. It is set right once, at the first backbone, unless OMP_NUM_THREADS or <c>torch.set_num_threads</c> said otherwise.
/// </summary>
internal static class CpuThreads
{
    private static readonly Lazy<int> _set = new(Set);

    /// <summary>Uses all cores; returns the number of threads.</summary>
    public static int UseCores() => _set.Value;

    private static int Set()
    {
        bool chosen = Environment.GetEnvironmentVariable("OMP_NUM_THREADS") is { Length: > 0 };
        int cores = Cores();
        if (!chosen && torch.get_num_threads() == 1 && cores > 1) torch.set_num_threads(cores);
        return torch.get_num_threads();
    }

    // Each core once, though it may run two threads; the processor count where the system does not say.
    private static int Cores()
    {
        const string Topology = "/sys/devices/system/cpu";
        try
        {
            var cores = new HashSet<string>();
            for (int cpu = 0; cpu < Environment.ProcessorCount; cpu++)
                cores.Add(File.ReadAllText($"{Topology}/cpu{cpu}/topology/thread_siblings_list"));
            return cores.Count;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return Environment.ProcessorCount;
        }
    }
}
