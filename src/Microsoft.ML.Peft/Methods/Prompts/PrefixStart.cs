// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Prefixes that start from the keys and values of real tokens in the frozen network.</summary>
internal static class PrefixStart
{
    /// <summary>A table <c>[P, 2 · layers · key heads · head width]</c>.</summary>
    public static Tensor Rows(Backbone backbone, int[] ids, int length, IReadOnlyList<AttentionCore> cores)
    {
        long[] tokens = [.. Enumerable.Range(0, length).Select(i => (long)ids[i % ids.Length])];
        if (cores.Any(PromptPlaces.InDecoder) || cores.Count != backbone.Config.LayerCount)
            throw new ArgumentException($"A prefix of a {backbone.Config.ModelType} backbone cannot start from tokens; leave InitTokenIds empty.", "InitTokenIds");
        using var scope = NewDisposeScope();
        Tensor row = tensor(tokens, [1, length], device: backbone.Device);
        var kept = new Dictionary<AttentionCore, (Tensor Keys, Tensor Values)>();
        var table = new PatchTable(cores.Select(core => KeyValuePair.Create<Site, Patch>(core, new Recorder(core, kept))), backbone.Device.type);
        backbone.Forward(new TokenBatch(row, ones_like(row), Padded: false), new Pass(table));
        Tensor[] slots = [.. cores.SelectMany(core => (Tensor[])[kept[core].Keys, kept[core].Values])];
        return stack(slots, 1).reshape(length, -1).to_type(ScalarType.Float32).cpu().MoveToOuterDisposeScope();
    }

    private sealed class Recorder(AttentionCore core, Dictionary<AttentionCore, (Tensor Keys, Tensor Values)> kept) : AttentionPatch
    {
        public override bool Trainable => false;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
        {
            // [1, key heads, P, head width] to [P, key heads · head width], outside of the layer's scope.
            Tensor Flat(Tensor x) => x.squeeze(0).transpose(0, 1).reshape(x.shape[2], -1).clone().DetachFromDisposeScope();
            kept[core] = (Flat(input.Key), Flat(input.Value));
            return next(input);
        }
    }
}
