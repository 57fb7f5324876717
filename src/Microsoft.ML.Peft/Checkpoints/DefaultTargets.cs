// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// What Hugging Face PEFT adapts where an adapter_config.json has no <c>target_modules</c>, by <c>peft_type</c> and
/// <c>model_type</c>. Options that are made in code have defaults of their own: the roles of each method.
/// </summary>
internal static class DefaultTargets
{
    private const string Attention = """
        bart q_proj v_proj; bert query value; deberta-v2 query_proj value_proj; electra query value; gemma q_proj v_proj;
        gemma2 q_proj v_proj; gpt2 c_attn; llama q_proj v_proj; mistral q_proj v_proj; mt5 q v; opt q_proj v_proj;
        phi fc1 fc2 q_proj v_proj; qwen2 q_proj v_proj; roberta query value; t5 q v; xlm-roberta query value
        """;

    private const string Wide = """
        bart fc1 fc2 k_proj out_proj q_proj v_proj; bert query value; deberta-v2 dense key_proj query_proj value_proj;
        gemma q_proj v_proj; gemma2 q_proj v_proj; gpt2 c_attn; llama q_proj v_proj; mt5 k o q v wi_0 wi_1 wo;
        opt fc1 fc2 k_proj out_proj q_proj v_proj; qwen2 q_proj v_proj; roberta query value; t5 k o q v wi wo
        """;

    private const string Values = """
        bart v_proj; bert value; deberta-v2 value_proj; gemma v_proj; gemma2 v_proj; llama v_proj; mistral v_proj; mt5 v;
        opt v_proj; phi v_proj; qwen2 v_proj; roberta value; t5 v
        """;

    private const string Scaled = """
        bart fc2 q_proj v_proj; bert key output.dense value; deberta-v2 key_proj output.dense value_proj;
        gemma down_proj q_proj v_proj; gemma2 down_proj q_proj v_proj; gpt2 c_attn mlp.c_proj; llama down_proj k_proj v_proj;
        mistral down_proj k_proj v_proj; mt5 k v wi_1; opt fc2 k_proj q_proj; phi fc2 q_proj v_proj;
        qwen2 down_proj q_proj v_proj; roberta key output.dense value; t5 k v wo
        """;

    private const string ScaledInputs = """
        bart fc2; bert output.dense; deberta-v2 output.dense; gemma down_proj; gemma2 down_proj; gpt2 mlp.c_proj;
        llama down_proj; mistral down_proj; mt5; opt fc2; phi fc2; qwen2 down_proj; roberta output.dense; t5 wo
        """;

    private const string Norms = """
        bart encoder_attn_layer_norm final_layer_norm self_attn_layer_norm; gemma input_layernorm norm post_attention_layernorm;
        gemma2 input_layernorm norm post_attention_layernorm post_feedforward_layernorm pre_feedforward_layernorm;
        gpt2 ln_1 ln_2 ln_f; llama input_layernorm norm post_attention_layernorm;
        mistral input_layernorm norm post_attention_layernorm; mt5 final_layer_norm layer_norm;
        phi final_layernorm input_layernorm; qwen2 post_attention_layernorm; t5 final_layer_norm layer_norm
        """;

    private const string Gated = "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj";

    private const string All = $"""
        gemma {Gated}; gemma2 {Gated}; gpt2 c_attn c_proj; llama {Gated}; mistral {Gated};
        opt fc1 fc2 k_proj out_proj q_proj v_proj; phi {Gated}; qwen2 {Gated}
        """;

    private static readonly Dictionary<string, Dictionary<string, string[]>> _tables = Tables();

    private static readonly Dictionary<string, string[]> _scaledInputs = Table(ScaledInputs);

    private static Dictionary<string, Dictionary<string, string[]>> Tables()
    {
        var tables = new Dictionary<string, Dictionary<string, string[]>>(StringComparer.Ordinal)
        {
            ["ADALORA"] = Table($"{Wide}; roberta dense key query value"),
            ["ADAMSS"] = Table($"{Attention}; vit query value"),
            ["BEFT"] = Table(Values),
            ["FROD"] = Table($"{Attention}; phi q_proj v_proj; vit query value"),
            ["IA3"] = Table(Scaled),
            ["LN_TUNING"] = Table(Norms),
            ["OSF"] = Table(All),
            ["VBLORA"] = Table(Wide),
        };
        foreach (string type in (string[])["BOFT", "DEFT", "DELORA", "GLORA", "GRALORA", "HIRA", "HRA", "LILY", "LOHA", "LOKR", "LORA", "MISS",
            "OFT", "PEANUT", "POLY", "PSOFT", "RANDLORA", "ROAD", "SUPERTUNING", "TINYLORA", "UNILORA"]) tables[type] = Table(Attention);
        foreach (string type in (string[])["C3A", "FOURIERFT", "WAVEFT"]) tables[type] = Table($"{Attention}; gpt2 mlp.c_proj");
        foreach (string type in (string[])["PVERA", "SHIRA", "VERA"]) tables[type] = Table($"{Attention}; phi q_proj v_proj");
        return tables;
    }

    // "model name name; model name": a later entry of a model replaces an earlier one.
    private static Dictionary<string, string[]> Table(string text)
    {
        var table = new Dictionary<string, string[]>(StringComparer.Ordinal);
        foreach (string entry in text.Split(';'))
        {
            string[] words = entry.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);
            table[words[0]] = words[1..];
        }
        return table;
    }

    /// <summary>The module names of a model type.</summary>
    /// <param name="peftType">The <c>peft_type</c>.</param>
    /// <param name="modelType">The <c>model_type</c>.</param>
    /// <returns>Names; null where there is no default.</returns>
    public static IReadOnlyList<string>? Of(string peftType, string modelType) =>
        _tables.TryGetValue(peftType, out Dictionary<string, string[]>? table) ? table.GetValueOrDefault(modelType) : null;

    /// <summary>The model types for which a <c>peft_type</c> has defaults; empty where it has none at all.</summary>
    /// <param name="peftType">The <c>peft_type</c>.</param>
    public static IReadOnlyCollection<string> Models(string peftType) =>
        _tables.TryGetValue(peftType, out Dictionary<string, string[]>? table) ? table.Keys : [];

    /// <summary>IA3's <c>feedforward_modules</c>: those of its targets whose input is scaled; null where there is no default.</summary>
    /// <param name="modelType">The <c>model_type</c>.</param>
    public static IReadOnlyList<string>? ScaledInputsOf(string modelType) => _scaledInputs.GetValueOrDefault(modelType);
}
