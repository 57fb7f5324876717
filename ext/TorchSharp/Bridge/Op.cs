// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace TorchSharp.Bridge;

/// <summary>An operator of libtorch, found by schema name and overload on first use.</summary>
internal sealed unsafe class Op(string name, string overload = "")
{
    private const int StackCells = 64;
    private nint _handle;

    /// <summary>Whether this libtorch has the operator.</summary>
    internal bool Exists
    {
        get
        {
            if (_handle == 0)
                _handle = Lookup();
            return _handle != 0;
        }
    }

    internal torch.Tensor Call(params ReadOnlySpan<Arg> args)
    {
        Value result;
        Invoke(args, &result, 1);
        return new torch.Tensor((nint)result.Bits);
    }

    /// <summary>The result as a bare handle, which no dispose scope knows of: the caller frees it.</summary>
    internal nint Bare(params ReadOnlySpan<Arg> args)
    {
        Value result;
        Invoke(args, &result, 1);
        return (nint)result.Bits;
    }

    internal (torch.Tensor, torch.Tensor) Call2(params ReadOnlySpan<Arg> args)
    {
        Value* r = stackalloc Value[2];
        Invoke(args, r, 2);
        return (new((nint)r[0].Bits), new((nint)r[1].Bits));
    }

    internal (torch.Tensor, torch.Tensor, torch.Tensor) Call3(params ReadOnlySpan<Arg> args)
    {
        Value* r = stackalloc Value[3];
        Invoke(args, r, 3);
        return (new((nint)r[0].Bits), new((nint)r[1].Bits), new((nint)r[2].Bits));
    }

    internal (torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor) Call4(params ReadOnlySpan<Arg> args)
    {
        Value* r = stackalloc Value[4];
        Invoke(args, r, 4);
        return (new((nint)r[0].Bits), new((nint)r[1].Bits), new((nint)r[2].Bits), new((nint)r[3].Bits));
    }

    /// <summary>The first of several results; the others are freed at once.</summary>
    internal torch.Tensor First(params ReadOnlySpan<Arg> args)
    {
        const int most = 12;
        Value* r = stackalloc Value[most];
        int count = Invoke(args, r, most);
        for (int i = 1; i < count; i++)
            if (r[i].Tag == Tag.Tensor && r[i].Bits != 0)
                Native.pt_free((nint)r[i].Bits);
        return new((nint)r[0].Bits);
    }

    internal torch.Tensor[] CallList(params ReadOnlySpan<Arg> args)
    {
        Value result;
        Invoke(args, &result, 1);
        var tensors = new torch.Tensor[result.Length];
        for (int i = 0; i < tensors.Length; i++)
            tensors[i] = new(((nint*)result.Bits)[i]);
        Native.pt_free_memory((void*)result.Bits);
        return tensors;
    }

    /// <summary>For in-place operators: works on the first argument and returns that very object.</summary>
    internal torch.Tensor Self(params ReadOnlySpan<Arg> args)
    {
        Invoke(args, null, 0);
        return (torch.Tensor)args[0].Ref!;
    }

    internal bool Bool(params ReadOnlySpan<Arg> args)
    {
        Value result;
        Invoke(args, &result, 1);
        return result.Bits != 0;
    }

    /// <summary>The result as it comes: a number where the operator gives one.</summary>
    internal Value Raw(params ReadOnlySpan<Arg> args)
    {
        Value result;
        Invoke(args, &result, 1);
        return result;
    }

    // The objects behind the arguments live in the caller's frame, so nothing is collected while native code runs.
    [SkipLocalsInit]
    private int Invoke(ReadOnlySpan<Arg> args, Value* results, int capacity)
    {
        if (_handle == 0)
            _handle = Find();
        int cells = 0;
        foreach (ref readonly var arg in args)
            cells += arg.Cells;
        if (cells > StackCells)
            return InvokeLarge(args, cells, results, capacity);
        long* scratch = stackalloc long[StackCells];
        return Invoke(args, scratch, results, capacity);
    }

    private int InvokeLarge(ReadOnlySpan<Arg> args, int cells, Value* results, int capacity)
    {
        long* scratch = (long*)NativeMemory.Alloc((nuint)cells, sizeof(long));
        try
        {
            return Invoke(args, scratch, results, capacity);
        }
        finally
        {
            NativeMemory.Free(scratch);
        }
    }

    [SkipLocalsInit]
    private int Invoke(ReadOnlySpan<Arg> args, long* scratch, Value* results, int capacity)
    {
        Value* values = stackalloc Value[args.Length];
        for (int i = 0; i < args.Length; i++)
            scratch = args[i].Write(values + i, scratch);
        int count = Native.pt_call(_handle, values, args.Length, results, capacity);
        return count >= 0 ? count : throw Native.Error();
    }

    private nint Find() => Native.Check(Lookup());

    private nint Lookup()
    {
        nint full = Marshal.StringToCoTaskMemUTF8("aten::" + name), over = Marshal.StringToCoTaskMemUTF8(overload);
        try
        {
            return Native.pt_find((byte*)full, (byte*)over);
        }
        finally
        {
            Marshal.FreeCoTaskMem(full);
            Marshal.FreeCoTaskMem(over);
        }
    }
}
