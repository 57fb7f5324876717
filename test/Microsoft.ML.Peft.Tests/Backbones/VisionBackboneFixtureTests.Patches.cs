// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <content>ViT and its nearest relatives.</content>
public sealed partial class VisionBackboneFixtureTests
{
    private static readonly Dictionary<string, Action<VisionCase>> _patchRuns = new()
    {
        ["deit"] = DeiT,
        ["videomae"] = VideoMae,
    };

    private static readonly Dictionary<string, Func<long>> _patchGeometries = new()
    {
        ["vit-base-patch16-224"] = () => Numbers("""{"model_type": "vit"}""", 1000),
        ["vit-base-patch16-224 (bare, with pooler)"] = () => Numbers("""{"model_type": "vit"}""", 0, pooler: true),
        ["vit-large-patch16-224"] = () => Numbers(
            """{"model_type": "vit", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}""", 1000),
        ["deit-base-distilled-patch16-224"] = () => Numbers("""{"model_type": "deit", "architectures": ["DeiTForImageClassificationWithTeacher"]}""", 1000),
        ["dinov2-base"] = () => Numbers("""{"model_type": "dinov2", "image_size": 518}""", 0),
        ["dinov2-base-imagenet1k-1-layer"] = () => Numbers("""{"model_type": "dinov2", "image_size": 518}""", 1000),
        ["beit-base-patch16-224"] = () => Numbers("""{"model_type": "beit", "use_relative_position_bias": true}""", 1000),
        ["videomae-base (400 classes)"] = () => Numbers("""{"model_type": "videomae"}""", 400),
    };

    // Each of the two tokens has a classifier.
    private static void DeiT(VisionCase c) => Classifies(c, (backbone, output, _) =>
    {
        if (!c.Has("cls_logits")) return;
        foreach ((string scores, string classifier, int token) in ((string, string, int)[])[("cls_logits", "cls_classifier", 0), ("distillation_logits", "distillation_classifier", 1)])
            c.Compare(scores, nn.functional.linear(output.Last.select(1, token), c.Model.Load(classifier + ".weight"), c.Model.Load(classifier + ".bias")));
    });

    // Positions are in no file: embeddings of a black video, less the convolution's bias.
    private static void VideoMae(VisionCase c) => Classifies(c, (backbone, _, _) =>
    {
        Tensor black = zeros_like(c["pixel_values"].narrow(0, 0, 1)), bias = backbone.Sites.OfType<Convolution>().Single().Bias!;
        c.CompareIfThere("position_table", () => backbone.Forward(TokenBatch.OfImages(black), new Pass { KeepHiddenStates = true }).HiddenStates![0].squeeze(0) - bias);
    });
}
