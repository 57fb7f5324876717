// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>LoRA's counts, scalings, rates and refusals.</summary>
[TestClass]
public class LoraTests
{
    [TestMethod]
    public void CountsOfBertBase()
    {
        using Backbone backbone = MatrixModel.ShapesOnly(hidden: 768, layers: 12, inner: 3072);
        Assert.AreEqual(294_912, new LoraOptions().CountTrainable(backbone));
        Assert.AreEqual(313_344, new LoraOptions { UseDora = true }.CountTrainable(backbone));
        Assert.AreEqual(147_456, new LoraOptions { LoraFa = LoraFaMode.Freeze }.CountTrainable(backbone));
        Assert.AreEqual(294_912 + 102_912, new LoraOptions { BiasMode = BiasMode.All }.CountTrainable(backbone));
        Assert.AreEqual(294_912 + (24 * 768), new LoraOptions { BiasMode = BiasMode.LoraOnly }.CountTrainable(backbone));
        Assert.AreEqual(102_912, new BitFitOptions().CountTrainable(backbone));
        Assert.AreEqual(46_080, new BitFitOptions { Groups = ["query", "intermediate"] }.CountTrainable(backbone));
        Assert.AreEqual(894_528, new PfeifferOptions().CountTrainable(backbone));
        Assert.AreEqual(1_789_056, new HoulsbyOptions().CountTrainable(backbone));
        Assert.AreEqual(backbone.ParameterCount, new FullFineTuningOptions().CountTrainable(backbone));
        Assert.AreEqual(0, new HeadOnlyOptions().CountTrainable(backbone));
    }

    [TestMethod]
    public void Scalings()
    {
        Assert.AreEqual(0.25, new LoraOptions { Rank = 64, Alpha = 16 }.ScaleAt("bert.x"));
        Assert.AreEqual(2, new LoraOptions { Rank = 64, Alpha = 16, UseRsLora = true }.ScaleAt("bert.x"));
        var patterns = new LoraOptions { Rank = 8, Alpha = 16, RankPattern = { ["query"] = 4 }, AlphaPattern = { [@"layer\.1\..*"] = 2 } };
        Assert.AreEqual(4, patterns.ScaleAt("bert.encoder.layer.0.attention.self.query"));
        Assert.AreEqual(0.5, patterns.ScaleAt("bert.encoder.layer.1.attention.self.query"));
    }

    [TestMethod]
    public void RatesOfLoraPlus()
    {
        using var model = new MatrixModel(new LoraOptions { LoraPlusRatio = 16, UseDora = true, Targets = ["query", "word_embeddings"] });
        foreach (NamedParameter parameter in model.Model.Parameters)
        {
            bool table = parameter.Name.Contains("lora_embedding", StringComparison.Ordinal);
            bool fast = parameter.Name.Contains("lora_B", StringComparison.Ordinal) || parameter.Value.dim() == 1;
            Assert.AreEqual(table ? 1e-6 : null, parameter.OwnRate, parameter.Name);
            Assert.AreEqual(fast ? 16 : 1, parameter.RateFactor, parameter.Name);
            Assert.AreEqual(!parameter.Name.EndsWith("bias", StringComparison.Ordinal), parameter.Decay, parameter.Name);
        }
    }

