// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// VB-LoRA (Li, Han and Ji 2024, arXiv 2405.15179): A and B of every module are assembled of short vectors out of one bank
/// <c>[N, ℓ]</c> that all modules share. Each slot is the mixture of its k best vectors, weighted by the softmax of their logits;
/// logits <c>[r, in/ℓ, N]</c> and <c>[out/ℓ, r, N]</c>. <c>W' = W + B A</c>, no scaling. Trained numbers: N ℓ + r N (in + out)/ℓ a module.
/// A fresh adaptation is not quite the base model. Files may hold only the k indices and weights a slot; such an adapter scores
/// and merges but learns no more.
/// </summary>
public sealed class VbLoraOptions : BiasedMethod
{
    private const string Bank = "vblora_vector_bank", Indices = "_topk_indices", Weights = "_topk_weights";

    /// <summary>Rank r, 1 to 4096.</summary>
    public int Rank { get; set; } = 4;

    /// <summary>Vectors in the bank, 2 or more; at most 256 with <see cref="SaveOnlyTopkWeights"/>.</summary>
    public int NumVectors { get; set; } = 256;

    /// <summary>
    /// Length of a vector; divides the widths of all adapted modules. Null for the largest number up to 256 that does, which the
    /// adaptation's options then hold.
    /// </summary>
    public int? VectorLength { get; set; }

    /// <summary>Vectors mixed in a slot, 1 to <see cref="NumVectors"/>.</summary>
    public int Topk { get; set; } = 2;

    /// <summary>Share of the entries of x, in [0, 1), that the update does not see while training.</summary>
    public double Dropout { get; set; }

    /// <summary>Fresh vectors are uniform in ± this.</summary>
    public double InitVectorBankBound { get; set; } = 0.02;

    /// <summary>Standard deviation of fresh logits.</summary>
    public double InitLogitsStd { get; set; } = 0.1;

    /// <summary>True to write files with the k indices and weights a slot in place of all logits: small, and no more to be trained.</summary>
    public bool SaveOnlyTopkWeights { get; set; }

    /// <summary>True where this is such an adapter: k indices and weights a slot, nothing trained.</summary>
    public bool OnlyTopk { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "vblora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "N (r (in + out) / ℓ) a site, N ℓ once";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 5e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "VBLORA";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (NumVectors < 2) throw Invalid(nameof(NumVectors), NumVectors, "2 or more");
        if (SaveOnlyTopkWeights && NumVectors > 256) throw Invalid(nameof(NumVectors), NumVectors, "2 to 256 with SaveOnlyTopkWeights, whose files keep indices as bytes");
        if (VectorLength < 1) throw Invalid(nameof(VectorLength), VectorLength, "null, or 1 or more");
        if (Topk < 1 || Topk > NumVectors) throw Invalid(nameof(Topk), Topk, $"1 to NumVectors = {NumVectors}");
        CheckShare(nameof(Dropout), Dropout);
        if (!(InitVectorBankBound > 0)) throw Invalid(nameof(InitVectorBankBound), InitVectorBankBound, "above 0");
        if (!(InitLogitsStd >= 0)) throw Invalid(nameof(InitLogitsStd), InitLogitsStd, "0 or more");
    }

