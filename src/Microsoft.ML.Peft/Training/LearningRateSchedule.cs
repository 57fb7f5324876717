// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Training;

/// <summary>How the learning rate runs over the steps.</summary>
public enum ScheduleKind
{
    /// <summary>Straight to zero at the last step.</summary>
    Linear,
    /// <summary>Half a cosine to zero at the last step.</summary>
    Cosine,
    /// <summary>Cosine to a floor (<see cref="LearningRateSchedule.Floor"/>).</summary>
    CosineWithFloor,
    /// <summary>Cosine to a floor, one step ahead: the warm-up starts at 1/warm-up (or at <see cref="LearningRateSchedule.WarmupStart"/>).</summary>
    CosineWarmupWithFloor,
    /// <summary>Cosine that starts anew <see cref="LearningRateSchedule.Cycles"/> times.</summary>
    CosineWithRestarts,
    /// <summary>The full rate at every step after the warm-up.</summary>
    Constant,
    /// <summary>A power of the remaining share, to <see cref="LearningRateSchedule.EndRate"/>.</summary>
    Polynomial,
    /// <summary>One over the square root of the step.</summary>
    InverseSquareRoot,
    /// <summary>Warm-up, full rate, decay over the last steps.</summary>
    WarmupStableDecay,
}

/// <summary>The curve of a rise or fall in <see cref="ScheduleKind.WarmupStableDecay"/>.</summary>
public enum RampShape
{
    /// <summary>Straight.</summary>
    Linear,
    /// <summary>Half a cosine.</summary>
    Cosine,
    /// <summary>One minus a square root.</summary>
    OneMinusSquareRoot,
}

/// <summary>
/// Factors on the learning rate by step. The first update uses step 0, so that with a warm-up its rate is zero;
/// it fills the optimizer's moments all the same.
/// </summary>
public sealed record LearningRateSchedule
{
    /// <summary>The curve.</summary>
    public required ScheduleKind Kind { get; init; }

    /// <summary>Steps of the warm-up.</summary>
    public long Warmup { get; init; }

    /// <summary>Steps of the whole run.</summary>
    public required long Total { get; init; }

    /// <summary>Periods of a cosine after the warm-up; null for half a period, or for one restart.</summary>
    public double? Cycles { get; init; }

    /// <summary>Lowest factor of the curves that have a floor, in [0, 1).</summary>
    public double Floor { get; init; }

    /// <summary>Exponent of the polynomial.</summary>
    public double Power { get; init; } = 1;

    /// <summary>Rate (not a factor) at which the polynomial ends.</summary>
    public double EndRate { get; init; } = 1e-7;

    /// <summary>Rate that <see cref="EndRate"/> is divided by.</summary>
    public double BaseRate { get; init; } = 1;

    /// <summary>Steps in which the inverse square root falls to 0.71; null for the warm-up's, or 10,000 without one.</summary>
    public long? TimeScale { get; init; }

    /// <summary>Factor of the first step of <see cref="ScheduleKind.CosineWarmupWithFloor"/>; null for 1/warm-up.</summary>
    public double? WarmupStart { get; init; }

    /// <summary>Steps of the decay of <see cref="ScheduleKind.WarmupStableDecay"/>.</summary>
    public long DecaySteps { get; init; }

    /// <summary>Steps at the full rate of <see cref="ScheduleKind.WarmupStableDecay"/>; null for all that are left.</summary>
    public long? StableSteps { get; init; }

    /// <summary>Curve of the rise of <see cref="ScheduleKind.WarmupStableDecay"/>.</summary>
    public RampShape WarmupShape { get; init; } = RampShape.Linear;

    /// <summary>Curve of the fall of <see cref="ScheduleKind.WarmupStableDecay"/>.</summary>
    public RampShape DecayShape { get; init; } = RampShape.Cosine;

