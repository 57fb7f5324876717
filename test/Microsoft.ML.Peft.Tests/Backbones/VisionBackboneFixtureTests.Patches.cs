// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <content>ViT and its nearest relatives.</content>
public sealed partial class VisionBackboneFixtureTests
{
    private static readonly Dictionary<string, Action<VisionCase>> _patchRuns = new()
    {
        ["deit"] = DeiT,
    };

    private static readonly Dictionary<string, Func<long>> _patchGeometries = new()
    {
        ["vit-base-patch16-224"] = () => Numbers("""{"model_type": "vit"}""", 1000),
        ["vit-base-patch16-224 (bare, with pooler)"] = () => Numbers("""{"model_type": "vit"}""", 0, pooler: true),
        ["vit-large-patch16-224"] = () => Numbers(
            """{"model_type": "vit", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}""", 1000),
        ["deit-base-distilled-patch16-224"] = () => Numbers("""{"model_type": "deit", "architectures": ["DeiTForImageClassificationWithTeacher"]}""", 1000),
    };

    // Each of the two tokens has a classifier.
    private static void DeiT(VisionCase c) => Classifies(c, (backbone, output, _) =>
    {
        if (!c.Has("cls_logits")) return;
        foreach ((string scores, string classifier, int token) in ((string, string, int)[])[("cls_logits", "cls_classifier", 0), ("distillation_logits", "distillation_classifier", 1)])
            c.Compare(scores, nn.functional.linear(output.Last.select(1, token), c.Model.Load(classifier + ".weight"), c.Model.Load(classifier + ".bias")));
    });
}
