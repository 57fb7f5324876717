// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// VeRA (Kopiczko, Blankevoort and Asano 2024, arXiv 2310.11454): <c>y = W x + b + λ_b ⊙ B (λ_d ⊙ (A drop(x)))</c>, with one
/// frozen random pair <c>A [r, widest in]</c>, <c>B [widest out, r]</c> for all modules. Trained are <c>λ_b [out]</c> (0 at
/// first) and <c>λ_d [r]</c>: r + out numbers a module. Merging adds <c>diag(λ_b) B diag(λ_d) A</c>.
/// </summary>
public sealed class VeraOptions : VeraMethod
{
    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "vera";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r + out a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "VERA";

    private protected override string Word => "vera";

    // The vector over the rank goes to B: the smaller matrix in wide maps, and A stays as it is.
    private protected override WeightPatch Patch(VeraParts parts) =>
        new TermsPatch(_ => [new LowRankTerm(parts.A, parts.B * parts.LambdaD.Value, 1, null, Dropout)]);
}
