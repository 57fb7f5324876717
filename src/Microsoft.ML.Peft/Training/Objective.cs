// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;
using static TorchSharp.torch.nn.functional;

namespace Microsoft.ML.Peft.Training;

/// <summary>
/// What training makes small. Losses are sums; the trainer divides by the count of all rows of a step, so that a step's
/// micro-batches weigh by what they count and not by their number.
/// </summary>
public abstract class Objective
{
    /// <summary>Short name, for messages.</summary>
    public abstract string Name { get; }

    /// <summary>What a row adds to the count that the loss is divided by.</summary>
    /// <param name="row">The row.</param>
    public abstract double Count(Example row);

    /// <summary>Checks what the rows should be scored as.</summary>
    /// <param name="row">The row.</param>
    /// <exception cref="ArgumentException">The row cannot be learnt; the message names it, what was found and what is allowed.</exception>
    public abstract void Check(Example row);

    /// <summary>The loss of a batch as a sum over its rows (a scalar).</summary>
    /// <param name="scores">What the head gave, with the batch first.</param>
    /// <param name="batch">What the rows should be scored as.</param>
    public abstract Tensor Sum(Tensor scores, MiniBatch batch);

    /// <summary>Starts a collection of metrics.</summary>
    public abstract MetricSums NewMetrics();

    /// <summary>Names of the metrics that <see cref="NewMetrics"/> gives, the loss included.</summary>
    public abstract IReadOnlyList<string> MetricNames { get; }

    private protected static string Where(Example row) => row.Row >= 0 ? $"row {row.Row}" : "a row";

    private protected static void CheckWeight(Example row)
    {
        if (!(row.Weight >= 0) || float.IsPositiveInfinity(row.Weight))
            throw new ArgumentException($"The weight of {Where(row)} is {row.Weight}; weights must be finite and not negative.");
    }
}

/// <summary>
/// Cross-entropy over classes with scores <c>[batch, classes]</c>, label smoothing and class weights as PyTorch has them:
/// <c>(1 - e) w_y (-log p_y) + e/C Σ_k w_k (-log p_k)</c>, divided by the sum of the labels' weights.
/// </summary>
public sealed class CrossEntropyObjective : Objective
{
    private readonly float[]? _weights;
    private readonly double _smoothing;

    /// <summary>Sets the loss up.</summary>
    /// <param name="classes">Number of classes, at least 2.</param>
    /// <param name="labelSmoothing">Share e given to all classes alike, in [0, 1).</param>
    /// <param name="classWeights">One weight a class, not negative; null for none.</param>
    /// <exception cref="ArgumentException">A number is out of range.</exception>
    public CrossEntropyObjective(int classes, double labelSmoothing = 0, IReadOnlyList<float>? classWeights = null)
    {
        if (classes < 2) throw new ArgumentException($"Classification needs at least two classes, found {classes}.", nameof(classes));
        if (!(labelSmoothing >= 0 && labelSmoothing < 1))
            throw new ArgumentException($"Label smoothing must be in [0, 1), found {labelSmoothing}.", nameof(labelSmoothing));
        if (classWeights is not null && classWeights.Count != classes)
            throw new ArgumentException($"Found {classWeights.Count} class weights for {classes} classes; give one a class.", nameof(classWeights));
        if (classWeights is not null && classWeights.FirstOrDefault(w => !(w >= 0) || float.IsPositiveInfinity(w)) is var bad && (bad < 0 || float.IsNaN(bad) || float.IsInfinity(bad)))
            throw new ArgumentException($"A class weight is {bad}; weights must be finite and not negative.", nameof(classWeights));
        Classes = classes;
        _smoothing = labelSmoothing;
        _weights = classWeights is null ? null : [.. classWeights];
    }

    /// <summary>Sets the loss up as training options say.</summary>
    /// <param name="classes">Number of classes, at least 2.</param>
    /// <param name="options">Options with label smoothing and class weights.</param>
    public CrossEntropyObjective(int classes, TrainingOptions options)
        : this(classes, options.LabelSmoothing, options.ClassWeights)
    {
    }

