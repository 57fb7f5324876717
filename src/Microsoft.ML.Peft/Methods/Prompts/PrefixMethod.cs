// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>What relative-position biases (T5) make of a prefix.</summary>
public enum PrefixDistance
{
    /// <summary>Prefix keys get no bias, tokens keep theirs.</summary>
    None,
    /// <summary>The prefix counts as tokens before the row (Hugging Face PEFT).</summary>
    Cache,
    /// <summary>Queries count from the start of the prefix, so that tokens move away from each other (AdapterHub).</summary>
    Offset,
}

/// <summary>
/// Base of the prefixes: learned keys and values in front of those of self-attention, <c>K ← [P_k; K]</c>, <c>V ← [P_v; V]</c>,
/// for each layer and head. They are stored as they are used: no projection, no rotation. The sequence keeps its length.
/// </summary>
public abstract class PrefixMethod : PromptMethod
{
    /// <summary>
    /// True where the prefix counts in the positions of the tokens, which are then P, P + 1 ...; null for true in decoders and
    /// false in encoders. Files of Hugging Face PEFT mean true.
    /// </summary>
    public bool? ShiftPositions { get; set; }

    /// <summary>What relative-position biases make of the prefix.</summary>
    public PrefixDistance Distance { get; set; }

    /// <summary>Share of the prefix's entries, in [0, 1), that is dropped while training.</summary>
    public double Dropout { get; set; }

    /// <summary>Layers without a prefix, numbered from 0.</summary>
    public int[] LeaveOut { get; set; } = [];

    /// <summary>Of an encoder with a decoder: true for prefixes in the encoder.</summary>
    public bool InEncoder { get; set; } = true;

    /// <summary>Of an encoder with a decoder: true for prefixes in the decoder's attention to the encoder.</summary>
    public bool InCross { get; set; } = true;

    /// <summary>
    /// Of an encoder with a decoder: true to let decoder layer l read slots 4l and 4l + 1 of its 2L, counted round, as Hugging
    /// Face PEFT does; false for slots 2l and 2l + 1.
    /// </summary>
    public bool DoubledSlots { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 5e-3;

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        CheckShare(nameof(Dropout), Dropout);
        if (!Enum.IsDefined(Distance)) throw Invalid(nameof(Distance), Distance, string.Join(", ", Enum.GetNames<PrefixDistance>()));
        foreach (int layer in LeaveOut)
            if (layer < 0) throw Invalid(nameof(LeaveOut), layer, "0 or more");
    }

    /// <summary>True where the prefix moves positions in this backbone.</summary>
    private protected bool Shifts(Backbone backbone) => ShiftPositions ?? backbone.LeadingTokens == 0;

    /// <inheritdoc/>
    public override bool FitsHuggingFace(Backbone backbone) => HuggingFaceType is not null && LeaveOut.Length == 0
        && (PromptPlaces.HasDecoder(backbone) ? !InEncoder && !InCross && DoubledSlots && Distance == PrefixDistance.Cache : Shifts(backbone));

    /// <summary>Attention cores that share a table.</summary>
    /// <param name="Name"><c>self</c>, <c>encoder</c> or <c>cross</c>, as AdapterHub calls them.</param>
    /// <param name="Cores">One a layer; one in all where layers are shared.</param>
    /// <param name="Layers">Number of layers that have keys and values in the table.</param>
    private protected sealed record Group(string Name, IReadOnlyList<AttentionCore> Cores, int Layers)
    {
        public long Slot => Cores[0].KeyHeads * (long)Cores[0].HeadWidth;

        /// <summary>Width of a row of the table: 2 · layers · key heads · head width.</summary>
        public long Width => 2 * Layers * Slot;
    }

    private protected IReadOnlyList<Group> Groups(Backbone backbone)
    {
        PromptPlaces.NeedKeys(backbone);
        List<Group> groups = [];
        void Add(string name, IReadOnlyList<AttentionCore> cores, bool shared)
        {
            int first = cores.Count == 0 ? 0 : cores.Min(c => c.Layer);
            AttentionCore[] used = [.. cores.Where(c => shared || !LeaveOut.Contains(c.Layer - first))];
            if (used.Length > 0) groups.Add(new Group(name, used, shared ? backbone.Config.LayerCount : used.Length));
        }
        if (PromptPlaces.HasDecoder(backbone))
        {
            Add("self", PromptPlaces.Decoder(backbone), false);
            if (InEncoder) Add("encoder", PromptPlaces.Encoder(backbone), false);
            if (InCross) Add("cross", PromptPlaces.Cross(backbone), false);
        }
        else
        {
            IReadOnlyList<AttentionCore> cores = PromptPlaces.Encoder(backbone);
            bool shared = cores.Count < backbone.Config.LayerCount;                    // ALBERT runs few layers many times
            if (shared && (LeaveOut.Length > 0 || cores.Count != 1))
                throw new ArgumentException($"This {backbone.Config.ModelType} backbone shares its layers in groups or LeaveOut is set; a prefix fits where all layers are one.", nameof(LeaveOut));
            Add("self", cores, shared);
        }
        return groups.Count > 0 ? groups : throw new ArgumentException(
            $"No place for a prefix is left: LeaveOut is [{string.Join(", ", LeaveOut)}] and this {backbone.Config.ModelType} backbone has {backbone.Config.LayerCount} layers with attention.", nameof(LeaveOut));
    }

