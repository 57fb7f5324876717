// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Cli;

/// <summary>Rows of a data set, and the name of their label column.</summary>
internal sealed class TrainRows(IDataView view, string label, IDisposable? source = null) : IDisposable
{
    public IDataView View => view;

    public string Label => label;

    public void Dispose() => source?.Dispose();
}

/// <summary>What <c>peft train</c> has of its own for a task: options, data sets, trainer.</summary>
internal abstract class TrainTask
{
    public static IReadOnlyList<TrainTask> All { get; } = [new TextTrainTask(), new ImageTrainTask(), new AudioTrainTask()];

    public abstract string Name { get; }

    public abstract string Description { get; }

    public abstract IEnumerable<Option> Options { get; }

    /// <summary>Training rows, and rows to evaluate on while training where the call names them.</summary>
    public abstract (TrainRows Train, TrainRows? Held) Open(MLContext context, ParseResult call, string data, string? validation);

    /// <summary>Rows to evaluate on at the end.</summary>
    public abstract TrainRows OpenEval(MLContext context, ParseResult call, string path);

    public abstract ClassificationOptions Fresh(ParseResult call);

    public abstract IEstimator<ClassificationTransformer> Trainer(MLContext context, ClassificationOptions options);
}

/// <summary><c>peft train text-classification</c>.</summary>
internal sealed class TextTrainTask : TrainTask
{
    private readonly Option<string> _text = new("--text") { Description = "Column with the text.", Required = true };
    private readonly Option<string?> _text2 = new("--text2") { Description = "Column with the second text of a pair." };
    private readonly Option<string> _label = new("--label") { Description = "Column with the label.", Required = true };
    private readonly Option<int> _maxTokens = new("--max-tokens") { Description = "Longest text in tokens.", DefaultValueFactory = _ => 128 };

    public override string Name => "text-classification";

    public override string Description => "Classify one text or a pair of texts.";

    public override IEnumerable<Option> Options => [_text, _text2, _label, _maxTokens];

    public override (TrainRows Train, TrainRows? Held) Open(MLContext context, ParseResult call, string data, string? validation)
    {
        TrainRows train = OpenEval(context, call, data);
        try
        {
            return (train, validation is null ? null : OpenEval(context, call, validation));
        }
        catch
        {
            train.Dispose();
            throw;
        }
    }

    public override TrainRows OpenEval(MLContext context, ParseResult call, string path)
    {
        TableFile table = TableFile.Open(path);
        try
        {
            var text = new TextColumns(call.GetValue(_text)!, call.GetValue(_text2));
            string label = call.GetValue(_label)!;
            return new TrainRows(table.Load(context, [.. text.Names, label]), label, table);
        }
        catch
        {
            table.Dispose();
            throw;
        }
    }

    public override ClassificationOptions Fresh(ParseResult call) => new TextClassificationOptions
    {
        Sentence1ColumnName = call.GetValue(_text)!,
        Sentence2ColumnName = call.GetValue(_text2),
        MaxTokens = call.GetValue(_maxTokens),
    };

    public override IEstimator<ClassificationTransformer> Trainer(MLContext context, ClassificationOptions options) => context.Peft().TextClassification((TextClassificationOptions)options);
}

/// <summary>What images and sounds have in common.</summary>
internal abstract class MediaTrainTask(bool sounds, string column) : TrainTask
{
    private readonly Option<string?> _path = new("--path") { Description = "Column with the paths, where the data are a table; guessed where none is named." };
    private readonly Option<string?> _label = new("--label") { Description = "Column with the label, where the data are a table; guessed where none is named." };
    private readonly Option<double?> _share = new("--validation-share") { Description = "Share of the rows that is kept out of training, by the seed, to choose the best epoch." };
    private readonly Option<OnBadInput> _onBad = new("--on-bad") { Description = "What becomes of files that cannot be read: Throw or Skip.", DefaultValueFactory = _ => OnBadInput.Throw };
    private readonly Option<int> _cache = new("--cache") { Description = "MiB of decoded files that are kept in memory.", DefaultValueFactory = _ => 256 };

    protected OnBadInput OnBad(ParseResult call) => call.GetValue(_onBad);

    protected int Cache(ParseResult call) => call.GetValue(_cache);

    protected string Column => column;

    public override IEnumerable<Option> Options => [_path, _label, _share, _onBad, _cache];

