// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>A row of the tests' data: the text says which of three kinds it is.</summary>
internal sealed class Review
{
    public int Id { get; set; }

    public string Label { get; set; } = "";

    public bool Good { get; set; }

    public float Stars { get; set; }

    [KeyType(3)]
    public uint Kind { get; set; }

    public string Text { get; set; } = "";

    public string Title { get; set; } = "";

    /// <summary>Path of a picture of the same kind.</summary>
    public string Image { get; set; } = "";

    /// <summary>Path of a sound of the same kind.</summary>
    public string Sound { get; set; } = "";
}

/// <summary>What a scored row says where labels are keys.</summary>
internal sealed class Scored
{
    public string PredictedLabel { get; set; } = "";

    public float[] Score { get; set; } = [];
}

/// <summary>What a scored row says where labels are Boolean.</summary>
internal sealed class ScoredBinary
{
    public bool PredictedLabel { get; set; }

    public float Score { get; set; }

    public float Probability { get; set; }
}

/// <summary>Data, options and readers that the tests of the text-classification task share.</summary>
internal static class TinyTexts
{
    private static readonly string[] _labels = ["praise", "blame", "wonder"];

    /// <summary>Rows of three kinds in turn, of 2 to 12 words.</summary>
    public static Review[] Rows(int count, int seed = 1)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(i =>
        {
            int kind = i % 3;
            string[] words = [.. Enumerable.Range(0, random.Next(1, 12)).Select(_ => TinyBert.Words[random.Next(9, 16)])];
            string telling = TinyBert.Words[(kind * 3) + random.Next(3)];
            int at = random.Next(words.Length + 1);
            return new Review
            {
                Id = i,
                Label = _labels[kind],
                Good = kind == 0,
                Stars = 5 - (2 * kind),
                Kind = (uint)kind,
                Text = string.Join(' ', [.. words[..at], telling, .. words[at..]]),
                Title = TinyBert.Words[random.Next(9, 12)],
                Image = TinyMedia.Picture(kind, (i / 3) + (7 * seed)),
                Sound = TinyMedia.Sound(kind, (i / 3) + (7 * seed)),
            };
        })];
    }

    public static IDataView View(MLContext ml, int count = 36, int seed = 1) => ml.Data.LoadFromEnumerable(Rows(count, seed));

    /// <summary>Options that train the tiny BERT in well under a second.</summary>
    public static TextClassificationOptions Options(Action<TextClassificationOptions>? change = null)
    {
        var options = new TextClassificationOptions
        {
            BackboneFolder = TinyBert.Folder,
            Sentence1ColumnName = nameof(Review.Text),
            MaxTokens = 32,
            Method = new LoraOptions { Rank = 4, Alpha = 8, Dropout = 0.1 },
            Training = new TrainingOptions { Epochs = 2, BatchSize = 8, LearningRate = 2e-3 },
        };
        change?.Invoke(options);
        return options;
    }

    /// <summary>Label to key, training, and the predicted key back to its label.</summary>
    public static IEstimator<ITransformer> Pipeline(MLContext ml, TextClassificationOptions options) =>
        ml.Transforms.Conversion.MapValueToKey("Label")
            .Append(ml.Peft().TextClassification(options))
            .Append(ml.Transforms.Conversion.MapKeyToValue("PredictedLabel"));

    /// <summary>A trained transformer alone; the data has its label as key.</summary>
    public static TextClassificationTransformer Train(MLContext ml, IDataView data, Action<TextClassificationOptions>? change = null) =>
        ml.Peft().TextClassification(Options(change)).Fit(Keyed(ml, data));

    public static IDataView Keyed(MLContext ml, IDataView data) => ml.Transforms.Conversion.MapValueToKey("Label").Fit(data).Transform(data);

    public static float[][] Scores(IDataView scored, string column = "Score") => [.. scored.GetColumn<float[]>(column)];

    public static float[][] Scores(ITransformer model, IDataView data) => Scores(model.Transform(data));

    /// <summary>All trained and saved numbers, by name.</summary>
    public static SortedDictionary<string, float[]> Parameters(ClassificationTransformer model)
    {
        var found = new SortedDictionary<string, float[]>(StringComparer.Ordinal);
        foreach (Adaptation.NamedParameter parameter in model.Model.Parameters)
        {
            using TorchSharp.torch.Tensor copy = parameter.Value.detach().clone();
            found[parameter.Name] = [.. copy.data<float>()];
        }
        return found;
    }

    public static void AreSame(float[][] expected, float[][] actual, string what = "")
    {
        Assert.HasCount(expected.Length, actual, what);
        for (int row = 0; row < expected.Length; row++)
            CollectionAssert.AreEqual(expected[row], actual[row], $"{what} row {row}: {string.Join(", ", expected[row])} and {string.Join(", ", actual[row])}");
    }

    /// <summary>The largest difference of two tables of scores.</summary>
    public static double Gap(float[][] expected, float[][] actual)
    {
        Assert.HasCount(expected.Length, actual);
        return expected.Zip(actual, (a, b) => a.Zip(b, (x, y) => (double)MathF.Abs(x - y)).Max()).Max();
    }

    public static bool Same(SortedDictionary<string, float[]> a, SortedDictionary<string, float[]> b) =>
        a.Keys.SequenceEqual(b.Keys) && a.All(pair => pair.Value.AsSpan().SequenceEqual(b[pair.Key]));
}