    /// <inheritdoc/>
    protected override SiteMethod? FitTo(IReadOnlyList<WeightSite> sites)
    {
        if (VectorLength is not null) return null;
        var fitted = (VbLoraOptions)MemberwiseClone();
        fitted.VectorLength = CommonDivisor(sites, 256);
        return fitted;
    }

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed) => adaptation.Add(
        new NamedParameter(Bank, new Draws(seed, Bank).Uniform(InitVectorBankBound, NumVectors, VectorLength!.Value).to(adaptation.Backbone.Device), !OnlyTopk)
        {
            FileKey = "base_model." + Bank,
        });

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        (long columns, long rows) = Slots(site, path);
        NamedParameter bank = adaptation.Find(Bank)!;
        Func<Tensor> a = Slot(adaptation, bank, $"{path}.vblora_logits_A", seed, Rank, columns);
        Func<Tensor> b = Slot(adaptation, bank, $"{path}.vblora_logits_B", seed, rows, Rank);
        adaptation.Attach(site, new TermsPatch(_ =>
        {
            Tensor first = a().reshape(Rank, -1);                                                        // [r, in]
            Tensor second = b().transpose(1, 2).reshape(site.Weight.shape[0], Rank);                     // [out, r]
            return [new LowRankTerm(first, second, 1, null, Dropout)];
        }));
    }

    // The mixed vectors of all slots, [first, second, ℓ].
    private Func<Tensor> Slot(PeftAdaptation adaptation, NamedParameter bank, string name, long seed, long first, long second)
    {
        if (!OnlyTopk)
        {
            NamedParameter logits = Add(adaptation, name, new Draws(seed, name).Normal(InitLogitsStd, first, second, NumVectors));
            return () =>
            {
                (Tensor best, Tensor which) = logits.Value.topk(Topk);
                return Mix(best.softmax(-1), which, bank.Value);
            };
        }
        NamedParameter indices = Add(adaptation, name + Indices, zeros([first, second, Topk], dtype: ScalarType.Byte), trainable: false);
        NamedParameter weights = Add(adaptation, name + Weights, full([first, second, Topk - 1], 1.0 / Topk), trainable: false);
        return () => Mix(cat([weights.Value, 1 - weights.Value.sum(-1, keepdim: true)], -1), indices.Value.to_type(ScalarType.Int64), bank.Value);
    }

    private static Tensor Mix(Tensor weights, Tensor which, Tensor bank)
    {
        Tensor vectors = bank.index_select(0, which.reshape(-1)).reshape((long[])[.. which.shape, bank.shape[1]]);
        return (weights.unsqueeze(-1) * vectors).sum(-2L);
    }

    private (long Columns, long Rows) Slots(WeightSite site, string path)
    {
        (long rows, long columns, int length) = (site.Weight.shape[0], site.Weight.shape[1], VectorLength!.Value);
        if (rows % length != 0 || columns % length != 0)
            throw Invalid(nameof(VectorLength), length, $"a divisor of {rows} and {columns}, the widths of {path}");
        return (columns / length, rows / length);
    }

    /// <inheritdoc/>
    protected override long CountShared(Backbone backbone, IReadOnlyList<WeightSite> sites) => OnlyTopk ? 0 : (long)NumVectors * VectorLength!.Value;

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path)
    {
        (long columns, long rows) = Slots(site, path);
        return OnlyTopk ? 0 : (long)Rank * NumVectors * (columns + rows);
    }

    /// <summary>With <see cref="SaveOnlyTopkWeights"/>: an adaptation of the k indices and weights a slot.</summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        if (!SaveOnlyTopkWeights || OnlyTopk) return adaptation;
        var small = (VbLoraOptions)MemberwiseClone();
        small.OnlyTopk = true;
        using var scope = NewDisposeScope();
        using var off = no_grad();
        PeftAdaptation made = small.Attach(adaptation.Backbone, 0);
        foreach (NamedParameter parameter in made.Parameters)
        {
            bool indices = parameter.Name.EndsWith(Indices, StringComparison.Ordinal), weights = parameter.Name.EndsWith(Weights, StringComparison.Ordinal);
            if (!indices && !weights) parameter.Load(adaptation.Find(parameter.Name)!.Value);
            else
            {
                (Tensor best, Tensor which) = adaptation.Find(parameter.Name[..^Indices.Length])!.Value.topk(Topk);
                parameter.Load(indices ? which : best.softmax(-1).narrow(-1, 0, Topk - 1));
            }
        }
        return made;
    }

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes) =>
        OnlyTopk = shapes.Keys.Any(key => key.EndsWith(Indices, StringComparison.Ordinal));

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        ReadBias(config);
        Rank = AdapterConfig.Get(config, "r", 4);
        NumVectors = AdapterConfig.Get(config, "num_vectors", 256);
        VectorLength = AdapterConfig.Get(config, "vector_length", 256);
        Topk = AdapterConfig.Get(config, "topk", 2);
        Dropout = AdapterConfig.Get(config, "vblora_dropout", 0.0);
        InitVectorBankBound = AdapterConfig.Get(config, "init_vector_bank_bound", 0.02);
        InitLogitsStd = AdapterConfig.Get(config, "init_logits_std", 0.1);
        SaveOnlyTopkWeights = AdapterConfig.Get(config, "save_only_topk_weights", false);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["r"] = Rank;
        config["num_vectors"] = NumVectors;
        config["vector_length"] = VectorLength;
        config["topk"] = Topk;
        config["vblora_dropout"] = Dropout;
        config["init_vector_bank_bound"] = InitVectorBankBound;
        config["init_logits_std"] = InitLogitsStd;
        config["save_only_topk_weights"] = SaveOnlyTopkWeights;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
    }
}