    public override (TrainRows Train, TrainRows? Held) Open(MLContext context, ParseResult call, string data, string? validation)
    {
        MediaFile[] files = Files(context, call, data);
        if (call.GetValue(_share) is not { } share) return (Rows(context, files), validation is null ? null : OpenEval(context, call, validation));
        if (validation is not null) throw new UsageException("--validation and --validation-share are both given; give one of them.");
        if (!(share > 0 && share < 1)) throw new UsageException(FormattableString.Invariant($"--validation-share is {share}; it must be above 0 and below 1."));
        (MediaFile[] train, MediaFile[] held) = MediaFiles.Split(files, share, call.GetValue(TrainCommand.Seed));
        return (Rows(context, train), Rows(context, held));
    }

    public override TrainRows OpenEval(MLContext context, ParseResult call, string path) => Rows(context, Files(context, call, path));

    private MediaFile[] Files(MLContext context, ParseResult call, string data) =>
        MediaFiles.Read(context, data, sounds, call.GetValue(_path), call.GetValue(_label), labelled: true);

    private TrainRows Rows(MLContext context, MediaFile[] files) => new(MediaFiles.View(context, files, column, "Label"), "Label");
}

/// <summary><c>peft train image-classification</c>.</summary>
internal sealed class ImageTrainTask() : MediaTrainTask(false, "Image")
{
    private readonly Option<bool> _plain = new("--no-augmentation") { Description = "Train on the images as they are." };
    private readonly Option<bool> _flip = new("--flip") { Description = "Mirror training images left to right, half of the times." };
    private readonly Option<double> _mixup = new("--mixup") { Description = "Parameter of mixup's beta distribution; 0 for none." };
    private readonly Option<double> _cutMix = new("--cutmix") { Description = "Parameter of CutMix's beta distribution; 0 for none." };
    private readonly Option<int?> _size = new("--image-size") { Description = "Side of the square that images are resized to, in place of the backbone's own." };

    public override string Name => "image-classification";

    public override string Description => "Classify images: a folder of class folders, or a table with paths and labels.";

    public override IEnumerable<Option> Options => [.. base.Options, _plain, _flip, _mixup, _cutMix, _size];

    public override ClassificationOptions Fresh(ParseResult call)
    {
        var mixing = new ImageMixing { MixupAlpha = call.GetValue(_mixup), CutMixAlpha = call.GetValue(_cutMix) };
        ImageAugmentation usual = ImageClassificationOptions.DefaultAugmentation;
        return new ImageClassificationOptions
        {
            ImageColumnName = Column,
            OnBadImage = OnBad(call),
            CacheMegabytes = Cache(call),
            ImageSize = call.GetValue(_size),
            Augmentation = call.GetValue(_plain) ? null : call.GetValue(_flip) ? usual with { HorizontalFlip = 0.5 } : usual,
            Mixing = mixing is { MixupAlpha: 0, CutMixAlpha: 0 } ? null : mixing,
        };
    }

    public override IEstimator<ClassificationTransformer> Trainer(MLContext context, ClassificationOptions options) => context.Peft().ImageClassification((ImageClassificationOptions)options);
}

/// <summary><c>peft train audio-classification</c>.</summary>
internal sealed class AudioTrainTask() : MediaTrainTask(true, "Audio")
{
    private readonly Option<double?> _seconds = new("--seconds") { Description = "Length that every sound is cut or padded to; the backbone's own where none is given." };
    private readonly Option<bool> _masks = new("--spec-augment") { Description = "Mask times and frequencies of spectrograms while training." };

    public override string Name => "audio-classification";

    public override string Description => "Classify sounds: a folder of class folders, or a table with paths and labels.";

    public override IEnumerable<Option> Options => [.. base.Options, _seconds, _masks];

    public override ClassificationOptions Fresh(ParseResult call) => new AudioClassificationOptions
    {
        AudioColumnName = Column,
        OnBadSound = OnBad(call),
        CacheMegabytes = Cache(call),
        Seconds = call.GetValue(_seconds),
        Augmentation = call.GetValue(_masks) ? new SpecAugment() : null,
    };

    public override IEstimator<ClassificationTransformer> Trainer(MLContext context, ClassificationOptions options) => context.Peft().AudioClassification((AudioClassificationOptions)options);
}
