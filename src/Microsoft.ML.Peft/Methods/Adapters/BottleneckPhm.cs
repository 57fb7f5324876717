// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Methods;

// The options of hypercomplex projections (Compacter).
public partial class BottleneckOptions
{
    /// <summary>True for Compacter's projections, <c>W = Σ_i A_i ⊗ B_i</c> (arXiv 2106.04647).</summary>
    public bool Phm { get; set; }

    /// <summary>n: number and size of the matrices A_i; divides hidden and bottleneck width.</summary>
    public int PhmDimension { get; set; } = 4;

    /// <summary>Rank of the factors of each B_i, 1 or more.</summary>
    public int PhmRank { get; set; } = 1;

    /// <summary>True for biases in both projections.</summary>
    public bool PhmBias { get; set; } = true;

    /// <summary>Initial values of the rule A: <c>normal</c> or <c>uniform</c>.</summary>
    public string PhmRuleInit { get; set; } = "normal";

    /// <summary>Deviation (or bound) of the initial values of a shared rule, above 0; an unshared one starts with 0.01.</summary>
    public double PhmRuleRange { get; set; } = 1e-4;

    /// <summary>Initial values of B: <c>glorot-uniform</c>, <c>glorot-normal</c> (both with gain √2) or <c>normal</c> (deviation <see cref="PhmRuleRange"/>).</summary>
    public string PhmWeightInit { get; set; } = "glorot-uniform";

    /// <summary>True for B_i as a product of two factors of <see cref="PhmRank"/>, false for whole matrices.</summary>
    public bool FactorizedPhmWeights { get; set; } = true;

    /// <summary>True for A_i as a product of two vectors.</summary>
    public bool FactorizedPhmRule { get; set; }

    /// <summary>True for one rule for all projections of all layers.</summary>
    public bool SharedPhmRule { get; set; } = true;

    /// <summary>True for one B for all down projections and one for all up projections.</summary>
    public bool SharedPhmWeights { get; set; }

    /// <summary>False to keep the rule as it was drawn.</summary>
    public bool LearnPhmRule { get; set; } = true;

    private void ValidatePhm()
    {
        if (PhmDimension < 1) throw Invalid(nameof(PhmDimension), PhmDimension, "1 or more");
        if (PhmRank < 1) throw Invalid(nameof(PhmRank), PhmRank, "1 or more");
        if (!(PhmRuleRange > 0) || !double.IsFinite(PhmRuleRange)) throw Invalid(nameof(PhmRuleRange), PhmRuleRange, "a finite number above 0");
        if (PhmRuleInit is not ("normal" or "uniform")) throw Invalid(nameof(PhmRuleInit), $"'{PhmRuleInit}'", "normal or uniform");
        if (PhmWeightInit is not ("glorot-uniform" or "glorot-normal" or "normal")) throw Invalid(nameof(PhmWeightInit), $"'{PhmWeightInit}'", "glorot-uniform, glorot-normal or normal");
        if (Init == "mam_adapter") throw Invalid(nameof(Init), "'mam_adapter'", "bert with Phm: a Kronecker product has no up projection to set to 0");
        if (SharedPhmWeights && !FactorizedPhmWeights) throw Invalid(nameof(SharedPhmWeights), true, "false where FactorizedPhmWeights is false");
        if (SharedPhmWeights && ReductionFactors.Count > 0) throw Invalid(nameof(SharedPhmWeights), true, "false where ReductionFactors gives layers widths of their own");
    }

    private int CheckedWidth(int d, int layer)
    {
        int m = Width(d, layer), n = PhmDimension;
        if (!Phm) return m;
        if (d % n != 0 || m % n != 0)
            throw Invalid(nameof(PhmDimension), n, $"a divisor of the hidden width {d} and the bottleneck width {m}: {string.Join(", ", Enumerable.Range(1, m).Where(k => d % k == 0 && m % k == 0))}");
        if (FactorizedPhmWeights && PhmRank > Math.Min(d, m) / n)
            throw Invalid(nameof(PhmRank), PhmRank, $"at most {Math.Min(d, m) / n}, the smaller of {d} / {n} and {m} / {n}");
        return m;
    }
}
