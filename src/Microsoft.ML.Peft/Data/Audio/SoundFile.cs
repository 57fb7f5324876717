// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Microsoft.ML.Peft.Data;

/// <summary>FLAC, Ogg and others through the system's <c>libsndfile</c> (LGPL; called where it is, never shipped).</summary>
internal static unsafe class SoundFile
{
    private const int ReadMode = 0x10, Block = 1 << 14, Set = 0, Current = 1, End = 2;

    private static readonly Lazy<Entries?> _library = new(Open);

    /// <summary>Whether the library is on this machine.</summary>
    public static bool Found => _library.Value is not null;

    private sealed record Entries(nint OpenVirtual, nint ReadFloats, nint Close, nint Error);

    [StructLayout(LayoutKind.Sequential)]
    private struct Info
    {
        public long Frames;
        public int Rate, Channels, Format, Sections, Seekable;
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct VirtualFile
    {
        public nint Length, Seek, Read, Write, Tell;
    }

    // A file in memory, as the callbacks see it.
    private struct Cursor
    {
        public byte* Bytes;
        public long Length, At;
    }

    private static Entries? Open()
    {
        foreach (string name in (string[])["libsndfile.so.1", "libsndfile.1.dylib", "sndfile.dll", "libsndfile-1.dll", "sndfile"])
        {
            if (!NativeLibrary.TryLoad(name, out nint library)) continue;
            bool Has(string export, out nint entry) => NativeLibrary.TryGetExport(library, export, out entry);
            if (Has("sf_open_virtual", out nint open) && Has("sf_readf_float", out nint read) && Has("sf_close", out nint close) && Has("sf_strerror", out nint error))
                return new Entries(open, read, close, error);
        }
        return null;
    }

    public static AudioClip Read(ReadOnlySpan<byte> bytes, string source, string kind, AudioReader reader)
    {
        Entries entries = _library.Value ?? throw new InvalidOperationException("There is no libsndfile.");
        fixed (byte* start = bytes)
        {
            var cursor = new Cursor { Bytes = start, Length = bytes.Length };
            var calls = new VirtualFile
            {
                Length = (nint)(delegate* unmanaged[Cdecl]<void*, long>)&LengthOf,
                Seek = (nint)(delegate* unmanaged[Cdecl]<long, int, void*, long>)&Seek,
                Read = (nint)(delegate* unmanaged[Cdecl]<void*, long, void*, long>)&ReadBytes,
                Write = (nint)(delegate* unmanaged[Cdecl]<void*, long, void*, long>)&WriteBytes,
                Tell = (nint)(delegate* unmanaged[Cdecl]<void*, long>)&Tell,
            };
            Info info = default;
            nint file = ((delegate* unmanaged[Cdecl]<VirtualFile*, int, Info*, void*, nint>)entries.OpenVirtual)(&calls, ReadMode, &info, &cursor);
            if (file == 0)
            {
                string? why = Marshal.PtrToStringUTF8(((delegate* unmanaged[Cdecl]<nint, nint>)entries.Error)(0));
                throw new AudioFormatException($"{source} begins as {kind}, but libsndfile does not read it: {why?.Trim().TrimEnd('.')}.");
            }
            try
            {
                return Samples(entries, file, info, source, kind, reader);
            }
            finally
            {
                ((delegate* unmanaged[Cdecl]<nint, int>)entries.Close)(file);
            }
        }
    }

    // The header's number of frames may lie: what is read decides, up to the limit.
    private static AudioClip Samples(Entries entries, nint file, Info info, string source, string kind, AudioReader reader)
    {
        reader.Check(source, info.Channels, Math.Max(1, info.Frames == long.MaxValue ? 1 : info.Frames));
        var block = new float[Block * info.Channels];
        var channels = Enumerable.Range(0, info.Channels).Select(_ => new List<float>()).ToArray();
        while (true)
        {
            long count;
            fixed (float* to = block) count = ((delegate* unmanaged[Cdecl]<nint, float*, long, long>)entries.ReadFloats)(file, to, Block);
            if (count <= 0) break;
            reader.Check(source, info.Channels, channels[0].Count + count);
            for (int c = 0; c < channels.Length; c++)
                for (int i = 0; i < count; i++) channels[c].Add(block[i * channels.Length + c]);
        }
        if (info.Frames is > 0 and < long.MaxValue && channels[0].Count < info.Frames)
            throw new AudioFormatException($"{source}: this {kind} file is damaged or cut off: it says {info.Frames} samples a channel, and {channels[0].Count} could be read.");
        return new AudioClip([.. channels.Select(c => c.ToArray())], info.Rate, source);
    }

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static long LengthOf(void* user) => ((Cursor*)user)->Length;

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static long Tell(void* user) => ((Cursor*)user)->At;

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static long WriteBytes(void* from, long count, void* user) => 0;

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static long Seek(long offset, int whence, void* user)
    {
        var cursor = (Cursor*)user;
        long from = whence switch { Set => 0, Current => cursor->At, End => cursor->Length, _ => -1 };
        if (from < 0 || offset > cursor->Length - from || offset < -from) return -1;
        return cursor->At = from + offset;
    }

    [UnmanagedCallersOnly(CallConvs = [typeof(CallConvCdecl)])]
    private static long ReadBytes(void* to, long count, void* user)
    {
        var cursor = (Cursor*)user;
        long read = Math.Clamp(count, 0, cursor->Length - cursor->At);
        Buffer.MemoryCopy(cursor->Bytes + cursor->At, to, read, read);
        cursor->At += read;
        return read;
    }
}
