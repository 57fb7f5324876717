// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Gates that scale a prefix by what the layer reads.</summary>
public enum PrefixGate
{
    /// <summary>No gate.</summary>
    None,
    /// <summary>One gate a layer, for keys and values.</summary>
    Shared,
    /// <summary>Two gates a layer.</summary>
    Separate,
}

/// <summary>
/// Prefix tuning (Li and Liang 2021, arXiv 2101.00190): P keys and values in front of those of every self-attention, from a
/// flat table <c>[P, 2 L H d_h]</c> or, while training, <c>W₂ tanh(W₁ e + b₁) + b₂</c> of P learned vectors e, folded into the
/// table afterwards. Trained numbers: 2 L P d flat; P d + (m d + m) + (2 L d m + 2 L d) with the projection.
/// </summary>
public partial class PrefixTuningOptions : PrefixMethod
{
    /// <summary>True to train through the projection, false to train the table itself.</summary>
    public bool Projection { get; set; }

    /// <summary>m: hidden width of the projection; 0 for the width of the keys.</summary>
    public int HiddenSize { get; set; } = 512;

    /// <summary>Activation of the projection, by its name in config.json.</summary>
    public string NonLinearity { get; set; } = "tanh";

    /// <summary>True where the projection has been folded into the table.</summary>
    public bool Folded { get; set; }

    /// <summary>A gate: the mean over all places of a row, padding included, of <c>σ(w h + b)</c>, times the prefix.</summary>
    public PrefixGate Gate { get; set; }

    /// <summary>Token ids whose keys and values in the frozen network the flat table starts from, repeated or cut to P; empty for standard normal numbers.</summary>
    public int[] InitTokenIds { get; set; } = [];

    /// <summary>Name of the adapter inside tensor names as AdapterHub writes them; null for the names of Hugging Face PEFT.</summary>
    public string? Name { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "prefix-tuning";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => Projects ? "P d + m d + m + 2 L d (m + 1)" : "2 L P d";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => Projects ? 1e-3 : 5e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "PREFIX_TUNING";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool RowsAreIndependent => Gate == PrefixGate.None;                     // a gate's mean counts padding

    private bool Projects => Projection && !Folded;

    /// <inheritdoc/>
    public override bool FitsHuggingFace(Backbone backbone) => Name is null && Gate == PrefixGate.None && base.FitsHuggingFace(backbone);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (HiddenSize < 0) throw Invalid(nameof(HiddenSize), HiddenSize, "0 for the width of the keys, or more");
        if (!Enum.IsDefined(Gate)) throw Invalid(nameof(Gate), Gate, string.Join(", ", Enum.GetNames<PrefixGate>()));
        if (InitTokenIds.Length > 0 && Projection) throw Invalid(nameof(InitTokenIds), $"{InitTokenIds.Length} ids", "empty with Projection: a start from activations fits the flat table");
        if (Name is { } name && (name.Length == 0 || name.Contains('.'))) throw Invalid(nameof(Name), $"'{name}'", "a name without dots, or null");
        if (!Projection) return;
        try
        {
            Activations.Get(NonLinearity);
        }
        catch (NotSupportedException e)
        {
            throw Invalid(nameof(NonLinearity), $"'{NonLinearity}'", e.Message);
        }
    }

    private long Gates => Gate == PrefixGate.None ? 0 : Gate == PrefixGate.Shared ? 1 : 2;

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Groups(backbone).Sum(group =>
    {
        long e = Inputs(backbone, group), m = Hidden(group);
        long gates = Gates * group.Cores.Count * (backbone.Config.HiddenSize + 1L);
        return gates + (Projects ? Length * e + (m * e + m) + (group.Width * m + group.Width) : Length * group.Width);
    });

    private long Hidden(Group group) => HiddenSize == 0 ? group.Slot : HiddenSize;

    // Hugging Face's vectors are as wide as the keys of a layer, AdapterHub's as the hidden states.
    private long Inputs(Backbone backbone, Group group) => Name is null ? group.Slot : backbone.Config.HiddenSize;

    private string Base(PeftAdaptation adaptation, Group group) => Name is null
        ? group.Name == "self" ? "prompt_encoder" : $"prompt_encoder.{group.Name}"
        : $"{HubNames.Prefix(adaptation.Backbone)}.prefix_tuning.prefix_tunings.{Name}.{group.Name}_prefix";

    private string TableOf(PeftAdaptation adaptation, Group group) => Base(adaptation, group) + (Name is null ? ".embedding.weight" : ".control_trans");

