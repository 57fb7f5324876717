// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// The classifier that a family of image or sound networks has in Hugging Face, as data: what stands between
/// <see cref="Backbone.ClassifierFeatures"/> and the scores, by the names of the task model's file.
/// </summary>
/// <param name="Output">Name of the last linear map.</param>
internal sealed record FamilyHead(string Output = "classifier")
{
    /// <summary>Name of a layer norm before the last map; null for none.</summary>
    public string? Norm { get; init; }

    /// <summary>Name of a linear map, without activation, before the last one; null for none.</summary>
    public string? Dense { get; init; }

    /// <summary>Rows of <see cref="Dense"/>.</summary>
    public Func<BackboneConfig, int>? DenseWidth { get; init; }

    /// <summary>
    /// Name of a second map: the features are two halves then, each map reads its own, and the scores are the mean of both;
    /// null for one map that reads all.
    /// </summary>
    public Func<BackboneConfig, string?> Second { get; init; } = _ => null;

    /// <summary>Added to the variance in <see cref="Norm"/>; null for the network's.</summary>
    public double? NormEpsilon { get; init; }

    /// <summary>What takes this one's place for some configurations; gives null where it does not.</summary>
    public Func<BackboneConfig, FamilyHead?> Variant { get; init; } = _ => null;

    /// <summary>
    /// Number of states whose features are mixed first, <c>[batch, states, width]</c>, by the softmax of a parameter
    /// <c>layer_weights</c>; 0 where features are of one state.
    /// </summary>
    public Func<BackboneConfig, int> MixedStates { get; init; } = _ => 0;

    // A linear map in front of the mean over frames is one behind it.
    private static FamilyHead Projected(Func<BackboneConfig, int> states) => new()
    {
        Dense = "projector",
        DenseWidth = config => new ConfigReader(config.Raw).Int("classifier_proj_size", 256),
        MixedStates = config => new ConfigReader(config.Raw).Flag("use_weighted_layer_sum", false) ? states(config) : 0,
    };

    private static readonly Dictionary<string, FamilyHead> _families = new(StringComparer.Ordinal)
    {
        ["vit"] = new(),
        ["audio-spectrogram-transformer"] = new("classifier.dense") { Norm = "classifier.layernorm" },
        ["wav2vec2"] = Projected(config => config.LayerCount + 1),
        ["whisper"] = Projected(config => (config.DecoderStart ?? config.LayerCount) + 1),
        ["kwt"] = new("head"),
        ["beit"] = new(),
        ["dinov2"] = new(),
        ["videomae"] = new() { Variant = config => VideoMaeBackbone.HasMeanPooling(config) ? new() { Norm = "fc_norm", NormEpsilon = 1e-5 } : null },
        ["deit"] = new()
        {
            Variant = config => ViTBackbone.HasTeacherHead(config) ? new("cls_classifier") { Second = _ => "distillation_classifier" } : null,
        },
        ["swin"] = new(),
        ["swinv2"] = new(),
        ["convnext"] = new(),
        ["segformer"] = new(),
        ["resnet"] = new("classifier.1"),
    };

    /// <summary>The head of a family; a linear map named <c>classifier</c> where nothing else is known.</summary>
    public static FamilyHead Of(BackboneConfig config)
    {
        FamilyHead head = _families.GetValueOrDefault(config.ModelType) ?? new FamilyHead();
        return head.Variant(config) ?? head;
    }
}