    /// <summary>Number of classes.</summary>
    public int Classes { get; }

    /// <inheritdoc/>
    public override string Name => "cross-entropy";

    /// <inheritdoc/>
    public override IReadOnlyList<string> MetricNames => ClassSums.Names;

    /// <inheritdoc/>
    public override double Count(Example row) =>
        row.Label == Example.Ignored ? 0 : (double)row.Weight * (_weights?[row.Label] ?? 1);

    /// <inheritdoc/>
    public override void Check(Example row)
    {
        CheckWeight(row);
        if (row.Label != Example.Ignored && (uint)row.Label >= (uint)Classes)
        {
            throw new ArgumentException(
                $"The label of {Where(row)} is {row.Label}; labels must be 0 to {Classes - 1}, or {Example.Ignored} for a row that does not count.");
        }
    }

    /// <inheritdoc/>
    public override Tensor Sum(Tensor scores, MiniBatch batch)
    {
        if (scores.shape[^1] != Classes)
            throw new ArgumentException($"The head gives {scores.shape[^1]} scores a row, but there are {Classes} classes.");
        return batch.Mixing is { } mixing ? Mixed(scores, batch, mixing) : Sum(scores, batch.Labels, batch.Weights);
    }

    // Shares of rows are shares of their targets; columns of shares sum to 1, so that the count of the batch stays.
    private Tensor Mixed(Tensor scores, MiniBatch batch, Tensor mixing)
    {
        var shares = new float[batch.Rows.Count * Classes];
        for (int r = 0; r < batch.Rows.Count; r++)
        {
            Example row = batch.Rows[r];
            if (row.Label == Example.Ignored) continue;
            for (int k = 0; k < Classes; k++)
                shares[r * Classes + k] = (float)(row.Weight * (_weights?[k] ?? 1) * (_smoothing / Classes + (k == row.Label ? 1 - _smoothing : 0)));
        }
        Tensor targets = mixing.matmul(tensor(shares, [batch.Rows.Count, Classes], device: scores.device));
        return -(targets * scores.to_type(ScalarType.Float32).log_softmax(-1)).sum();
    }

    /// <summary>The sum-reduced loss of plain tensors.</summary>
    /// <param name="scores">Scores <c>[..., classes]</c>.</param>
    /// <param name="labels">Class numbers, int64, of the same leading shape; -100 is not counted.</param>
    /// <param name="rowWeights">Weights of the same leading shape, or null.</param>
    public Tensor Sum(Tensor scores, Tensor labels, Tensor? rowWeights = null)
    {
        Tensor flat = scores.reshape(-1, Classes).to_type(ScalarType.Float32), wanted = labels.reshape(-1);
        using Tensor? weights = _weights is null ? null : tensor(_weights, device: scores.device);
        nn.Reduction reduction = rowWeights is null ? nn.Reduction.Sum : nn.Reduction.None;
        Tensor loss = cross_entropy(flat, wanted, weights, Example.Ignored, reduction, _smoothing);
        return rowWeights is null ? loss : (loss * rowWeights.reshape(-1)).sum();
    }

    /// <summary>The count of plain labels.</summary>
    /// <param name="labels">Class numbers, int64.</param>
    public double Count(Tensor labels)
    {
        using var scope = NewDisposeScope();
        double count = 0;
        foreach (long label in labels.reshape(-1).to_type(ScalarType.Int64).cpu().data<long>().ToArray())
            if (label != Example.Ignored) count += _weights?[label] ?? 1;
        return count;
    }

    /// <inheritdoc/>
    public override MetricSums NewMetrics() => new ClassSums(Classes);
}

/// <summary>Binary cross-entropy over one logit a row, <c>[batch]</c> or <c>[batch, 1]</c>; targets from 0 to 1.</summary>
public sealed class BinaryObjective : Objective
{
    private readonly double _positiveWeight;

