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

    /// <summary>
    /// Gives the calling thread the process' number of threads, or another one, until the result is disposed. libtorch keeps the
    /// number for each thread that it has run on: one of the pool that worked before <c>set_num_threads</c> still has the old one,
    /// and sums that are split otherwise are rounded otherwise.
    /// </summary>
    /// <param name="threads">Number of threads; 0 for the process' own, which a new thread finds.</param>
    public static Lent Lend(int threads = 0)
    {
        UseCores();
        int own = torch.get_num_threads(), wanted = threads > 0 ? threads : OfProcess();
        if (own != wanted) torch.set_num_threads(wanted);
        return new Lent(threads > 0 ? own : wanted);
    }

    private static int OfProcess()
    {
        int found = 0;
        var fresh = new Thread(() => found = torch.get_num_threads(), maxStackSize: 1 << 18);
        fresh.Start();
        fresh.Join();
        return found;
    }

    public readonly struct Lent(int before) : IDisposable
    {
        public void Dispose()
        {
            if (torch.get_num_threads() != before) torch.set_num_threads(before);
        }
    }

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
