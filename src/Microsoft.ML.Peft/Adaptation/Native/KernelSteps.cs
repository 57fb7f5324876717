// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Calls of kernels that are written down first and run at once: programs side by side, a thread each, so that threads meet once
/// at the end and not after each call. One for each thread, used again; what it names must live until it has run.
/// </summary>
internal sealed unsafe class KernelSteps : IDisposable
{
    private const int BlockBytes = 1 << 14;

    [ThreadStatic]
    private static KernelSteps? _free;

    private readonly List<nint> _blocks = [];
    private readonly List<NativeStep> _steps = [];
    private readonly List<int> _ends = [];
    private readonly List<PackedWeight> _held = [];
    private int _block, _used;

    private KernelSteps()
    {
    }

    ~KernelSteps()
    {
        foreach (nint block in _blocks) NativeMemory.Free((void*)block);
    }

    /// <summary>The calling thread's own, empty; dispose gives it back.</summary>
    public static KernelSteps Take()
    {
        KernelSteps steps = _free ?? new KernelSteps();
        _free = null;
        return steps;
    }

    /// <summary>Threads that each call asks for.</summary>
    public int Threads { get; set; } = 1;

    /// <summary>Keeps a weight from being freed, and gives its handle.</summary>
    public nint Hold(PackedWeight weight)
    {
        bool held = false;
        weight.DangerousAddRef(ref held);
        _held.Add(weight);
        return weight.DangerousGetHandle();
    }

    public void Add(ReadOnlySpan<NativeProduct> products)
    {
        NativeProduct* copies = Room<NativeProduct>(products.Length);
        for (int i = 0; i < products.Length; i++)
        {
            copies[i] = products[i];
            copies[i].Threads = Threads;
        }
        _steps.Add(new NativeStep { Kind = NativeKind.Products, Count = products.Length, What = copies });
    }

    public void Add(NativeLowRank call, bool gradient = false)
    {
        call.Threads = Threads;
        Add(gradient ? NativeKind.LowRankGradient : NativeKind.LowRankProduct, call);
    }

    public void Add(NativeAttention call, bool backward)
    {
        call.Threads = Threads;
        Add(backward ? NativeKind.AttentionBackward : NativeKind.AttentionForward, call);
    }

    public void Add(NativeNorm call, bool backward)
    {
        call.Threads = Threads;
        Add(backward ? NativeKind.NormBackward : NativeKind.NormForward, call);
    }

    public void Add(NativeActivate call)
    {
        call.Threads = Threads;
        Add(NativeKind.ActivationForward, call);
    }

    private void Add<T>(NativeKind kind, T call) where T : unmanaged
    {
        T* copy = Room<T>(1);
        *copy = call;
        _steps.Add(new NativeStep { Kind = kind, Count = 1, What = copy });
    }

    /// <summary>What is added from here on belongs to another program.</summary>
    public void Next()
    {
        if (_steps.Count > (_ends.Count == 0 ? 0 : _ends[^1])) _ends.Add(_steps.Count);
    }

    /// <summary>Runs what was added, and forgets it.</summary>
    /// <param name="threads">Programs at once.</param>
    /// <exception cref="InvalidOperationException">A kernel refused its arguments.</exception>
    public void Run(int threads)
    {
        Next();
        if (_ends.Count > 0)
            fixed (NativeStep* steps = CollectionsMarshal.AsSpan(_steps))
            fixed (int* ends = CollectionsMarshal.AsSpan(_ends))
                NativeKernels.Check(NativeKernels.Calls.Run(steps, ends, _ends.Count, threads));
        Clear();
    }

    private T* Room<T>(int count) where T : unmanaged
    {
        int bytes = ((count * sizeof(T)) + 15) / 16 * 16;
        if (_blocks.Count == 0 || _used + bytes > BlockBytes)
        {
            if (_blocks.Count > 0) _block++;
            if (_block == _blocks.Count) _blocks.Add((nint)NativeMemory.Alloc(BlockBytes));
            _used = 0;
        }
        T* room = (T*)(_blocks[_block] + _used);
        _used += bytes;
        return room;
    }

    private void Clear()
    {
        foreach (PackedWeight weight in _held) weight.DangerousRelease();
        _held.Clear();
        _steps.Clear();
        _ends.Clear();
        (_block, _used) = (0, 0);
    }

    public void Dispose()
    {
        Clear();
        _free = this;
    }
}
