// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Cli;

/// <summary>One scored row.</summary>
internal readonly record struct Prediction(TextRow Text, int Best, float[] Probabilities, string? Label);

/// <summary>Runs a transformer over a data view and reads what it made.</summary>
internal static class Predictions
{
    /// <summary>Finds the classifier in a loaded model, alone or in a chain.</summary>
    public static TextClassificationTransformer Find(ITransformer model, string path) => model switch
    {
        TextClassificationTransformer alone => alone,
        IEnumerable<ITransformer> chain => chain.Select(t => t as TextClassificationTransformer).FirstOrDefault(t => t is not null)
            ?? throw new InvalidDataException($"{path} holds no text classifier of this library; it holds {string.Join(", ", chain.Select(t => t.GetType().Name))}."),
        _ => throw new InvalidDataException($"{path} holds a {model.GetType().Name}, not a text classifier of this library."),
    };

    public static IEnumerable<Prediction> Of(TextClassificationTransformer model, IDataView data, string? label = null)
    {
        IDataView scored = model.Transform(data);
        bool binary = model.IsBinary;
        DataViewSchema.Column score = scored.Schema[binary ? model.ProbabilityColumn : model.ScoreColumn];
        DataViewSchema.Column? labels = label is null ? null : scored.Schema[label];
        var text = new TextColumns(model.TextColumns[0], model.TextColumns.Count > 1 ? model.TextColumns[1] : null);
        using DataViewRowCursor cursor = scored.GetRowCursor([score, .. text.Names.Select(n => scored.Schema[n]), .. labels is { } l ? [l] : Array.Empty<DataViewSchema.Column>()]);
        Func<TextRow> read = text.Reader(cursor);
        ValueGetter<VBuffer<float>>? getScores = binary ? null : cursor.GetGetter<VBuffer<float>>(score);
        ValueGetter<float>? getProbability = binary ? cursor.GetGetter<float>(score) : null;
        ValueGetter<ReadOnlyMemory<char>>? getLabel = labels is { } wanted ? cursor.GetGetter<ReadOnlyMemory<char>>(wanted) : null;
        VBuffer<float> scores = default;
        ReadOnlyMemory<char> name = default;
        float probability = 0;
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
            getLabel?.Invoke(ref name);
            yield return new Prediction(read(), Array.IndexOf(shares, shares.Max()), shares, getLabel is null ? null : name.ToString());
        }
    }
}
