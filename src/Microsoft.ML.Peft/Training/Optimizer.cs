// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>
/// Updates parameters by their gradients. The parameters become views of one flat buffer, and so do the optimizer's
/// moments: neighbours with the same decay, rate and number of steps are updated together. A parameter without gradient
/// is not stepped: no decay, no counter.
/// </summary>
public abstract class Optimizer : IDisposable
{
    private readonly string[] _stateNames;
    private readonly Dictionary<NamedParameter, Kept> _parked = [];
    private FlatParameters _flat;
    private Tensor[] _state;
    private long[] _steps;
    private readonly Dictionary<NamedParameter, int> _restarts = [];

    /// <summary>Takes hold of the parameters.</summary>
    /// <param name="parameters">All parameters; those that are not trainable now are taken up by <see cref="Refresh"/> later.</param>
    /// <param name="weightDecay">Decay of the parameters with <see cref="NamedParameter.Decay"/>.</param>
    /// <param name="stateNames">Names of the moments, one flat tensor each.</param>
    /// <exception cref="NotSupportedException">A trainable parameter is not float32.</exception>
    protected Optimizer(IEnumerable<NamedParameter> parameters, double weightDecay, params string[] stateNames)
    {
        WeightDecay = weightDecay;
        _stateNames = stateNames;
        _flat = FlatParameters.Over(parameters);
        _state = NewState();
        _steps = new long[_flat.Segments.Count];
    }

    // What a parameter's state was, while another layout is made or while the parameter is frozen.
    private sealed record Kept(long[] Shape, Tensor[] State, long Steps);

    /// <summary>Decay of the parameters with <see cref="NamedParameter.Decay"/>.</summary>
    public double WeightDecay { get; }

    /// <summary>Number of numbers that are trained now.</summary>
    public long Length => _flat.Length;

    /// <summary>True to update each parameter by itself: for comparisons, the results are the same.</summary>
    internal bool Separate { get; init; }

    internal FlatParameters Flat => _flat;

    /// <summary>Updates all parameters by their gradients and takes the gradients away.</summary>
    /// <param name="rate">Learning rate of the run.</param>
    /// <param name="schedule">The schedule's factor on all rates in this step.</param>
    public void Step(double rate, double schedule = 1)
    {
        using var scope = NewDisposeScope();
        Apply(GatherGradients(), rate, schedule);
        ClearGradients();
    }

    /// <summary>All gradients in one tensor <c>[Length]</c>, zeros where a parameter has none.</summary>
    public Tensor GatherGradients() => _flat.GatherGradients();

    /// <summary>Takes all gradients away.</summary>
    public void ClearGradients() => _flat.ClearGradients();

    /// <summary>Updates the parameters by gradients that <see cref="GatherGradients"/> gave.</summary>
    /// <param name="gradient">Gradients <c>[Length]</c>, clipped or not.</param>
    /// <param name="rate">Learning rate of the run.</param>
    /// <param name="schedule">The schedule's factor on all rates in this step.</param>
    public void Apply(Tensor gradient, double rate, double schedule = 1) => Apply(gradient, rate, schedule, 1);

    /// <summary>The same by gradients times a factor; the tensor may be changed.</summary>
    internal void Apply(Tensor gradient, double rate, double schedule, double factor)
    {
        using var off = no_grad();
        bool fused = Fuses && NativeKernels.On && NativeKernels.Lies(gradient) && NativeKernels.Lies(_flat.Values) && gradient.numel() == Length && Array.TrueForAll(_state, NativeKernels.Lies);
        if (!fused && factor != 1)
        {
            gradient.mul_(factor);
            factor = 1;
        }
        int count = _flat.Segments.Count;
        for (int first = 0; first < count;)
        {
            int next = first + 1;
            if (!_flat.Segments[first].HasGradient)
            {
                first = next;
                continue;
            }
            while (!Separate && next < count && Alike(first, next)) next++;
            Update(first, next, gradient, rate, schedule, factor, fused);
            first = next;
        }
    }

    private bool Alike(int a, int b)
    {
        FlatParameters.Segment first = _flat.Segments[a], second = _flat.Segments[b];
        return second.HasGradient && first.Parameter.OwnUpdate is null && second.Parameter.OwnUpdate is null && _steps[a] == _steps[b] && first.Parameter.Decay == second.Parameter.Decay
            && first.Parameter.RateFactor == second.Parameter.RateFactor && first.Parameter.OwnRate == second.Parameter.OwnRate;
    }

