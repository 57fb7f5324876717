// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>The start of a ViT: small normal weights, norms at one, positions on a grid of sines, biases at zero.</summary>
internal sealed class FreshWeights(ulong seed, int grid) : IWeightSource
{
    private const double Deviation = 0.02;

    public bool Has(string name) => !name.StartsWith("pooler", StringComparison.Ordinal);

    public Tensor Load(string name, params long[] shape)
    {
        if (name.EndsWith("position_embeddings", StringComparison.Ordinal)) return Positions(shape);
        if (name.EndsWith(".bias", StringComparison.Ordinal)) return zeros(shape);
        if (name.Contains("layernorm", StringComparison.Ordinal)) return ones(shape);
        using var generator = new Generator(seed ^ Hash(name), CPU);
        Tensor drawn = randn(shape, generator: generator);
        double deviation = shape.Length == 4 ? 1 / Math.Sqrt(shape[1] * shape[2] * shape[3]) : Deviation;
        return (drawn * deviation).clamp(-2 * deviation, 2 * deviation);
    }

    private static ulong Hash(string name) => name.Aggregate(14695981039346656037UL, (hash, letter) => (hash ^ letter) * 1099511628211UL);

    // Half of the width tells the row, half the column; the class token has zeros.
    private Tensor Positions(long[] shape)
    {
        int width = (int)shape[2], quarter = width / 4;
        var table = new float[shape[1] * width];
        for (int at = 1; at < shape[1]; at++)
        {
            int row = (at - 1) / grid, column = (at - 1) % grid;
            for (int i = 0; i < quarter; i++)
            {
                double rate = Math.Pow(10000, -(double)i / quarter);
                int start = at * width;
                table[start + i] = (float)Math.Sin(row * rate);
                table[start + quarter + i] = (float)Math.Cos(row * rate);
                table[start + 2 * quarter + i] = (float)Math.Sin(column * rate);
                table[start + 3 * quarter + i] = (float)Math.Cos(column * rate);
            }
        }
        return tensor(table, shape) * 0.5;
    }
}
