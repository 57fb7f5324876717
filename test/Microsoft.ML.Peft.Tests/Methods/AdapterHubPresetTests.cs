// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>AdapterHub's presets: every field of every one, older names, refused settings, trained numbers of real sizes.</summary>
[TestClass]
[TestCategory("Fixtures")]
public class AdapterHubPresetTests
{
    private static IEnumerable<Fixture> Cases() =>
        Shared.Cases("adapterhub").Select(folder => new Fixture(folder)).Where(fixture => fixture.Json.ContainsKey("presets"));

    // One preset has no name there, only a class.
    private static string NameOf(string key) => key == "(AdapterPlusConfig)" ? "adapterplus" : key;

    [TestMethod]
    public void EveryFieldOfEveryPresetIsThePackages()
    {
        List<string> wrong = [];
        foreach (Fixture fixture in Cases())
            foreach ((string key, JsonNode? preset) in fixture.Json["presets"]!.AsObject())
            {
                PeftMethod method = AdapterHubPresets.Create(NameOf(key));
                var expected = preset!["fields"]!.DeepClone().AsObject();
                JsonObject found = AdapterHubPresets.Configuration(NameOf(key));
                // Part of the class there, and so in no file; here only the form that files cannot say otherwise writes it.
                if (expected.Remove("subtract_projection", out JsonNode? subtract))
                {
                    if (method is not ReftOptions reft || reft.SubtractProjection != (bool)subtract!) wrong.Add($"{key}: subtract_projection");
                    found.Remove("subtract_projection");
                }
                foreach ((string field, JsonNode? value) in expected)
                    if (!HfBases.Same(value, found[field])) wrong.Add($"{key}: {field} is {found[field]?.ToJsonString() ?? "null"}, expected {value?.ToJsonString() ?? "null"}");
                foreach ((string field, JsonNode? _) in found)
                    if (!expected.ContainsKey(field)) wrong.Add($"{key}: {field} is no field there");
                method.Validate();
                PeftMethod read = AdapterHubFolder.Parse(found, "x");
                Assert.IsTrue(HfBases.Same(((IAdapterHubMethod)read).WriteAdapterHub(), found), $"{key} reads as it is written");
            }
        Assert.AreEqual("", string.Join("\n", wrong));
    }

    [TestMethod]
    public void OlderNamesAreKept()
    {
        foreach (Fixture fixture in Cases())
        {
            Dictionary<string, string> expected = fixture.Json["deprecated_aliases"]!.AsObject().ToDictionary(p => p.Key, p => (string)p.Value!);
            CollectionAssert.AreEquivalent(expected.ToList(), AdapterHubPresets.OlderNames.ToList());
            foreach ((string old, string name) in expected)
                Assert.IsTrue(JsonNode.DeepEquals(AdapterHubPresets.Configuration(old), AdapterHubPresets.Configuration(name)), old);
        }
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => AdapterHubPresets.Create("seq_bm")).Message, "seq_bn");
    }

    // What the package refuses, and what is done here: refused as well, or computed where a formula says how.
    private static readonly Dictionary<string, Func<PeftMethod>?> _refused = new()
    {
        ["MTLLoRAConfig(task_specific_matrix_type='linear')"] = () => Read("mtl_lora", ("task_specific_matrix_type", "linear")),
        ["VeRA with intermediate_lora or output_lora"] = () => Read("vera", ("intermediate_lora", true)),
        ["inv_adapter='glow'"] = () => Read("seq_bn_inv", ("inv_adapter", "glow")),
        ["phm_layer with init_weights='mam_adapter'"] = () => Read("compacter", ("init_weights", "mam_adapter")),
        ["shared_W_phm=True with factorized_phm_W=False"] = () => Read("compacter", ("shared_W_phm", true), ("factorized_phm_W", false)),
        ["invertible adapters on ViT"] = null,                                    // see the counts
        ["prompt_tuning on GPT-2 and T5"] = null,                                 // a formula says how
        ["residual_before_ln='post_add' on a pre-LN backbone"] = null,            // a formula says how
        ["scaling given as an integer"] = null,                                   // a whole number is a number
        ["stochastic_depth > 0"] = null,                                          // needs no package here
        ["vera, dora, dvora, mtl_lora on GPT-2"] = null,                          // see the counts
    };

    private static PeftMethod Read(string preset, params (string Field, JsonNode? Value)[] changes)
    {
        JsonObject config = AdapterHubPresets.Configuration(preset);
        foreach ((string field, JsonNode? value) in changes) config[field] = value;
        return AdapterHubFolder.Parse(config, "task");
    }

    [TestMethod]
    public void RefusedSettingsAreRefused()
    {
        foreach (Fixture fixture in Cases())
            foreach ((string setting, JsonNode? _) in fixture.Json["refused_settings"]!.AsObject())
            {
                Assert.IsTrue(_refused.TryGetValue(setting, out Func<PeftMethod>? make), $"no answer to '{setting}'");
                if (make is not null) Assert.ThrowsExactly<ArgumentException>(() => make().Validate(), setting);
            }
    }

    private static readonly Dictionary<string, string> _real = new()
    {
        ["bert-base"] = """{"model_type": "bert"}""",
        ["roberta-base"] = """{"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}""",
        ["gpt2"] = """{"model_type": "gpt2"}""",
        ["t5-base"] = """{"model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12, "vocab_size": 32128}""",
        ["vit-base-patch16-224"] = """{"model_type": "vit"}""",
    };

    [TestMethod]
    public void CountsOfRealSizesAreThePackages()
    {
        List<string> wrong = [], later = [];
        foreach (Fixture fixture in Cases())
            foreach ((string model, JsonNode? counts) in fixture.Json["real_size_counts"]!.AsObject())
            {
                JsonObject config = JsonNode.Parse(_real[model])!.AsObject();
                if (!BackboneLoader.ModelTypes.Contains((string)config["model_type"]!))
                {
                    later.Add(model);
                    continue;
                }
                using Backbone backbone = MatrixModel.ShapesOnly(config);
                foreach ((string preset, JsonNode? count) in counts!.AsObject())
                    if (!AdapterHubPresets.Names.Contains(preset)) later.Add($"{model} {preset}");
                    else Compare(model, preset, count!, backbone, wrong);
            }
        Console.WriteLine("later: " + string.Join(", ", later));
        Assert.AreEqual("", string.Join("\n", wrong));
    }

    private static void Compare(string model, string preset, JsonNode count, Backbone backbone, List<string> wrong)
    {
        PeftMethod method = AdapterHubPresets.Create(preset);
        if (count.GetValueKind() == System.Text.Json.JsonValueKind.String)
        {
            // Prompts are inserted in every family here.
            if (method is not IAdapterHubMethod { Architecture: "prompt_tuning" }) Assert.ThrowsExactly<ArgumentException>(() => method.CountTrainable(backbone), $"{model} {preset}");
            return;
        }
        long found = method.CountTrainable(backbone);
        if (found != (long)count) wrong.Add($"{model} {preset}: {found}, expected {count}");
    }
}
