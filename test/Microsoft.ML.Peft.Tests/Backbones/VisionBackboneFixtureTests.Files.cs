// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Tests.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <content>The same networks from files that are spelled otherwise, from parts of files, and in fewer bits.</content>
public sealed partial class VisionBackboneFixtureTests
{
    private static readonly string[] _prefixed = ["vit", "deit", "dinov2", "beit", "videomae", "blip_2_qformer"], _pairs = ["clip", "siglip"];

    private static IEnumerable<object[]> Of(string[] modelTypes) =>
        Models.Where(c => modelTypes.Contains(VisionCase.ModelType(Path.Combine(Shared.Fixtures, "vision-audio", (string)c[0]))));

    public static IEnumerable<object[]> Prefixed => Of(_prefixed);

    public static IEnumerable<object[]> Pairs => Of(_pairs);

    public static IEnumerable<object[]> Images => Of([.. _prefixed[..^1], .. _pairs]);

    private static string Prefix(string modelType) => (modelType == "blip_2_qformer" ? "qformer" : modelType) + ".";

    // A copy of a model under other names, with buffers that older files store.
    private static string Respelled(string model, JsonObject config, Func<string, string?> name)
    {
        string folder = HfBases.Temporary();
        File.WriteAllText(Path.Combine(folder, "config.json"), config.ToJsonString());
        using SafetensorsFile file = SafetensorsFile.Open(Path.Combine(model, "model.safetensors"));
        var writer = new SafetensorsWriter();
        foreach (string stored in file.Names.Where(n => !n.EndsWith("position_ids", StringComparison.Ordinal)))
            if (name(stored) is { } other) writer.Add(other, file, stored);
        byte[] buffer = new byte[16];
        writer.Add("embeddings.position_ids", SafetensorsDtype.I64, [1, 2], buffer);
        writer.Add("encoder.layer.0.attention.attention.relative_position_bias.relative_position_index", SafetensorsDtype.I64, [2], buffer);
        writer.Save(Path.Combine(folder, "model.safetensors"));
        return folder;
    }

    /// <summary>Files with the prefix where the case's have none, and without it where they have it.</summary>
    [TestMethod]
    [DynamicData(nameof(Prefixed))]
    public void FilesWithAndWithoutPrefixAreTheSame(string name)
    {
        string folder = Path.Combine(Shared.Fixtures, "vision-audio", name), model = VisionCase.ModelFolder(folder)!;
        JsonObject config = JsonNode.Parse(File.ReadAllText(Path.Combine(model, "config.json")))!.AsObject();
        string type = (string)config["model_type"]!, prefix = Prefix(type);
        using SafetensorsFile file = SafetensorsFile.Open(Path.Combine(model, "model.safetensors"));
        bool has = file.Names.Any(n => n.StartsWith(prefix, StringComparison.Ordinal));
        string other = Respelled(model, config, stored =>
            !has ? prefix + stored : stored.StartsWith(prefix, StringComparison.Ordinal) ? stored[prefix.Length..] : stored);
        using var c = new VisionCase(folder, other);
        using var scope = NewDisposeScope();
        using (Backbone backbone = BackboneLoader.Load(c.Model))
            Assert.IsFalse(backbone.UnusedTensors.Any(n => n.Contains("position", StringComparison.Ordinal)), string.Join(", ", backbone.UnusedTensors));
        Together<Action<VisionCase>>().GetValueOrDefault(type, Classifies)(c);
        c.Done(TestContext);
    }

    /// <summary>Each tower of a pair from a file of its own.</summary>
    [TestMethod]
    [DynamicData(nameof(Pairs))]
    public void TowersLoadByThemselves(string name)
    {
        using var c = new VisionCase(Path.Combine(Shared.Fixtures, "vision-audio", name));
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using DualEncoder pair = DualEncoder.Load(c.Model);
        string model = VisionCase.ModelFolder(Path.Combine(Shared.Fixtures, "vision-audio", name))!, type = (string)c.Config["model_type"]!;
        foreach ((string section, string part, string modelType, Backbone tower) in ((string, string, string, Backbone)[])
            [("vision_config", "vision_model.", type + "_vision_model", pair.Images), ("text_config", "text_model.", type + "_text_model", pair.Texts)])
        {
            bool images = part == "vision_model.";
            if (!c.Has(images ? "pixel_values" : "input_ids")) continue;
            foreach (bool bare in (bool[])[false, true])
            {
                JsonObject config = JsonNode.Parse(tower.Config.Raw.ToJsonString())!.AsObject();
                config["projection_dim"] = c.Config["projection_dim"]?.DeepClone();
                string folder = Respelled(model, JsonNode.Parse(config.ToJsonString())!.AsObject(), stored =>
                    stored.StartsWith(part, StringComparison.Ordinal) ? bare ? stored[part.Length..] : stored
                    : stored.StartsWith(images ? "visual_projection" : "text_projection", StringComparison.Ordinal) ? stored : null);
                using CheckpointFolder opened = CheckpointFolder.Open(folder);
                using Backbone alone = BackboneLoader.Load(opened);
                Assert.AreEqual(modelType, alone.Config.ModelType, section);
                TokenBatch batch = images ? c.Batch() : Texts(c);
                Tensor Features(Backbone of)
                {
                    var pass = new Pass();
                    return DualEncoder.Projected(of, of.Pool(of.Forward(batch, pass), pass), pass);
                }
                c.Worst.Compare($"{name} {part} by itself", Features(alone), Features(tower), c.Tolerance);
            }
        }
        c.Worst.Done(TestContext);
    }

    /// <summary>Networks in bfloat16 give nearly the same.</summary>
    [TestMethod]
    [DynamicData(nameof(Images))]
    public void NearInBfloat16(string name)
    {
        using var c = new VisionCase(Path.Combine(Shared.Fixtures, "vision-audio", name));
        using var scope = NewDisposeScope();
        using var off = no_grad();
        void Near(Tensor found, Tensor expected) =>
            Assert.IsLessThan(0.1 * expected.abs().max().item<float>(), (found.to_type(ScalarType.Float32) - expected).abs().max().item<float>(), name);
        if (_pairs.Contains((string)c.Config["model_type"]!))
        {
            using DualEncoder pair = DualEncoder.Load(c.Model, dtype: ScalarType.BFloat16), full = DualEncoder.Load(c.Model);
            Near(pair.ImageFeatures(c.Batch(), new Pass()), full.ImageFeatures(c.Batch(), new Pass()));
            if (c.Has("input_ids")) Near(pair.TextFeatures(Texts(c), new Pass()), full.TextFeatures(Texts(c), new Pass()));
            return;
        }
        using Backbone backbone = BackboneLoader.Load(c.Model, dtype: ScalarType.BFloat16);
        var pass = new Pass();
        BackboneOutput output = backbone.Forward(c.Batch(), pass);
        Assert.AreEqual(ScalarType.BFloat16, output.Last.dtype);
        if (c.Has("last_hidden_state")) Near(output.Last, c["last_hidden_state"]);
        if (!c.Has("logits")) return;
        using SequenceClassificationHead head = c.Head(backbone);
        Near(head.Forward(backbone, output, pass), c["logits"]);
    }
}
