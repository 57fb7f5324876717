// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Parameterised hypercomplex products (Zhang et al. 2021; Karimi Mahabadi et al. 2021, arXiv 2106.04647):
/// <c>y = x W + b</c>, <c>W = Σ_i A_i ⊗ B_i</c>, x a row; A <c>[n, n, n]</c>, B <c>[n, in / n, out / n]</c>.
/// </summary>
internal static class PhmProduct
{
    /// <summary>The sum of Kronecker products: entry (a p, c q) is <c>Σ_i A_i[a, c] B_i[p, q]</c>.</summary>
    /// <param name="rule">A, <c>[n, n, n]</c>.</param>
    /// <param name="weights">B, <c>[n, p, q]</c>.</param>
    /// <returns><c>[n p, n q]</c>.</returns>
    public static Tensor Weight(Tensor rule, Tensor weights)
    {
        long n = rule.shape[0], p = weights.shape[1], q = weights.shape[2];
        // One product over i, then the axes (a, c, p, q) are put in order.
        Tensor all = rule.reshape(n, n * n).t().matmul(weights.reshape(n, p * q));
        return all.view(n, n, p, q).permute(0, 2, 1, 3).reshape(n * p, n * q);
    }

    /// <summary>The product <c>x W + b</c>.</summary>
    /// <param name="x">Rows <c>[..., in]</c>.</param>
    /// <param name="rule">A.</param>
    /// <param name="weights">B.</param>
    /// <param name="bias">b <c>[out]</c>, or null.</param>
    public static Tensor Apply(Tensor x, Tensor rule, Tensor weights, Tensor? bias)
    {
        Tensor y = x.matmul(Weight(rule, weights));
        return bias is null ? y : y + bias;
    }
}

/// <summary>The hypercomplex projections of one adaptation: what its places share is made once.</summary>
internal sealed class PhmLayers
{
    private readonly BottleneckOptions _options;
    private readonly Func<string, bool, bool, Func<Draws, Tensor>, NamedParameter> _add;
    private readonly string _shared;
    private readonly Func<Tensor>? _sharedRule;
    private readonly Dictionary<string, Func<Tensor>> _sharedWeights = [];

    /// <param name="options">The options.</param>
    /// <param name="shared">Path of what is shared.</param>
    /// <param name="add">Owns a parameter: name, trained, decays, initial values.</param>
    public PhmLayers(BottleneckOptions options, string shared, Func<string, bool, bool, Func<Draws, Tensor>, NamedParameter> add)
    {
        (_options, _shared, _add) = (options, shared, add);
        if (options.SharedPhmRule) _sharedRule = Rule(shared, options.PhmRuleRange);
    }

    /// <summary>Makes one projection.</summary>
    /// <param name="path">Path of the projection.</param>
    /// <param name="which"><c>down</c> or <c>up</c>.</param>
    /// <param name="inputs">Width of what it reads.</param>
    /// <param name="outputs">Width of what it gives.</param>
    public Func<Tensor, Tensor> Make(string path, string which, int inputs, int outputs)
    {
        // An unshared rule starts a hundred times larger: 0.01, as the papers have it.
        Func<Tensor> rule = _sharedRule ?? Rule(path, 0.01), weights;
        if (!_options.SharedPhmWeights) weights = Weights($"{path}.W", inputs, outputs);
        else if (!_sharedWeights.TryGetValue(which, out weights!)) _sharedWeights[which] = weights = Weights($"{_shared}.W_{which}", inputs, outputs);
        NamedParameter? bias = _options.PhmBias ? _add($"{path}.b", true, false, _ => zeros([outputs])) : null;
        return x => PhmProduct.Apply(x, rule(), weights(), bias?.Value);
    }

    // The rule starts near 0, so decay would only hold it there.
    private Func<Tensor> Rule(string path, double range)
    {
        int n = _options.PhmDimension;
        Tensor Draw(Draws draws, params long[] shape) => _options.PhmRuleInit == "uniform" ? draws.Uniform(range, shape) : draws.Normal(range, shape);
        if (!_options.FactorizedPhmRule)
        {
            NamedParameter whole = _add($"{path}.phm_rule", _options.LearnPhmRule, false, draws => Draw(draws, n, n, n));
            return () => whole.Value;
        }
        NamedParameter left = _add($"{path}.phm_rule_left", _options.LearnPhmRule, false, draws => Draw(draws, n, n, 1));
        NamedParameter right = _add($"{path}.phm_rule_right", _options.LearnPhmRule, false, draws => Draw(draws, n, 1, n));
        return () => left.Value.matmul(right.Value);
    }

    private Func<Tensor> Weights(string path, int inputs, int outputs)
    {
        int n = _options.PhmDimension, r = _options.PhmRank, p = inputs / n, q = outputs / n;
        if (!_options.FactorizedPhmWeights)
        {
            NamedParameter whole = _add(path, true, true, draws => Draw(draws, n, p, q));
            return () => whole.Value;
        }
        NamedParameter left = _add($"{path}_left", true, true, draws => Draw(draws, n, p, r));
        NamedParameter right = _add($"{path}_right", true, true, draws => Draw(draws, n, r, q));
        return () => left.Value.matmul(right.Value);
    }

    // Glorot of each matrix by itself, with gain √2.
    private Tensor Draw(Draws draws, long n, long rows, long columns) => _options.PhmWeightInit switch
    {
        "glorot-uniform" => draws.Uniform(Math.Sqrt(12.0 / (rows + columns)), n, rows, columns),
        "glorot-normal" => draws.Normal(Math.Sqrt(4.0 / (rows + columns)), n, rows, columns),
        _ => draws.Normal(_options.PhmRuleRange, n, rows, columns),
    };

    /// <summary>Trained numbers of one projection, without what is shared.</summary>
    public static long CountOwn(BottleneckOptions o, long inputs, long outputs) =>
        (o.SharedPhmWeights ? 0 : CountWeights(o, inputs, outputs)) + (o.SharedPhmRule ? 0 : CountRule(o)) + (o.PhmBias ? outputs : 0);

    /// <summary>Trained numbers that all places share.</summary>
    public static long CountShared(BottleneckOptions o, long hidden, long width) =>
        (o.SharedPhmRule ? CountRule(o) : 0) + (o.SharedPhmWeights ? CountWeights(o, hidden, width) + CountWeights(o, width, hidden) : 0);

    private static long CountRule(BottleneckOptions o)
    {
        long n = o.PhmDimension;
        return !o.LearnPhmRule ? 0 : o.FactorizedPhmRule ? 2 * n * n : n * n * n;
    }

    private static long CountWeights(BottleneckOptions o, long inputs, long outputs) =>
        o.FactorizedPhmWeights ? o.PhmRank * (inputs + outputs) : inputs * outputs / o.PhmDimension;
}
