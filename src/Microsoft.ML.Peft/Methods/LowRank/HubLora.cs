// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How AdapterHub's low-rank methods join what they make with the projection's output.</summary>
public enum HubComposition
{
    /// <summary>Added: LoRA, VeRA.</summary>
    Add,
    /// <summary>Multiplied: (IA)³.</summary>
    Scale,
}

/// <summary>
/// LoRA, (IA)³, VeRA, DoRA and DVoRA as AdapterHub's package has them; their files are exchanged with it. What differs from
/// <c>lora</c>: a fused projection is adapted block by block; a gate takes the place of α/r; DoRA's lengths are those of
/// <c>W + B A</c> without α/r, get gradients, and scale the bias; (IA)³ scales the feed-forward part before its activation; VeRA
/// trains full matrices. Arrays A <c>[r, in]</c>, B <c>[out, r]</c>. LoRA: Hu et al. 2022 (arXiv 2106.09685); gates: UniPELT, Mao et
/// al. 2022 (2110.07577); VeRA: Kopiczko et al. 2024 (2310.11454); DoRA: Liu et al. 2024 (2402.09353); (IA)³: Liu et al. 2022 (2205.05638).
/// </summary>
public sealed class HubLoraOptions : HubLowRankOptions, IAdapterHubMethod
{
    /// <summary>Added or multiplied.</summary>
    public HubComposition Composition { get; set; }

    /// <summary>True for a trained gate a row, the mean over all positions of a sigmoid, in the place of α/r.</summary>
    public bool Gate { get; set; }

    /// <summary>True to train the lengths of the rows apart from their directions.</summary>
    public bool UseDora { get; set; }

    /// <summary>VeRA: what the inner matrix starts with on its diagonal; null for no VeRA.</summary>
    public double? VeraD { get; set; }

    /// <summary>VeRA: what the outer matrix starts with on its diagonal; null for no VeRA.</summary>
    public double? VeraB { get; set; }

    /// <summary>VeRA: true to train the two diagonals alone, as the paper has it; false for the package's full matrices.</summary>
    public bool VeraVectors { get; set; }

    /// <summary>Initial values: <c>lora</c> (A uniform in ±1/√in, B 0), <c>bert</c> (normal, 0.02), <c>ia3</c> (ones) or <c>vera</c>.</summary>
    public string Init { get; set; } = "lora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "adapterhub-lora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => !Gate;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => Vera ? VeraB == 0 || VeraD == 0 : Composition == HubComposition.Scale ? Init != "bert" && Alpha == 1 && !Gate : Init is "lora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool RowsAreIndependent => !Gate;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r (in + out) a projection; VeRA r² + out²";

