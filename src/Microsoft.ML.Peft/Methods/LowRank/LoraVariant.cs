// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// A form of LoRA's update other than <c>s B A x</c>, with its own options. It says how the factors are stored and drawn,
/// which parameters come beside them, and which patch a site wears.
/// </summary>
[JsonPolymorphic(TypeDiscriminatorPropertyName = "variant")]
[JsonDerivedType(typeof(KasaVariant), "kasa")]
[JsonDerivedType(typeof(BlockDiagonalVariant), "bd-lora")]
[JsonDerivedType(typeof(ActivatedVariant), "alora")]
[JsonDerivedType(typeof(VeloraVariant), "velora")]
[JsonDerivedType(typeof(MonteCloraVariant), "monteclora")]
[JsonDerivedType(typeof(QaLoraVariant), "qalora")]
public abstract class LoraVariant
{
    private protected LoraVariant()
    {
    }

    /// <summary>True where a fresh update is 0.</summary>
    internal virtual bool ExactAtStart => true;

    /// <summary>True where the update is a change of the weight.</summary>
    internal virtual bool Mergeable => true;

    /// <summary>Checks its options; what does not fit is told by the error that the first argument makes.</summary>
    /// <param name="invalid">Makes an error of option, value and what is allowed.</param>
    internal abstract void Validate(Func<string, object?, string, ArgumentException> invalid);

    /// <summary>Writes its fields of adapter_config.json.</summary>
    internal abstract void Write(JsonObject config);

    /// <summary>Columns of A and of B as they are stored.</summary>
    /// <param name="path">Module path.</param>
    /// <param name="narrow">Inputs of the site.</param>
    /// <param name="rank">Rank of the site.</param>
    internal virtual (long ColumnsOfA, long ColumnsOfB) Stored(string path, long narrow, long rank) => (narrow, rank);

    /// <summary>Trained numbers of a site beside A and B.</summary>
    internal virtual long CountBeside(int rank) => 0;

    /// <summary>Fresh factors as they are stored, or null for the ordinary ones.</summary>
    internal virtual (Tensor A, Tensor B)? Draw(Tensor weight, string path, int rank, Draws draws) => null;

    /// <summary>Adds parameters beside A and B.</summary>
    internal virtual void Add(LoraAdaptation adaptation, LoraFactors factors, string path, long seed)
    {
    }

    /// <summary>The patch of a site, or null for the ordinary one.</summary>
    internal abstract WeightPatch Patch(LoraFactors factors);

    /// <summary>Called before each forward.</summary>
    internal virtual void BeforePass(Pass pass, TokenBatch batch)
    {
    }

    /// <summary>A loss term, or null.</summary>
    internal virtual Tensor? ExtraLoss(LoraAdaptation adaptation, Pass pass) => null;

    /// <summary>Bias of the site as its adapter has it.</summary>
    private protected static Tensor? Bias(LoraFactors factors, Tensor? bias) =>
        factors.Bias is null || bias is null ? bias : factors.Bias.Value.to_type(bias.dtype);

    /// <summary>The variant that a configuration asks for, or null.</summary>
    /// <exception cref="ArgumentException">Several, or one with values that are not known.</exception>
    internal static LoraVariant? Read(JsonObject config)
    {
        LoraVariant?[] found =
        [
            Field(config, "kasa_config") is { } kasa ? new KasaVariant { Beta = AdapterConfig.Get(kasa, "beta", 1e-4), Gamma = AdapterConfig.Get(kasa, "gamma", 1e-3) } : null,
            Field(config, "use_bdlora") is { } blocks ? BlockDiagonalVariant.From(blocks) : null,
            AdapterConfig.List<int>(config, "alora_invocation_tokens") is { Count: > 0 } tokens ? new ActivatedVariant { InvocationTokens = [.. tokens] } : null,
            Field(config, "velora_config") is { } velora ? VeloraVariant.From(velora) : null,
            Field(config, "monteclora_config") is { } monte ? MonteCloraVariant.From(monte) : null,
            AdapterConfig.Get(config, "use_qalora", false) ? new QaLoraVariant { GroupSize = AdapterConfig.Get(config, "qalora_group_size", 16) } : null,
        ];
        LoraVariant[] all = [.. found.OfType<LoraVariant>()];
        if (all.Length > 1)
            throw new ArgumentException($"adapter_config.json asks for several variants of LoRA at once ({string.Join(", ", all.Select(v => v.GetType().Name))}); one is possible.");
        return all.FirstOrDefault();
    }

    private static JsonObject? Field(JsonObject config, string name) => config[name] switch
    {
        null => null,
        JsonObject table => table,
        var other => throw new ArgumentException($"adapter_config.json: the field '{name}' is {other.ToJsonString()}; expected is a table of options, or null.", name),
    };
}

public sealed partial class LoraOptions
{
    private void CheckVariant()
    {
        foreach ((string name, int[] ids) in TrainableTokens)
            if (ids.Length == 0 || ids.Any(id => id < 0) || ids.Distinct().Count() < ids.Length)
                throw Invalid($"{nameof(TrainableTokens)}['{name}']", $"[{string.Join(", ", ids)}]", "a list of different token ids, 0 or more");
        if (RiemannianDamping is { } damping && (!(damping > 0) || !double.IsFinite(damping))) throw Invalid(nameof(RiemannianDamping), damping, "null, or a finite number above 0");
        if (RiemannianDamping is not null && LoraFa != LoraFaMode.Off) throw Invalid(nameof(RiemannianDamping), RiemannianDamping, $"null with LoraFa = {LoraFa}");
        if (DataStart is not null)
        {
            DataStart.Validate((option, value, allowed) => Invalid($"{nameof(DataStart)}.{option}", value, allowed));
            string start = DataStart.GetType().Name;
            if (Init != "default") throw Invalid(nameof(Init), Init, $"default with DataStart = {start}");
            if (Variant is not null) throw Invalid(nameof(Variant), Variant.GetType().Name, $"null with DataStart = {start}");
            if (LoraBias) throw Invalid(nameof(LoraBias), LoraBias, $"false with DataStart = {start}");
            if (UseDora && DataStart.ChangesBase) throw Invalid(nameof(UseDora), UseDora, $"false with DataStart = {start}");
        }
        if (Variant is null) return;
        Variant.Validate((option, value, allowed) => Invalid($"{nameof(Variant)}.{option}", value, allowed));
        string name0 = Variant.GetType().Name;
        if (UseDora) throw Invalid(nameof(UseDora), UseDora, $"false with Variant = {name0}");
        if (LoraBias) throw Invalid(nameof(LoraBias), LoraBias, $"false with Variant = {name0}");
        if (LoraFa == LoraFaMode.Project) throw Invalid(nameof(LoraFa), LoraFa, $"Off or Freeze with Variant = {name0}");
        if (!LoraInit.Parse(Init).Plain) throw Invalid(nameof(Init), Init, $"default or gaussian with Variant = {name0}");
    }
}