    private void Update(int first, int next, Tensor gradient, double rate, double schedule, double factor, bool fused)
    {
        using var scope = NewDisposeScope();
        FlatParameters.Segment head = _flat.Segments[first], tail = _flat.Segments[next - 1];
        long start = head.Offset, length = tail.Offset + tail.Length - start;
        for (int i = first; i < next; i++) _steps[i]++;
        double own = (head.Parameter.OwnRate ?? rate * head.Parameter.RateFactor) * schedule, decay = head.Parameter.Decay ? WeightDecay : 0;
        if (head.Parameter.OwnUpdate is { } rule)
        {
            Tensor part = gradient.narrow(0, start, length).view(head.Shape);
            rule(head.View, factor == 1 ? part : part * factor, own, decay);
            return;
        }
        if (fused)
        {
            UpdateFused(new Stretch(start, length, _steps[first], own, decay, factor), _flat.Values, gradient, _state);
            return;
        }
        Update(
            _flat.Values.narrow(0, start, length), gradient.narrow(0, start, length),
            Array.ConvertAll(_state, s => s.narrow(0, start, length)), _steps[first],
            own, decay);
    }

    /// <summary>Updates a stretch of the buffer in place.</summary>
    /// <param name="value">Parameters <c>[n]</c>.</param>
    /// <param name="gradient">Gradients <c>[n]</c>; must not be changed.</param>
    /// <param name="state">Moments <c>[n]</c>, in the order of their names.</param>
    /// <param name="step">How often these parameters were stepped, this step included.</param>
    /// <param name="rate">Learning rate.</param>
    /// <param name="decay">Weight decay.</param>
    protected abstract void Update(Tensor value, Tensor gradient, Tensor[] state, long step, double rate, double decay);

    /// <summary>True where a native kernel does what <see cref="Update(Tensor, Tensor, Tensor[], long, double, double)"/> does, in one reading.</summary>
    private protected virtual bool Fuses => false;

    /// <summary>Updates a stretch by the kernel.</summary>
    /// <param name="stretch">The stretch, and by what.</param>
    /// <param name="values">All parameters <c>[total]</c>; so are gradient and moments.</param>
    /// <param name="gradient">Gradients before the stretch's factor.</param>
    /// <param name="state">Moments.</param>
    private protected virtual void UpdateFused(Stretch stretch, Tensor values, Tensor gradient, Tensor[] state) => throw new NotSupportedException();

    /// <summary>Neighbours in the buffer that are updated alike: how often they were stepped, their rate, decay, and the factor on their gradients.</summary>
    private protected readonly record struct Stretch(long Start, long Length, long Steps, double Rate, double Decay, double Factor);

    /// <summary>
    /// Follows parameters that were frozen, thawed, added or given another shape; the state of all others is kept, a
    /// frozen parameter's state waits for its thawing, and a grown one keeps its state where the indices are the same.
    /// </summary>
    /// <param name="parameters">All parameters.</param>
    /// <returns>True where something had changed.</returns>
    public bool Refresh(IReadOnlyList<NamedParameter> parameters)
    {
        bool restarted = Forget();
        if (_flat.Fits(parameters)) return restarted;
        using var off = no_grad();
        using var scope = NewDisposeScope();
        for (int i = 0; i < _flat.Segments.Count; i++) _parked[_flat.Segments[i].Parameter] = Keep(i);
        _flat.Release();
        _flat.Dispose();
        foreach (Tensor state in _state) state.Dispose();
        _flat = FlatParameters.Over(parameters);
        _state = NewState();
        _steps = new long[_flat.Segments.Count];
        for (int i = 0; i < _flat.Segments.Count; i++)
            if (_parked.Remove(_flat.Segments[i].Parameter, out Kept? kept)) Restore(i, kept);
        return true;
    }

    // Parameters that begin anew lose their moments and their count.
    private bool Forget()
    {
        bool any = false;
        for (int i = 0; i < _flat.Segments.Count; i++)
        {
            FlatParameters.Segment segment = _flat.Segments[i];
            if (segment.Parameter.Restarts == _restarts.GetValueOrDefault(segment.Parameter)) continue;
            _restarts[segment.Parameter] = segment.Parameter.Restarts;
            using var off = no_grad();
            using var scope = NewDisposeScope();
            foreach (Tensor state in _state) state.narrow(0, segment.Offset, segment.Length).fill_(0);
            _steps[i] = 0;
            any = true;
        }
        return any;
    }

