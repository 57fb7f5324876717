// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>An attached LT-SFT: differences of all tensors, and when they become sparse.</summary>
internal sealed class LotteryTicketAdaptation : PeftAdaptation
{
    private const double Nothing = 1e-7;
    private readonly List<(NamedParameter Change, NamedParameter Mask)> _dense = [];
    private readonly NamedParameter? _steps;
    private long? _total;

    public LotteryTicketAdaptation(LotteryTicketOptions method, Backbone backbone) : base(method, backbone)
    {
        if (method.Entries.Count == 0)
            _steps = Add(new NamedParameter("lt_steps", zeros(1, dtype: ScalarType.Int64), trainable: false) { Exchanged = false, Learned = true });
    }

    private LotteryTicketOptions Options => (LotteryTicketOptions)Method;

    public void AddSite(WeightSite site, string path)
    {
        Func<Tensor>? weight = AddTensor($"{path}.weight", site.Weight), bias = site.Bias is null ? null : AddTensor($"{path}.bias", site.Bias);
        if (weight is not null || bias is not null) Attach(site, new DifferencePatch(site, weight, bias));
    }

    // The difference of one tensor: dense while places are looked for, entries at places where they are known.
    private Func<Tensor>? AddTensor(string name, Tensor frozen)
    {
        if (_steps is not null)
        {
            var change = new NamedParameter($"{name}.lt_change", zeros(frozen.shape, device: frozen.device)) { Decay = false };
            var mask = new NamedParameter($"{name}.lt_mask", ones(frozen.shape, dtype: ScalarType.Byte, device: frozen.device), trainable: false) { Exchanged = false, Learned = true };
            Add(change);
            Add(mask);
            _dense.Add((change, mask));
            return () => change.Value;
        }
        // Files of a bare base model lack its prefix.
        if (!Options.Entries.TryGetValue(name, out long count) && !Options.Entries.TryGetValue(name[(Backbone.Prefix.Length == 0 ? 0 : Backbone.Prefix.Length + 1)..], out count)) return null;
        NamedParameter entries = Add(new NamedParameter($"{name}.lt_entries", zeros(count, device: frozen.device)) { Decay = false });
        NamedParameter places = Add($"{name}.lt_places", zeros(count, dtype: ScalarType.Int64, device: frozen.device), trainable: false);
        long[] shape = frozen.shape;
        return () => zeros(frozen.numel(), device: entries.Value.device).scatter_add(0, places.Value, entries.Value).reshape(shape);
    }

    public override void Planned(long totalSteps)
    {
        if (Options.FirstSteps >= totalSteps && _steps is not null)
            throw new ArgumentException($"LotteryTicketOptions.FirstSteps is {Options.FirstSteps}, but the run has {totalSteps} steps: nothing is left for the second phase.");
        _total = totalSteps;
    }

    public override Tensor? ExtraLoss(Pass pass) => Options.Penalty == 0 || _dense.Count == 0 ? null
        : _dense.Select(d => d.Change.Value.abs().sum()).Aggregate((a, b) => a + b) * (Options.Penalty / _dense.Sum(d => d.Change.Value.numel()));

    public override void BeforeStep(long step)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        if (_steps is null || _steps.Value.item<long>() < FirstSteps) return;
        double factor = SecondRateFactor();
        foreach ((NamedParameter change, NamedParameter mask) in _dense)
        {
            change.Value.grad?.mul_(mask.Value);
            change.RateFactor = factor;
        }
    }

    private long FirstSteps => Options.FirstSteps ?? Math.Max(1, (_total ?? 4) / 4);

    // The second phase begins at the full rate again: a schedule that falls to 0 over the run has come down by the first. And a
    // step of K of N numbers is as long as one of all where each goes √(N/K) as far.
    private double SecondRateFactor()
    {
        double left = _total is { } total ? (double)total / (total - FirstSteps) : 1;
        return left * (Options.SecondRateFactor ?? Math.Sqrt((double)_dense.Sum(d => d.Change.Value.numel()) / Options.Count));
    }

    public override void AfterStep(long step)
    {
        if (_steps is null) return;
        using var scope = NewDisposeScope();
        using var off = no_grad();
        long done = _steps.Value.item<long>() + 1;
        _steps.Load(tensor(new[] { done }));
        if (done != FirstSteps) return;
        double threshold = Threshold();
        foreach ((NamedParameter change, NamedParameter mask) in _dense)
        {
            mask.Load(change.Value.abs().ge(threshold).to_type(ScalarType.Byte));
            change.Value.fill_(0);
            change.RestartState();
        }
    }

    // The K-th largest change over all tensors; never more than K and one tensor's candidates at a time.
    private double Threshold()
    {
        Tensor? best = null;
        foreach ((NamedParameter change, NamedParameter _) in _dense)
        {
            using var scope = NewDisposeScope();
            Tensor flat = change.Value.abs().reshape(-1);
            Tensor all = best is null ? flat : cat([best, flat]);
            Tensor next = all.topk((int)Math.Min(Options.Count, all.numel()), 0, true, true).values.DetachFromDisposeScope();
            best?.Dispose();
            best = next;
        }
        double threshold = best![-1].item<float>();
        best!.Dispose();
        // What did not move is no choice, however few moved.
        return Math.Max(threshold, float.Epsilon);
    }

    /// <summary>The entries that differ, with their places, as an adaptation of its own.</summary>
    public PeftAdaptation Sparse()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var places = new Dictionary<string, Tensor>();
        foreach ((NamedParameter change, NamedParameter _) in _dense)
            if (change.Value.abs().reshape(-1).gt(Nothing).nonzero().reshape(-1) is var at && at.numel() > 0)
                places[change.Name[..^".lt_change".Length]] = at;
        var options = (LotteryTicketOptions)PeftMethods.FromJson(PeftMethods.ToJson(Options));
        options.Entries = places.ToDictionary(p => p.Key, p => p.Value.numel());
        if (places.Count == 0) throw new InvalidOperationException("Nothing differs from the base model yet: train before saving.");
        PeftAdaptation made = options.Attach(Backbone, 0);
        foreach ((string name, Tensor at) in places)
        {
            made.Find($"{name}.lt_places")!.Load(at);
            made.Find($"{name}.lt_entries")!.Load(Find($"{name}.lt_change")!.Value.reshape(-1).index_select(0, at));
        }
        return made;
    }

    // W + Δ, b + δ; of a table only the rows that are looked up.
    private sealed class DifferencePatch(WeightSite site, Func<Tensor>? weight, Func<Tensor>? bias) : WeightPatch
    {
        public override PatchForm Form => site is Embedding ? PatchForm.Around : PatchForm.Weight;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor rows = next(x);
            return rows + weight!().index_select(0, x.reshape(-1)).reshape(rows.shape).to_type(rows.dtype);
        }

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor frozen, Tensor? shift, Pass? pass) =>
            (weight is null ? frozen : frozen + weight().to_type(frozen.dtype), bias is null || shift is null ? shift : shift + bias().to_type(shift.dtype));
    }
}
