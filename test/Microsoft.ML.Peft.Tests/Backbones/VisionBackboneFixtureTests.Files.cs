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
        foreach (Backbone tower in (Backbone[])[pair.Images, pair.Texts])
        {
            bool images = tower.Config.Input == BackboneInput.Images;
            if (!c.Has(images ? "pixel_values" : "input_ids")) continue;
            TokenBatch batch = images ? c.Batch() : Texts(c);
            foreach (bool bare in (bool[])[false, true])
            {
                using CheckpointFolder folder = CheckpointFolder.Open(Alone(c, tower, images ? "visual_projection" : "text_projection", bare));
                using Backbone alone = BackboneLoader.Load(folder);
                Assert.AreEqual(tower.Config.ModelType, alone.Config.ModelType);
                c.Worst.Compare($"{name} {tower.Prefix} by itself", Features(alone, batch), Features(tower, batch), c.Tolerance);
            }
        }
        c.Worst.Done(TestContext);
    }

    private static Tensor Features(Backbone tower, TokenBatch batch)
    {
        var pass = new Pass();
        return DualEncoder.Projected(tower, tower.Pool(tower.Forward(batch, pass), pass), pass);
    }

    // A folder with one tower of a case's pair and its projection.
    private static string Alone(VisionCase c, Backbone tower, string projection, bool bare)
    {
        string model = VisionCase.ModelFolder(Path.Combine(Shared.Fixtures, "vision-audio", c.Name))!, prefix = tower.Prefix + ".";
        JsonObject config = tower.Config.Raw.DeepClone().AsObject();
        config["projection_dim"] = c.Config["projection_dim"]?.DeepClone();
        return Respelled(model, config, stored =>
        {
            if (stored.StartsWith(prefix, StringComparison.Ordinal)) return bare ? stored[prefix.Length..] : stored;
            return stored.StartsWith(projection, StringComparison.Ordinal) ? stored : null;
        });
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
            Assert.IsLessThan(0.15 * expected.abs().max().item<float>(), (found.to_type(ScalarType.Float32) - expected).abs().max().item<float>(), name);
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
