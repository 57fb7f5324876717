// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Several methods at once, each with its own options, at their own sites of one backbone; where two meet at a site, the later
/// one nests around the earlier. He et al. 2022 (MAM, arXiv 2110.04366), Mao et al. 2022 (UniPELT, arXiv 2110.07577).
/// Trained numbers: the sum of the parts'.
/// </summary>
public class UnionOptions : PeftMethod, IAdapterHubMethod
{
    /// <summary>Name of the adapter inside the tensor names of those parts that have one.</summary>
    public string Name { get; set; } = "default";

    /// <summary>The parts, the innermost first.</summary>
    public PeftMethod[] Methods { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "union";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Family => "unions";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override bool Mergeable => Methods.All(m => m.Mergeable);

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override bool ExactAtStart => Methods.All(m => m.ExactAtStart);

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override bool RowsAreIndependent => Methods.All(m => m.RowsAreIndependent);

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override double DefaultLearningRate => Methods.Length == 0 ? 5e-4 : Methods.Min(m => m.DefaultLearningRate);

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Formula => "the sum of the parts";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Methods.Length == 0) throw Invalid(nameof(Methods), "empty", "one method or more");
        foreach (PeftMethod method in Methods) method.Validate();
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Named().Sum(m => m.CountTrainable(backbone));

    internal UnionOptions Of(PeftMethod[] methods)
    {
        var copy = (UnionOptions)MemberwiseClone();
        copy.Methods = methods;
        return copy;
    }

    private PeftMethod[] Named()
    {
        foreach (IAdapterHubMethod part in Methods.OfType<IAdapterHubMethod>()) part.Name = Name;
        return Methods;
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        List<PeftAdaptation> parts = [];
        try
        {
            foreach (PeftMethod method in Named()) parts.Add(method.Attach(backbone, seed));
            return new UnionAdaptation(this, backbone, parts);
        }
        catch
        {
            foreach (PeftAdaptation part in parts) part.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes)
    {
        foreach (PeftMethod method in Methods) method.ReadTensors(shapes);
    }

    string IAdapterHubMethod.Architecture => "union";

    void IAdapterHubMethod.ReadAdapterHub(JsonObject config)
    {
        if (config["configs"] is not JsonArray parts) throw new ArgumentException("the field 'configs' is missing; expected is a list of configurations.", "configs");
        Methods = [.. parts.Select(part => AdapterHubFolder.Parse(part as JsonObject
            ?? throw new ArgumentException($"the field 'configs' holds {part?.ToJsonString() ?? "null"}; expected is a table.", "configs"), Name))];
    }

    JsonObject IAdapterHubMethod.WriteAdapterHub() => new()
    {
        ["architecture"] = "union",
        ["configs"] = new JsonArray([.. Methods.Select(m => m is IAdapterHubMethod part
            ? part.WriteAdapterHub()
            : throw new NotSupportedException($"Method {m.Id} of this union does not exist in AdapterHub's package; use AdapterFolder."))]),
    };
}

/// <summary>
/// Mix-and-match (He et al. 2022, arXiv 2110.04366): a prefix of 30 in every attention and a parallel adapter of half the hidden
/// width beside every feed-forward part, as AdapterHub's preset has them.
/// </summary>
public sealed class MamOptions : UnionOptions
{
    /// <summary>Makes the preset.</summary>
    public MamOptions() => Methods = [PrefixTuningOptions.ForAdapterHub(30, 800), new ParallelAdapterOptions()];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "mam";
}

/// <summary>UniPELT (Mao et al. 2022, arXiv 2110.07577): a prefix of 10, <c>pfeiffer</c> and LoRA, each with a gate that reads its input.</summary>
public sealed class UniPeltOptions : UnionOptions
{
    /// <summary>Makes the preset.</summary>
    public UniPeltOptions() => Methods =
        [PrefixTuningOptions.ForAdapterHub(10, 512, PrefixGate.Shared), new PfeifferOptions { Gate = true }, new HubLoraOptions { Alpha = 2, Gate = true }];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "unipelt";
}

/// <summary>The parts of a union: it owns their parameters, wears their patches and passes every hook on.</summary>
internal sealed class UnionAdaptation : JoinedAdaptation
{
    protected override IReadOnlyList<PeftAdaptation> Parts { get; }

    public UnionAdaptation(UnionOptions method, Backbone backbone, IReadOnlyList<PeftAdaptation> parts) : base(method, backbone)
    {
        Parts = parts;
        Join();
    }

    // A start from data changes the options of its part.
    public override void Calibrate(Calibration calibration)
    {
        base.Calibrate(calibration);
        Method = ((UnionOptions)Method).Of([.. Parts.Select(part => part.Method)]);
    }

    protected override void Join()
    {
        foreach (PeftAdaptation part in Parts)
        {
            foreach (NamedParameter parameter in part.Parameters)
            {
                if (Find(parameter.Name) is not null)
                    throw new ArgumentException($"Two parts of the union have a parameter {parameter.Name}; give them other sites, or other names.");
                Add(parameter);
            }
            foreach ((Site site, Patch patch) in part.Patches) Attach(site, patch);
        }
    }
}
