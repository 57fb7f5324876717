// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>An attached sparse fine-tuning: when gradients are summed and places move.</summary>
internal sealed class SftAdaptation : PeftAdaptation
{
    private readonly List<SftSite> _sites = [];
    private readonly NamedParameter _steps;
    private long? _total;

    public SftAdaptation(SftOptions method, Backbone backbone) : base(method, backbone) =>
        _steps = Add(new NamedParameter("sft_steps", zeros(1, dtype: ScalarType.Int64), trainable: false) { Exchanged = false, Learned = true });

    public SftOptions Options => (SftOptions)Method;

    public IReadOnlyList<SftSite> Entries => _sites;

    public void AddSite(Projection site, string path, Tensor places)
    {
        var entries = new SftSite(this, site, path, places);
        _sites.Add(entries);
        Attach(site, entries.Patch);
    }

    public override void Planned(long totalSteps) => _total = totalSteps;

    // The count of completed steps is a buffer, so that a resumed run is in the right phase.
    public override void BeforePass(Pass pass, TokenBatch batch)
    {
        bool sums = Options.Growth == SftGrowth.Gradients && _steps.Value.item<long>() % Options.SelectionEvery < Options.AccumulationSteps;
        foreach (SftSite site in _sites) site.Watch(sums);
    }

    public override void AfterStep(long step)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        long done = _steps.Value.item<long>() + 1;
        _steps.Load(tensor(new[] { done }));
        if (done % Options.SelectionEvery != Options.AccumulationSteps) return;
        double share = Options.ShareAt(done, Options.TotalSteps ?? _total);
        foreach (SftSite site in _sites) site.Reselect(share);
    }
}
