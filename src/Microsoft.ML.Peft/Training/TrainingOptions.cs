// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Training;

/// <summary>The rule that turns gradients into steps.</summary>
public enum OptimizerKind
{
    /// <summary>Adam with decoupled weight decay.</summary>
    AdamW,
    /// <summary>Adam with weight decay in the gradient.</summary>
    Adam,
    /// <summary>Stochastic gradient descent with momentum.</summary>
    Sgd,
}

/// <summary>How a model is trained. The defaults suit most parameter-efficient methods.</summary>
public sealed class TrainingOptions
{
    /// <summary>Passes over the data.</summary>
    public int Epochs { get; set; } = 3;

    /// <summary>Optimizer steps of the whole run, in place of <see cref="Epochs"/>; 0 for none.</summary>
    public long MaxSteps { get; set; }

    /// <summary>Rows in a micro-batch.</summary>
    public int BatchSize { get; set; } = 16;

    /// <summary>Micro-batches in an optimizer step.</summary>
    public int Accumulation { get; set; } = 1;

    /// <summary>The optimizer.</summary>
    public OptimizerKind Optimizer { get; set; } = OptimizerKind.AdamW;

    /// <summary>Highest learning rate; null for the method's own, <see cref="Adaptation.PeftMethod.LearningRateFor"/>.</summary>
    public double? LearningRate { get; set; }

    /// <summary>
    /// Highest learning rate of the task's head; null for <see cref="LearningRate"/>, or, where that is null too, for what
    /// suits a fresh head beside the method.
    /// </summary>
    public double? HeadLearningRate { get; set; }

    /// <summary>Weight decay; null for 0.01, and 0 for low-rank methods.</summary>
    public double? WeightDecay { get; set; }

    /// <summary>Memory of the first moment.</summary>
    public double Beta1 { get; set; } = 0.9;

    /// <summary>Memory of the second moment.</summary>
    public double Beta2 { get; set; } = 0.999;

    /// <summary>Added to the square root of the second moment.</summary>
    public double Epsilon { get; set; } = 1e-8;

    /// <summary>Momentum of <see cref="OptimizerKind.Sgd"/>.</summary>
    public double Momentum { get; set; } = 0.9;

    /// <summary>Limit on the norm of all gradients; 0 for none.</summary>
    public double MaxGradNorm { get; set; } = 1;

    /// <summary>How the learning rate runs.</summary>
    public ScheduleKind Schedule { get; set; } = ScheduleKind.Linear;

    /// <summary>Warm-up as a share of all steps.</summary>
    public double WarmupShare { get; set; } = 0.06;

    /// <summary>Warm-up in steps, in place of <see cref="WarmupShare"/>; null for none given.</summary>
    public long? WarmupSteps { get; set; }

    /// <summary>Lowest share of the rate, for schedules with a floor.</summary>
    public double ScheduleFloor { get; set; } = 0.1;

    /// <summary>Exponent of the polynomial schedule.</summary>
    public double SchedulePower { get; set; } = 1;

    /// <summary>Share of the steps that a warm-up-stable-decay schedule decays in.</summary>
    public double DecayShare { get; set; } = 0.2;

    /// <summary>Share of each label that all classes get alike; read by classification.</summary>
    public double LabelSmoothing { get; set; }

    /// <summary>One weight a class; read by classification. Null for none.</summary>
    public float[]? ClassWeights { get; set; }

    /// <summary>True to batch rows of like lengths together.</summary>
    public bool GroupByLength { get; set; } = true;

    /// <summary>Batches are padded to a multiple of this many tokens.</summary>
    public int PadToMultiple { get; set; } = 8;

    /// <summary>Seed of the order of rows and of dropout.</summary>
    public long Seed { get; set; } = 42;

    /// <summary>True to run each layer again in the backward pass instead of keeping its activations.</summary>
    public bool GradientCheckpointing { get; set; }

    /// <summary>
    /// In what numbers products with frozen weights are made during the run; a resumed run keeps it, and with
    /// <see cref="Precision.Auto"/> what was chosen when it began.
    /// </summary>
    public Precision Precision { get; set; }

    /// <summary>
    /// Threads of the CPU that the run uses; 0 for as many as the process has (<c>torch.set_num_threads</c>, or all cores).
    /// Runs of one number of threads are equal to the bit.
    /// </summary>
    public int Threads { get; set; }

    /// <summary>True to run a backbone that nothing trainable changes only once a row.</summary>
    public bool CacheFeatures { get; set; } = true;

