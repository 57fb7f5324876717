// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The form of one of GLoRA's support tensors.</summary>
public enum GloraSupport
{
    /// <summary>Not there.</summary>
    None,
    /// <summary>One number.</summary>
    Constant,
    /// <summary>One number an output (an input, for the prompt).</summary>
    Vector,
    /// <summary>A product of two small matrices.</summary>
    Lora,
}

/// <summary>
/// GLoRA (Chavan et al. 2023, arXiv 2306.07967): <c>W' = W + W ⊙ A + B</c>, <c>b' = b + b ⊙ D + E + W c</c>. A and B are
/// <c>[out, rank] [rank, in]</c>, a column <c>[out, 1]</c> or one number; c is <c>[in, 1]</c>; D and E are <c>[out]</c> or one
/// number; a module without a bias has A and B alone. All start at 0 but the second factors. Several at one site refer to the frozen W and add up.
/// </summary>
public sealed class GloraOptions : BiasedMethod
{
    /// <summary>Rank of the products, 1 to 4096.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>Form of A and B, which scale and shift the weight.</summary>
    public GloraSupport WeightSupport { get; set; } = GloraSupport.Lora;

    /// <summary>Form of c, which shifts the output by W c as a prompt would: none, vector or lora.</summary>
    public GloraSupport PromptSupport { get; set; } = GloraSupport.Lora;

    /// <summary>Form of D and E, which scale and shift the bias: none, constant or vector.</summary>
    public GloraSupport BiasSupport { get; set; } = GloraSupport.Constant;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "glora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r (in + out) a pair, a vector or 1 a part";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "GLORA";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, false);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (!Enum.IsDefined(WeightSupport)) throw Invalid(nameof(WeightSupport), WeightSupport, "none, constant, vector or lora");
        if (PromptSupport is not (GloraSupport.None or GloraSupport.Vector or GloraSupport.Lora)) throw Invalid(nameof(PromptSupport), PromptSupport, "none, vector or lora");
        if (BiasSupport is not (GloraSupport.None or GloraSupport.Constant or GloraSupport.Vector)) throw Invalid(nameof(BiasSupport), BiasSupport, "none, constant or vector");
        if (WeightSupport == GloraSupport.None && PromptSupport == GloraSupport.None && BiasSupport == GloraSupport.None)
            throw Invalid(nameof(WeightSupport), WeightSupport, "another form, or nothing would be trained");
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) =>
        2 * Count(WeightSupport, Wide(site), Narrow(site)) + (site.Bias is null ? 0 : Count(PromptSupport, Narrow(site), 1) + 2 * Count(BiasSupport, Wide(site), 1));

    private long Count(GloraSupport form, long rows, long columns) => form switch
    {
        GloraSupport.Lora => Rank * (rows + columns),
        GloraSupport.Vector => rows,
        GloraSupport.Constant => 1,
        _ => 0,
    };

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long wide = Wide(site), narrow = Narrow(site);
        Func<Tensor> Support(string letter, GloraSupport form, params long[] shape) => AddSupport(adaptation, $"{path}.glora_{letter}", form, shape, seed);
        // Without a bias there is nothing to shift.
        (GloraSupport prompt, GloraSupport shifts) = site.Bias is null ? (GloraSupport.None, GloraSupport.None) : (PromptSupport, BiasSupport);
        Func<Tensor> a = Support("A", WeightSupport, wide, narrow), b = Support("B", WeightSupport, wide, narrow), c = Support("C", prompt, narrow, 1);
        Func<Tensor> d = Support("D", shifts, wide), e = Support("E", shifts, wide);
        NamedParameter? trained = BiasOf(adaptation, path);
        adaptation.Attach(site, new RewritePatch((weight, bias, _) =>
        {
            Tensor frozen = site.Weight.to_type(ScalarType.Float32);
            Tensor changed = weight + (frozen * a() + b());
            if (site.Bias is null) return (changed, bias);
            Tensor old = trained?.Value ?? site.Bias.to_type(ScalarType.Float32);
            return (changed, bias! + (old * d() + e() + frozen.matmul(c()).squeeze(1)));
        }));
    }

    private Func<Tensor> AddSupport(PeftAdaptation adaptation, string name, GloraSupport form, long[] shape, long seed)
    {
        if (form == GloraSupport.Lora)
        {
            NamedParameter down = Add(adaptation, $"{name}.Xd", zeros([shape[0], Rank]));
            NamedParameter up = Add(adaptation, $"{name}.Xu", new Draws(seed, $"{name}.Xu").Kaiming(Rank, shape[1]));
            return () => down.Value.matmul(up.Value);
        }
        // What is not there is a buffer of zeros in the files.
        NamedParameter whole = form == GloraSupport.None
            ? Add(adaptation, $"{name}.zeros", zeros(shape), trainable: false)
            : Add(adaptation, $"{name}.X", zeros(form == GloraSupport.Constant ? [1] : shape.Length == 1 ? shape : [shape[0], 1]));
        return () => whole.Value;
    }

    private static readonly (string Name, GloraSupport Value)[] _names =
        [("none", GloraSupport.None), ("constant", GloraSupport.Constant), ("vector", GloraSupport.Vector), ("lora", GloraSupport.Lora)];

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 8);
        WeightSupport = ConfigFields.Choice(config, "config_A_B", "lora", _names);
        PromptSupport = ConfigFields.Choice(config, "config_C", "lora", _names);
        BiasSupport = ConfigFields.Choice(config, "config_D_E", "constant", _names);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = true;
        config["r"] = Rank;
        config["config_A_B"] = _names.Single(n => n.Value == WeightSupport).Name;
        config["config_C"] = _names.Single(n => n.Value == PromptSupport).Name;
        config["config_D_E"] = _names.Single(n => n.Value == BiasSupport).Name;
    }
}
