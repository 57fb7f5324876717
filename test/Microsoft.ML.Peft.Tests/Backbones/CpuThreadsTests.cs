// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>Work that is shared out over threads that libtorch computes on alone.</summary>
[TestClass]
public class CpuThreadsTests
{
    private int _before;

    [TestInitialize]
    public void TakeThreeThreads()
    {
        CpuThreads.UseCores();
        _before = get_num_threads();
        set_num_threads(3);
    }

    [TestCleanup]
    public void TakeAsManyAsBefore() => set_num_threads(_before);

    [TestMethod]
    public void EachPieceIsDoneOnceOnAThreadOfItsOwn()
    {
        int[] done = new int[500], threads = new int[500];
        CpuThreads.Share(done.Length, i =>
        {
            Interlocked.Increment(ref done[i]);
            using Tensor x = ones(10);
            threads[i] = get_num_threads();
        });
        Assert.IsTrue(done.All(d => d == 1));
        Assert.IsTrue(threads.All(t => t == 1), string.Join(' ', threads.Distinct()));
        Assert.AreEqual(3, get_num_threads());
        CpuThreads.Share(0, _ => Assert.Fail("There is nothing to do."));
    }

    [TestMethod]
    public void CallersShareTheThreadsAndWaitForTheirOwnWork()
    {
        var started = new CountdownEvent(3);
        CpuThreads.Share(3, _ =>
        {
            started.Signal();
            Assert.IsTrue(started.Wait(TimeSpan.FromSeconds(30)), "three pieces at once");
        });
        Parallel.For(0, 6, new ParallelOptions { MaxDegreeOfParallelism = 6 }, _ =>
        {
            using CpuThreads.Lent own = CpuThreads.Lend();
            Assert.AreEqual(3, get_num_threads());
            int sum = 0;
            CpuThreads.Share(100, i => Interlocked.Add(ref sum, i));
            Assert.AreEqual(4950, sum);
        });
    }

    [TestMethod]
    public void AThreadOfThePoolTakesTheNumberThatWasSetSince()
    {
        int before = 0, after = 0, kept = 0, asked = 0;
        using var set = new ManualResetEventSlim();
        using var counted = new ManualResetEventSlim();
        var old = new Thread(() =>
        {
            before = get_num_threads();
            counted.Set();
            set.Wait();
            kept = get_num_threads();
            using (CpuThreads.Lend(ask: false)) after = get_num_threads();
            set_num_threads(5);
            using (CpuThreads.Lend(ask: false)) asked = get_num_threads();
        });
        using (CpuThreads.Lend(ask: false)) Assert.AreEqual(3, get_num_threads());
        old.Start();
        counted.Wait();
        set_num_threads(4);
        using (CpuThreads.Lend(ask: false)) Assert.AreEqual(4, get_num_threads());
        set.Set();
        old.Join();
        Assert.AreEqual((3, 3, 4, 5), (before, kept, after, asked));
    }

    [TestMethod]
    public void WorkThatFailsEndsTheRestAndKeepsTheThreads()
    {
        for (int turn = 0; turn < 5; turn++)
        {
            int done = 0;
            var thrown = Assert.ThrowsExactly<ArgumentException>(() => CpuThreads.Share(1_000_000, i =>
            {
                Interlocked.Increment(ref done);
                if (i == 7) throw new ArgumentException("the seventh");
            }));
            Assert.AreEqual("the seventh", thrown.Message);
            Assert.IsLessThan(1_000_000, done);
        }
        int sum = 0;
        CpuThreads.Share(100, i => Interlocked.Add(ref sum, i));
        Assert.AreEqual(4950, sum);
    }

    [TestMethod]
    public void ThreadsThatWaitHoldNothing()
    {
        WeakReference work = Done();
        for (int i = 0; i < 100 && work.IsAlive; i++)
        {
            Thread.Sleep(10);
            GC.Collect();
        }
        Assert.IsFalse(work.IsAlive);
    }

    [System.Runtime.CompilerServices.MethodImpl(System.Runtime.CompilerServices.MethodImplOptions.NoInlining)]
    private static WeakReference Done()
    {
        var work = new int[1000];
        CpuThreads.Share(30, i => Interlocked.Increment(ref work[i]));
        return new WeakReference(work);
    }

    [TestMethod]
    public void KernelsAreOffWhereTheyAreForTheCaller()
    {
        int on = 0;
        CpuThreads.Share(9, _ => Interlocked.Add(ref on, NativeKernels.On ? 1 : 0));
        Assert.AreEqual(NativeKernels.On ? 9 : 0, on);
        on = 0;
        using (NativeKernels.Off()) CpuThreads.Share(9, _ => Interlocked.Add(ref on, NativeKernels.On ? 1 : 0));
        Assert.AreEqual(0, on);
    }
}
