// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;
using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// The kernels in C++ that take libtorch's place on the CPU where their library is found: products with frozen weights,
/// attention, norms, embeddings, in float32. What they compute is equal to the managed path within 1e-5, dropped entries are the same, and
/// a row's result depends neither on the rows beside it nor on the number of threads. Without the library, or with the
/// environment variable <c>PEFT_NATIVE=off</c>, everything runs through libtorch.
/// </summary>
public static class NativeKernels
{
    private const int Abi = 8;
    private static readonly Lazy<Exports?> _exports = new(Load);
    private static volatile bool _enabled = Environment.GetEnvironmentVariable("PEFT_NATIVE")?.ToLowerInvariant() is not ("off" or "0" or "false");

    [ThreadStatic]
    private static int _off;

    private static int _keeping;

    /// <summary>True where the library was found and fits.</summary>
    public static bool Available => _exports.Value is not null;

    /// <summary>Whether the kernels are used where they can be; for the whole process.</summary>
    public static bool Enabled
    {
        get => _enabled;
        set => _enabled = value;
    }

    /// <summary>Which kernels run, or why none do: for reports.</summary>
    public static string Description => !Enabled ? "off (PEFT_NATIVE)"
        : _exports.Value is { } exports ? $"on ({exports.InstructionSet}; {(exports.HasBFloat16 ? "bfloat16" : "no bfloat16")}, int8 by {(exports.HasInt8 ? "bytes" : "pairs of 16 bits")})"
        : $"not found: {FileName} is neither beside the application nor named by PEFT_NATIVE_LIBRARY; ./eng/setup.sh builds it";

    /// <summary>True where <see cref="Precision.BFloat16"/> makes a difference: the kernels run, on a processor that has the instruction.</summary>
    public static bool HasBFloat16 => On && Calls.HasBFloat16;

    /// <summary>
    /// True where the processor multiplies bytes, four in one instruction. <see cref="Precision.Int8Frozen"/> gives the same sums without:
    /// by pairs of 16 bits in the kernels, and by libtorch in the same steps, but slower than float32, where the kernels are off.
    /// </summary>
    public static bool HasInt8 => On && Calls.HasInt8;

    internal static bool On => _enabled && _off == 0 && _exports.Value is not null;

    internal static Exports Calls => _exports.Value!;

    /// <summary>Switches the kernels off for what this thread runs until the result is disposed.</summary>
    internal static OffScope Off()
    {
        _off++;
        return default;
    }

    internal readonly struct OffScope : IDisposable
    {
        public void Dispose() => _off--;
    }

    /// <summary>
    /// Leaves freed memory with the process until the result is disposed: each step of a training frees all its activations, and
    /// taking them from the system anew would cost a page fault for every 4 KiB.
    /// </summary>
    internal static unsafe KeepScope KeepMemory()
    {
        if (_exports.Value is { } exports && Interlocked.Increment(ref _keeping) == 1) exports.KeepMemory(1);
        return default;
    }

    internal readonly struct KeepScope : IDisposable
    {
        public unsafe void Dispose()
        {
            if (_exports.Value is { } exports && Interlocked.Decrement(ref _keeping) == 0) exports.KeepMemory(0);
        }
    }

    /// <summary>True where a tensor lies in memory that the kernels can read, once it is contiguous.</summary>
    internal static bool Fits(Tensor x) =>
        x.dtype == ScalarType.Float32 && x.device_type == DeviceType.CPU && x.numel() is > 0 and <= int.MaxValue / sizeof(float);

    /// <summary>True where the kernels can read a tensor as it lies.</summary>
    internal static bool Lies(Tensor x) => Fits(x) && x.is_contiguous();

    /// <summary>The same of numbers of which no gradient is asked for.</summary>
    internal static bool Frozen(Tensor x) => Lies(x) && !(x.requires_grad && is_grad_enabled());

    /// <summary>The tensor's first number. The tensor must be contiguous, and live as long as the pointer.</summary>
    internal static unsafe float* Pointer(Tensor x) => (float*)System.Runtime.CompilerServices.Unsafe.AsPointer(ref MemoryMarshal.GetReference(x.bytes));

    internal static Tensor Contiguous(Tensor x) => x.is_contiguous() ? x : x.contiguous();

    internal static unsafe void Check(int result)
    {
        if (result == 0) return;
        string why = Marshal.PtrToStringUTF8((nint)Calls.Error()) ?? "";
        throw result == -2 ? new OutOfMemoryException("A native kernel found no memory.") : new InvalidOperationException($"A native kernel refused its arguments: {why}.");
    }

    private static string FileName =>
        OperatingSystem.IsWindows() ? "PeftNative.dll" : OperatingSystem.IsMacOS() ? "libPeftNative.dylib" : "libPeftNative.so";

    private static Exports? Load()
    {
        foreach (string path in Candidates())
            if (File.Exists(path) && NativeLibrary.TryLoad(path, out nint library) && Exports.Of(library, Abi) is { } exports)
                return exports;
        return NativeLibrary.TryLoad("PeftNative", typeof(NativeKernels).Assembly, null, out nint found) ? Exports.Of(found, Abi) : null;
    }

    private static IEnumerable<string> Candidates()
    {
        if (Environment.GetEnvironmentVariable("PEFT_NATIVE_LIBRARY") is { Length: > 0 } named) yield return named;
        yield return Path.Combine(AppContext.BaseDirectory, FileName);
        if (Path.GetDirectoryName(Assembly.GetExecutingAssembly().Location) is { Length: > 0 } folder) yield return Path.Combine(folder, FileName);
    }

