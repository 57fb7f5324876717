// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;

namespace Microsoft.ML.Data;

/// <summary>Zeroed memory outside the garbage collector's heap, as the real package has it: free at once when disposed.</summary>
internal sealed unsafe class PixelMemory : IDisposable
{
    private readonly nint _length;
    private void* _memory;

    internal PixelMemory(nint length)
    {
        _length = length;
        _memory = NativeMemory.AllocZeroed((nuint)length);
        GC.AddMemoryPressure(length);
    }

    ~PixelMemory() => Free();

    internal Span<byte> Span => new(_memory, (int)_length);

    public void Dispose()
    {
        Free();
        GC.SuppressFinalize(this);
    }

    private void Free()
    {
        if (_memory == null)
            return;
        NativeMemory.Free(_memory);
        _memory = null;
        GC.RemoveMemoryPressure(_length);
    }
}
