// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The moving entries of one projection, their optimizer, and the evidence for other places.</summary>
internal sealed class SftSite
{
    private const double Beta1 = 0.9, Beta2 = 0.999, Epsilon = 1e-6, SmallEpsilon = 1e-8;
    private readonly SftAdaptation _owner;
    private readonly Projection _site;
    private readonly NamedParameter _values, _places;

    // Growth by gradients: moments and age of each entry; candidates with the sums of their gradients and squares, and how many were summed.
    private readonly NamedParameter? _first, _second, _age, _candidates, _sums, _squares, _count;

    // Growth by accumulators: the largest second moments of rows and columns.
    private readonly NamedParameter? _rows, _columns;

    public SftSite(SftAdaptation owner, Projection site, string path, Tensor places)
    {
        (_owner, _site) = (owner, site);
        long k = places.numel();
        _values = owner.Add(new NamedParameter($"{path}.sft_values", zeros(k, device: site.Weight.device)) { Decay = true, OwnUpdate = Step });
        _places = Keep("sft_places", places, exchanged: true);
        if (owner.Options.Growth == SftGrowth.Gradients)
        {
            _first = Keep("sft_exp_avg", zeros(k));
            _second = Keep("sft_exp_avg_sq", zeros(k));
            _age = Keep("sft_age", ones(k));
            _candidates = Keep("sft_candidates", zeros(k, dtype: ScalarType.Int64));
            _sums = Keep("sft_sums", zeros(k));
            _squares = Keep("sft_squares", zeros(k));
            _count = Keep("sft_count", zeros(1, dtype: ScalarType.Int64));
        }
        else
        {
            _rows = Keep("sft_rows", zeros(site.Out));
            _columns = Keep("sft_columns", zeros(site.In));
        }
        Patch = new SparsePatch(site, _values, _places);

        NamedParameter Keep(string name, Tensor value, bool exchanged = false) => owner.Add(
            new NamedParameter($"{path}.{name}", value.to(site.Weight.device), trainable: false) { Exchanged = exchanged, Learned = true });
    }

    public SparsePatch Patch { get; }

    public NamedParameter Values => _values;

    public NamedParameter Places => _places;

    /// <summary>Looks at the whole gradient in the coming backward passes, or not.</summary>
    public void Watch(bool sums) => Patch.WatchGradient = sums ? Sum : null;

    // The first gradient of a phase names the candidates, as many as there are entries; further ones are summed there.
    private void Sum(Tensor gradient)
    {
        Tensor flat = gradient.reshape(-1);
        long count = _count!.Value.item<long>();
        if (count == 0) _candidates!.Load(flat.abs().topk((int)_values.Value.numel(), 0, true, false).indexes);
        Tensor seen = flat.index_select(0, _candidates!.Value);
        _sums!.Load(count == 0 ? seen : _sums.Value + seen);
        _squares!.Load(count == 0 ? seen.square() : _squares.Value + seen.square());
        _count.Load(full([1], count + 1, dtype: ScalarType.Int64));
    }

