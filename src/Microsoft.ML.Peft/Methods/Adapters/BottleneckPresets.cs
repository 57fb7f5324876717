// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The preset of Houlsby et al. 2019 (arXiv 1902.00751, AdapterHub's double_seq_bn): after both parts, <c>LN(B(f) + f + x)</c>, swish.</summary>
public sealed class HoulsbyOptions : BottleneckOptions
{
    /// <summary>Makes the preset.</summary>
    public HoulsbyOptions() => (AfterAttention, OriginalNormBefore, NonLinearity) = (true, false, "swish");

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "houlsby";
}

/// <summary>The preset of Pfeiffer et al. 2020 (arXiv 2005.00052, AdapterHub's seq_bn): after the feed-forward part, <c>LN(B(LN(f + x)) + f + x)</c>, ReLU.</summary>
public sealed class PfeifferOptions : BottleneckOptions
{
    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "pfeiffer";
}

/// <summary>Language adapters of MAD-X (Pfeiffer et al. 2020, arXiv 2005.00052, AdapterHub's seq_bn_inv): <c>pfeiffer</c> with an invertible block on the embeddings.</summary>
public sealed class PfeifferInvertibleOptions : BottleneckOptions
{
    /// <summary>Makes the preset.</summary>
    public PfeifferInvertibleOptions() => Invertible = "nice";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "pfeiffer-inv";
}

/// <summary><c>houlsby</c> with an invertible block on the embeddings (AdapterHub's double_seq_bn_inv).</summary>
public sealed class HoulsbyInvertibleOptions : BottleneckOptions
{
    /// <summary>Makes the preset.</summary>
    public HoulsbyInvertibleOptions() => (AfterAttention, OriginalNormBefore, NonLinearity, Invertible) = (true, false, "swish", "nice");

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "houlsby-inv";
}

/// <summary>
/// Parallel adapters (He et al. 2022, arXiv 2110.04366, AdapterHub's par_bn): <c>LN(f + s B(x) + x)</c> beside the feed-forward
/// part, s = 4. A fresh adapter changes nothing.
/// </summary>
public class ParallelAdapterOptions : BottleneckOptions
{
    /// <summary>Makes the preset.</summary>
    public ParallelAdapterOptions() =>
        (Parallel, OriginalNormBefore, Init, ReductionFactor, Scaling) = (true, false, "mam_adapter", 2, "4");

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "parallel-adapter";
}

/// <summary>Parallel adapters whose factor s is trained (AdapterHub's scaled_par_bn).</summary>
public sealed class ScaledParallelAdapterOptions : ParallelAdapterOptions
{
    /// <summary>Makes the preset.</summary>
    public ScaledParallelAdapterOptions() => Scaling = "learned";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "scaled-parallel-adapter";
}

/// <summary>
/// Adapter+ (Steitz and Roth 2024, arXiv 2406.06820): after the feed-forward part, <c>y = s ⊙ B(h) + h</c> with h behind the
/// residual connection, one factor a channel, exact gelu, rows dropped whole while training.
/// </summary>
public sealed class AdapterPlusOptions : BottleneckOptions
{
    /// <summary>Makes the preset.</summary>
    public AdapterPlusOptions() =>
        (OriginalNormAfter, Residual, NonLinearity, ReductionFactor, Scaling, Init, StochasticDepth) =
        (false, BottleneckResidual.AfterNorm, "gelu", 96, "channel", "houlsby", 0.1);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "adapter-plus";
}

/// <summary>
/// Compacter (Karimi Mahabadi et al. 2021, arXiv 2106.04647): <c>houlsby</c> whose projections are sums of Kronecker products of
/// a rule that all layers share and rank-one factors. BERT-base: 57,088 numbers.
/// </summary>
public class CompacterOptions : BottleneckOptions
{
    /// <summary>Makes the preset.</summary>
    public CompacterOptions() =>
        (AfterAttention, OriginalNormBefore, NonLinearity, ReductionFactor, Phm) = (true, false, "gelu", 32, true);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "compacter";
}

/// <summary>Compacter++ (arXiv 2106.04647): Compacter after the feed-forward part alone. BERT-base: 28,576 numbers.</summary>
public sealed class CompacterPlusPlusOptions : CompacterOptions
{
    /// <summary>Makes the preset.</summary>
    public CompacterPlusPlusOptions() => (AfterAttention, OriginalNormBefore) = (false, true);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "compacter++";
}