    /// <summary>Sets the loss up.</summary>
    /// <param name="positiveWeight">Factor on the loss of positive rows, above 0.</param>
    /// <exception cref="ArgumentException">The factor is out of range.</exception>
    public BinaryObjective(double positiveWeight = 1)
    {
        if (!(positiveWeight > 0) || double.IsInfinity(positiveWeight))
            throw new ArgumentException($"The weight of positive rows must be above 0, found {positiveWeight}.", nameof(positiveWeight));
        _positiveWeight = positiveWeight;
    }

    /// <inheritdoc/>
    public override string Name => "binary cross-entropy";

    /// <inheritdoc/>
    public override IReadOnlyList<string> MetricNames => ClassSums.Names;

    // As in PyTorch, the mean is over all rows, also where positive rows weigh more.
    /// <inheritdoc/>
    public override double Count(Example row) => row.Weight;

    /// <inheritdoc/>
    public override void Check(Example row)
    {
        CheckWeight(row);
        if (!(row.Target >= 0 && row.Target <= 1))
            throw new ArgumentException($"The target of {Where(row)} is {row.Target}; binary targets must be from 0 to 1.");
    }

    /// <inheritdoc/>
    public override Tensor Sum(Tensor scores, MiniBatch batch)
    {
        if (scores.numel() != batch.Rows.Count)
            throw new ArgumentException($"The head gives {scores.numel() / batch.Rows.Count} scores a row; a binary loss needs one.");
        using Tensor? positive = _positiveWeight == 1 ? null : tensor((float)_positiveWeight, device: scores.device);
        return Sum(scores.reshape(-1), batch.Targets, batch.Weights, positive);
    }

    /// <summary>The sum-reduced loss of plain tensors, in the log-sigmoid form.</summary>
    /// <param name="logits">Logits, any shape.</param>
    /// <param name="targets">Targets of the same shape.</param>
    /// <param name="weights">Weights of the same shape, or null.</param>
    /// <param name="positiveWeights">Factors on the positive part, broadcast to the shape, or null.</param>
    public static Tensor Sum(Tensor logits, Tensor targets, Tensor? weights = null, Tensor? positiveWeights = null) =>
        binary_cross_entropy_with_logits(logits.to_type(ScalarType.Float32), targets, weights, nn.Reduction.Sum, positiveWeights);

    /// <inheritdoc/>
    public override MetricSums NewMetrics() => new ClassSums(2, oneLogit: true);
}

/// <summary>Squared error of one number a row, <c>[batch]</c> or <c>[batch, 1]</c>.</summary>
public sealed class RegressionObjective : Objective
{
    /// <inheritdoc/>
    public override string Name => "squared error";

    /// <inheritdoc/>
    public override IReadOnlyList<string> MetricNames => NumberSums.Names;

    /// <inheritdoc/>
    public override double Count(Example row) => row.Weight;

    /// <inheritdoc/>
    public override void Check(Example row)
    {
        CheckWeight(row);
        if (!float.IsFinite(row.Target))
            throw new ArgumentException($"The target of {Where(row)} is {row.Target}; regression needs finite numbers.");
    }

    /// <inheritdoc/>
    public override Tensor Sum(Tensor scores, MiniBatch batch)
    {
        if (scores.numel() != batch.Rows.Count)
            throw new ArgumentException($"The head gives {scores.numel() / batch.Rows.Count} scores a row; regression needs one.");
        return Sum(scores.reshape(-1), batch.Targets, batch.Weights);
    }

    /// <summary>The sum of squared errors of plain tensors.</summary>
    /// <param name="predictions">Predictions, any shape.</param>
    /// <param name="targets">Targets of the same shape.</param>
    /// <param name="weights">Weights of the same shape, or null.</param>
    public static Tensor Sum(Tensor predictions, Tensor targets, Tensor? weights = null)
    {
        Tensor values = predictions.to_type(ScalarType.Float32);
        return weights is null
            ? mse_loss(values, targets, nn.Reduction.Sum)
            : (mse_loss(values, targets, nn.Reduction.None) * weights).sum();
    }

    /// <inheritdoc/>
    public override MetricSums NewMetrics() => new NumberSums();
}
