// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Training;

/// <summary>
/// The fine-tuning loop: batches of like lengths, dynamic padding, accumulation by counts, clipping, schedules,
/// evaluation with early stopping, checkpoints and exact resumption. It knows no task: what a row is, is an
/// <see cref="Example"/>; what is made small, an <see cref="Objective"/>.
/// </summary>
/// <example>
/// <code>
/// var trainer = new Trainer(new TrainingOptions { Epochs = 3 });
/// TrainingResult result = trainer.Fit(model, train, validation, new CrossEntropyObjective(2));
/// </code>
/// </example>
public sealed class Trainer
{
    private readonly TrainingOptions _options;

    /// <summary>Makes a trainer.</summary>
    /// <param name="options">How to train.</param>
    /// <exception cref="ArgumentException">An option is out of range.</exception>
    public Trainer(TrainingOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        _options = options;
    }

    /// <summary>Makes the micro-batches, where a caller has an order of its own.</summary>
    internal Func<IReadOnlyList<Example>, TrainingOptions, BatchPlan> PlanBatches { get; init; } = (rows, options) => new BatchPlan(rows, options);

    /// <summary>Called with (step, flat gradient before clipping), for tests.</summary>
    internal Action<long, Optimizer>? BeforeStep { get; init; }

    /// <summary>Called after each optimizer step, for tests.</summary>
    internal Action<long>? AfterStep { get; init; }

    /// <summary>Trains adaptation and head of a model in place; the backbone keeps its bits.</summary>
    /// <param name="model">The model.</param>
    /// <param name="train">Rows to learn from.</param>
    /// <param name="validation">Rows to choose the best weights by, or null.</param>
    /// <param name="objective">What is made small.</param>
    /// <returns>What the run did.</returns>
    /// <exception cref="ArgumentException">The data or the options do not fit; the message names the row or the option.</exception>
    /// <exception cref="InvalidOperationException">Nothing is trainable, or a checkpoint belongs to another run.</exception>
    /// <exception cref="TrainingDivergedException">A loss or a gradient was not finite.</exception>
    public TrainingResult Fit(
        AdaptedModel model, IReadOnlyList<Example> train, IReadOnlyList<Example>? validation, Objective objective)
    {
        ArgumentNullException.ThrowIfNull(model);
        ArgumentNullException.ThrowIfNull(train);
        ArgumentNullException.ThrowIfNull(objective);
        if (validation is { Count: 0 }) throw new ArgumentException("The validation data have no rows; pass null to train without.", nameof(validation));
        if (validation is null && _options.EarlyStoppingPatience > 0)
            throw new ArgumentException("EarlyStoppingPatience needs validation data to judge by.", nameof(validation));
        if (!model.Parameters.Any(p => p.Trainable))
            throw new InvalidOperationException("The model has no trainable parameter: attach a method or a head with parameters.");
        using CpuThreads.Lent threads = CpuThreads.Lend(_options.Threads);
        using NativeKernels.KeepScope memory = NativeKernels.KeepMemory();
        _options.CheckMetric(objective);
        Check(model, train, objective, "training");
        if (validation is not null) Check(model, validation, objective, "validation");
        BatchPlan plan = PlanBatches(train, _options);
        if (model.Adaptation?.CalibrationBatches is > 0 and var most) model.Calibrate(new TrainingCalibration(model, plan, most, objective, _options));
        using var run = new TrainingRun(model, plan, validation, objective, _options)
        {
            BeforeStep = BeforeStep,
            AfterStep = AfterStep,
        };
        return run.Execute();
    }

    /// <summary>Metrics of rows, without gradient and dropout.</summary>
    /// <param name="model">The model.</param>
    /// <param name="rows">Rows with what they should be scored as.</param>
    /// <param name="objective">Gives loss and metrics.</param>
    /// <exception cref="ArgumentException">The data do not fit; the message names the row.</exception>
    public Evaluation Evaluate(AdaptedModel model, IReadOnlyList<Example> rows, Objective objective)
    {
        using CpuThreads.Lent threads = CpuThreads.Lend(_options.Threads);
        Check(model, rows, objective, "evaluation");
        using var forwarder = new Forwarder(model);
        return forwarder.Evaluate(rows, objective, EvaluationBatch(_options), _options.PadToMultiple, _options.CancellationToken);
    }

    internal static int EvaluationBatch(TrainingOptions options) =>
        options.EvaluationBatchSize > 0 ? options.EvaluationBatchSize : 2 * options.BatchSize;

    private static void Check(AdaptedModel model, IReadOnlyList<Example> rows, Objective objective, string what)
    {
        if (rows.Count == 0) throw new ArgumentException($"The {what} data have no rows.");
        BackboneConfig config = model.Backbone.Config;
        double count = 0;
        for (int i = 0; i < rows.Count; i++)
        {
            Example row = rows[i];
            string name = row.Row >= 0 ? $"row {row.Row}" : $"example {i}";
            if (row.Input is null != (config.Input == BackboneInput.Text))
                throw new ArgumentException($"The {what} data: {name} is {(row.Input is null ? "a text" : "no text")}, but a {config.ModelType} backbone reads {config.Input.ToString().ToLowerInvariant()}.");
            if (row.Length == 0) throw new ArgumentException($"The {what} data: {name} has no tokens.");
            if (row.Input is null && row.Length > config.MaxTokens)
                throw new ArgumentException($"The {what} data: {name} has {row.Length} tokens, the model takes at most {config.MaxTokens}; truncate it.");
            if (row.TypeIds is { } types && types.Length != row.Length)
                throw new ArgumentException($"The {what} data: {name} has {types.Length} token types for {row.Length} tokens.");
            foreach (int id in row.Ids)
            {
                if ((uint)id >= (uint)config.VocabularySize)
                    throw new ArgumentException($"The {what} data: {name} has token id {id}; the vocabulary has {config.VocabularySize} entries.");
            }
            objective.Check(row);
            count += objective.Count(row);
        }
        if (count == 0)
            throw new ArgumentException($"None of the {rows.Count} rows of the {what} data counts in the loss: all labels are ignored or all weights are 0.");
    }
}