    /// <inheritdoc/>
    protected sealed override void Build(PeftAdaptation adaptation, long seed)
    {
        foreach (Group group in Groups(adaptation.Backbone))
        {
            var table = new Table(AddTable(adaptation, group, seed), Length, group);
            foreach (AttentionCore core in group.Cores)
            {
                int layer = group.Layers == group.Cores.Count ? IndexOf(group, core) : -1;
                bool doubled = DoubledSlots && group.Name == "self" && PromptPlaces.HasDecoder(adaptation.Backbone);
                int slot = layer < 0 ? -1 : (doubled ? 4 : 2) * layer % (2 * group.Layers);
                adaptation.Attach(core, new PrefixPatch(this, table, slot, Shifts(adaptation.Backbone), AddGate(adaptation, core, seed)));
            }
        }
    }

    private static int IndexOf(Group group, AttentionCore core)
    {
        for (int i = 0; i < group.Cores.Count; i++) if (ReferenceEquals(group.Cores[i], core)) return i;
        return -1;
    }

    /// <summary>Adds the parameters of a table <c>[P, 2 · layers · key heads · head width]</c>.</summary>
    private protected abstract PromptRows AddTable(PeftAdaptation adaptation, Group group, long seed);

    /// <summary>Adds a gate at a layer: factors of keys and of values, each <c>[batch]</c>; null for none.</summary>
    private protected virtual Func<Pass, (Tensor Keys, Tensor Values)>? AddGate(PeftAdaptation adaptation, AttentionCore core, long seed) => null;

    /// <summary>Writes what all prefixes have.</summary>
    /// <param name="config">The object to fill.</param>
    /// <param name="backbone">The frozen network.</param>
    private protected void WritePrefix(JsonObject config, Backbone backbone) =>
        WriteGeometry(config, backbone, PromptPlaces.HasDecoder(backbone) ? 2 : 1, keys: true);

    /// <summary>Takes what files of Hugging Face PEFT mean without saying it.</summary>
    private protected void AsHuggingFace() =>
        (ShiftPositions, Distance, InEncoder, InCross, DoubledSlots) = (true, PrefixDistance.Cache, false, false, true);

    // The table of a pass, made once and read by all layers; layout [P, 2 · layers, key heads, head width].
    private sealed class Table(PromptRows rows, int length, Group group)
    {
        public (Tensor Keys, Tensor Values) Slots(int slot, Pass pass)
        {
            Tensor all = pass.Once(this, () => rows(pass)).view(length, 2 * group.Layers, group.Cores[0].KeyHeads, group.Cores[0].HeadWidth);
            return (all.select(1, slot).transpose(0, 1), all.select(1, slot + 1).transpose(0, 1));     // [key heads, P, head width]
        }
    }

    private sealed class PrefixPatch(PrefixMethod options, Table table, int slot, bool shifts, Func<Pass, (Tensor Keys, Tensor Values)>? gate) : AttentionPatch
    {
        public override int PositionShift => shifts ? options.Length : 0;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
        {
            (Tensor keys, Tensor values) = table.Slots(slot >= 0 ? slot : 2 * pass.Layer, pass);
            long batch = input.Key.shape[0];
            keys = pass.Dropout(keys, options.Dropout).unsqueeze(0).expand(batch, -1, -1, -1);
            values = pass.Dropout(values, options.Dropout).unsqueeze(0).expand(batch, -1, -1, -1);
            if (gate is not null)
            {
                (Tensor g, Tensor h) = gate(pass);
                (keys, values) = (keys * g.view(-1, 1, 1, 1), values * h.view(-1, 1, 1, 1));
            }
            return next(input with
            {
                Key = cat([keys.to_type(input.Key.dtype), input.Key], 2),
                Value = cat([values.to_type(input.Value.dtype), input.Value], 2),
                Bias = Widened(input, options.Length, options.Distance),
            });
        }

        // The prefix is visible to every query, in causal networks too.
        private static Tensor? Widened(AttentionInput input, int length, PrefixDistance distance)
        {
            long queries = input.Query.shape[2], keys = input.Key.shape[2];
            RelativeBias? relative = distance == PrefixDistance.None ? null : input.Relative;
            if (input.Bias is not { } bias) return null;
            if (relative is not null && distance == PrefixDistance.Offset) bias = bias + relative(length, queries, keys) - relative(0, queries, keys);
            Tensor front = relative is null
                ? zeros([1, 1, 1, length], dtype: bias.dtype, device: bias.device)
                : relative(distance == PrefixDistance.Cache ? -length : 0, queries, length).to_type(bias.dtype);
            long[] common = [.. Enumerable.Range(0, 3).Select(i => Math.Max(bias.shape[i], front.shape[i]))];
            return cat([front.expand([.. common, length]), bias.expand([.. common, keys])], 3);
        }
    }
}
