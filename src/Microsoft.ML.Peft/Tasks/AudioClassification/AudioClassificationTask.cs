// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Classification of sounds.</summary>
internal sealed class AudioClassificationTask : ClassificationTask<MediaRow<AudioClip>>
{
    public const string UserName = "PEFT audio classification", Loader = "PeftAudioClassification";

    public static AudioClassificationTask Instance { get; } = new();

    public override string Name => "audio-classification";

    public override string LoaderSignature => Loader;

    public override string Signature => "PEFTAUCL";

    public override string Transformer => nameof(AudioClassificationTransformer);

    public override BackboneInput Reads => BackboneInput.Sound;

    // No backbone of sounds is embedded; the options refuse to be without one.
    public override CheckpointFolder OpenDefault() => throw new ArgumentException(AudioClassificationOptions.NoBackbone, nameof(ClassificationOptions.BackboneFolder));

    public override IEnumerable<string> InputFiles(IFileSet files) => ProcessorFiles.In(files);

    public override RowEncoder<MediaRow<AudioClip>> Encoder(IFileSet files, BackboneConfig config, JsonObject description)
    {
        JsonObject columns = description["columns"]!.AsObject();
        var seconds = (double?)description["seconds"];
        return new AudioEncoder(AudioProcessor.Load(files, config.Raw, seconds), config,
            new AudioColumns((string)columns["audio"]!, (string?)description["folder"], (int?)description["sampleRate"], (string?)columns["sampleRate"]),
            seconds, Enum.Parse<OnBadInput>((string)description["onBad"]!));
    }
}
