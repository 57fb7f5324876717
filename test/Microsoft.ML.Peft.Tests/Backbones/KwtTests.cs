// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.IO.Compression;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>A published Keyword Transformer, opened as it lies, with the scores that are recorded beside it.</summary>
[TestClass]
public class KwtTests
{
    public TestContext TestContext { get; set; } = null!;

    private static string Folder => Path.Combine(Shared.Root, "weights", "kwt1_speech_commands");

    private static AudioClip Recording(string archive, string file)
    {
        using ZipArchive zip = ZipFile.OpenRead(Path.Combine(Shared.Root, "data", "fsdd", archive));
        using Stream stream = zip.Entries.Single(e => e.Name == file).Open();
        using var bytes = new MemoryStream();
        stream.CopyTo(bytes);
        return AudioReader.Default.Read(bytes.ToArray(), file);
    }

    // The recorded scores are of sounds whose samples were joined by straight lines.
    private static AudioClip Doubled(AudioClip clip)
    {
        float[] from = clip.Channels[0], to = new float[2 * from.Length];
        for (int i = 0; i < to.Length; i++)
        {
            int left = i / 2, right = Math.Min(left + 1, from.Length - 1);
            to[i] = i % 2 == 0 ? from[left] : (from[left] + from[right]) / 2;
        }
        return new AudioClip(to, 2 * clip.Rate, clip.Source);
    }

    [TestMethod]
    public void RecordedScoresAreMet()
    {
        using var scope = NewDisposeScope();
        using CheckpointFolder folder = CheckpointFolder.Open(Folder);
        using Backbone backbone = BackboneLoader.Load(folder);
        var processor = AudioProcessor.Load(folder.Files, BackboneLoader.ReadConfig(folder.Files));
        using var head = new SequenceClassificationHead(backbone, 12);
        Assert.IsEmpty(HeadWeights.Load(head, folder));
        Assert.AreEqual(607308L, backbone.ParameterCount + head.Parameters.Sum(p => p.Value.numel()));
        Assert.IsTrue(backbone.UnusedTensors.All(name => name.StartsWith("head.", StringComparison.Ordinal) || name.StartsWith("frontend.", StringComparison.Ordinal)));
        var worst = new Worst();
        using var off = no_grad();
        foreach (JsonNode? item in JsonNode.Parse(File.ReadAllText(Path.Combine(Folder, "reference.json")))!["items"]!.AsArray())
        {
            AudioFeatures features = processor.Process(Doubled(Recording("test.zip", (string)item!["file"]!)));
            CollectionAssert.AreEqual(new[] { 98, 40 }, features.Shape);
            var pass = new Pass();
            Tensor scores = head.Forward(backbone, backbone.Forward(processor.Pad([features]).ToTokens(), pass), pass);
            Tensor expected = tensor(item["logits"]!.AsArray().Select(n => (float)n!).ToArray()).unsqueeze(0);
            worst.Compare((string)item["file"]!, scores, expected, 1e-4);
            using var model = new AdaptedModel(backbone, null, new SequenceClassificationHead(backbone, 12));
            HeadWeights.Load(model.Head, folder);
            worst.Compare($"{item["file"]} by the first token", model.Forward(processor.Pad([features]).ToTokens(), new Pass()), expected, 1e-4);
        }
        worst.Done(TestContext);
    }

    [TestMethod]
    public void OtherShapesAndFieldsAreRefused()
    {
        using CheckpointFolder folder = CheckpointFolder.Open(Folder);
        JsonObject config = BackboneLoader.ReadConfig(folder.Files);
        Assert.AreEqual("kwt", BackboneLoader.ModelType(config));
        using Backbone backbone = BackboneLoader.Load(folder);
        using var scope = NewDisposeScope();
        StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => backbone.Forward(TokenBatch.OfSound(zeros([1, 97, 40])), new Pass())).Message, "98 frames");
        config["frames"] = JsonNode.Parse("50");
        StringAssert.Contains(Assert.ThrowsExactly<CheckpointFormatException>(() => AudioProcessor.Load(folder.Files, config)).Message, "frames is 50");
        config.Remove("mfcc");
        Assert.IsNull(BackboneLoader.ModelType(config));
    }
}