    private Kept Keep(int i)
    {
        FlatParameters.Segment segment = _flat.Segments[i];
        return new Kept(
            segment.Shape,
            Array.ConvertAll(_state, s => s.narrow(0, segment.Offset, segment.Length).view(segment.Shape).clone().DetachFromDisposeScope()),
            _steps[i]);
    }

    private void Restore(int i, Kept kept)
    {
        FlatParameters.Segment segment = _flat.Segments[i];
        _steps[i] = kept.Steps;
        for (int s = 0; s < _state.Length; s++)
        {
            Tensor target = _state[s].narrow(0, segment.Offset, segment.Length).view(segment.Shape);
            Tensor source = kept.State[s];
            if (kept.Shape.Length == segment.Shape.Length)
            {
                for (int d = 0; d < segment.Shape.Length; d++)
                {
                    long common = Math.Min(kept.Shape[d], segment.Shape[d]);
                    target = target.narrow(d, 0, common);
                    source = source.narrow(d, 0, common);
                }
                target.copy_(source);
            }
            kept.State[s].Dispose();
        }
    }

    private Tensor[] NewState() =>
        Array.ConvertAll(_stateNames, _ => zeros(_flat.Length, device: _flat.Values.device).DetachFromDisposeScope());

    /// <summary>
    /// Copies of the moments by <c>parameter.moment</c> and of the counters by <c>parameter.step</c> (int64 <c>[1]</c>).
    /// </summary>
    public IReadOnlyDictionary<string, Tensor> SaveState()
    {
        var saved = new Dictionary<string, Tensor>();
        using var off = no_grad();
        for (int i = 0; i < _flat.Segments.Count; i++)
        {
            FlatParameters.Segment segment = _flat.Segments[i];
            for (int s = 0; s < _state.Length; s++)
            {
                using Tensor part = _state[s].narrow(0, segment.Offset, segment.Length);
                using Tensor shaped = part.view(segment.Shape);
                saved[$"{segment.Parameter.Name}.{_stateNames[s]}"] = shaped.clone();
            }
            saved[$"{segment.Parameter.Name}.step"] = tensor(new[] { _steps[i] });
        }
        foreach ((NamedParameter parameter, Kept kept) in _parked)
        {
            for (int s = 0; s < _state.Length; s++) saved[$"{parameter.Name}.{_stateNames[s]}"] = kept.State[s].clone();
            saved[$"{parameter.Name}.step"] = tensor(new[] { kept.Steps });
        }
        return saved;
    }

    /// <summary>Takes up what <see cref="SaveState"/> gave.</summary>
    /// <param name="saved">Moments and counters by name.</param>
    /// <exception cref="ArgumentException">An entry is missing or has another shape; the message names it.</exception>
    public void LoadState(IReadOnlyDictionary<string, Tensor> saved)
    {
        using var off = no_grad();
        using var scope = NewDisposeScope();
        for (int i = 0; i < _flat.Segments.Count; i++)
        {
            FlatParameters.Segment segment = _flat.Segments[i];
            string name = segment.Parameter.Name;
            for (int s = 0; s < _state.Length; s++)
            {
                Tensor target = _state[s].narrow(0, segment.Offset, segment.Length).view(segment.Shape);
                Tensor source = Entry(saved, $"{name}.{_stateNames[s]}");
                if (!source.shape.AsSpan().SequenceEqual(segment.Shape))
                {
                    throw new ArgumentException(
                        $"The optimizer's {_stateNames[s]} of {name} has shape [{string.Join(", ", source.shape)}], expected [{string.Join(", ", segment.Shape)}].");
                }
                target.copy_(source);
            }
            _steps[i] = Entry(saved, $"{name}.step").item<long>();
        }
    }

    private static Tensor Entry(IReadOnlyDictionary<string, Tensor> saved, string name) =>
        saved.TryGetValue(name, out Tensor? entry) ? entry : throw new ArgumentException($"The optimizer's state lacks {name}.");

    /// <summary>Frees the moments and gives each parameter memory of its own again.</summary>
    public void Dispose()
    {
        _flat.Release();
        _flat.Dispose();
        foreach (Tensor state in _state) state.Dispose();
        foreach (Kept kept in _parked.Values)
            foreach (Tensor state in kept.State) state.Dispose();
        _parked.Clear();
        GC.SuppressFinalize(this);
    }
}
