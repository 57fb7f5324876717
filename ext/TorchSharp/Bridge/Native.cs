// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Runtime.InteropServices;

namespace TorchSharp.Bridge;

/// <summary>The bridge's C functions. What cannot fail and takes no time is called without leaving cooperative mode.</summary>
internal static unsafe partial class Native
{
    private const string L = Loader.Library;

    [DllImport(L), SuppressGCTransition] internal static extern byte* pt_error();
    [DllImport(L)] internal static extern void pt_fail(byte* message);
    [DllImport(L)] internal static extern byte* pt_version();
    [DllImport(L)] internal static extern void pt_free_memory(void* memory);
    [DllImport(L)] internal static extern nint pt_find(byte* name, byte* overload);
    [DllImport(L)] internal static extern int pt_call(nint op, Value* args, int count, Value* results, int capacity);

    [DllImport(L)] internal static extern void pt_free(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern nint pt_share(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern long pt_ndim(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern long pt_numel(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern long pt_element_size(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern int pt_dtype(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern int pt_layout(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern int pt_device_type(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern int pt_device_index(nint handle);
    [DllImport(L), SuppressGCTransition] internal static extern void pt_sizes(nint handle, long* sizes);
    [DllImport(L)] internal static extern int pt_strides(nint handle, long* strides);
    [DllImport(L)] internal static extern long pt_storage_offset(nint handle);
    [DllImport(L)] internal static extern nint pt_data(nint handle);
    [DllImport(L)] internal static extern int pt_is_contiguous(nint handle);
    [DllImport(L)] internal static extern nint pt_from_blob(void* data, long* sizes, int dims, int dtype, delegate* unmanaged<nint, void> release, nint key);
    [DllImport(L)] internal static extern int pt_promote(int a, int b);
    [DllImport(L)] internal static extern int pt_set_default_dtype(int dtype);

    [DllImport(L)] internal static extern nint pt_generator_new(ulong seed, int device, int index);
    [DllImport(L)] internal static extern nint pt_generator_default(int device, int index);
    [DllImport(L)] internal static extern void pt_generator_free(nint generator);
    [DllImport(L)] internal static extern int pt_generator_seed(nint generator, ulong seed);
    [DllImport(L)] internal static extern ulong pt_generator_initial_seed(nint generator);
    [DllImport(L)] internal static extern nint pt_generator_state(nint generator);
    [DllImport(L)] internal static extern int pt_generator_set_state(nint generator, nint state);
    [DllImport(L)] internal static extern int pt_manual_seed(ulong seed);

    [DllImport(L)] internal static extern int pt_get_threads();
    [DllImport(L)] internal static extern int pt_set_threads(int count);
    [DllImport(L)] internal static extern int pt_get_interop_threads();
    [DllImport(L)] internal static extern int pt_set_interop_threads(int count);
    [DllImport(L)] internal static extern int pt_device_count(int device);
    [DllImport(L)] internal static extern int pt_synchronize(int device, int index);
    [DllImport(L)] internal static extern int pt_deterministic(int set, int mode, int warnOnly);

    [DllImport(L)] internal static extern int pt_backward(nint* tensors, long count, nint* grads, long gradCount, int retain, int create, nint* inputs, long inputCount);
    [DllImport(L)] internal static extern int pt_grad(nint* outputs, long count, nint* inputs, long inputCount, nint* grads, long gradCount, int retain, int create, int allowUnused, nint* results);
    [DllImport(L), SuppressGCTransition] internal static extern int pt_requires_grad(nint handle);
    [DllImport(L)] internal static extern int pt_set_requires_grad(nint handle, int value);
    [DllImport(L)] internal static extern int pt_is_leaf(nint handle);
    [DllImport(L)] internal static extern int pt_retain_grad(nint handle);
    [DllImport(L)] internal static extern nint pt_grad_of(nint handle);
    [DllImport(L)] internal static extern int pt_set_grad(nint handle, nint grad);

    [DllImport(L), SuppressGCTransition] internal static extern int pt_grad_mode();
    [DllImport(L), SuppressGCTransition] internal static extern void pt_set_grad_mode(int on);
    [DllImport(L), SuppressGCTransition] internal static extern int pt_inference_mode();
    [DllImport(L)] internal static extern nint pt_inference_enter(int on);
    [DllImport(L)] internal static extern void pt_inference_leave(nint guard);
    [DllImport(L)] internal static extern int pt_anomaly(int set, int on, int checkNan);

    [DllImport(L)] internal static extern void pt_set_callbacks(delegate* unmanaged<nint, nint*, int, nint*, int, int> apply, delegate* unmanaged<nint, void> release);
    [DllImport(L)] internal static extern nint pt_node_new(nint key, nint* inputs, int count, int executable);
    [DllImport(L)] internal static extern int pt_node_finish(nint node, nint* inputs, int count, nint* outputs, int outputCount, nint* fixedOnes, int fixedCount, nint* dirty, int dirtyCount, nint* saved, int savedCount, int executable, int materialize, nint* results);
    [DllImport(L)] internal static extern void pt_node_free(nint node);
    [DllImport(L)] internal static extern nint pt_node_raw(nint node);
    [DllImport(L)] internal static extern int pt_node_saved(nint node, int index, nint* result);

    internal static Exception Error() => new ExternalException(Marshal.PtrToStringUTF8((nint)pt_error()) is { Length: > 0 } text ? text : "libtorch failed without a message");

    /// <summary>Throws what libtorch complained of, where a call returned -1.</summary>
    internal static int Check(int result) => result >= 0 ? result : throw Error();

    /// <summary>Throws what libtorch complained of, where a call returned no handle.</summary>
    internal static nint Check(nint handle) => handle != 0 ? handle : throw Error();
}
