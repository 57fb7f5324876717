// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers;
using System.IO.MemoryMappedFiles;
using System.Runtime.InteropServices;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// Bytes at a fixed address, of any length: a mapped file, a resource of an assembly, pinned or native memory. Without
/// a finaliser: a span may outlive the last reference to its owner, so a forgotten store is kept rather than freed.
/// </summary>
internal abstract unsafe class ByteStore : IDisposable
{
    private byte* _pointer;
    private bool _disposed;

    protected ByteStore(byte* pointer, long length)
    {
        _pointer = pointer;
        Length = length;
    }

    public long Length { get; }

    /// <summary>A part of the bytes; valid until the store is disposed.</summary>
    public ReadOnlySpan<byte> Slice(long start, int count)
    {
        ObjectDisposedException.ThrowIf(_disposed, typeof(SafetensorsFile));
        if (start < 0 || count < 0 || start > Length - count)
            throw new ArgumentOutOfRangeException(nameof(start));
        return new ReadOnlySpan<byte>(_pointer + start, count);
    }

    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        _pointer = null;
        Free();
    }

    protected abstract void Free();

    /// <summary>Maps a file for reading; its pages come from the system's cache as they are touched.</summary>
    public static ByteStore Map(string path, long length)
    {
        // Others may replace the file by a rename while it is mapped: the map keeps the old one.
        var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read | FileShare.Delete);
        MemoryMappedFile map;
        try
        {
            map = MemoryMappedFile.CreateFromFile(
                stream, null, 0, MemoryMappedFileAccess.Read, HandleInheritability.None, leaveOpen: false);
        }
        catch
        {
            stream.Dispose();
            throw;
        }

        try
        {
            MemoryMappedViewAccessor view = map.CreateViewAccessor(0, length, MemoryMappedFileAccess.Read);
            byte* pointer = null;
            view.SafeMemoryMappedViewHandle.AcquirePointer(ref pointer);
            return new Mapped(map, view, pointer + view.PointerOffset, length);
        }
        catch
        {
            map.Dispose();
            throw;
        }
    }

    /// <summary>Pins managed memory.</summary>
    public static ByteStore Pin(ReadOnlyMemory<byte> memory) => new Pinned(memory.Pin(), memory.Length);

    /// <summary>Uses the memory behind a stream in place, from the stream's position on; owns the stream.</summary>
    public static ByteStore Borrow(UnmanagedMemoryStream stream) =>
        new Borrowed(stream, stream.PositionPointer, stream.Length - stream.Position);

    /// <summary>
    /// Native memory of a size that a file states. Pages of it are taken as they are written, so a false size costs
    /// address space only.
    /// </summary>
    public static Native Allocate(long length) => new((byte*)NativeMemory.Alloc((nuint)Math.Max(1, length)), length);

    private sealed class Mapped(MemoryMappedFile map, MemoryMappedViewAccessor view, byte* pointer, long length)
        : ByteStore(pointer, length)
    {
        protected override void Free()
        {
            view.SafeMemoryMappedViewHandle.ReleasePointer();
            view.Dispose();
            map.Dispose();
        }
    }

    private sealed class Pinned(MemoryHandle handle, long length) : ByteStore((byte*)handle.Pointer, length)
    {
        private MemoryHandle _handle = handle;

        protected override void Free() => _handle.Dispose();
    }

    private sealed class Borrowed(UnmanagedMemoryStream stream, byte* pointer, long length)
        : ByteStore(pointer, length)
    {
        protected override void Free() => stream.Dispose();
    }

    /// <summary>Native memory that is filled from a stream.</summary>
    public sealed class Native(byte* pointer, long length) : ByteStore(pointer, length)
    {
        private readonly byte* _block = pointer;

        /// <summary>Reads from a stream until the memory is full or the stream ends.</summary>
        /// <returns>The number of bytes that are filled now, from the memory's beginning.</returns>
        public long Fill(Stream stream, long from)
        {
            long at = from;
            while (at < Length)
            {
                int read = stream.Read(new Span<byte>(_block + at, (int)Math.Min(Length - at, 1 << 20)));
                if (read == 0)
                    break;
                at += read;
            }

            return at;
        }

        /// <summary>The same memory with its beginning kept, longer; this store must not be used afterwards.</summary>
        public Native Grow(long length)
        {
            byte* block = (byte*)NativeMemory.Realloc(_block, (nuint)Math.Max(1, length));
            Forget();
            return new Native(block, length);
        }

        protected override void Free() => NativeMemory.Free(_block);

        private void Forget() => _disposed = true;
    }
}