    /// <summary>Checks the settings.</summary>
    /// <exception cref="ArgumentException">A setting is out of range; the message names it and what is allowed.</exception>
    public void Validate()
    {
        if (Total < 1) throw new ArgumentException($"A schedule needs at least one step, found {Total}.");
        if (Warmup < 0) throw new ArgumentException($"Warm-up steps must not be negative, found {Warmup}.");
        if (!(Floor >= 0 && Floor < 1)) throw new ArgumentException($"The floor of a schedule must be in [0, 1), found {Floor}.");
        if (Kind == ScheduleKind.CosineWithFloor && Floor == 0)
            throw new ArgumentException("A cosine with a floor needs a floor above 0 (a share of the rate); without one take Cosine.");
        if (Kind == ScheduleKind.WarmupStableDecay && DecaySteps < 1)
            throw new ArgumentException($"WarmupStableDecay needs the number of decay steps, at least 1; found {DecaySteps}.");
        if (Kind != ScheduleKind.Polynomial) return;
        if (!(EndRate < BaseRate))
            throw new ArgumentException($"The end rate {EndRate} of a polynomial schedule must be below its base rate {BaseRate}.");
        if (Warmup == Total)
            throw new ArgumentException($"A polynomial schedule has no step left after a warm-up of {Warmup} of {Total} steps.");
    }

    /// <summary>The factor on the learning rate with which a step is taken.</summary>
    /// <param name="step">Number of the step, from 0.</param>
    public double Factor(long step) => Kind switch
    {
        ScheduleKind.CosineWarmupWithFloor => Ahead(step),
        ScheduleKind.WarmupStableDecay => Plateau(step),
        _ => step < Warmup ? (double)step / Math.Max(1, Warmup) : After(step),
    };

    private double After(long step) => Kind switch
    {
        ScheduleKind.Constant => 1,
        ScheduleKind.Linear => Math.Max(0, (double)(Total - step) / Math.Max(1, Total - Warmup)),
        ScheduleKind.Cosine => Math.Max(0, Wave(Progress(step))),
        ScheduleKind.CosineWithFloor => Math.Max(0, Wave(Progress(step)) * (1 - Floor) + Floor),
        ScheduleKind.CosineWithRestarts => Restarting(Progress(step)),
        ScheduleKind.InverseSquareRoot => InverseRoot(step),
        ScheduleKind.Polynomial => Polynomial(step),
        _ => throw new InvalidOperationException($"Unknown schedule {Kind}."),
    };

    private double Progress(long step) => (double)(step - Warmup) / Math.Max(1, Total - Warmup);

    private double Wave(double progress) => 0.5 * (1 + Math.Cos(Math.PI * (Cycles ?? 0.5) * 2 * progress));

    private double Restarting(double progress) =>
        progress >= 1 ? 0 : Math.Max(0, 0.5 * (1 + Math.Cos(Math.PI * ((Cycles ?? 1) * progress % 1))));

    private double InverseRoot(long step)
    {
        long scale = TimeScale ?? (Warmup > 0 ? Warmup : 10_000);
        return 1 / Math.Sqrt((double)(step + scale - Warmup) / scale);
    }

    private double Polynomial(long step)
    {
        if (step > Total) return EndRate / BaseRate;
        double left = 1 - (double)(step - Warmup) / (Total - Warmup);
        return ((BaseRate - EndRate) * Math.Pow(left, Power) + EndRate) / BaseRate;
    }

    private double Ahead(long step)
    {
        if (step < Warmup)
        {
            return WarmupStart is not { } start
                ? (step + 1.0) / Math.Max(1, Warmup)
                : start + (1 - start) * step / Math.Max(1, Warmup - 1);
        }
        double progress = (step - Warmup + 1.0) / Math.Max(1, Total - Warmup);
        return Math.Max(0, Wave(progress) * (1 - Floor) + Floor);
    }

    private double Plateau(long step)
    {
        if (step < Warmup)
            return Math.Max(0, Rise((double)step / Math.Max(1, Warmup)) * (1 - Floor) + Floor);
        long stable = StableSteps ?? Total - Warmup - DecaySteps;
        if (step < Warmup + stable) return 1;
        if (step >= Warmup + stable + DecaySteps) return Floor;
        double progress = (double)(step - Warmup - stable) / Math.Max(1, DecaySteps);
        return Math.Max(0, Fall(progress) * (1 - Floor) + Floor);
    }

    private double Rise(double progress) => WarmupShape switch
    {
        RampShape.Linear => progress,
        RampShape.Cosine => 0.5 * (1 - Math.Cos(Math.PI * progress)),
        _ => 1 - Math.Sqrt(1 - progress),
    };

    private double Fall(double progress) => DecayShape switch
    {
        RampShape.Linear => 1 - progress,
        RampShape.Cosine => Wave(progress),
        _ => 1 - Math.Sqrt(progress),
    };
}
