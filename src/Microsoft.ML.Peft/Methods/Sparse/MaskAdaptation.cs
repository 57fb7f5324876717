// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>An attached mask tuning: the norms in the loss, the gate on gradients, and masks as bits.</summary>
internal sealed class MaskAdaptation(MaskTuningOptions method, Backbone backbone) : PeftAdaptation(method, backbone)
{
    private readonly List<(NamedParameter Scores, NamedParameter? Bits)> _sites = [];
    private readonly Dictionary<NamedParameter, Tensor> _opposed = [];
    private readonly Dictionary<NamedParameter, Tensor> _chances = [];

    private MaskTuningOptions Options => (MaskTuningOptions)Method;

    public void Add(NamedParameter scores, NamedParameter? bits) => _sites.Add((scores, bits));

    public override Tensor? ExtraLoss(Pass pass) => Options.Penalty == 0 || _sites.Count == 0 ? null
        : _sites.Select(site => site.Scores.Value.norm()).Aggregate((x, y) => x + y) * Options.Penalty;

    // The gradients of the distance to the base model's scores; they only decide which of the loss's own are dropped.
    public override void Scored(AdaptedModel model, Pass pass, TokenBatch batch, Tensor scores)
    {
        NamedParameter[] trained = [.. _sites.Select(s => s.Scores).Where(s => s.Trainable)];
        if (Options.GradientDropout == 0 || trained.Length == 0) return;
        using var scope = NewDisposeScope();
        Tensor teacher;
        using (no_grad())
        {
            var bare = new Pass();
            teacher = model.Head.Forward(Backbone, Backbone.Forward(batch, bare), bare).to_type(ScalarType.Float32).softmax(-1);
        }
        Tensor distance = (teacher * nn.functional.log_softmax(scores.to_type(ScalarType.Float32), -1)).sum(-1).mean().neg();
        IList<Tensor> gradients = autograd.grad([distance], [.. trained.Select(p => p.Value)], retain_graph: true, allow_unused: true);
        using var off = no_grad();
        pass.BeginSegment(Backbone.Config.LayerCount + 100);
        for (int i = 0; i < trained.Length; i++)
        {
            if (gradients[i] is not { } gradient) continue;
            Keep(_opposed, trained[i], _opposed.TryGetValue(trained[i], out Tensor? before) ? before + gradient : gradient.detach());
            Keep(_chances, trained[i], rand_like(gradient));
        }
    }

    private static void Keep(Dictionary<NamedParameter, Tensor> place, NamedParameter parameter, Tensor value)
    {
        if (place.Remove(parameter, out Tensor? old)) old.Dispose();
        place[parameter] = value.DetachFromDisposeScope();
    }

    public override void BeforeStep(long step)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach ((NamedParameter parameter, Tensor opposed) in _opposed)
            if (parameter.Value.grad is { } gradient) gradient.copy_(Gate(gradient, opposed, _chances[parameter], Options.GradientDropout));
        Forget();
    }

    /// <summary>
    /// Gradient dropout by agreement: entries that agree with the other gradient stay; others stay with the probability
    /// |a| / (|a| + |b|).
    /// </summary>
    /// <param name="a">The loss's gradient.</param>
    /// <param name="b">The other gradient.</param>
    /// <param name="chance">Uniform numbers in [0, 1).</param>
    /// <param name="strength">l: 0 keeps all, 1 drops to 0.</param>
    public static Tensor Gate(Tensor a, Tensor b, Tensor chance, double strength)
    {
        Tensor stays = 0.5 * (1 + a.sign() * (a + b) / (a.abs() + b.abs() + 1e-8));
        return a * (1 - strength + strength * stays.gt(chance).to_type(a.dtype));
    }

    private void Forget()
    {
        foreach (Tensor tensor in _opposed.Values.Concat(_chances.Values)) tensor.Dispose();
        _opposed.Clear();
        _chances.Clear();
    }

    public double MaskedShare()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        double masked = _sites.Sum(s => s.Scores.Value.le(Options.Threshold).sum().item<long>());
        return masked / _sites.Sum(s => s.Scores.Value.numel());
    }

    /// <summary>Takes the masks of another adaptation of the same sites as bits.</summary>
    public void Pack(MaskAdaptation from)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (((NamedParameter scores, NamedParameter? bits), (NamedParameter source, NamedParameter? _)) in _sites.Zip(from._sites))
        {
            bool[] kept = source.Value.gt(Options.Threshold).reshape(-1).cpu().data<bool>().ToArray();
            bits!.Load(tensor(MaskBits.Pack(kept)));
            scores.Load(source.Value.gt(Options.Threshold).to_type(ScalarType.Float32));
        }
    }

    /// <summary>Makes scores of 0 and 1 out of the bits of a file.</summary>
    public override void Filled()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach ((NamedParameter scores, NamedParameter? bits) in _sites)
        {
            if (bits is null) continue;
            bool[] kept = MaskBits.Unpack(bits.Value.cpu().data<byte>().ToArray(), scores.Value.numel());
            scores.Load(tensor(Array.ConvertAll(kept, k => k ? 1f : 0f), scores.Value.shape.AsSpan()));
        }
    }

    /// <inheritdoc/>
    public override void Dispose()
    {
        Forget();
        base.Dispose();
    }
}

/// <summary>Masks as bits: row by row, eight to a byte, the most significant first, the last byte filled with zeros.</summary>
internal static class MaskBits
{
    /// <summary>Packs a mask.</summary>
    /// <param name="kept">One entry a weight.</param>
    public static byte[] Pack(bool[] kept)
    {
        var bytes = new byte[(kept.Length + 7) / 8];
        for (int i = 0; i < kept.Length; i++)
            if (kept[i]) bytes[i >> 3] |= (byte)(0x80 >> (i & 7));
        return bytes;
    }

    /// <summary>Unpacks a mask.</summary>
    /// <param name="bytes">The packed mask.</param>
    /// <param name="count">Number of weights.</param>
    /// <exception cref="ArgumentException">There are not as many bytes as that takes.</exception>
    public static bool[] Unpack(byte[] bytes, long count)
    {
        if (bytes.Length != (count + 7) / 8) throw new ArgumentException($"A mask of {count} weights takes {(count + 7) / 8} bytes, found {bytes.Length}.", nameof(bytes));
        var kept = new bool[count];
        for (int i = 0; i < kept.Length; i++) kept[i] = (bytes[i >> 3] & (0x80 >> (i & 7))) != 0;
        return kept;
    }
}
