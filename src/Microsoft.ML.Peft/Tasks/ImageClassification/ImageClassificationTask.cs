// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Classification of images.</summary>
internal sealed class ImageClassificationTask : ClassificationTask<MediaRow<PixelImage>>
{
    public const string UserName = "PEFT image classification", Loader = "PeftImageClassification";

    public static ImageClassificationTask Instance { get; } = new();

    public override string Name => "image-classification";

    public override string LoaderSignature => Loader;

    public override string Signature => "PEFTIMCL";

    public override string Transformer => nameof(ImageClassificationTransformer);

    public override BackboneInput Reads => BackboneInput.Images;

    public override CheckpointFolder OpenDefault() => DefaultVisionBackbone.Open();

    public override IEnumerable<string> InputFiles(IFileSet files) => ProcessorFiles.In(files);

    public override RowEncoder<MediaRow<PixelImage>> Encoder(IFileSet files, BackboneConfig config, JsonObject description)
    {
        var size = (int?)description["imageSize"];
        return new ImageRowEncoder(ImageRowEncoder.Load(files, config, size), config,
            new ImageColumns((string)description["columns"]!["image"]!, (string?)description["folder"]), size,
            Enum.Parse<OnBadInput>((string)description["onBad"]!));
    }
}
