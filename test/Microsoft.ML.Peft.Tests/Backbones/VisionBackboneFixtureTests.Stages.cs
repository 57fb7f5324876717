// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <content>Networks of stages: Swin, Swin v2, ConvNeXt, ResNet, SegFormer.</content>
public sealed partial class VisionBackboneFixtureTests
{
    private static readonly Dictionary<string, Action<VisionCase>> _stageRuns = new()
    {
        ["swin"] = Staged,
        ["swinv2"] = Staged,
        ["convnext"] = Staged,
        ["resnet"] = Staged,
        ["segformer"] = Staged,
    };

    private static readonly Dictionary<string, Func<long>> _stageGeometries = new()
    {
        ["swin-tiny-patch4-window7-224"] = () => Numbers("""{"model_type": "swin"}""", 1000),
        ["swin-base-patch4-window7-224"] = () => Numbers(
            """{"model_type": "swin", "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}""", 1000),
        ["swinv2-tiny-patch4-window8-256"] = () => Numbers("""{"model_type": "swinv2", "window_size": 8, "image_size": 256}""", 1000),
        ["convnext-tiny-224"] = () => Numbers("""{"model_type": "convnext"}""", 1000),
        ["resnet-18"] = () => Numbers(
            """{"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}""", 1000),
        ["resnet-50"] = () => Numbers("""{"model_type": "resnet"}""", 1000),
        ["mit-b0"] = () => Numbers("""{"model_type": "segformer"}""", 1000),
        ["segformer-b0-finetuned-ade"] = SegmentationNumbers,
    };

    private static long SegmentationNumbers()
    {
        using Backbone backbone = BackboneLoader.Build(JsonNode.Parse("""{"model_type": "segformer"}""")!.AsObject(), new Shapes());
        using var head = new SegmentationHead(backbone, 150);
        return backbone.ParameterCount + head.Parameters.Where(p => p.Trainable).Sum(p => p.Value.numel());
    }

    private static void Staged(VisionCase c)
    {
        using var backbone = (StagedBackbone)BackboneLoader.Load(c.Model);
        CollectionAssert.AreEqual(Array.Empty<string>(), backbone.UnusedTensors.Where(n => n.StartsWith(backbone.Prefix + ".", StringComparison.Ordinal)).ToArray());
        using Head? head = Reader(c, backbone);
        using (no_grad()) StagesEqual(c, backbone, head);
        if (c.Named("train.").Any()) TrainingModeEquals(c, backbone, head!);
        if (head is null || !c.Has("labels")) return;
        c.CompareGradients([backbone], head.Parameters, passes =>
        {
            passes[0].KeepHiddenStates = head.ReadsHiddenStates;
            // The head's own norm is not in training mode in the reference.
            return Loss(head, head.FromFeatures(head.Features(backbone, backbone.Forward(c.Batch(), passes[0]), passes[0]), new Pass()), c["labels"]);
        });
    }

    // Scores of places are read by a segmentation head, of a whole image by a classifier.
    private static Head? Reader(VisionCase c, Backbone backbone)
    {
        if (!c.Has("logits")) return null;
        if (c["logits"].dim() == 2) return c.Head(backbone);
        var head = new SegmentationHead(backbone, (int)c["logits"].shape[1]);
        CollectionAssert.AreEqual(Array.Empty<string>(), HeadWeights.Load(head, c.Model).ToArray());
        return head;
    }

    private static Tensor Loss(Head head, Tensor scores, Tensor labels) =>
        head is SegmentationHead places ? SegmentationHead.Loss(scores, labels, places.IgnoredLabel) : nn.functional.cross_entropy(scores, labels);

    private static void StagesEqual(VisionCase c, StagedBackbone backbone, Head? head)
    {
        // What a stage reads, behind what leads to it.
        var inputs = backbone.Sites.OfType<Sequence>().Where(s => s.Role == SiteRole.LayerSequence).ToDictionary(s => s.Layer, _ => new StageInputWatch());
        var watched = backbone.Sites.OfType<Sequence>().Where(s => s.Role == SiteRole.LayerSequence).ToDictionary(s => (Site)s, s => (Patch)inputs[s.Layer]);
        Dictionary<string, StageAttentionWatch> shares = c.Named("attentions.").ToDictionary(number => number, number => new StageAttentionWatch(Attention(backbone, int.Parse(number))));
        foreach (StageAttentionWatch watch in shares.Values) watched[watch.Core] = watch;
        var pass = new Pass(new PatchTable(watched)) { KeepHiddenStates = true };
        BackboneOutput output = backbone.Forward(c.Batch(), pass);
        IReadOnlyList<Tensor> maps = backbone.StageMaps(output);
        foreach (int number in c.Named("hidden_states.").Select(int.Parse))
            c.Compare($"hidden_states.{number}", State(c, backbone, output, maps, inputs, number));
        foreach (StageInputWatch input in inputs.Values) input.Seen?.Dispose();
        foreach (string number in c.Named("stage_maps.")) c.Compare($"stage_maps.{number}", maps[int.Parse(number)]);
        c.CompareIfThere("last_hidden_state", () => c["last_hidden_state"].dim() == 4 ? maps[^1] : output.Last);
        c.CompareIfThere("pooler_output", () => backbone.ClassifierFeatures(output, pass).view(c["pooler_output"].shape));
        foreach ((string number, StageAttentionWatch watch) in shares)
        {
            c.Compare($"attentions.{number}", watch.Shares!);
            watch.Shares!.Dispose();
        }
        if (c.Named("backbone_").Any()) WholeWindowsEqual(c, backbone);
        if (head is null) return;
        c.Compare("logits", head.Forward(backbone, output, pass));
        using var model = new AdaptedModel(backbone, null, Reader(c, backbone)!);
        Tensor scores = model.Forward(c.Batch(), new Pass());
        c.Compare("logits", scores, " by the model");
        foreach (string image in c.Named("label_map."))
        {
            Tensor expected = c[$"label_map.{image}"];
            c.Compare($"label_map.{image}", SegmentationHead.LabelMap(scores.narrow(0, int.Parse(image), 1), expected.shape[0], expected.shape[1]).squeeze(0));
        }
    }

