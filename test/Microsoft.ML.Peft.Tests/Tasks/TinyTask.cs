// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>A classification task with a tiny backbone over the rows of <see cref="TinyTexts"/>, for tests that are the same for all tasks.</summary>
internal abstract class TinyTask
{
    public static TinyTask Text { get; } = new TextTask();

    public static TinyTask Image { get; } = new ImageTask();

    public static TinyTask Audio { get; } = new AudioTask();

    public abstract string Name { get; }

    /// <summary>Eight letters of the model's header.</summary>
    public abstract string Signature { get; }

    /// <summary>Name of the input column.</summary>
    public abstract string Column { get; }

    /// <summary>Small file of a backbone folder that decides what a row is for the network.</summary>
    public virtual string SmallFile => "preprocessor_config.json";

    /// <summary>Altered zips that are tried where the environment does not say how many.</summary>
    public virtual string Alterations => "150";

    public abstract string Folder { get; }

    protected abstract ClassificationOptions Fresh();

    public abstract IEstimator<ClassificationTransformer> Trainer(MLContext ml, ClassificationOptions options);

    /// <summary>Writes a backbone folder.</summary>
    public abstract void Write(string folder, int seed);

    /// <summary>Changes the small file so that it means something else.</summary>
    public virtual void AlterSmallFile(string folder)
    {
        string path = Path.Combine(folder, SmallFile), text = File.ReadAllText(path);
        string altered = text.Replace("[0.5, 0.5, 0.5]", "[0.4, 0.5, 0.5]", StringComparison.Ordinal).Replace("-4.27", "-3", StringComparison.Ordinal);
        Assert.AreNotEqual(text, altered);
        File.WriteAllText(path, altered);
    }

    /// <summary>Options that train the tiny backbone in well under a second.</summary>
    public ClassificationOptions Options(Action<ClassificationOptions>? change = null)
    {
        ClassificationOptions options = Fresh();
        options.BackboneFolder = Folder;
        options.Method = new LoraOptions { Rank = 4, Alpha = 8, Dropout = 0.1 };
        options.Training = new TrainingOptions { Epochs = 2, BatchSize = 8, LearningRate = 2e-3 };
        change?.Invoke(options);
        return options;
    }

    public IEstimator<ClassificationTransformer> Trainer(MLContext ml, Action<ClassificationOptions>? change = null) => Trainer(ml, Options(change));

    /// <summary>A trained transformer; the label column is as the task wants it.</summary>
    public ClassificationTransformer Fit(MLContext ml, IDataView data, Action<ClassificationOptions>? change = null) => Trainer(ml, change).Fit(data);

    /// <summary>A trained transformer; the label becomes a key first.</summary>
    public ClassificationTransformer Train(MLContext ml, IDataView data, Action<ClassificationOptions>? change = null) => Fit(ml, TinyTexts.Keyed(ml, data), change);

    /// <summary>Label to key, training, and the predicted key back to its label.</summary>
    public IEstimator<ITransformer> Pipeline(MLContext ml, Action<ClassificationOptions>? change = null) =>
        ml.Transforms.Conversion.MapValueToKey("Label").Append(Trainer(ml, change)).Append(ml.Transforms.Conversion.MapKeyToValue("PredictedLabel"));

    private sealed class TextTask : TinyTask
    {
        public override string Name => "text-classification";

        public override string Signature => "PEFTTXCL";

        public override string Column => nameof(Review.Text);

        public override string SmallFile => "vocab.txt";

        public override string Alterations => "600";

        public override string Folder => TinyBert.Folder;

        protected override ClassificationOptions Fresh() => new TextClassificationOptions { Sentence1ColumnName = Column, MaxTokens = 32 };

        public override IEstimator<ClassificationTransformer> Trainer(MLContext ml, ClassificationOptions options) => ml.Peft().TextClassification((TextClassificationOptions)options);

        public override void Write(string folder, int seed) => TinyBert.Write(folder, seed);

        public override void AlterSmallFile(string folder)
        {
            string vocabulary = Path.Combine(folder, SmallFile);
            string[] words = File.ReadAllLines(vocabulary);
            (words[5], words[8]) = (words[8], words[5]);
            File.WriteAllText(vocabulary, string.Join('\n', words) + "\n");
        }
    }

    private sealed class ImageTask : TinyTask
    {
        private static readonly Lazy<string> _folder = TinyNetwork.Shared("tiny-vit", TinyNetwork.ViTConfig, TinyNetwork.ViTProcessor);

        public override string Name => "image-classification";

        public override string Signature => "PEFTIMCL";

        public override string Column => nameof(Review.Image);

        public override string Folder => _folder.Value;

        protected override ClassificationOptions Fresh() => new ImageClassificationOptions { ImageColumnName = Column };

        public override IEstimator<ClassificationTransformer> Trainer(MLContext ml, ClassificationOptions options) => ml.Peft().ImageClassification((ImageClassificationOptions)options);

        public override void Write(string folder, int seed) => TinyNetwork.Write(folder, TinyNetwork.ViTConfig, TinyNetwork.ViTProcessor, seed);
    }

    private sealed class AudioTask : TinyTask
    {
        private static readonly Lazy<string> _folder = TinyNetwork.Shared("tiny-ast", TinyNetwork.AstConfig, TinyNetwork.AstProcessor);

        public override string Name => "audio-classification";

        public override string Signature => "PEFTAUCL";

        public override string Column => nameof(Review.Sound);

        public override string Folder => _folder.Value;

        protected override ClassificationOptions Fresh() =>
            new AudioClassificationOptions { AudioColumnName = Column, Augmentation = new SpecAugment { FrequencyLimit = 3, TimeLimit = 5 } };

        public override IEstimator<ClassificationTransformer> Trainer(MLContext ml, ClassificationOptions options) => ml.Peft().AudioClassification((AudioClassificationOptions)options);

        public override void Write(string folder, int seed) => TinyNetwork.Write(folder, TinyNetwork.AstConfig, TinyNetwork.AstProcessor, seed);
    }
}
