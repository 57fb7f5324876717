// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using System.Runtime.ExceptionServices;
using Microsoft.ML.Peft.Adaptation;
using TorchSharp;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// libtorch counts physical cores and takes some virtual machines' cores for hyper-threads: on two of them it starts with
/// one thread. It is set right once, at the first backbone, unless OMP_NUM_THREADS or <c>torch.set_num_threads</c> said otherwise.
/// </summary>
internal static class CpuThreads
{
    private static readonly Lazy<int> _set = new(Set);

    // Whoever changes the process' number only in passing does so under this lock.
    private static readonly Lock _process = new();

    private static readonly BlockingCollection<Action> _work = [];
    private static int _workers;

    // The process' number of threads when it was last asked for.
    private static int _known;

    /// <summary>Uses all cores; returns the number of threads.</summary>
    public static int UseCores() => _set.Value;

    /// <summary>
    /// Gives the calling thread the process' number of threads, or another one, until the result is disposed. libtorch keeps the
    /// number for each thread that it has run on: one of the pool that worked before <c>set_num_threads</c> still has the old one,
    /// and sums that are split otherwise are rounded otherwise.
    /// </summary>
    /// <param name="threads">Number of threads; 0 for the process' own, which a new thread finds.</param>
    /// <param name="ask">
    /// False to take the calling thread's number for the process' where it was that when last asked: libtorch makes a pool of threads
    /// whenever it counts them on a new thread, which keep a core busy for some 30 ms. A number that another thread has set
    /// since shows once that one scores, or any trains.
    /// </param>
    public static Lent Lend(int threads = 0, bool ask = true)
    {
        UseCores();
        using Lock.Scope alone = _process.EnterScope();
        int own = torch.get_num_threads();
        if (threads == 0 && (ask || own != _known)) _known = OfProcess();
        int wanted = threads > 0 ? threads : _known;
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

    /// <summary>
    /// Does pieces of work on as many threads as the calling one would use, each of which computes alone: nothing waits until
    /// all are done. Gradients, dispose scopes and the like are the work's own affair, as on any new thread.
    /// </summary>
    /// <param name="count">Number of pieces.</param>
    /// <param name="work">Does the piece of a number; called on several threads at once, the lower numbers first.</param>
    public static void Share(int count, Action<int> work)
    {
        int number = torch.get_num_threads(), next = -1;
        bool kernels = NativeKernels.On;
        Exception? failure = null;
        void Work()
        {
            using NativeKernels.OffScope? off = kernels ? null : NativeKernels.Off();
            try
            {
                for (int i; Volatile.Read(ref failure) is null && (i = Interlocked.Increment(ref next)) < count;) work(i);
            }
            catch (Exception e)
            {
                Interlocked.CompareExchange(ref failure, e, null);
            }
        }

        int workers = Math.Min(number, count);
        using var open = new CountdownEvent(workers);
        for (int i = 0; i < workers; i++)
            _work.Add(() =>
            {
                Work();
                open.Signal();
            });
        Staff(workers, number);
        open.Wait();
        if (failure is not null) ExceptionDispatchInfo.Throw(failure);
    }

    // Threads that libtorch computes on alone; they stay, since telling it so is not free. The number that is set for a thread
    // becomes the process' too, so it is set back.
    private static void Staff(int wanted, int process)
    {
        if (Volatile.Read(ref _workers) >= wanted) return;
        using Lock.Scope alone = _process.EnterScope();
        for (; _workers < wanted; _workers++)
        {
            using var ready = new ManualResetEventSlim();
            var thread = new Thread(() =>
            {
                // Asked first, or libtorch would take the process' number at the thread's first operation.
                torch.get_num_threads();
                torch.set_num_threads(1);
                ready.Set();
                while (true) Next();
            });
            (thread.IsBackground, thread.Name) = (true, "Microsoft.ML.Peft scoring");
            thread.Start();
            ready.Wait();
        }
        torch.set_num_threads(process);
    }

    // A frame of its own: a thread that waits holds on to nothing of the work before, whose model may be gone.
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Next() => _work.Take()();

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
