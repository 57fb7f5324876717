// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>A start of LoRA's factors that is made from the first training batches, once, when training begins.</summary>
[JsonPolymorphic(TypeDiscriminatorPropertyName = "start")]
[JsonDerivedType(typeof(EvaStart), "eva")]
[JsonDerivedType(typeof(LoraGaStart), "lora_ga")]
[JsonDerivedType(typeof(CordaStart), "corda")]
public abstract class LoraStart
{
    private protected LoraStart()
    {
    }

    /// <summary>Most batches that are looked at, 1 or more.</summary>
    public int MostBatches { get; set; } = 8;

    /// <summary>True once the start was made: it is then part of the model's files, and is not made again.</summary>
    public bool Made { get; set; }

    /// <summary>True where the factors take a part of the weight over.</summary>
    internal abstract bool ChangesBase { get; }

    internal virtual void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        if (MostBatches < 1) throw invalid(nameof(MostBatches), MostBatches, "1 or more");
    }

    internal abstract void Write(JsonObject config);

    /// <summary>Fills the factors, and puts into the options what they then are.</summary>
    /// <param name="adaptation">The fresh adaptation.</param>
    /// <param name="options">A copy of its options, to be changed.</param>
    /// <param name="calibration">The batches.</param>
    internal abstract void Make(LoraAdaptation adaptation, LoraOptions options, Calibration calibration);

    internal static LoraStart? Read(JsonObject config)
    {
        string? name = config["init_lora_weights"] is JsonValue value && value.TryGetValue(out string? text) ? text : null;
        return name switch
        {
            "lora_ga" => LoraGaStart.From(config["lora_ga_config"] as JsonObject ?? []),
            "corda" => CordaStart.From(config["corda_config"] as JsonObject ?? []),
            _ => null,
        };
    }

    /// <summary>The sites that are linear maps, which a start from data is made for.</summary>
    private protected static LoraFactors[] Maps(LoraAdaptation adaptation) => [.. adaptation.Factors.Where(f => f.Site is Projection)];

    private protected static void CheckDense(LoraFactors factors, int least)
    {
        Tensor weight = factors.Site.Weight;
        if (!weight.is_floating_point() || Math.Min(weight.shape[0], weight.shape[1]) < least)
            throw new ArgumentException(
                $"DataStart needs a dense weight of at least {least} rows and columns at {factors.Site.Name}; found [{string.Join(", ", weight.shape)}], {weight.dtype}. Lower the rank, or leave the module out.", "DataStart");
    }

    /// <summary>Sets factors, and the same numbers as what the weight loses: the output stays.</summary>
    private protected static void Take(LoraFactors factors, Tensor a, Tensor b)
    {
        factors.A.Load(a);
        factors.B.Load(b);
        factors.Start!.Value.A.Load(a);
        factors.Start!.Value.B.Load(b);
    }
}