    /// <summary>Steps assembled ahead on another thread; 0 to assemble in the loop, as texts on the CPU always are.</summary>
    public int Prefetch { get; set; } = 2;

    /// <summary>Steps between evaluations; 0 for one at the end of each epoch.</summary>
    public int EvaluateEvery { get; set; }

    /// <summary>Rows in an evaluation batch; 0 for twice <see cref="BatchSize"/>.</summary>
    public int EvaluationBatchSize { get; set; }

    /// <summary>Evaluations without improvement after which training stops; 0 for never.</summary>
    public int EarlyStoppingPatience { get; set; }

    /// <summary>Difference of the metric that counts as an improvement.</summary>
    public double EarlyStoppingMinDelta { get; set; }

    /// <summary>True to end with the weights of the best evaluation.</summary>
    public bool KeepBest { get; set; } = true;

    /// <summary>The metric that says which evaluation is best, e.g. <c>loss</c> or <c>accuracy</c>.</summary>
    public string BestMetric { get; set; } = "loss";

    /// <summary>Folder for checkpoints; null for none.</summary>
    public string? CheckpointFolder { get; set; }

    /// <summary>Steps between checkpoints; 0 for one at the end of each epoch.</summary>
    public int CheckpointEvery { get; set; }

    /// <summary>Number of newest checkpoints that are kept, beside the best one.</summary>
    public int KeepCheckpoints { get; set; } = 2;

    /// <summary>True to go on from the newest complete checkpoint in the folder, where there is one.</summary>
    public bool Resume { get; set; }

    /// <summary>True to go on even from a checkpoint of other options, another method or other data.</summary>
    public bool ForceResume { get; set; }

    /// <summary>Steps between progress reports.</summary>
    public int LogEvery { get; set; } = 10;

    /// <summary>Stops training after the running step; the best weights so far are kept and a checkpoint is left.</summary>
    [JsonIgnore]
    public CancellationToken CancellationToken { get; set; }

    /// <summary>Called on the training thread every <see cref="LogEvery"/> steps and after each evaluation.</summary>
    [JsonIgnore]
    public Action<TrainingProgress>? Progress { get; set; }

    /// <summary>Called with what the user should know but what stops nothing.</summary>
    [JsonIgnore]
    public Action<string>? Warning { get; set; }

    /// <summary>Called with what was decided for the run, such as what <see cref="Precision.Auto"/> chose.</summary>
    [JsonIgnore]
    public Action<string>? Note { get; set; }

    // What changes neither the weights nor the logs of a run, or what a resumed run may well set otherwise.
    private static readonly string[] _free =
    [
        nameof(Prefetch), nameof(Threads), nameof(CheckpointFolder), nameof(CheckpointEvery), nameof(KeepCheckpoints), nameof(Resume),
        nameof(ForceResume), nameof(LogEvery), nameof(EvaluationBatchSize), nameof(GradientCheckpointing),
    ];

    /// <summary>A copy that shares nothing that can be changed.</summary>
    public TrainingOptions Copy()
    {
        var copy = (TrainingOptions)MemberwiseClone();
        copy.ClassWeights = (float[]?)ClassWeights?.Clone();
        return copy;
    }

    /// <summary>Checks all options.</summary>
    /// <exception cref="ArgumentException">An option is out of range; the message names it, what was found and what is allowed.</exception>
    public void Validate()
    {
        CheckNumbers();
        CheckSchedule();
        if (ForceResume && !Resume) throw new ArgumentException("ForceResume needs Resume.");
        if (Resume && CheckpointFolder is null) throw new ArgumentException("Resume needs a CheckpointFolder.");
        if (CheckpointFolder is "") throw new ArgumentException("CheckpointFolder is empty; give a folder, or null for no checkpoints.");
    }

