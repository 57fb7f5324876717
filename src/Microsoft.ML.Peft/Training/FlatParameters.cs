// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>
/// All trainable parameters as views of one tensor, sorted so that parameters with the same decay and rate are neighbours:
/// an optimizer step is then a dozen operations instead of a dozen for each parameter.
/// </summary>
internal sealed class FlatParameters : IDisposable
{
    private readonly Segment[] _segments;
    private Tensor? _zeros;

    private FlatParameters(Segment[] segments, Tensor values)
    {
        _segments = segments;
        Values = values;
    }

    /// <summary>A parameter's place.</summary>
    internal sealed class Segment(NamedParameter parameter, long offset, Tensor view)
    {
        public NamedParameter Parameter { get; } = parameter;
        public long Offset { get; } = offset;
        public Tensor View { get; } = view;
        public long Length { get; } = view.numel();
        public long[] Shape { get; } = view.shape;

        /// <summary>True where the step that was gathered last gave this parameter a gradient.</summary>
        public bool HasGradient { get; set; }
    }

    public IReadOnlyList<Segment> Segments => _segments;

    /// <summary>All numbers, <c>[total]</c>.</summary>
    public Tensor Values { get; }

    public long Length => Values.numel();

    /// <summary>Moves the trainable ones among the parameters into one buffer.</summary>
    public static FlatParameters Over(IEnumerable<NamedParameter> parameters)
    {
        NamedParameter[] trainable =
            [.. parameters.Where(p => p.Trainable).OrderBy(p => p.Decay ? 0 : 1).ThenBy(p => p.RateFactor).ThenBy(p => p.OwnRate ?? 0)];
        Check(trainable);
        using var off = no_grad();
        using var scope = NewDisposeScope();
        Tensor values = (trainable.Length == 0 ? zeros(0L) : cat([.. trainable.Select(p => p.Value.reshape(-1))])).DetachFromDisposeScope();
        var segments = new Segment[trainable.Length];
        long offset = 0;
        for (int i = 0; i < segments.Length; i++)
        {
            NamedParameter parameter = trainable[i];
            long length = parameter.Value.numel();
            // Detached: a leaf of its own that shares the buffer's memory.
            parameter.Replace(values.narrow(0, offset, length).view(parameter.Value.shape).detach().requires_grad_());
            segments[i] = new Segment(parameter, offset, parameter.Value);
            offset += length;
        }
        return new FlatParameters(segments, values);
    }

    private static void Check(NamedParameter[] trainable)
    {
        foreach (NamedParameter parameter in trainable)
        {
            if (parameter.Value.dtype == ScalarType.Float32) continue;
            throw new NotSupportedException(
                $"Parameter {parameter.Name} is {parameter.Value.dtype}; trained parameters must be Float32 (the frozen weights may be of another type).");
        }
    }

    /// <summary>True while the buffer holds exactly the trainable ones among the parameters.</summary>
    public bool Fits(IEnumerable<NamedParameter> parameters)
    {
        int seen = 0;
        foreach (NamedParameter parameter in parameters)
            if (parameter.Trainable) seen++;
        return seen == _segments.Length && _segments.All(s => s.Parameter.Trainable && ReferenceEquals(s.Parameter.Value, s.View));
    }

    /// <summary>The gradients of the last backward passes in one new tensor <c>[total]</c>; zeros where there is none.</summary>
    public Tensor GatherGradients()
    {
        using var scope = NewDisposeScope();
        return (NativeKernels.On && NativeKernels.Fits(Values) ? Copied() : Joined()).MoveToOuterDisposeScope();
    }

    private Tensor Joined()
    {
        var parts = new Tensor[_segments.Length];
        for (int i = 0; i < parts.Length; i++)
        {
            Segment segment = _segments[i];
            Tensor? gradient = segment.View.grad;
            segment.HasGradient = gradient is not null;
            parts[i] = gradient is null ? Zeros(segment.Length) : gradient.reshape(-1);
        }
        return cat(parts);
    }

    // The same numbers, a third of the time: no view of each gradient is made.
    private unsafe Tensor Copied()
    {
        Tensor all = empty(Length, dtype: ScalarType.Float32);
        var target = new Span<float>(NativeKernels.Pointer(all), (int)Length);
        foreach (Segment segment in _segments)
        {
            Span<float> place = target.Slice((int)segment.Offset, (int)segment.Length);
            Tensor? gradient = segment.View.grad;
            segment.HasGradient = gradient is not null;
            if (gradient is null) place.Clear();
            else if (place.Length > 0) new ReadOnlySpan<float>(NativeKernels.Pointer(NativeKernels.Contiguous(gradient)), place.Length).CopyTo(place);
        }
        return all;
    }

    /// <summary>Takes all gradients away, so that the next backward pass starts anew.</summary>
    public void ClearGradients()
    {
        foreach (Segment segment in _segments)
            if (!segment.View.IsInvalid) segment.View.grad = null;
    }

    private Tensor Zeros(long length)
    {
        if (_zeros is null || _zeros.numel() < length)
        {
            _zeros?.Dispose();
            _zeros = zeros(length, device: Values.device).DetachFromDisposeScope();
        }
        return _zeros.narrow(0, 0, length);
    }

    /// <summary>Gives each parameter memory of its own again.</summary>
    public void Release()
    {
        using var off = no_grad();
        foreach (Segment segment in _segments)
        {
            NamedParameter parameter = segment.Parameter;
            if (!ReferenceEquals(parameter.Value, segment.View) || segment.View.IsInvalid) continue;
            Tensor own = parameter.Value.detach().clone();
            own.requires_grad = parameter.Trainable;
            parameter.Replace(own);
        }
    }

    public void Dispose()
    {
        Values.Dispose();
        _zeros?.Dispose();
    }
}
