// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Sounds to samples or spectrograms.</summary>
internal sealed class AudioEncoder : MediaEncoder<AudioClip>
{
    private readonly AudioProcessor _processor;
    private readonly AudioColumns _columns;
    private readonly BackboneConfig _config;
    private readonly double? _seconds;
    private readonly SpecAugment? _augmentation;
    private readonly double _samplesAToken;

    public AudioEncoder(AudioProcessor processor, BackboneConfig config, AudioColumns columns, double? seconds, OnBadInput onBad, SpecAugment? augmentation = null, long room = 0)
        : base(onBad, room)
    {
        (_processor, _config, _columns, _seconds, _augmentation) = (processor, config, columns, seconds, augmentation);
        double stride = 1;
        foreach (JsonNode? step in config.Raw["conv_stride"] as JsonArray ?? [])
            if (step is JsonValue value && value.TryGetValue(out double by) && by >= 1) stride *= by;
        // wav2vec 2.0's where the configuration does not say it.
        _samplesAToken = stride > 1 ? stride : 320;
    }

    public AudioProcessor Processor => _processor;

    public override IRowColumns<MediaRow<AudioClip>> Columns => _columns;

    public override string Plural => "sounds";

    public override string Advice => "Leave such rows out of the data, or set OnBadSound to Skip.";

    public override int? FixedTokens => _processor.Length is null ? null : _seconds is null && _config.MaxTokens < 1 << 20 ? _config.MaxTokens : Estimated(_processor.Length.Value);

    public override bool Masked => _processor.Masked;

    public override bool StandsAlone => _processor.RowsStandAlone;

    public override float Padding => _processor.Padding;

    public override bool FitsPositions => _seconds is not null;

    public override bool MasksFrames => _augmentation is not null;

    public override bool Augments => _augmentation is not null;

    protected override Dictionary<string, object?> Choices =>
        new() { ["rate"] = _processor.Rate, ["length"] = _processor.Length, ["seconds"] = _seconds, ["augmentation"] = _augmentation };

    public override AudioClip Decode(byte[] encoded, string source) => AudioReader.Default.Read(encoded, source);

    // What is too short for a frame is found here.
    public override void Check(AudioClip media) => _processor.Process(media);

    public override byte[] Fingerprint(AudioClip media)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        hash.AppendData(BitConverter.GetBytes(media.Rate));
        foreach (float[] channel in media.Channels) hash.AppendData(MemoryMarshal.AsBytes(channel.AsSpan()));
        return hash.GetHashAndReset();
    }

    public override long SizeOf(AudioClip media) => 4L * media.Channels.Count * media.Length;

    public override int Tokens(AudioClip media) => Estimated((long)media.Length * _processor.Rate / media.Rate);

    private int Estimated(long samples) => (int)Math.Clamp(samples / _samplesAToken, 1, int.MaxValue);

    public override void Make(AudioClip media, ulong? draw, InputPlace place)
    {
        AudioFeatures features = _processor.Process(media);
        if (draw is { } key && _augmentation is { } masks) features = masks.Apply(features, _processor.TimeAxis, unchecked((long)key), 0, 0);
        features.Values.CopyTo(place(features.Shape, features.Real));
    }

    public override void Describe(JsonObject description, JsonObject columns)
    {
        columns["audio"] = _columns.Name;
        columns["sampleRate"] = _columns.RateColumn;
        description["sampleRate"] = _columns.Rate;
        description["seconds"] = _seconds;
        description["folder"] = _columns.Root;
        description["onBad"] = OnBad.ToString();
    }
}
