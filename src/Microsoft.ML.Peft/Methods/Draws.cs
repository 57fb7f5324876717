// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Random initial values. They depend on the seed and the parameter's name alone: not on the device, the version of
/// libtorch, the order of creation, or which other sites are adapted.
/// </summary>
public sealed class Draws
{
    private ulong _state;
    private double? _spare;

    /// <summary>Starts the stream of one parameter.</summary>
    /// <param name="seed">Seed of the adaptation.</param>
    /// <param name="name">Name of the parameter.</param>
    public Draws(long seed, string name)
    {
        ulong hash = 14695981039346656037;                       // FNV-1a
        foreach (byte b in Encoding.UTF8.GetBytes(name)) hash = (hash ^ b) * 1099511628211;
        _state = Pass.Mix(unchecked((ulong)seed)) ^ Pass.Mix(hash);
    }

    /// <summary>The next number, uniform in [0, 1).</summary>
    public double Next()
    {
        _state += 0x9E3779B97F4A7C15UL;
        return (Pass.Mix(_state) >> 11) * (1.0 / (1UL << 53));
    }

    /// <summary>The next number of a standard normal distribution (Box and Muller 1958).</summary>
    public double NextNormal()
    {
        if (_spare is { } kept)
        {
            _spare = null;
            return kept;
        }
        double radius = Math.Sqrt(-2 * Math.Log(1 - Next()));
        (double sin, double cos) = Math.SinCos(2 * Math.PI * Next());
        _spare = radius * sin;
        return radius * cos;
    }

    /// <summary>A tensor with entries uniform in ±bound.</summary>
    /// <param name="bound">Largest magnitude.</param>
    /// <param name="shape">Shape.</param>
    public Tensor Uniform(double bound, params long[] shape) => Fill(() => (2 * Next() - 1) * bound, shape);

    /// <summary>A tensor of normal entries with mean 0.</summary>
    /// <param name="deviation">Standard deviation.</param>
    /// <param name="shape">Shape.</param>
    public Tensor Normal(double deviation, params long[] shape) => Fill(() => NextNormal() * deviation, shape);

    /// <summary>A tensor of normal entries with mean 0, drawn again where they are further from 0 than the cut.</summary>
    /// <param name="deviation">Standard deviation before the cut.</param>
    /// <param name="cut">Largest magnitude.</param>
    /// <param name="shape">Shape.</param>
    public Tensor TruncatedNormal(double deviation, double cut, params long[] shape) => Fill(() =>
    {
        double value;
        do value = NextNormal() * deviation;
        while (Math.Abs(value) > cut);
        return value;
    }, shape);

    /// <summary>Kaiming-uniform with a = √5, as PyTorch initialises linear maps: uniform in ±1/√in.</summary>
    /// <param name="shape">Shape; all axes but the first are the fan in.</param>
    public Tensor Kaiming(params long[] shape) => Uniform(1 / Math.Sqrt(shape.Skip(1).Aggregate(1L, (a, b) => a * b)), shape);

    private static Tensor Fill(Func<double> next, long[] shape)
    {
        var values = new float[shape.Aggregate(1L, (a, b) => a * b)];
        for (int i = 0; i < values.Length; i++) values[i] = (float)next();
        return tensor(values, shape.AsSpan());
    }
}
