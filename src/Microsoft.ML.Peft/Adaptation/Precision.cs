// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>In what numbers products with frozen weights are made. Parameters, sums, norms and attention stay in float32.</summary>
public enum Precision
{
    /// <summary>Float32 throughout.</summary>
    Float32,
    /// <summary>
    /// Both factors are rounded to bfloat16 and summed in float32: twice as fast on processors that have the instruction, with some
    /// three significant digits of each factor. Others, and what the native kernels do not take, stay in float32. On a GPU the
    /// result is rounded as well, and a second copy of the weights is kept.
    /// </summary>
    BFloat16,
    /// <summary>
    /// Weights in 8 bits with a scale for each output, inputs in 256 steps for each token as they come; sums of whole numbers. While
    /// training, gradients of inputs are made the same way, the weight with a scale for each input (Wortsman et al. 2023, arXiv
    /// 2304.13013). What is trained beside them, gradients of it too, stays in float32. On a GPU it is <see cref="BFloat16"/>.
    /// </summary>
    Int8Frozen,
    /// <summary>
    /// One of the others: the fastest on this machine, of those whose scores of the first rows are near those of
    /// <see cref="Float32"/>; see <see cref="PrecisionChoice"/>. Trainers and transformers choose; a single pass has one of the others.
    /// </summary>
    Auto,
}

internal static class PrecisionCheck
{
    /// <summary>Refuses a number that is no precision.</summary>
    public static Precision Known(Precision precision, string name = "precision") => Enum.IsDefined(precision)
        ? precision
        : throw new ArgumentOutOfRangeException(name, precision, $"The precision is {(int)precision}; allowed are {string.Join(", ", Enum.GetNames<Precision>())}.");

    /// <summary>Refuses <see cref="Precision.Auto"/> as well: who computes must know.</summary>
    public static Precision Definite(Precision precision) => Known(precision) != Precision.Auto
        ? precision
        : throw new ArgumentException("Auto is chosen by a trainer or a transformer; a model computes in one of the others: give TrainingOptions.Precision, or a transformer's ScoringPrecision.", nameof(precision));
}