    private void Step(Tensor value, Tensor gradient, double rate, double decay)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        if (_owner.Options.Growth == SftGrowth.Gradients) StepByMoments(value, gradient, rate);
        else StepByAccumulators(value, gradient, rate);
        if (decay != 0) value.mul_(1 - rate * decay);
    }

    // Adam, with the correction of each entry's own age.
    private void StepByMoments(Tensor value, Tensor gradient, double rate)
    {
        _first!.Value.mul_(Beta1).add_(gradient, 1 - Beta1);
        _second!.Value.mul_(Beta2).addcmul_(gradient, gradient, 1 - Beta2);
        Tensor age = _age!.Value;
        Tensor correction = (age * Math.Log(Beta2)).expm1().neg().sqrt() / (age * Math.Log(Beta1)).expm1().neg();     // √(1 − β₂ᵃ) / (1 − β₁ᵃ)
        value.sub_(_first.Value / (_second.Value.sqrt() + Epsilon) * correction * rate);
        age.add_(1);
    }

    // SM3: an entry's second moment is bounded by those of its row and of its column.
    private void StepByAccumulators(Tensor value, Tensor gradient, double rate)
    {
        Tensor places = _places.Value, row = places.div(_site.In, RoundingMode.floor), column = places.remainder(_site.In);
        Tensor moment = _rows!.Value.index_select(0, row).minimum(_columns!.Value.index_select(0, column)) + gradient.square();
        Raise(_rows, row, moment);
        Raise(_columns, column, moment);
        value.sub_(gradient / (moment.sqrt() + SmallEpsilon) * rate);
    }

    // The largest moment of each group: sorted by value, then, in stable order, by group, it is the group's last.
    private static void Raise(NamedParameter largest, Tensor group, Tensor moment)
    {
        Tensor byMoment = moment.argsort();
        (Tensor sorted, Tensor order) = group.index_select(0, byMoment).sort(stable: true);
        long n = sorted.numel();
        Tensor last = n == 1 ? ones(1, dtype: ScalarType.Bool, device: sorted.device)
            : cat([sorted.narrow(0, 1, n - 1).ne(sorted.narrow(0, 0, n - 1)), ones(1, dtype: ScalarType.Bool, device: sorted.device)]);
        Tensor at = last.nonzero().reshape(-1);
        Tensor groups = sorted.index_select(0, at), best = moment.index_select(0, byMoment.index_select(0, order.index_select(0, at)));
        largest.Value.index_copy_(0, groups, largest.Value.index_select(0, groups).maximum(best));
    }

    /// <summary>Drops the entries that changed least and grows others in their place.</summary>
    /// <param name="share">Share of the entries that may move.</param>
    public void Reselect(double share)
    {
        long k = _values.Value.numel(), moving = (long)(k * share);
        if (moving > 0)
        {
            Tensor dropped = _values.Value.abs().argsort().narrow(0, 0, moving);               // slots, the smallest first
            (Tensor grown, Tensor evidence) = Grown(Kept(dropped), moving);
            Move(dropped, grown, evidence);
            Sort();
        }
        _count?.Load(zeros(1, dtype: ScalarType.Int64));
    }

    // True at the places that stay.
    private Tensor Kept(Tensor dropped)
    {
        Tensor stays = ones(_values.Value.numel(), dtype: ScalarType.Bool, device: dropped.device).index_fill(0, dropped, false);
        return zeros(_site.Weight.numel(), dtype: ScalarType.Bool, device: dropped.device)
            .index_fill(0, _places.Value.index_select(0, stays.nonzero().reshape(-1)), true);
    }

    // New places by their evidence, the best first, and which candidate each was.
    private (Tensor Places, Tensor Candidates) Grown(Tensor kept, long moving)
    {
        if (_owner.Options.Growth == SftGrowth.Accumulators)
        {
            Tensor scores = (_rows!.Value.unsqueeze(1) * _columns!.Value.unsqueeze(0)).reshape(-1).masked_fill(kept, -1);
            Tensor best = scores.topk((int)Math.Min(moving, scores.numel() - (kept.sum().item<long>())), 0, true, true).indexes;
            return (best, best);
        }
        Tensor free = kept.index_select(0, _candidates!.Value).logical_not().nonzero().reshape(-1);
        Tensor order = _sums!.Value.abs().index_select(0, free).argsort(descending: true);
        Tensor chosen = free.index_select(0, order.narrow(0, 0, Math.Min(moving, order.numel())));
        return (_candidates.Value.index_select(0, chosen), chosen);
    }

    // What is dropped and grown at once is left alone, value and state.
    private void Move(Tensor dropped, Tensor grown, Tensor candidates)
    {
        Tensor Marks(Tensor places) => zeros(_site.Weight.numel(), dtype: ScalarType.Bool, device: places.device).index_fill(0, places, true);
        Tensor old = _places.Value.index_select(0, dropped);
        Tensor leaving = dropped.index_select(0, Marks(grown).index_select(0, old).logical_not().nonzero().reshape(-1));
        Tensor coming = Marks(old).index_select(0, grown).logical_not().nonzero().reshape(-1);
        long count = Math.Min(leaving.numel(), coming.numel());
        if (count == 0) return;
        (leaving, coming) = (leaving.narrow(0, 0, count), coming.narrow(0, 0, count));
        _places.Value.index_copy_(0, leaving, grown.index_select(0, coming));
        _values.Value.index_fill_(0, leaving, 0);
        if (_owner.Options.Growth != SftGrowth.Gradients) return;
        Tensor from = candidates.index_select(0, coming);
        double seen = Math.Max(1, _count!.Value.item<long>());
        // The candidates were watched for γ steps: their moments are those of an entry of that age.
        int age = _owner.Options.AccumulationSteps;
        _first!.Value.index_copy_(0, leaving, _sums!.Value.index_select(0, from) * ((1 - Math.Pow(Beta1, age)) / seen));
        _second!.Value.index_copy_(0, leaving, _squares!.Value.index_select(0, from) * ((1 - Math.Pow(Beta2, age)) / seen));
        _age!.Value.index_fill_(0, leaving, age);
    }

    private void Sort()
    {
        Tensor order = _places.Value.argsort();
        foreach (NamedParameter? part in (NamedParameter?[])[_places, _values, _first, _second, _age]) part?.Load(part.Value.index_select(0, order));
    }
}