    private void CheckNumbers()
    {
        AtLeast(nameof(Epochs), Epochs, 1);
        AtLeast(nameof(MaxSteps), MaxSteps, 0);
        AtLeast(nameof(BatchSize), BatchSize, 1);
        AtLeast(nameof(Accumulation), Accumulation, 1);
        AtLeast(nameof(PadToMultiple), PadToMultiple, 1);
        AtLeast(nameof(Prefetch), Prefetch, 0);
        AtLeast(nameof(Threads), Threads, 0);
        AtLeast(nameof(EvaluateEvery), EvaluateEvery, 0);
        AtLeast(nameof(EvaluationBatchSize), EvaluationBatchSize, 0);
        AtLeast(nameof(EarlyStoppingPatience), EarlyStoppingPatience, 0);
        AtLeast(nameof(CheckpointEvery), CheckpointEvery, 0);
        AtLeast(nameof(KeepCheckpoints), KeepCheckpoints, 1);
        AtLeast(nameof(LogEvery), LogEvery, 1);
        PrecisionCheck.Known(Precision, nameof(Precision));
        Check(nameof(LearningRate), LearningRate ?? 1, v => v > 0, "above 0");
        Check(nameof(HeadLearningRate), HeadLearningRate ?? 1, v => v > 0, "above 0");
        Check(nameof(WeightDecay), WeightDecay ?? 0, v => v >= 0, "0 or more");
        Check(nameof(Beta1), Beta1, v => v >= 0 && v < 1, "in [0, 1)");
        Check(nameof(Beta2), Beta2, v => v >= 0 && v < 1, "in [0, 1)");
        Check(nameof(Epsilon), Epsilon, v => v > 0, "above 0");
        Check(nameof(Momentum), Momentum, v => v >= 0 && v < 1, "in [0, 1)");
        Check(nameof(MaxGradNorm), MaxGradNorm, v => v >= 0, "0 (no limit) or more");
        Check(nameof(LabelSmoothing), LabelSmoothing, v => v >= 0 && v < 1, "in [0, 1)");
        Check(nameof(EarlyStoppingMinDelta), EarlyStoppingMinDelta, v => v >= 0, "0 or more");
    }

    private void CheckSchedule()
    {
        Check(nameof(WarmupShare), WarmupShare, v => v >= 0 && v <= 1, "in [0, 1]");
        AtLeast(nameof(WarmupSteps), WarmupSteps ?? 0, 0);
        if (MaxSteps > 0 && WarmupSteps > MaxSteps)
            throw new ArgumentException($"WarmupSteps is {WarmupSteps}, longer than the {MaxSteps} steps of the run; take fewer, or a WarmupShare.");
        Check(nameof(ScheduleFloor), ScheduleFloor, v => v >= 0 && v < 1, "in [0, 1)");
        Check(nameof(SchedulePower), SchedulePower, v => v > 0, "above 0");
        Check(nameof(DecayShare), DecayShare, v => v > 0 && v <= 1, "in (0, 1]");
    }

    private static void AtLeast(string option, long value, long least) => Check(option, value, v => v >= least, $"at least {least}");

    private static void Check(string option, double value, Func<double, bool> allowed, string text)
    {
        if (!double.IsFinite(value) || !allowed(value))
            throw new ArgumentException(FormattableString.Invariant($"{option} is {value}; it must be {text}."), option);
    }

    /// <summary>The schedule of a run.</summary>
    /// <param name="totalSteps">Steps of the whole run.</param>
    /// <param name="rate">Highest learning rate.</param>
    /// <exception cref="ArgumentException">The warm-up is longer than the run.</exception>
    public LearningRateSchedule MakeSchedule(long totalSteps, double rate)
    {
        long warmup = WarmupSteps ?? (long)Math.Ceiling(WarmupShare * totalSteps);
        if (warmup > totalSteps)
            throw new ArgumentException($"WarmupSteps is {warmup}, longer than the {totalSteps} steps of the run; take fewer, or a WarmupShare.");
        bool floor = Schedule is ScheduleKind.CosineWithFloor or ScheduleKind.CosineWarmupWithFloor;
        var schedule = new LearningRateSchedule
        {
            Kind = Schedule,
            Total = totalSteps,
            Warmup = warmup,
            Floor = floor ? ScheduleFloor : 0,
            Power = SchedulePower,
            BaseRate = rate,
            EndRate = Math.Min(1e-7, rate / 10),
            DecaySteps = Math.Max(1, (long)Math.Round(DecayShare * totalSteps)),
        };
        schedule.Validate();
        return schedule;
    }

    /// <summary>The options that a resumed run must have the same, by name.</summary>
    internal SortedDictionary<string, string> Fingerprint()
    {
        var found = new SortedDictionary<string, string>(StringComparer.Ordinal);
        foreach (JsonProperty option in JsonSerializer.SerializeToElement(this).EnumerateObject())
            if (!_free.Contains(option.Name)) found[option.Name] = option.Value.GetRawText();
        return found;
    }

    internal void CheckMetric(Objective objective)
    {
        if (objective.MetricNames.Contains(BestMetric)) return;
        throw new ArgumentException(
            $"BestMetric '{BestMetric}' is none of the metrics of {objective.Name}: {string.Join(", ", objective.MetricNames)}.");
    }
}
