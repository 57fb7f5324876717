// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Training;

/// <summary>What a run is about to do, before it does it.</summary>
public sealed record TrainingPlan
{
    /// <summary>Name of the method, or <c>none</c>.</summary>
    public required string Method { get; init; }

    /// <summary>Sites that wear a patch.</summary>
    public required IReadOnlyList<string> Sites { get; init; }

    /// <summary>Numbers that are trained, head included.</summary>
    public required long TrainableParameters { get; init; }

    /// <summary>Numbers of the head.</summary>
    public required long HeadParameters { get; init; }

    /// <summary>Numbers of backbone, adaptation and head.</summary>
    public required long AllParameters { get; init; }

    /// <summary>Rows of the training data.</summary>
    public required long Rows { get; init; }

    /// <summary>Epochs, with fractions.</summary>
    public required double Epochs { get; init; }

    /// <summary>Optimizer steps.</summary>
    public required long Steps { get; init; }

    /// <summary>Tokens of the whole run, padding not counted.</summary>
    public required long Tokens { get; init; }

    /// <summary>Share of padding among the tokens of an epoch.</summary>
    public required double PaddingShare { get; init; }

    /// <summary>Bytes of the frozen weights.</summary>
    public required long WeightBytes { get; init; }

    /// <summary>Bytes of the trained weights with gradients and moments.</summary>
    public required long TrainableBytes { get; init; }

    /// <summary>Estimated bytes of the activations of the largest micro-batch.</summary>
    public required long ActivationBytes { get; init; }

    /// <summary>Highest learning rate.</summary>
    public required double LearningRate { get; init; }

    /// <summary>In what numbers products with frozen weights are made, as asked for.</summary>
    public Precision Precision { get; init; }

    /// <summary>Share of all numbers that is trained.</summary>
    public double TrainableShare => AllParameters == 0 ? 0 : (double)TrainableParameters / AllParameters;

    /// <summary>Makes the plan of a run.</summary>
    /// <param name="model">The model.</param>
    /// <param name="train">Rows to learn from.</param>
    /// <param name="options">How to train.</param>
    /// <exception cref="ArgumentException">An option is out of range, or there are no rows.</exception>
    public static TrainingPlan Make(AdaptedModel model, IReadOnlyList<Example> train, TrainingOptions options)
    {
        options.Validate();
        if (train.Count == 0) throw new ArgumentException("The training data have no rows.", nameof(train));
        var batches = new BatchPlan(train, options);
        double epochs = (double)batches.TotalSteps / batches.StepsAnEpoch;
        long trained = model.Parameters.Where(p => p.Trainable).Sum(p => p.Value.numel());
        long others = model.Parameters.Sum(p => p.Value.numel());
        int multiple = train[0].Input is null ? options.PadToMultiple : 1;
        int[] order = [.. batches.Epoch(0).SelectMany(b => b)], lengths = [.. train.Select(r => r.Length)];
        return new TrainingPlan
        {
            Method = model.Adaptation?.Method.Id ?? "none",
            Sites = [.. model.Adaptation?.Patches.Keys.OrderBy(s => s.Index).Select(s => s.Name) ?? []],
            TrainableParameters = trained,
            HeadParameters = model.Head.Parameters.Where(p => p.Trainable).Sum(p => p.Value.numel()),
            AllParameters = model.Backbone.ParameterCount + others,
            Rows = train.Count,
            Epochs = epochs,
            Steps = batches.TotalSteps,
            Tokens = (long)(lengths.Sum(l => (long)l) * epochs),
            PaddingShare = RowOrder.PaddingShare(order, lengths, options.BatchSize, multiple),
            WeightBytes = 4 * model.Backbone.ParameterCount,
            TrainableBytes = trained * (options.Optimizer == OptimizerKind.Sgd ? 12 : 16),
            ActivationBytes = Activations(model, options, Math.Min(options.BatchSize, train.Count), (lengths.Max() + multiple - 1) / multiple * multiple),
            Precision = options.Precision,
            LearningRate = options.LearningRate ?? model.Adaptation?.Method.LearningRateFor(model.Backbone, batches.TotalSteps) ?? 1e-3,
        };
    }

    // What autograd keeps of a layer: about ten hidden states, three inner states and three attention tables a token. Layers
    // below the lowest patch keep nothing; checkpointed ones their input, and one layer at a time in full.
    private static long Activations(AdaptedModel model, TrainingOptions options, int rows, int length)
    {
        BackboneConfig config = model.Backbone.Config;
        long tokens = (long)rows * length;
        long layer = 4 * tokens * (10L * config.HiddenSize + 3L * config.IntermediateSize + 3L * config.HeadCount * tokens / rows);
        long state = 4 * tokens * config.HiddenSize;
        int lowest = model.Patches.LowestTrainable;
        long kept = lowest == int.MaxValue ? 0 : config.LayerCount - Math.Max(0, lowest);
        return options.GradientCheckpointing ? kept * state + Math.Min(1, kept) * layer + state : kept * layer + layer / 2;
    }

    /// <summary>The plan as a few lines of text.</summary>
    public override string ToString()
    {
        var text = new StringBuilder();
        void Line(FormattableString line) => text.AppendLine(FormattableString.Invariant(line));
        Line($"method      {Method} on {Sites.Count} sites");
        Line($"trainable   {TrainableParameters:N0} of {AllParameters:N0} parameters ({100 * TrainableShare:0.###} %), head {HeadParameters:N0}");
        Line($"data        {Rows:N0} rows, {Tokens:N0} tokens over {Epochs:0.##} epochs, {100 * PaddingShare:0.#} % padding");
        Line($"steps       {Steps:N0}, learning rate {LearningRate:0.###e+0}");
        Line($"memory      weights {Mega(WeightBytes)}, trained {Mega(TrainableBytes)}, activations about {Mega(ActivationBytes)}");
        if (Precision != Precision.Float32) Line($"precision   {Precision}{(Precision == Precision.Auto ? ": chosen before the first step" : "")}");
        return text.ToString().TrimEnd();
    }

    private static string Mega(long bytes) => FormattableString.Invariant($"{bytes / 1048576.0:0.0} MiB");
}