    [TestMethod]
    public void AddingASiteDoesNotChangeTheOthersStart()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation few = new LoraOptions { Targets = ["query"] }.Attach(backbone, 3), many = new LoraOptions { Targets = ["all-linear"] }.Attach(backbone, 3), other = new LoraOptions { Targets = ["query"] }.Attach(backbone, 4);
        foreach (NamedParameter parameter in few.Parameters)
        {
            Assert.AreEqual(0, Deviations.Distance(parameter.Value, many.Find(parameter.Name)!.Value));
            if (parameter.Name.Contains("lora_A", StringComparison.Ordinal)) Assert.AreNotEqual(0, Deviations.Distance(parameter.Value, other.Find(parameter.Name)!.Value));
        }
    }

    [TestMethod]
    public void DeltaOfAHandWrittenFile()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        var writer = new SafetensorsWriter();
        using Tensor a = new Draws(1, "a").Normal(1, 2, 32), b = new Draws(1, "b").Normal(1, 32, 2);
        AdapterTensors.Add(writer, "base_model.model.bert.encoder.layer.1.attention.self.key.lora_A.weight", a);
        AdapterTensors.Add(writer, "base_model.model.bert.encoder.layer.1.attention.self.key.lora_B.weight", b);
        string folder = HfBases.Temporary();
        writer.Save(Path.Combine(folder, "adapter_model.safetensors"));
        File.WriteAllText(Path.Combine(folder, "adapter_config.json"), """
            {"peft_type": "LORA", "r": 2, "lora_alpha": 5, "target_modules": ["bert.encoder.layer.1.attention.self.key"],
             "bias": "none", "a_field_of_tomorrow": {"x": 1}, "inference_mode": true}
            """);
        using AdapterFolder file = AdapterFolder.Open(folder);
        using PeftAdaptation adaptation = file.Attach(backbone);
        StringAssert.Contains(file.Warnings.Single(), "a_field_of_tomorrow");
        using Backbone merged = Merging.Merge(adaptation);
        using var scope = NewDisposeScope();
        var site = (Projection)backbone.FindSite("encoder.layer.1.attention.self.key")!;
        Tensor change = ((Projection)merged.FindSite("encoder.layer.1.attention.self.key")!).Weight - site.Weight;
        Assert.IsLessThan(1e-5, Deviations.Distance(change, b.matmul(a) * 2.5));
    }

    public static IEnumerable<object[]> BadOptions =>
    [
        [new LoraOptions { Rank = 0 }, "Rank is 0; allowed is 1 to 4096"],
        [new LoraOptions { Alpha = 0 }, "Alpha is 0"],
        [new LoraOptions { Alpha = double.NaN }, "Alpha"],
        [new LoraOptions { Dropout = 1 }, "Dropout is 1; allowed is 0 up to, not including, 1"],
        [new LoraOptions { Dropout = -0.1 }, "Dropout"],
        [new LoraOptions { Targets = ["qury"] }, "matches [qury]"],
        [new LoraOptions { Targets = ["qury"] }, "Near names: 'query'"],
        [new LoraOptions { Targets = ["query", "vallue"] }, "'vallue' names no module of this bert backbone. Near names: 'value'"],
        [new LoraOptions { Targets = ["LayerNorm"] }, "it is a norm"],
        [new LoraOptions { TargetPattern = "query" }, "No module"],
        [new LoraOptions { TargetPattern = "(" }, "not a regular expression"],
        [new LoraOptions { TargetPattern = ".*query", Layers = [1] }, "Layers"],
        [new LoraOptions { TargetPattern = ".*query", Targets = ["query"] }, "one of the two"],
        [new LoraOptions { Targets = ["query"], Layers = [7] }, "layers: 7"],
        [new LoraOptions { Targets = ["query"], Layers = [-1] }, "Layers is -1"],
        [new LoraOptions { LayersPattern = ["layer"] }, "LayersPattern"],
        [new LoraOptions { LoraBias = true, UseDora = true }, "LoraBias"],
        [new LoraOptions { LoraBias = true, Init = "pissa" }, "LoraBias"],
        [new LoraOptions { Init = "xavier" }, "allowed is one of default, gaussian"],
        [new LoraOptions { Init = "pissa_niter_0" }, "Init"],
        [new LoraOptions { Init = "orthogonal", Rank = 3 }, "even"],
        [new LoraOptions { Init = "pissa", Rank = 64 }, "at most 32"],
        [new LoraOptions { Init = "mica", LoraFa = LoraFaMode.Freeze }, "LoraFa"],
        [new LoraOptions { RankPattern = { ["query"] = 0 } }, "RankPattern['query']"],
        [new LoraOptions { AlphaPattern = { ["query"] = -1 } }, "AlphaPattern['query']"],
        [new LoraOptions { LoraPlusRatio = 0.5 }, "LoraPlusRatio"],
        [new BitFitOptions { Groups = ["querry"] }, "'query'"],
        [new BitFitOptions { Groups = ["final_layernorm"] }, "a group that this bert backbone has"],
        [new BottleneckOptions { ReductionFactor = 0 }, "ReductionFactor is 0"],
        [new BottleneckOptions { ReductionFactors = { ["x"] = 2 } }, "layer numbers"],
        [new BottleneckOptions { NonLinearity = "relo" }, "relu"],
        [new BottleneckOptions { Init = "zeros" }, "bert, mam_adapter or houlsby"],
        [new BottleneckOptions { Scaling = "big" }, "learned or channel"],
        [new BottleneckOptions { AfterFeedForward = false }, "no place"],
        [new BottleneckOptions { LeaveOut = [0, 1] }, "LeaveOut"],
        [new BottleneckOptions { Name = "a.b" }, "without dots"],
    ];

    [TestMethod]
    [DynamicData(nameof(BadOptions))]
    public void BadOptionsAreRefused(PeftMethod method, string expected)
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        var error = Assert.ThrowsExactly<ArgumentException>(() => method.Attach(backbone, 0).Dispose());
        StringAssert.Contains(error.Message, expected);
    }

    [TestMethod]
    [DataRow("layer_replication", "[[0, 1, 2]]")]
    [DataRow("layer_replication", "\"0-2\"")]
    [DataRow("init_lora_weights", "\"loftq\"")]
    [DataRow("init_lora_weights", "\"best\"")]
    [DataRow("bias", "\"some\"")]
    [DataRow("r", "\"eight\"")]
    [DataRow("r", "-1")]
    [DataRow("lora_dropout", "2")]
    [DataRow("target_modules", "{\"a\": 1}")]
    [DataRow("rank_pattern", "[1]")]
    public void ConfigurationsThatChangeTheMathsAreRefused(string field, string value)
    {
        var config = new JsonObject { ["peft_type"] = "LORA", ["target_modules"] = AdapterConfig.Array(["query"]), [field] = JsonNode.Parse(value) };
        string folder = HfBases.Temporary();
        File.WriteAllText(Path.Combine(folder, "adapter_config.json"), config.ToJsonString());
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => AdapterFolder.Open(folder));
        StringAssert.Contains(error.Message, field == "r" && value == "-1" ? "Rank" : value == "[[0, 1, 2]]" ? "LayerReplication" : field == "lora_dropout" ? "Dropout" : field);
    }

    [TestMethod]
    public void MergingANotFiniteAdapterIsRefused()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation adaptation = new LoraOptions().Attach(backbone, 0);
        using (no_grad()) adaptation.Parameters.First(p => p.Name.Contains("lora_B", StringComparison.Ordinal)).Value.fill_(float.PositiveInfinity);
        var error = Assert.ThrowsExactly<InvalidOperationException>(() => Merging.Merge(adaptation));
        StringAssert.Contains(error.Message, "encoder.layer.0.attention.self.query");
    }

    [TestMethod]
    public void AdapterHubFoldersOfAnotherWidthOrKindAreRefused()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        using PeftAdaptation adaptation = new HoulsbyOptions { Name = "task", ReductionFactor = 4 }.Attach(backbone, 0);
        string folder = HfBases.Temporary(), config = Path.Combine(folder, "adapter_config.json");
        AdapterHubFolder.Save(folder, adaptation);
        AdapterHubFolder.Attach(folder, backbone).Dispose();
        string text = File.ReadAllText(config);
        string Refused(string from, string to)
        {
            Assert.AreNotEqual(text, text.Replace(from, to, StringComparison.Ordinal), "the text to damage is there");
            File.WriteAllText(config, text.Replace(from, to, StringComparison.Ordinal));
            return Assert.ThrowsExactly<CheckpointFormatException>(() => AdapterHubFolder.Attach(folder, backbone).Dispose()).Message;
        }
        StringAssert.Contains(Refused("\"hidden_size\": 32", "\"hidden_size\": 64"), "hidden size 64, the backbone has 32");
        StringAssert.Contains(Refused("\"reduction_factor\": 4", "\"reduction_factor\": 8"), "found shape [8, 32], expected [4, 32]");
        StringAssert.Contains(Refused("\"mh_adapter\": true", "\"mh_adapter\": false"), "unexpected tensors");
        StringAssert.Contains(Refused("\"use_gating\": false", "\"use_gating\": true"), "missing tensors");
        StringAssert.Contains(Refused("\"phm_layer\": false", "\"phm_layer\": true"), "phm_rule");
        StringAssert.Contains(Refused("\"stochastic_depth\": 0.0", "\"stochastic_depth\": 1.5"), "StochasticDepth");
        StringAssert.Contains(Refused("\"inv_adapter\": null", "\"inv_adapter\": \"glow\""), "nice");
        StringAssert.Contains(Refused("\"config\": {", "\"config\": { \"architecture\": \"loar\","), "'lora'");
        using PeftAdaptation lora = new LoraOptions().Attach(backbone, 0);
        Assert.ThrowsExactly<NotSupportedException>(() => AdapterHubFolder.Save(folder, lora));
    }

    [TestMethod]
    public void PythonsWayOfWritingJson()
    {
        var config = new JsonObject { ["b"] = 0.0, ["a"] = 1e-05, ["z"] = new JsonArray(), ["y"] = new JsonObject(), ["c"] = "é\"\n", ["d"] = AdapterConfig.Number(6), ["e"] = 1e16, ["f"] = AdapterConfig.Array([1, 2]), ["g"] = null, ["h"] = 0.05, ["i"] = 123456.789, ["j"] = 1.5e-7, ["k"] = true };
        string expected = """
            {
              "a": 1e-05,
              "b": 0.0,
              "c": "\u00e9\"\n",
              "d": 6,
              "e": 1e+16,
              "f": [
                1,
                2
              ],
              "g": null,
              "h": 0.05,
              "i": 123456.789,
              "j": 1.5e-07,
              "k": true,
              "y": {},
              "z": []
            }
            """;
        Assert.AreEqual(expected.ReplaceLineEndings("\n"), AdapterConfig.ToText(config));
    }

    [TestMethod]
    public void PatternsWhoseOrderWouldChangeAreWrittenPerSite()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        var method = new LoraOptions { Targets = ["query"], RankPattern = { ["query"] = 2, [".*"] = 5, ["a"] = 3 } };
        var config = new JsonObject();
        method.WriteHuggingFace(config, backbone);
        var read = new LoraOptions();
        read.ReadHuggingFace(AdapterConfig.Parse(AdapterConfig.ToText(config), "x"));
        foreach (Projection site in backbone.Sites.OfType<Projection>().Where(s => s.Role == SiteRole.Query))
            Assert.AreEqual(2, read.RankAt(backbone.PathOf(site)));
    }
}
