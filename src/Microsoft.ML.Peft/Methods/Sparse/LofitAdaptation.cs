// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>An attached LoFiT: the scales of its heads, and the penalty on them.</summary>
internal sealed class LofitAdaptation(LofitOptions method, Backbone backbone) : PeftAdaptation(method, backbone)
{
    private readonly List<NamedParameter> _scales = [];

    public LofitOptions Options => (LofitOptions)Method;

    public void AddScale(AttentionCore core, Projection output, NamedParameter scale)
    {
        _scales.Add(OnDevice(scale));
        Attach(output, new LofitPatch(core, scale, []));
    }

    public void AddOffsets(AttentionCore core, Projection output, (int Head, NamedParameter Value)[] offsets)
    {
        foreach ((int _, NamedParameter value) in offsets) OnDevice(value);
        Attach(output, new LofitPatch(core, null, offsets));
    }

    private NamedParameter OnDevice(NamedParameter parameter)
    {
        Add(parameter);
        if (Backbone.Device.type == TorchSharp.DeviceType.CPU) return parameter;
        parameter.Replace(parameter.Value.detach().to(Backbone.Device).requires_grad_());
        return parameter;
    }

    public override Tensor? ExtraLoss(Pass pass) => _scales.Count == 0 || Options.Penalty == 0 ? null
        : _scales.Select(a => a.Value.abs().sum()).Aggregate((x, y) => x + y) * Options.Penalty;

    public IReadOnlyList<LofitHead> Ranking()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var heads = new List<LofitHead>();
        for (int i = 0; i < _scales.Count; i++)
        {
            float[] lengths = _scales[i].Value.norm(1).cpu().data<float>().ToArray();
            heads.AddRange(lengths.Select((length, head) => new LofitHead(i, head, length)));
        }
        return [.. heads.OrderByDescending(h => h.Score).ThenBy(h => h.Attention).ThenBy(h => h.Head)];
    }
}

/// <summary>
/// Scales and offsets of heads, where the output projection reads them side by side: <c>W ((1 + a) ⊙ z + v) + b</c>.
/// </summary>
/// <param name="core">The attention, for its heads and their width.</param>
/// <param name="scale">a of all heads <c>[heads, width]</c>, or null.</param>
/// <param name="offsets">v <c>[width]</c> of some heads, in their order.</param>
internal sealed class LofitPatch(AttentionCore core, NamedParameter? scale, (int Head, NamedParameter Value)[] offsets) : WeightPatch
{
    public override PatchForm Form => PatchForm.Around;

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        Tensor z = x;
        if (scale is not null) z = z * (1 + scale.Value.reshape(-1));
        if (Offset() is { } v) z = z + v;
        return next(z.to_type(x.dtype));
    }

    public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass)
    {
        Tensor w = weight.to_type(ScalarType.Float32);
        Tensor? b = bias?.to_type(ScalarType.Float32);
        // The offset is added to what is scaled already: it meets the unscaled weight.
        if (Offset() is { } v) b = b is null ? w.matmul(v) : b + w.matmul(v);
        if (scale is not null) w = w * (1 + scale.Value.reshape(1, -1));
        return (w.to_type(weight.dtype), b?.to_type(weight.dtype));
    }

    // [heads · width], zeros where no head was chosen.
    private Tensor? Offset()
    {
        if (offsets.Length == 0) return null;
        var parts = new List<Tensor>();
        int next = 0;
        foreach ((int head, NamedParameter value) in offsets)
        {
            if (head > next) parts.Add(zeros((head - next) * (long)core.HeadWidth, device: value.Value.device));
            parts.Add(value.Value);
            next = head + 1;
        }
        if (next < core.Heads) parts.Add(zeros((core.Heads - next) * (long)core.HeadWidth, device: parts[^1].device));
        return cat([.. parts]);
    }
}
