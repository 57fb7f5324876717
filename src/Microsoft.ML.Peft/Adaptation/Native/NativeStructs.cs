// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Activations that the kernels know; the numbers are theirs.</summary>
internal enum ActivationKind
{
    None = 0,
    Gelu = 1,
    GeluTanh = 2,
    Relu = 3,
}

// As in peft_native.h, which tells what the fields are.
#pragma warning disable CS1591

/// <summary>A mask that is made where it is used: a hash of an entry's place and these numbers.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct NativeDropout
{
    public uint Low, High;
    public int Threshold;
    public float Kept;
    public uint First;

    /// <summary>The same mask over a part that begins so many entries later.</summary>
    public readonly NativeDropout From(long entries) => this with { First = First + unchecked((uint)entries) };

    /// <summary>The mask that <see cref="DropoutMask"/> writes for a share and a key.</summary>
    public static NativeDropout Of(double probability, ulong key)
    {
        ulong mixed = Pass.Mix(key);
        return new NativeDropout
        {
            Low = (uint)mixed,
            High = (uint)(mixed >> 32),
            Threshold = DropoutMask.Threshold(probability),
            Kept = (float)(1 / (1 - probability)),
        };
    }
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeProduct
{
    public long Rows, Out, In;
    public float* X;
    public long XRow, XIn;
    public nint Packed;
    public float* W;
    public long WOut, WIn;
    public int* RowsInt8;
    public float* Low;
    public long LowRow, Rank;
    public float* Up;
    public long UpOut, UpRank;
    public float Scale;
    public int Accumulate;
    public float* Bias;
    public int Activation;
    public int Threads;
    public float* Before;
    public float* Y;
    public long YRow;
    public NativeDropout Dropout;
    public NativeDropout LowDropout;
    public float* Residual;
    public long ResidualRow;
    public int Slopes, XBFloat16, YBFloat16, BeforeBFloat16;

    /// <summary>A low-rank term beside the product: first results <c>[rows, rank]</c>, rows so far apart, and the second factor <c>[out, rank]</c>, or <c>[rank, out]</c> where turned.</summary>
    public void Beside(float* low, long lowRow, long rank, float* up, bool turned, double scale)
    {
        Low = low;
        Up = up;
        (LowRow, Rank, UpOut, UpRank, Scale) = (lowRow, rank, turned ? 1 : rank, turned ? Out : 1, (float)scale);
    }
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeLowRank
{
    public long Rows, In, Rank;
    public float* X;
    public long XRow;
    public float* A;
    public long ARank, AIn;
    public float* Low;
    public long LowRow;
    public float Scale;
    public int Threads;
    public NativeDropout Dropout;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeHeads
{
    public float* Data;
    public long Batch, Head, Token;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeAttention
{
    public long Batch, Heads, KeyHeads, Queries, Keys, Width;
    public NativeHeads Q, K, V;
    public int* Lengths;
    public float* Bias;
    public long BiasBatch, BiasHead, BiasQuery, BiasKey;
    public float Scale;
    public int Threads;
    public NativeDropout Dropout;
    public NativeHeads Out;
    public float* Sums;
    public NativeHeads DOut, DQ, DK, DV;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeNorm
{
    public long Rows, Width;
    public float* X;
    public float* Add;
    public float* Weight;
    public float* Bias;
    public float Epsilon;
    public int RootMeanSquare;
    public float* Sum;
    public float* Y;
    public float* DY;
    public float* DX;
    public int Threads;
    public float* DDropped;
    public int DroppedBFloat16;
    public NativeDropout Dropout;
    public long AddEvery, AddFirst;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeRows
{
    public float* Data;
    public long Count;
    public long* Index;
    public long Period, First;
}

[InlineArray(Most)]
internal struct NativeTables
{
    public const int Most = 3;

    private NativeRows _first;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeEmbed
{
    public long Rows, Width;
    public NativeTables Table;
    public int Tables;
    public float Epsilon;
    public float* Weight;
    public float* Bias;
    public float* Y;
    public int Threads;
    public NativeDropout Dropout;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeActivate
{
    public float* X;
    public float* Y;
    public long Count;
    public int Activation, Threads;
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeAdamW
{
    public long Count;
    public float* Value;
    public float* Gradient;
    public float* First;
    public float* Second;
    public float* Largest;
    public float GradientFactor, GradientDecay, ValueFactor, FirstKept, FirstNew, SecondKept, SecondNew, Step, RootFactor, Epsilon;
    public int Threads;
}

internal enum NativeKind
{
    Products = 0,
    LowRankProduct = 1,
    LowRankGradient = 2,
    AttentionForward = 3,
    AttentionBackward = 4,
    NormForward = 5,
    NormBackward = 6,
    ActivationForward = 7,
}

[StructLayout(LayoutKind.Sequential)]
internal unsafe struct NativeStep
{
    public NativeKind Kind;
    public int Count;
    public void* What;
}