    /// <inheritdoc/>
    private protected override PromptRows AddTable(PeftAdaptation adaptation, Group group, long seed)
    {
        string root = Base(adaptation, group), table = TableOf(adaptation, group);
        if (!Projects)
        {
            string key = Name is not null ? table : group.Name == "self" ? TableKey : $"{TableKey}.{group.Name}";
            Tensor start = InitTokenIds.Length > 0
                ? PrefixStart.Rows(adaptation.Backbone, InitTokenIds, Length, group.Cores)
                : new Draws(seed, table).Normal(1, Length, group.Width);
            NamedParameter flat = Add(adaptation, table, Name is null ? start : start.reshape(-1), key: key);
            return _ => flat.Value;
        }
        string vectors = Name is null ? table : root + ".wte.weight", map = root + (Name is null ? ".transform" : ".control_trans");
        NamedParameter e = Add(adaptation, vectors, new Draws(seed, vectors).Normal(1, Length, Inputs(adaptation.Backbone, group)));
        Func<Tensor, Tensor> first = AddLinear(adaptation, map + ".0", Hidden(group), Inputs(adaptation.Backbone, group), seed);
        Func<Tensor, Tensor> second = AddLinear(adaptation, map + ".2", group.Width, Hidden(group), seed), activation = Activations.Get(NonLinearity);
        PromptRows rows = _ => second(activation(first(e.Value)));
        ((Projected)adaptation).Tables.Add((table, rows));
        return rows;
    }

    /// <inheritdoc/>
    private protected override Func<Pass, (Tensor Keys, Tensor Values)>? AddGate(PeftAdaptation adaptation, AttentionCore core, long seed)
    {
        if (Gate == PrefixGate.None) return null;
        long d = adaptation.Backbone.Config.HiddenSize;
        string name = $"{PromptPlaces.AttentionPath(adaptation.Backbone, core)}.prefix_tuning.prefix_gates.{Name ?? "default"}";
        NamedParameter weight = Add(adaptation, name + ".weight", new Draws(seed, name + ".weight").Normal(0.02, Gates, d));
        NamedParameter bias = Add(adaptation, name + ".bias", new Draws(seed, name + ".bias").Uniform(1 / Math.Sqrt(d), Gates));
        Block block = adaptation.Backbone.Sites.OfType<Block>().First(b => b.Layer == core.Layer
            && b.Role == (core.Role == SiteRole.CrossAttentionCore ? SiteRole.CrossAttentionBlock : SiteRole.AttentionBlock));
        var gate = new GatePatch(weight, bias);
        adaptation.Attach(block, gate);
        return gate.Read;
    }

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone) => new Projected(this, backbone);

    private sealed class Projected(PrefixTuningOptions method, Backbone backbone) : PeftAdaptation(method, backbone)
    {
        public List<(string Name, PromptRows Rows)> Tables { get; } = [];
    }

    /// <inheritdoc/>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        if (!Projects) return adaptation;
        var folded = Copy<PrefixTuningOptions>();
        folded.Folded = true;
        using var scope = NewDisposeScope();
        using var off = no_grad();
        return Fold(adaptation, folded, [.. ((Projected)adaptation).Tables.Select(t => (t.Name, t.Rows(null)))]);
    }

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes) => Folded = Projection && shapes.ContainsKey(TableKey);

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadLength(config);
        AsHuggingFace();
        Projection = AdapterConfig.Get(config, "prefix_projection", false);
        HiddenSize = AdapterConfig.Get(config, "encoder_hidden_size", 0);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WritePrefix(config, backbone);
        config["encoder_hidden_size"] = Hidden(Groups(backbone)[0]);
        config["init_weights"] = null;
        config["prefix_projection"] = Projection;
    }

    // Reads what the attention part reads and leaves the gate of the pass for the prefix inside.
    private sealed class GatePatch(NamedParameter weight, NamedParameter bias) : BlockPatch
    {
        private sealed record Key(GatePatch Patch, int Layer);

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            pass.Once(new Key(this, pass.Layer), () => nn.functional.linear(x.to_type(weight.Value.dtype), weight.Value, bias.Value).sigmoid().mean([1]));
            return next(x);
        }

        public (Tensor Keys, Tensor Values) Read(Pass pass)
        {
            Tensor gates = pass.Once<Tensor>(new Key(this, pass.Layer), () => throw new InvalidOperationException("The prefix ran outside of its attention part."));
            return (gates.select(1, 0), gates.select(1, -1));                                     // [batch, 1 or 2]
        }
    }
}

/// <summary>
/// P-tuning v2 (Liu et al. 2022, arXiv 2110.07602): prefix tuning with a flat table, dropout on the prefix and a linear head.
/// Trained numbers: 2 L P d.
/// </summary>
public sealed class PTuningV2Options : PrefixTuningOptions
{
    /// <summary>Makes the preset.</summary>
    public PTuningV2Options() => (Length, Dropout) = (16, 0.1);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "p-tuning-v2";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => null;

    /// <summary>The same table as a prefix of Hugging Face PEFT, where that can say it.</summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        JsonObject options = JsonNode.Parse(PeftMethods.ToJson(this))!.AsObject();
        options["method"] = new PrefixTuningOptions().Id;
        var plain = (PrefixTuningOptions)PeftMethods.FromJson(options.ToJsonString());
        if (!plain.FitsHuggingFace(adaptation.Backbone)) return base.ToExchange(adaptation);
        if (Projection && !Folded)
        {
            using PeftAdaptation folded = base.ToExchange(adaptation);
            plain.Folded = true;
            return Fold(folded, plain, []);
        }
        return Fold(adaptation, plain, []);
    }
}
