// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Several adaptations that run as one: the one place that passes the hooks on.</summary>
internal abstract class JoinedAdaptation : PeftAdaptation
{
    private protected JoinedAdaptation(PeftMethod method, Backbone backbone, bool owns = true) : base(method, backbone, owns)
    {
    }

    /// <summary>All parts.</summary>
    protected abstract IReadOnlyList<PeftAdaptation> Parts { get; }

    /// <summary>The parts whose hooks of training are called.</summary>
    protected virtual IEnumerable<PeftAdaptation> Learning => Parts;

    public override int CalibrationBatches => Learning.Select(part => part.CalibrationBatches).DefaultIfEmpty().Max();

    public override bool NeedsInitial => Parts.Any(part => part.NeedsInitial);

    // Each looks at the bare network, as if it were alone.
    public override void Calibrate(Calibration calibration)
    {
        foreach (PeftAdaptation part in Learning.Where(p => p.CalibrationBatches > 0).ToList()) part.Calibrate(calibration.First(part.CalibrationBatches));
        Clear();
        Join();
    }

    /// <summary>Takes what the parts have: parameters and patches.</summary>
    protected abstract void Join();

    public override void Filled()
    {
        foreach (PeftAdaptation part in Parts) part.Filled();
    }

    public override void Attached(Head head)
    {
        foreach (PeftAdaptation part in Learning) part.Attached(head);
    }

    public override void Planned(long totalSteps)
    {
        foreach (PeftAdaptation part in Learning) part.Planned(totalSteps);
    }

    public override void BeforePass(Pass pass, TokenBatch batch)
    {
        foreach (PeftAdaptation part in Parts) part.BeforePass(pass, batch);
    }

    public override void Scored(AdaptedModel model, Pass pass, TokenBatch batch, Tensor scores)
    {
        foreach (PeftAdaptation part in Learning) part.Scored(model, pass, batch, scores);
    }

    public override Tensor? ExtraLoss(Pass pass)
    {
        Tensor? sum = null;
        foreach (PeftAdaptation part in Learning)
            if (part.ExtraLoss(pass) is { } loss) sum = sum is null ? loss : sum + loss;
        return sum;
    }

    public override Tensor? TaskLoss(Tensor scores, Tensor labels, Func<Tensor, Tensor> loss, Pass pass)
    {
        foreach (PeftAdaptation part in Learning)
            if (part.TaskLoss(scores, labels, loss, pass) is { } own) return own;
        return null;
    }

    public override void BeforeStep(long step)
    {
        foreach (PeftAdaptation part in Learning) part.BeforeStep(step);
    }

    public override void AfterStep(long step)
    {
        foreach (PeftAdaptation part in Learning) part.AfterStep(step);
    }

    public override void Finished()
    {
        foreach (PeftAdaptation part in Learning) part.Finished();
    }
}
