// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Cli;

/// <summary>One scored row; its best class is -1 where it could not be read.</summary>
internal readonly record struct Prediction(string[] Inputs, int Best, float[] Probabilities, string? Label);

/// <summary>Runs a transformer over a data view and reads what it made.</summary>
internal static class Predictions
{
    /// <summary>Finds the classifier in a loaded model, alone or in a chain.</summary>
    public static ClassificationTransformer Find(ITransformer model, string path) => model switch
    {
        ClassificationTransformer alone => alone,
        IEnumerable<ITransformer> chain => chain.Select(t => t as ClassificationTransformer).FirstOrDefault(t => t is not null)
            ?? throw new InvalidDataException($"{path} holds no classifier of this library; it holds {string.Join(", ", chain.Select(t => t.GetType().Name))}."),
        _ => throw new InvalidDataException($"{path} holds a {model.GetType().Name}, not a classifier of this library."),
    };

    /// <summary>Scores rows whose input columns hold text: texts, or paths.</summary>
    public static IEnumerable<Prediction> Of(ClassificationTransformer model, IDataView data, string? label = null)
    {
        IDataView scored = model.Transform(data);
        bool binary = model.IsBinary;
        DataViewSchema.Column score = scored.Schema[binary ? model.ProbabilityColumn : model.ScoreColumn];
        DataViewSchema.Column? labels = label is null ? null : scored.Schema[label];
        DataViewSchema.Column[] texts = [.. model.InputColumns.Select(n => scored.Schema[n]).Where(c => c.Type is TextDataViewType)];
        using DataViewRowCursor cursor = scored.GetRowCursor([score, .. texts, .. labels is { } l ? [l] : Array.Empty<DataViewSchema.Column>()]);
        ValueGetter<ReadOnlyMemory<char>>[] getTexts = [.. texts.Select(c => cursor.GetGetter<ReadOnlyMemory<char>>(c))];
        ValueGetter<VBuffer<float>>? getScores = binary ? null : cursor.GetGetter<VBuffer<float>>(score);
        ValueGetter<float>? getProbability = binary ? cursor.GetGetter<float>(score) : null;
        ValueGetter<ReadOnlyMemory<char>>? getLabel = labels is { } wanted ? cursor.GetGetter<ReadOnlyMemory<char>>(wanted) : null;
        VBuffer<float> scores = default;
        ReadOnlyMemory<char> text = default;
        float probability = 0;
        string Read(ValueGetter<ReadOnlyMemory<char>> getter)
        {
            getter(ref text);
            return text.ToString();
        }

        while (cursor.MoveNext())
        {
            float[] shares;
            if (binary)
            {
                getProbability!(ref probability);
                shares = [1 - probability, probability];
            }
            else
            {
                getScores!(ref scores);
                shares = [.. scores.DenseValues()];
            }
            int best = float.IsNaN(shares[0]) ? -1 : Array.IndexOf(shares, shares.Max());
            yield return new Prediction([.. getTexts.Select(Read)], best, shares, getLabel is null ? null : Read(getLabel));
        }
    }
}
