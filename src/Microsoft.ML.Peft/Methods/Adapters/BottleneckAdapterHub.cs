// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Methods;

// The fields of AdapterHub's configuration of a bottleneck adapter.
public partial class BottleneckOptions
{
    string? IAdapterHubMethod.Architecture => null;

    void IAdapterHubMethod.ReadAdapterHub(JsonObject config)
    {
        if (!config.ContainsKey("reduction_factor") || !config.ContainsKey("non_linearity"))
            throw new ArgumentException("the fields 'reduction_factor' and 'non_linearity' are missing: this is no bottleneck adapter.");
        AfterAttention = AdapterConfig.Get(config, "mh_adapter", false);
        AfterCrossAttention = AdapterConfig.Get(config, "cross_adapter", false);
        AfterFeedForward = AdapterConfig.Get(config, "output_adapter", true);
        NonLinearity = AdapterConfig.Get(config, "non_linearity", "relu");
        OriginalNormBefore = AdapterConfig.Get(config, "original_ln_before", false);
        OriginalNormAfter = AdapterConfig.Get(config, "original_ln_after", true);
        OwnNormBefore = AdapterConfig.Get(config, "ln_before", false);
        OwnNormAfter = AdapterConfig.Get(config, "ln_after", false);
        ResidualInsideOwnNorm = AdapterConfig.Get(config, "adapter_residual_before_ln", false);
        Parallel = AdapterConfig.Get(config, "is_parallel", false);
        Gate = AdapterConfig.Get(config, "use_gating", false);
        Dropout = AdapterConfig.Get(config, "dropout", 0.0);
        StochasticDepth = AdapterConfig.Get(config, "stochastic_depth", 0.0);
        Init = AdapterConfig.Get(config, "init_weights", "bert");
        InitSeed = HubNames.ReadSeed(config);
        LeaveOut = HubNames.Numbers(config, "leave_out");
        Scaling = config["scaling"] is JsonValue v && v.TryGetValue(out string? word) ? word
            : AdapterConfig.Get(config, "scaling", 1.0).ToString("R", CultureInfo.InvariantCulture);
        Residual = config["residual_before_ln"] is JsonValue r && r.TryGetValue(out string? post)
            ? post == "post_add" ? BottleneckResidual.PostAdd : throw new ArgumentException($"the field 'residual_before_ln' is '{post}'; expected is true, false or 'post_add'.")
            : AdapterConfig.Get(config, "residual_before_ln", true) ? BottleneckResidual.BeforeNorm : BottleneckResidual.AfterNorm;
        Invertible = AdapterConfig.Get<string?>(config, "inv_adapter", null);
        InvertibleReductionFactor = HubNames.OptionalNumber(config, "inv_adapter_reduction_factor") ?? 2;
        ReadReduction(config);
        ReadPhm(config);
    }

    private void ReadReduction(JsonObject config)
    {
        if (config["reduction_factor"] is not JsonObject)
        {
            ReductionFactor = AdapterConfig.Get(config, "reduction_factor", 16.0);
            ReductionFactors = [];
            return;
        }
        OrderedDictionary<string, double> map = AdapterConfig.Table(config, "reduction_factor");
        ReductionFactor = map.TryGetValue("default", out double rest) ? rest
            : throw new ArgumentException("the field 'reduction_factor' has no entry 'default' for the layers that it does not name.", "reduction_factor");
        map.Remove("default");
        ReductionFactors = map;
    }

    private void ReadPhm(JsonObject config)
    {
        Phm = AdapterConfig.Get(config, "phm_layer", false);
        PhmDimension = AdapterConfig.Get(config, "phm_dim", 4);
        PhmRank = AdapterConfig.Get(config, "phm_rank", 1);
        PhmBias = AdapterConfig.Get(config, "phm_bias", true);
        PhmRuleInit = AdapterConfig.Get(config, "phm_c_init", "normal");
        PhmRuleRange = AdapterConfig.Get(config, "phm_init_range", 0.0001);
        PhmWeightInit = AdapterConfig.Get(config, "hypercomplex_nonlinearity", "glorot-uniform");
        FactorizedPhmWeights = AdapterConfig.Get(config, "factorized_phm_W", true);
        FactorizedPhmRule = AdapterConfig.Get(config, "factorized_phm_rule", false);
        SharedPhmRule = AdapterConfig.Get(config, "shared_phm_rule", true);
        SharedPhmWeights = AdapterConfig.Get(config, "shared_W_phm", false);
        LearnPhmRule = AdapterConfig.Get(config, "learn_phm", true);
    }

    JsonObject IAdapterHubMethod.WriteAdapterHub()
    {
        JsonNode reduction = AdapterConfig.Number(ReductionFactor);
        if (ReductionFactors.Count > 0)
            reduction = new JsonObject(ReductionFactors.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)AdapterConfig.Number(p.Value)))) { ["default"] = reduction };
        return new JsonObject
        {
            ["adapter_residual_before_ln"] = ResidualInsideOwnNorm,
            ["cross_adapter"] = AfterCrossAttention,
            ["dropout"] = Dropout,
            ["factorized_phm_W"] = FactorizedPhmWeights,
            ["factorized_phm_rule"] = FactorizedPhmRule,
            ["hypercomplex_nonlinearity"] = PhmWeightInit,
            ["init_weights"] = Init,
            ["init_weights_seed"] = HubNames.Seed(InitSeed),
            ["inv_adapter"] = Invertible,
            ["inv_adapter_reduction_factor"] = Invertible is null ? null : AdapterConfig.Number(InvertibleReductionFactor),
            ["is_parallel"] = Parallel,
            ["learn_phm"] = LearnPhmRule,
            ["leave_out"] = AdapterConfig.Array(LeaveOut),
            ["ln_after"] = OwnNormAfter,
            ["ln_before"] = OwnNormBefore,
            ["mh_adapter"] = AfterAttention,
            ["non_linearity"] = NonLinearity,
            ["original_ln_after"] = OriginalNormAfter,
            ["original_ln_before"] = OriginalNormBefore,
            ["output_adapter"] = AfterFeedForward,
            ["phm_bias"] = PhmBias,
            ["phm_c_init"] = PhmRuleInit,
            ["phm_dim"] = PhmDimension,
            ["phm_init_range"] = PhmRuleRange,
            ["phm_layer"] = Phm,
            ["phm_rank"] = PhmRank,
            ["reduction_factor"] = reduction,
            ["residual_before_ln"] = Residual switch
            {
                BottleneckResidual.BeforeNorm => true,
                BottleneckResidual.AfterNorm => false,
                _ => "post_add",
            },
            ["scaling"] = Constant is { } s ? s : Scaling,
            ["shared_W_phm"] = SharedPhmWeights,
            ["shared_phm_rule"] = SharedPhmRule,
            ["stochastic_depth"] = StochasticDepth,
            ["use_gating"] = Gate,
        };
    }
}
