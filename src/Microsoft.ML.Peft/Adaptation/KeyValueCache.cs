// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Keys and values of the tokens that a decoder has seen, so that the next tokens cost their own computation alone. Passes
/// that share a cache run one after the other; each adds its tokens. Nothing is trained through it.
/// </summary>
public sealed class KeyValueCache : IDisposable
{
    private readonly Dictionary<AttentionCore, (Tensor Key, Tensor Value)> _layers = [];

    /// <summary>1 for real tokens, 0 for padding, <c>[batch, tokens]</c>; null while the cache is empty.</summary>
    public Tensor? Mask { get; private set; }

    /// <summary>Number of tokens, padding and inserted ones included.</summary>
    public long Tokens => Mask?.shape[1] ?? 0;

    /// <summary>True where some of the tokens may be padding.</summary>
    public bool Padded { get; private set; }

    /// <summary>Keys (after rotation) and values of one layer, <c>[batch, key heads, tokens, head width]</c>.</summary>
    /// <param name="core">The attention of the layer.</param>
    public (Tensor Key, Tensor Value) this[AttentionCore core] => _layers[core];

    /// <summary>Adds the keys and values of new tokens and gives all.</summary>
    internal (Tensor Key, Tensor Value) Append(AttentionCore core, Tensor key, Tensor value)
    {
        if (_layers.Remove(core, out (Tensor Key, Tensor Value) old))
        {
            (key, value) = (cat([old.Key, key], 2), cat([old.Value, value], 2));
            old.Key.Dispose();
            old.Value.Dispose();
        }
        _layers[core] = (Kept(key), Kept(value));
        return (key, value);
    }

    /// <summary>Keys and values that do not grow (those of an encoder): made once, then given again.</summary>
    internal (Tensor Key, Tensor Value) Once(AttentionCore core, Func<(Tensor Key, Tensor Value)> make)
    {
        if (_layers.TryGetValue(core, out (Tensor Key, Tensor Value) there)) return there;
        (Tensor key, Tensor value) = make();
        return _layers[core] = (Kept(key), Kept(value));
    }

    /// <summary>Takes note of the tokens of a pass that has run.</summary>
    internal void Extend(Layout layout)
    {
        Tensor mask = Kept(Mask is null ? layout.Mask : cat([Mask, layout.Mask], 1));
        Mask?.Dispose();
        (Mask, Padded) = (mask, Padded || layout.Padded);
    }

    /// <summary>Puts rows in another order, or some in place of others, as beam search does.</summary>
    /// <param name="rows">For each new row the number of the old one, int64 <c>[rows]</c>.</param>
    public void Reorder(Tensor rows)
    {
        foreach ((AttentionCore core, (Tensor key, Tensor value)) in _layers.ToArray())
        {
            _layers[core] = (Kept(key.index_select(0, rows)), Kept(value.index_select(0, rows)));
            key.Dispose();
            value.Dispose();
        }
        if (Mask is not { } mask) return;
        Mask = Kept(mask.index_select(0, rows));
        mask.Dispose();
    }

    // A handle of its own, outside of every scope; the caller goes on with the one it has.
    private static Tensor Kept(Tensor tensor) => tensor.detach().DetachFromDisposeScope();

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach ((Tensor key, Tensor value) in _layers.Values)
        {
            key.Dispose();
            value.Dispose();
        }
        _layers.Clear();
        Mask?.Dispose();
        Mask = null;
    }
}
