// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Training;

/// <summary>Where a run stands.</summary>
/// <param name="Epoch">Epochs done, with fractions.</param>
/// <param name="Epochs">Epochs of the whole run, with fractions.</param>
/// <param name="Step">Optimizer steps done.</param>
/// <param name="TotalSteps">Optimizer steps of the whole run.</param>
/// <param name="Loss">Mean loss of the steps since the last report.</param>
/// <param name="LearningRate">Rate of the last step.</param>
/// <param name="TokensPerSecond">Tokens trained a second, padding not counted, since the run (or its resumption) began; evaluation not counted.</param>
/// <param name="ExamplesPerSecond">Rows trained a second, likewise.</param>
/// <param name="TimeLeft">How long the rest will take at this speed.</param>
/// <param name="Validation">Metrics of an evaluation that has just been made, or null.</param>
public sealed record TrainingProgress(
    double Epoch, double Epochs, long Step, long TotalSteps, double Loss, double LearningRate, double TokensPerSecond,
    double ExamplesPerSecond, TimeSpan TimeLeft, Evaluation? Validation)
{
    /// <inheritdoc/>
    public override string ToString() => FormattableString.Invariant(
        $"epoch {Epoch:0.00}/{Epochs:0.##}, step {Step}/{TotalSteps}, loss {Loss:0.0000}, rate {LearningRate:0.00e+0}, {TokensPerSecond:0} tokens/s, {ExamplesPerSecond:0.0} rows/s, {TimeLeft:hh\\:mm\\:ss} left{(Validation is null ? "" : "; validation: " + Validation)}");
}

/// <summary>Why a run ended.</summary>
public enum StopReason
{
    /// <summary>All steps are done.</summary>
    Completed,
    /// <summary>The validation metric no longer improved.</summary>
    EarlyStopped,
    /// <summary>The cancellation token asked for it.</summary>
    Cancelled,
}

/// <summary>An evaluation during training.</summary>
/// <param name="Step">Optimizer steps done.</param>
/// <param name="Evaluation">The metrics.</param>
/// <param name="Better">True where it was the best so far.</param>
/// <param name="Counter">Evaluations without improvement up to here.</param>
public sealed record EvaluationPoint(long Step, Evaluation Evaluation, bool Better, int Counter);

/// <summary>What a run did.</summary>
public sealed record TrainingResult
{
    /// <summary>Optimizer steps, those before a resumption included.</summary>
    public required long Steps { get; init; }

    /// <summary>Why the run ended.</summary>
    public required StopReason Stopped { get; init; }

    /// <summary>Loss of each step.</summary>
    public required IReadOnlyList<double> Losses { get; init; }

    /// <summary>Learning rate of each step.</summary>
    public required IReadOnlyList<double> LearningRates { get; init; }

    /// <summary>Norm of all gradients of each step, before clipping.</summary>
    public required IReadOnlyList<double> GradientNorms { get; init; }

    /// <summary>All evaluations.</summary>
    public required IReadOnlyList<EvaluationPoint> Evaluations { get; init; }

    /// <summary>Steps done at the best evaluation, or null without evaluation.</summary>
    public long? BestStep { get; init; }

    /// <summary>The metric at the best evaluation, or null without evaluation.</summary>
    public double? BestMetric { get; init; }

    /// <summary>Tokens trained, padding not counted.</summary>
    public required long Tokens { get; init; }

    /// <summary>Rows trained.</summary>
    public required long Rows { get; init; }

    /// <summary>Seconds of training steps.</summary>
    public required double TrainingSeconds { get; init; }

    /// <summary>Seconds of the whole call: evaluation and checkpoints included, those before a resumption not.</summary>
    public required double Seconds { get; init; }

    /// <summary>Tokens trained a second of training steps.</summary>
    public double TokensPerSecond => TrainingSeconds > 0 ? Tokens / TrainingSeconds : 0;

    /// <summary>Rows of training and validation data that were left out because their image or sound could not be read, as the options allow.</summary>
    public long SkippedRows { get; init; }

    /// <summary>In what numbers products with frozen weights were made.</summary>
    public Precision Precision { get; init; }

    /// <summary>What <see cref="Precision.Auto"/> found, and why it chose <see cref="Precision"/>; null where a precision was given.</summary>
    public string? PrecisionReason { get; init; }

    /// <summary>What the user should know.</summary>
    public required IReadOnlyList<string> Warnings { get; init; }
}

/// <summary>A loss or a gradient was not finite; the model holds the last good weights.</summary>
public sealed class TrainingDivergedException : InvalidOperationException
{
    /// <summary>Tells what happened.</summary>
    /// <param name="message">What, with advice.</param>
    /// <param name="step">Number of the step, from 0.</param>
    /// <param name="rows">Row numbers of the step's batches.</param>
    public TrainingDivergedException(string message, long step, IReadOnlyList<long> rows) : base(message)
    {
        Step = step;
        Rows = rows;
    }

    /// <summary>Number of the step, from 0.</summary>
    public long Step { get; }

    /// <summary>Row numbers of the step's batches.</summary>
    public IReadOnlyList<long> Rows { get; }
}

/// <summary>What a resumed run must know, beside weights and moments.</summary>
internal sealed class RunState
{
    public long Step { get; set; }

    public long Tokens { get; set; }

    public long Rows { get; set; }

    public double TrainingSeconds { get; set; }

    public List<double> Losses { get; set; } = [];

    public List<double> LearningRates { get; set; } = [];

    public List<double> GradientNorms { get; set; } = [];

    public List<EvaluationPoint> Evaluations { get; set; } = [];

    public double? BestMetric { get; set; }

    public long? BestStep { get; set; }

    public int Counter { get; set; }

    public StopReason? Stopped { get; set; }

    public Precision? Precision { get; set; }

    public string? PrecisionReason { get; set; }
}
