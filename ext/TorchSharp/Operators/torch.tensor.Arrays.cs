// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

// Tensors over arrays' own memory, and as_tensor.
public static partial class torch
{
    public static Tensor as_tensor(Array data, ScalarType? dtype = null, Device? device = null) => Factory.Share(data, 0, Factory.Shape(data), dtype, device, false);
    public static Tensor as_tensor(bool[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(byte[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(IList<bool> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(IList<byte> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(IList<double> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(IList<short> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(IList<int> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(IList<long> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(IList<System.Numerics.Complex> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(IList<sbyte> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(IList<float> rawArray, ScalarType? dtype = null, Device? device = null) => Factory.OfList(rawArray, [rawArray.Count], dtype, device, false, null);
    public static Tensor as_tensor(double[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(short[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(int[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(long[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(System.Numerics.Complex[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(sbyte[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(float[] rawArray, ScalarType? dtype = null, Device? device = null) => Factory.Share(rawArray, 0, [rawArray.Length], dtype, device, false);
    public static Tensor as_tensor(Tensor data, ScalarType? dtype = null, Device? device = null) => data.to(dtype ?? data.dtype, device ?? data.device);
    public static Tensor from_array(Array rawArray, ScalarType? dtype, Device? device = null, bool requires_grad = false, string[]? names = null) => Factory.Share(rawArray, 0, Factory.Shape(rawArray), dtype, device, requires_grad, names);
    public static Tensor from_array(Array rawArray, Device? device = null) => Factory.Share(rawArray, 0, Factory.Shape(rawArray), null, device, false, null);
}
