// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Security.Cryptography;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Images to normalised pixels.</summary>
internal sealed class ImageRowEncoder : MediaEncoder<PixelImage>
{
    private readonly ImageColumns _columns;
    private readonly int? _size;
    private readonly ImageAugmentation? _augmentation;
    private readonly ImageMixing? _mixing;
    private readonly int[] _shape;
    private readonly int _tokens;

    public ImageRowEncoder(
        ImageProcessor processor, BackboneConfig config, ImageColumns columns, int? size, OnBadInput onBad,
        ImageAugmentation? augmentation = null, ImageMixing? mixing = null, long room = 0) : base(onBad, room)
    {
        (Processor, _columns, _size, _augmentation, _mixing) = (processor, columns, size, augmentation, mixing);
        _shape = [processor.Channels, processor.Height, processor.Width];
        // Networks of convolutions have no tokens; what is meant is how much a row costs.
        _tokens = config.MaxTokens is > 0 and < 1 << 20 && size is null ? config.MaxTokens : Math.Max(1, processor.Height * processor.Width / 256);
    }

    public ImageProcessor Processor { get; }

    public override IRowColumns<MediaRow<PixelImage>> Columns => _columns;

    public override string Plural => "images";

    public override string Advice => "Leave such rows out of the data, or set OnBadImage to Skip.";

    public override int? FixedTokens => _tokens;

    public override IReadOnlyList<int> Shape => _shape;

    public override bool FitsPositions => _size is not null;

    public override bool Augments => _augmentation is not null || _mixing is not null;

    protected override Dictionary<string, object?> Choices =>
        new() { ["processor"] = Processor.ToJson(), ["augmentation"] = _augmentation, ["mixing"] = _mixing };

    /// <summary>The processor of a backbone, perhaps for images of another size.</summary>
    /// <param name="files">The backbone's files.</param>
    /// <param name="config">Its geometry.</param>
    /// <param name="size">Side of the square that images are resized to; null for the processor's own.</param>
    /// <exception cref="CheckpointFormatException">The processor gives images of many sizes.</exception>
    public static ImageProcessor Load(IFileSet files, BackboneConfig config, int? size)
    {
        ImageProcessor processor = ImageProcessor.Load(files, config.Raw);
        if (size is { } side)
            return new ImageProcessor(processor.Settings with { Resize = true, Size = new ImageTargetSize(side, side), CentreCrop = false, CropShare = 0 });
        return processor.HasFixedSize
            ? processor
            : throw new CheckpointFormatException($"{files.Description}: {ProcessorFiles.Name} gives images of different sizes, which share no batch; set do_center_crop and crop_size there, or ImageSize.");
    }

    public override PixelImage Decode(byte[] encoded, string source) => ImageReader.Read(encoded, source);

    // A picture of one column may be too narrow for the processor.
    public override void Check(PixelImage media) => Processor.OutputSize(media.Width, media.Height);

    public override byte[] Fingerprint(PixelImage media)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        foreach (int number in new[] { media.Width, media.Height, media.Channels }) hash.AppendData(BitConverter.GetBytes(number));
        hash.AppendData(media.Pixels);
        return hash.GetHashAndReset();
    }

    public override long SizeOf(PixelImage media) => media.Pixels.LongLength;

    public override void Make(PixelImage media, ulong? draw, InputPlace place)
    {
        if (draw is { } key && _augmentation is { } changes) Processor.Normalise(changes.Apply(media, Processor, key, 0, 0), place(_shape));
        else Processor.Process(media, place(_shape));
    }

    // Mixing the rows' numbers tells the share of each in each.
    public override float[]? Mix(Span<float> values, IReadOnlyList<long> shape, ulong draw)
    {
        if (_mixing is null) return null;
        int rows = (int)shape[0];
        var shares = new float[rows * rows];
        for (int r = 0; r < rows; r++) shares[r * rows + r] = 1;
        _mixing.Apply(values, rows, (int)shape[2], (int)shape[3], shares, draw, 0, 0);
        return shares;
    }

    public override void Describe(JsonObject description, JsonObject columns)
    {
        columns["image"] = _columns.Name;
        description["imageSize"] = _size;
        description["folder"] = _columns.Root;
        description["onBad"] = OnBad.ToString();
    }
}
