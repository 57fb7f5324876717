// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Bench;

/// <summary>The ratios that this library is to reach, by discipline. A precision that is named here and does not exist shows as not measured.</summary>
internal static class Goals
{
    public static readonly Goal[] Training =
    [
        new("Float32", Sides.TorchFloat, 4),
        new("Auto", Sides.TorchFloat, 8),
        new("Auto", Sides.TorchBFloat16, 4),
    ];

    public static readonly Goal[] Scoring =
    [
        new("Float32", Sides.OnnxFloat, 1.2),
        new("BFloat16", Sides.OnnxFloat, 2.2),
        new("Int8Frozen", Sides.OnnxInt8, 1.5),
    ];

    /// <summary>At most 0.6 of PyTorch's.</summary>
    public static readonly Goal[] TrainingMemory = [new("Float32", Sides.TorchFloat, 1 / 0.6)];

    /// <summary>No slower than ONNX Runtime.</summary>
    public static readonly Goal[] Latency = [new(Bench.Latency.Engine + "Float32", Sides.OnnxFloat, 1)];

    /// <summary>At most half of Python's.</summary>
    public static readonly Goal[] Start = [new(Bench.Start.Folder, Sides.TorchFloat, 2), new(Bench.Start.FromZip, Sides.TorchFloat, 2)];

    /// <summary>Time a token of the fewest rows, and of the most, over each other.</summary>
    public const double Flat = 1.1;
}
