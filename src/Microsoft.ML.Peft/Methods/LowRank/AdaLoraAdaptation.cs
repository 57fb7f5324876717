// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The triplets of one module: <c>A [r, in]</c>, <c>B [out, r]</c>, <c>E [r, 1]</c>.</summary>
internal sealed class AdaLoraTriplets(string path, NamedParameter a, NamedParameter b, NamedParameter e)
{
    public string Path { get; } = path;

    public NamedParameter A { get; } = a;

    public NamedParameter B { get; } = b;

    public NamedParameter E { get; } = e;

    /// <summary>1 for triplets of the final choice, <c>[r, 1]</c>; all 1 before it.</summary>
    public NamedParameter Mask { get; set; } = null!;

    /// <summary>Mean importance and its mean deviation, for each of A, B and E.</summary>
    public Dictionary<NamedParameter, (NamedParameter Mean, NamedParameter Deviation)> Averages { get; } = [];

    public bool[] Kept() => [.. Mask.Value.cpu().data<float>().ToArray().Select(v => v > 0)];
}

/// <summary>An attached AdaLoRA: which triplets stay.</summary>
internal sealed class AdaLoraAdaptation(AdaLoraOptions method, Backbone backbone) : PeftAdaptation(method, backbone)
{
    private readonly List<AdaLoraTriplets> _triplets = [];

    private AdaLoraOptions Options => (AdaLoraOptions)Method;

    public IReadOnlyList<AdaLoraTriplets> Triplets => _triplets;

    /// <summary>The schedule, once the number of steps is known.</summary>
    public (long Total, long Initial, long Final)? Steps { get; private set; } = method.TotalSteps is { } total ? method.Schedule(total) : null;

    /// <summary>True once the final choice is made.</summary>
    public bool HasChosen => _triplets.Any(t => t.Kept().Contains(false));

    private bool Allocates => Options.RankPattern.Count == 0;

    public void Add(AdaLoraTriplets triplets)
    {
        _triplets.Add(triplets);
        NamedParameter State(string name, Tensor value, bool inModels) => Add(
            new NamedParameter($"{triplets.Path}.{name}", value.to(Backbone.Device), trainable: false) { Exchanged = false, Learned = true, InModels = inModels });
        triplets.Mask = State("lora_mask", ones([triplets.E.Value.shape[0], 1]), true);
        if (!Allocates) return;
        foreach ((string name, NamedParameter of) in (List<(string, NamedParameter)>)[("lora_A", triplets.A), ("lora_B", triplets.B), ("lora_E", triplets.E)])
            triplets.Averages[of] = (State($"{name}.importance", zeros_like(of.Value), false), State($"{name}.deviation", zeros_like(of.Value), false));
    }

    public override void Planned(long totalSteps) => Steps ??= Options.Schedule(totalSteps);

    /// <summary><c>w · mean ‖A Aᵀ − I‖, ‖Bᵀ B − I‖</c> over all A and B.</summary>
    public override Tensor ExtraLoss(Pass pass)
    {
        var terms = new List<Tensor>();
        foreach (AdaLoraTriplets triplets in _triplets)
        {
            if (triplets.E.Value.numel() == 0) continue;
            Tensor identity = eye(triplets.E.Value.shape[0], device: triplets.E.Value.device), a = triplets.A.Value, b = triplets.B.Value;
            terms.Add((a.matmul(a.t()) - identity).norm());
            terms.Add((b.t().matmul(b) - identity).norm());
        }
        return terms.Count == 0 ? zeros([1], device: Backbone.Device).squeeze() : stack(terms).mean() * Options.OrthogonalityWeight;
    }

    /// <summary>Triplets that may stay after a step.</summary>
    public long Budget(long step)
    {
        (long total, long initial, long final) = Steps!.Value;
        long first = (long)_triplets.Count * Options.InitialRank, last = (long)_triplets.Count * Options.TargetRank;
        if (step <= initial) return first;
        if (step > total - final) return last;
        double left = 1 - ((double)(step - initial) / (total - final - initial));
        return (long)(((first - last) * left * left * left) + last);
    }

    public override void AfterStep(long step)
    {
        if (!Allocates) return;
        if (Steps is not { } steps)
            throw new InvalidOperationException("AdaLoRA's schedule needs the number of training steps: set AdaLoraOptions.TotalSteps, or call Planned(totalSteps) before the first step.");
        using var off = no_grad();
        using var scope = NewDisposeScope();
        long end = steps.Total - steps.Final;
        if (step < end) Average();
        if (step == end || (step < end && step > steps.Initial && step % Options.StepsBetween == 0)) Take(step, step == end);
        else if (step > end)
            foreach (AdaLoraTriplets triplets in _triplets) triplets.E.Value.mul_(triplets.Mask.Value);
    }

    // Importance of an entry: how much the loss would change without it, |w g|; w is the new weight.
    private void Average()
    {
        foreach (AdaLoraTriplets triplets in _triplets)
            foreach ((NamedParameter of, (NamedParameter mean, NamedParameter deviation)) in triplets.Averages)
            {
                if (of.Value.grad is not { } gradient) continue;
                Tensor importance = (of.Value * gradient).abs();
                mean.Value.mul_(Options.Beta1).add_(importance * (1 - Options.Beta1));
                deviation.Value.mul_(Options.Beta2).add_((importance - mean.Value).abs() * (1 - Options.Beta2));
            }
    }

    /// <summary>Scores of all triplets, module after module.</summary>
    public Tensor Scores() => cat([.. _triplets.Select(triplets =>
    {
        Tensor Score(NamedParameter of) => triplets.Averages[of].Mean.Value * triplets.Averages[of].Deviation.Value;
        return Score(triplets.E).squeeze(1) + Score(triplets.A).mean([1L]) + Score(triplets.B).mean([0L]);
    })]);

    // Triplets that move between two choices may come back: the optimizer keeps their state.
    private void Take(long step, bool final)
    {
        Tensor scores = Scores();
        long away = scores.numel() - Budget(step);
        Tensor kept = away <= 0 ? ones_like(scores) : scores.gt(scores.kthvalue(away, 0).Item1).to_type(ScalarType.Float32);
        long at = 0;
        foreach (AdaLoraTriplets triplets in _triplets)
        {
            long rank = triplets.E.Value.shape[0];
            Tensor mask = kept.narrow(0, at, rank).unsqueeze(1);
            triplets.E.Value.mul_(mask);
            if (final) triplets.Mask.Load(mask);
            at += rank;
        }
    }
}