    // SegFormer's are the maps of its stages alone. Those of windowed networks are what the next stage reads, but for the last.
    private static Tensor State(VisionCase c, StagedBackbone backbone, BackboneOutput output, IReadOnlyList<Tensor> maps, Dictionary<int, StageInputWatch> inputs, int number)
    {
        if (backbone is SegformerBackbone)
            return c[$"hidden_states.{number}"].dim() == 4 ? maps[number + 1] : output.HiddenStates![backbone.Depths.Take(number + 1).Sum()];
        if (c[$"hidden_states.{number}"].dim() == 4) return maps[number];
        return number == backbone.Depths.Count ? output.HiddenStates![^1] : inputs[backbone.Depths.Take(number).Sum()].Seen!;
    }

    // The class SwinBackbone keeps windows whole, and has norms of its own.
    private static void WholeWindowsEqual(VisionCase c, StagedBackbone backbone)
    {
        var pass = new Pass { KeepHiddenStates = true };
        BackboneOutput output = backbone.Forward(c.Batch() with { WholeWindows = true }, pass);
        IReadOnlyList<Tensor> maps = backbone.StageMaps(output);
        foreach (string number in c.Named("backbone_raw.")) c.Compare($"backbone_raw.{number}", maps[int.Parse(number)]);
        foreach (string stage in c.Named("backbone_maps."))
        {
            Tensor map = maps[stage == "stem" ? 0 : int.Parse(stage["stage".Length..])].permute(0, 2, 3, 1), weight = c[$"hidden_states_norms.{stage}.weight"];
            c.Compare($"backbone_maps.{stage}", nn.functional.layer_norm(map, weight.shape, weight, c[$"hidden_states_norms.{stage}.bias"], 1e-5).permute(0, 3, 1, 2));
        }
    }

    // A method that trains the norms whole runs them in training mode, and keeps their statistics.
    private static void TrainingModeEquals(VisionCase c, Backbone backbone, Head head)
    {
        List<byte[]> before = Statistics(backbone);
        foreach (bool checkpointing in (bool[])[true, false])
        {
            using PeftAdaptation adaptation = new FullFineTuningOptions().Attach(backbone, 0);
            var pass = new Pass(adaptation.Table(), training: true) { Checkpointing = checkpointing };
            Tensor scores = head.Forward(backbone, backbone.Forward(c.Batch(), pass), pass);
            scores.sum().backward();
            c.CompareIfThere("train.logits", () => scores);
            // Layers that run twice in a pass move them once.
            foreach (string name in c.Named("train.").Where(n => n != "logits")) c.Compare($"train.{name}", adaptation.Find(name)!.Value);
            TheSameMerged(c, backbone, head, adaptation);
        }
        List<byte[]> after = Statistics(backbone);
        Assert.IsTrue(before.Zip(after).All(p => p.First.AsSpan().SequenceEqual(p.Second)), "frozen statistics changed");
    }

    private static void TheSameMerged(VisionCase c, Backbone backbone, Head head, PeftAdaptation adaptation)
    {
        using var off = no_grad();
        using Backbone merged = Merging.Merge(adaptation);
        var worn = new Pass(adaptation.Table());
        Tensor expected = head.Forward(backbone, backbone.Forward(c.Batch(), worn), worn), found = head.Forward(merged, merged.Forward(c.Batch(), new Pass()), new Pass());
        c.Worst.Compare($"{c.Name} merged", found, expected, 1e-5);
    }

    private static List<byte[]> Statistics(Backbone backbone) =>
        [.. backbone.Sites.OfType<BatchNorm>().SelectMany(n => new[] { n.Mean, n.Variance }).Select(t => t.bytes.ToArray())];

    // SegFormer gives that of each layer, windowed networks that of each stage's last layer.
    private static AttentionCore Attention(StagedBackbone backbone, int number)
    {
        int layer = backbone is SegformerBackbone ? number : backbone.Depths.Take(number + 1).Sum() - 1;
        return backbone.Sites.OfType<AttentionCore>().Single(s => s.Layer == layer);
    }

    private sealed class StageAttentionWatch(AttentionCore core) : AttentionPatch
    {
        public AttentionCore Core => core;

        public Tensor? Shares { get; private set; }

        public override bool Trainable => false;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
        {
            Tensor scores = input.Query.matmul(input.Key.transpose(-1, -2)) * core.Scale;
            Shares = (input.Bias is null ? scores : scores + input.Bias).softmax(-1).DetachFromDisposeScope();
            return next(input);
        }
    }

    private sealed class StageInputWatch : SequencePatch
    {
        public Tensor? Seen { get; private set; }

        public override bool KeepsTokens => true;

        public override bool Trainable => false;

        public override Tensor Change(Tensor hidden, Pass pass)
        {
            Seen = hidden.clone().DetachFromDisposeScope();
            return hidden;
        }
    }
}