    /// <summary>The functions of the library.</summary>
    internal sealed unsafe class Exports
    {
        private Exports(nint library)
        {
            nint Of(string name) => NativeLibrary.GetExport(library, name);
            Error = (delegate* unmanaged<byte*>)Of("pn_error");
            KeepMemory = (delegate* unmanaged<int, void>)Of("pn_keep_memory");
            InstructionSet = Marshal.PtrToStringUTF8((nint)((delegate* unmanaged<byte*>)Of("pn_isa"))())!;
            Pack = (delegate* unmanaged<float*, long, long, long, long, nint>)Of("pn_pack");
            PackBFloat16 = (delegate* unmanaged<float*, long, long, long, long, nint>)Of("pn_pack_bfloat16");
            HasBFloat16 = ((delegate* unmanaged<int>)Of("pn_has_bfloat16"))() != 0;
            PackInt8 = (delegate* unmanaged<float*, long, long, long, long, nint>)Of("pn_pack_int8");
            HasInt8 = ((delegate* unmanaged<int>)Of("pn_has_int8"))() != 0;
            Int8Words = (delegate* unmanaged<long, long>)Of("pn_int8_words");
            Quantise = (delegate* unmanaged<float*, long, long, long, int*, int, int>)Of("pn_quantise_run");
            Free = (delegate* unmanaged<nint, void>)Of("pn_free");
            Bytes = (delegate* unmanaged<nint, long>)Of("pn_bytes");
            Product = (delegate* unmanaged<NativeProduct*, int>)Of("pn_product_run");
            Products = (delegate* unmanaged<NativeProduct*, int, int>)Of("pn_products_run");
            LowRankProduct = (delegate* unmanaged<NativeLowRank*, int>)Of("pn_low_rank_product");
            LowRankGradient = (delegate* unmanaged<NativeLowRank*, int>)Of("pn_low_rank_gradient");
            AttentionForward = (delegate* unmanaged<NativeAttention*, int>)Of("pn_attention_forward");
            AttentionBackward = (delegate* unmanaged<NativeAttention*, int>)Of("pn_attention_backward");
            NormForward = (delegate* unmanaged<NativeNorm*, int>)Of("pn_norm_forward");
            NormBackward = (delegate* unmanaged<NativeNorm*, int>)Of("pn_norm_backward");
            Embed = (delegate* unmanaged<NativeEmbed*, int>)Of("pn_embed_run");
            Dropout = (delegate* unmanaged<float*, float*, long, NativeDropout*, int, int>)Of("pn_dropout_run");
            ActivationForward = (delegate* unmanaged<float*, float*, long, int, int, int>)Of("pn_activation_forward");
            Run = (delegate* unmanaged<NativeStep*, int*, int, int, int>)Of("pn_run");
            ActivationBackward = (delegate* unmanaged<float*, float*, float*, long, int, NativeDropout*, int, int>)Of("pn_activation_backward");
            AdamW = (delegate* unmanaged<NativeAdamW*, int>)Of("pn_adamw_run");
            SquareSum = (delegate* unmanaged<float*, long, double*, int, int>)Of("pn_square_sum");
        }

        public static Exports? Of(nint library, int abi) =>
            NativeLibrary.TryGetExport(library, "pn_abi", out nint version) && ((delegate* unmanaged<int>)version)() == abi ? new Exports(library) : null;

        public string InstructionSet { get; }

        public bool HasBFloat16 { get; }

        public bool HasInt8 { get; }

        public readonly delegate* unmanaged<byte*> Error;
        public readonly delegate* unmanaged<int, void> KeepMemory;
        public readonly delegate* unmanaged<float*, long, long, long, long, nint> Pack;
        public readonly delegate* unmanaged<float*, long, long, long, long, nint> PackBFloat16;
        public readonly delegate* unmanaged<float*, long, long, long, long, nint> PackInt8;
        public readonly delegate* unmanaged<long, long> Int8Words;
        public readonly delegate* unmanaged<float*, long, long, long, int*, int, int> Quantise;
        public readonly delegate* unmanaged<nint, void> Free;
        public readonly delegate* unmanaged<nint, long> Bytes;
        public readonly delegate* unmanaged<NativeProduct*, int> Product;
        public readonly delegate* unmanaged<NativeProduct*, int, int> Products;
        public readonly delegate* unmanaged<NativeLowRank*, int> LowRankProduct;
        public readonly delegate* unmanaged<NativeLowRank*, int> LowRankGradient;
        public readonly delegate* unmanaged<NativeAttention*, int> AttentionForward;
        public readonly delegate* unmanaged<NativeAttention*, int> AttentionBackward;
        public readonly delegate* unmanaged<NativeNorm*, int> NormForward;
        public readonly delegate* unmanaged<NativeNorm*, int> NormBackward;
        public readonly delegate* unmanaged<NativeEmbed*, int> Embed;
        public readonly delegate* unmanaged<NativeStep*, int*, int, int, int> Run;
        public readonly delegate* unmanaged<float*, float*, long, NativeDropout*, int, int> Dropout;
        public readonly delegate* unmanaged<float*, float*, long, int, int, int> ActivationForward;
        public readonly delegate* unmanaged<float*, float*, float*, long, int, NativeDropout*, int, int> ActivationBackward;
        public readonly delegate* unmanaged<NativeAdamW*, int> AdamW;
        public readonly delegate* unmanaged<float*, long, double*, int, int> SquareSum;
    }
}
