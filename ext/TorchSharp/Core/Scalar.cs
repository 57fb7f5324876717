// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Numerics;
using TorchSharp.Bridge;

namespace TorchSharp;

/// <summary>A number with its libtorch type. It holds nothing native here, so disposing it does nothing.</summary>
public sealed class Scalar : IDisposable
{
    private readonly double _real, _imaginary;
    private readonly long _integer;

    private Scalar(torch.ScalarType type, long integer, double real, double imaginary = 0) =>
        (Type, _integer, _real, _imaginary) = (type, integer, real, imaginary);

    internal static Scalar Of(long value, torch.ScalarType type) => new(type, value, value);
    internal static Scalar Of(double value, torch.ScalarType type) => new(type, 0, value);
    internal static Scalar Of(Complex value, torch.ScalarType type) => new(type, 0, value.Real, value.Imaginary);

    public torch.ScalarType Type { get; }

    internal bool IsIntegral => Type is torch.ScalarType.Int64 or torch.ScalarType.Bool;
    internal bool IsComplex => Type is torch.ScalarType.ComplexFloat64;
    internal double Real => _real;
    internal Complex ComplexValue => new(_real, _imaginary);
    internal long Integer => IsIntegral ? _integer : (long)_real;

    internal Arg ToArg() => Type switch
    {
        torch.ScalarType.Int64 => _integer,
        torch.ScalarType.Bool => _integer != 0,
        torch.ScalarType.ComplexFloat64 => Arg.ComplexScalar([_real, _imaginary]),
        _ => _real,
    };

    public static implicit operator Scalar(byte value) => value.ToScalar();
    public static implicit operator Scalar(sbyte value) => value.ToScalar();
    public static implicit operator Scalar(short value) => value.ToScalar();
    public static implicit operator Scalar(int value) => value.ToScalar();
    public static implicit operator Scalar(long value) => value.ToScalar();
    public static implicit operator Scalar(Half value) => value.ToScalar();
    public static implicit operator Scalar(float value) => value.ToScalar();
    public static implicit operator Scalar(double value) => value.ToScalar();
    public static implicit operator Scalar(bool value) => value.ToScalar();
    public static implicit operator Scalar((float, float) value) => value.ToScalar();
    public static implicit operator Scalar(Complex value) => value.ToScalar();

    public void Dispose() => GC.SuppressFinalize(this);
}

public static class ScalarExtensionMethods
{
    public static Scalar ToScalar(this byte value) => Scalar.Of((long)value, torch.ScalarType.Int64);
    public static Scalar ToScalar(this sbyte value) => Scalar.Of((long)value, torch.ScalarType.Int64);
    public static Scalar ToScalar(this short value) => Scalar.Of((long)value, torch.ScalarType.Int64);
    public static Scalar ToScalar(this int value) => Scalar.Of((long)value, torch.ScalarType.Int64);
    public static Scalar ToScalar(this long value) => Scalar.Of(value, torch.ScalarType.Int64);
    public static Scalar ToScalar(this Half value) => Scalar.Of((double)value, torch.ScalarType.Float64);
    public static Scalar ToScalar(this float value) => Scalar.Of((double)value, torch.ScalarType.Float64);
    public static Scalar ToScalar(this double value) => Scalar.Of(value, torch.ScalarType.Float64);
    public static Scalar ToScalar(this bool value) => Scalar.Of(value ? 1L : 0L, torch.ScalarType.Bool);
    public static Scalar ToScalar(this (float, float) value) => Scalar.Of(new Complex(value.Item1, value.Item2), torch.ScalarType.ComplexFloat64);
    public static Scalar ToScalar(this Complex value) => Scalar.Of(value, torch.ScalarType.ComplexFloat64);
    public static Scalar ToBFloat16Scalar(this float value) => Scalar.Of((double)value, torch.ScalarType.Float64);

    public static Half ToHalf(this Scalar value) => (Half)value.Real;
    public static float ToSingle(this Scalar value) => (float)value.Real;
    public static double ToDouble(this Scalar value) => value.Real;
    public static sbyte ToSByte(this Scalar value) => (sbyte)value.Integer;
    public static byte ToByte(this Scalar value) => (byte)value.Integer;
    public static short ToInt16(this Scalar value) => (short)value.Integer;
    public static int ToInt32(this Scalar value) => (int)value.Integer;
    public static long ToInt64(this Scalar value) => value.Integer;
    public static bool ToBoolean(this Scalar value) => value.IsIntegral ? value.Integer != 0 : value.Real != 0;
    public static (float Real, float Imaginary) ToComplexFloat32(this Scalar value) => ((float)value.ComplexValue.Real, (float)value.ComplexValue.Imaginary);
    public static Complex ToComplexFloat64(this Scalar value) => value.ComplexValue;
}
