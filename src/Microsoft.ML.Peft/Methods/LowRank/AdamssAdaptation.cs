// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>An attached AdaMSS: which clusters are still trained.</summary>
internal sealed class AdamssAdaptation(AdamssOptions method, Backbone backbone) : PeftAdaptation(method, backbone)
{
    // One module: its clusters' factors, what is known of their importance, and 1 for those that are trained.
    private sealed record Module(NamedParameter[] First, NamedParameter[] Second, Dictionary<NamedParameter, (NamedParameter Mean, NamedParameter Deviation)> Averages, NamedParameter Active);

    private readonly List<Module> _modules = [];

    private AdamssOptions Options => (AdamssOptions)Method;

    public void Add(string path, NamedParameter[] first, NamedParameter[] second)
    {
        if (Options.TargetSubspaces is null) return;
        NamedParameter State(string name, Tensor value) => Add(
            new NamedParameter(name, value.to(Backbone.Device), trainable: false) { Exchanged = false, Learned = true, InModels = false });
        _modules.Add(new Module(first, second,
            first.Concat(second).ToDictionary(p => p, p => (State($"{p.Name}.importance", zeros_like(p.Value)), State($"{p.Name}.deviation", zeros_like(p.Value)))),
            State($"{path}.adamss_active", ones([first.Length]))));
    }

    /// <summary>Clusters that may still be trained after a step.</summary>
    /// <param name="step">Number of the step.</param>
    internal long Budget(long step)
    {
        long all = _modules.Sum(m => m.First.Length), target = Math.Min(Options.TargetSubspaces!.Value, all);
        double left = Math.Clamp(1 - ((double)(step - Options.FirstStep) / (Options.LastStep - Options.FirstStep)), 0, 1);
        return (long)(target + ((all - target) * Math.Pow(left, Options.ScheduleExponent)));
    }

    // A run that goes on has its flags from the checkpoint.
    public override void Planned(long totalSteps)
    {
        foreach (Module module in _modules) Stop(module, module.Active.Value.cpu().data<float>().ToArray());
    }

    public override void AfterStep(long step)
    {
        if (_modules.Count == 0 || step < Options.FirstStep || step > Options.LastStep) return;
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (Module module in _modules) Average(module);
        if (step % Options.StepsBetween != 0) return;
        Choose(Budget(step));
        foreach ((NamedParameter mean, NamedParameter deviation) in _modules.SelectMany(m => m.Averages.Values))
        {
            mean.Value.fill_(0);
            deviation.Value.fill_(0);
        }
    }

    // Importance of an entry: how much the loss would change without it, |w g|. The deviation is from the mean before.
    private void Average(Module module)
    {
        foreach ((NamedParameter of, (NamedParameter mean, NamedParameter deviation)) in module.Averages)
        {
            if (!of.Trainable || of.Value.grad is not { } gradient) continue;
            Tensor importance = (of.Value * gradient).abs();
            deviation.Value.mul_(Options.UncertaintyBeta).add_((importance - mean.Value).abs() * (1 - Options.UncertaintyBeta));
            mean.Value.mul_(Options.ImportanceBeta).add_(importance * (1 - Options.ImportanceBeta));
        }
    }

    // What has stopped stays so: it has no gradient to be judged by.
    private void Choose(long budget)
    {
        double Score(Module m, NamedParameter p) => (m.Averages[p].Mean.Value * m.Averages[p].Deviation.Value).mean().item<float>();
        var open = _modules.SelectMany(m => m.First.Select((a, i) => (Module: m, Index: i, A: a))).Where(c => c.A.Trainable)
            .Select(c => (c.Module, c.Index, Score: Score(c.Module, c.A) + Score(c.Module, c.Module.Second[c.Index]))).OrderByDescending(c => c.Score).ToList();
        HashSet<(Module, int)> kept = [.. open.Take((int)budget).Select(c => (c.Module, c.Index))];
        foreach (Module module in _modules)
        {
            float[] active = [.. module.First.Select((a, i) => kept.Contains((module, i)) ? 1f : 0f)];
            module.Active.Load(tensor(active));
            Stop(module, active);
        }
    }

    private static void Stop(Module module, float[] active)
    {
        for (int i = 0; i < active.Length; i++)
            if (active[i] == 0 && module.First[i].Trainable)
            {
                module.First[i].SetTrainable(false);
                module.Second[i].SetTrainable(false);
            }
    }
}