    internal bool Vera => VeraD is not null;

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Init is not ("lora" or "bert" or "ia3" or "vera")) throw Invalid(nameof(Init), $"'{Init}'", "lora, bert, ia3 or vera");
        if (!Enum.IsDefined(Composition)) throw Invalid(nameof(Composition), Composition, string.Join(", ", Enum.GetNames<HubComposition>()));
        if (Composition == HubComposition.Scale && Rank != 1) throw Invalid(nameof(Rank), Rank, "1 with Composition = Scale");
        if (Composition == HubComposition.Scale && (UseDora || Vera)) throw Invalid(nameof(Composition), Composition, "Add with UseDora or VeraD");
        if (VeraD is null != VeraB is null) throw Invalid(nameof(VeraB), VeraB, "a number where VeraD is one, null where it is null");
        if (Vera && (Intermediate || Output)) throw Invalid(nameof(Intermediate), true, "false with VeraD: one pair of shared matrices has one shape");
        if (Gate && UseDora) throw Invalid(nameof(Gate), Gate, "false with UseDora");
        if (VeraVectors && !Vera) throw Invalid(nameof(VeraVectors), true, "false without VeraD and VeraB");
        if (Vera != (Init == "vera")) throw Invalid(nameof(Init), $"'{Init}'", Vera ? "vera with VeraD" : "lora, bert or ia3 without VeraD");
    }

    private IReadOnlyList<HubProjection> Checked(Backbone backbone)
    {
        IReadOnlyList<HubProjection> places = Places(backbone);
        if ((UseDora || Vera) && places.FirstOrDefault(p => p.Blocks > 1) is { } fused)
            throw new ArgumentException($"{fused.Site.Name} is one projection to queries, keys and values: DoRA and VeRA of this method do not fit it; use dora or vera.", nameof(UseDora));
        if (Vera && places.FirstOrDefault(p => p.Site.In != places[0].Site.In || p.Out != places[0].Out) is { } other)
            throw new ArgumentException($"{other.Site.Name} is {other.Site.In} to {other.Out}, {places[0].Site.Name} {places[0].Site.In} to {places[0].Out}: VeRA's shared matrices need one shape.", nameof(VeraD));
        return places;
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Checked(backbone).Sum(Count);

    private long Count(HubProjection place)
    {
        long blocks = place.Adapted.Length;
        long factors = Composition == HubComposition.Scale ? place.Out
            : Vera ? VeraVectors ? Rank + place.Out : Rank * Rank + place.Out * place.Out
            : Rank * (blocks * place.Site.In + place.Out);
        return factors + (Gate ? blocks * (place.Site.In + 1) : 0) + (UseDora ? place.Out : 0);
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed) => Build(backbone, adaptation =>
    {
        IReadOnlyList<HubProjection> places = Checked(backbone);
        NamedParameter Add(string name, Func<Draws, Tensor> draw, bool trainable = true) =>
            adaptation.Add(name, draw(new Draws(seed, name)).to(backbone.Device), trainable);
        (NamedParameter A, NamedParameter B)? shared = null;
        if (Vera)
        {
            string path = HubNames.Path(backbone, $"shared_parameters.{Name}");
            long inputs = places[0].Site.In, outputs = places[0].Out;
            shared = (Add($"{path}.lora_A", draws => draws.Uniform(Math.Sqrt(6.0 / inputs), Rank, inputs), false),
                Add($"{path}.lora_B", draws => draws.Uniform(Math.Sqrt(6.0 / Rank), outputs, Rank), false));
        }
        foreach (HubProjection place in places) adaptation.Attach(place.Site, Patch(place, shared, Add));
    });

    private WeightPatch Patch(HubProjection place, (NamedParameter A, NamedParameter B)? shared, Func<string, Func<Draws, Tensor>, bool, NamedParameter> add)
    {
        long blocks = place.Adapted.Length, inputs = place.Site.In, outputs = place.Out;
        NamedParameter Add(string name, Func<Draws, Tensor> draw) => add($"{place.Path}.{name}", draw, true);
        (NamedParameter, NamedParameter)? gate = Gate
            ? (Add("gate.weight", draws => draws.Normal(0.02, blocks, inputs)), Add("gate.bias", draws => draws.Uniform(1 / Math.Sqrt(inputs), blocks)))
            : null;
        if (Composition == HubComposition.Scale)
            return new HubScalePatch(place, Add("lora_B", draws => Init == "bert" ? draws.Normal(0.02, outputs, 1) : ones([outputs, 1])), Alpha, gate);
        HubFactors factors;
        if (shared is { } fixedFactors)
        {
            Tensor Start(double value, long size) => VeraVectors ? ones([size]) * value : ones([size]).diag() * value;
            NamedParameter d = Add("vera_D", _ => Start(VeraD!.Value, Rank)), b = Add("vera_B", _ => Start(VeraB!.Value, outputs));
            factors = new HubFactors(fixedFactors.A, fixedFactors.B, (d, b));
        }
        else
        {
            NamedParameter a = Add("lora_A", draws => Init switch { "bert" => draws.Normal(0.02, blocks * Rank, inputs), "ia3" => ones([blocks * Rank, inputs]), _ => draws.Kaiming(blocks * Rank, inputs) });
            NamedParameter b = Add("lora_B", draws => Init switch { "bert" => draws.Normal(0.02, outputs, Rank), "ia3" => ones([outputs, Rank]), _ => zeros([outputs, Rank]) });
            factors = new HubFactors(a, b, null);
        }
        if (gate is { } g) return new HubGatedPatch(place, factors, g, Dropout);
        double scale = Alpha / Rank;
        if (!UseDora) return new TermsPatch(_ => [new LowRankTerm(factors.A, place.Joined(factors.B), scale, Dropout: Dropout)]);
        NamedParameter lengths = Add("m.weight", _ => place.Site.Weight.to_type(ScalarType.Float32).norm(1, keepdim: true));
        return new HubDoraPatch(place.Site, factors, lengths, scale, Dropout);
    }

    string IAdapterHubMethod.Architecture => "lora";

    void IAdapterHubMethod.ReadAdapterHub(JsonObject config)
    {
        ReadCommon(config);
        HubNames.Require(config, "dtype", "null", "null", "\"float32\"");
        Composition = AdapterConfig.Get(config, "composition_mode", "add") switch
        {
            "add" => HubComposition.Add,
            "scale" => HubComposition.Scale,
            var other => throw new ArgumentException($"the field 'composition_mode' is '{other}'; expected is 'add' or 'scale'."),
        };
        Gate = AdapterConfig.Get(config, "use_gating", false);
        UseDora = AdapterConfig.Get(config, "use_dora", false);
        (VeraD, VeraB) = (HubNames.OptionalNumber(config, "vera_d"), HubNames.OptionalNumber(config, "vera_b"));
        Init = AdapterConfig.Get(config, "init_weights", "lora");
    }

    JsonObject IAdapterHubMethod.WriteAdapterHub()
    {
        JsonObject config = WriteCommon("lora");
        config["composition_mode"] = Composition == HubComposition.Add ? "add" : "scale";
        config["init_weights"] = Init;
        config["use_dora"] = UseDora;
        config["use_gating"] = Gate;
        config["vera_b"] = VeraB is { } b ? JsonValue.Create(b) : null;
        config["vera_d"] = VeraD is { } d ? JsonValue.Create(d) : null;
        return config;
    }
}
