// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Cli;

/// <summary>A model zip with the classifier in it.</summary>
internal sealed class LoadedModel : IDisposable
{
    /// <summary>Name that the label column gets, so that it meets none of the model's columns.</summary>
    public const string LabelColumn = "peft label";

    private LoadedModel(ClassificationTransformer classifier) => Classifier = classifier;

    public ClassificationTransformer Classifier { get; }

    public bool IsText => Classifier is TextClassificationTransformer;

    public bool Hears => Classifier is AudioClassificationTransformer;

    /// <summary>The text columns; of a text classifier only.</summary>
    public TextColumns Text => new(Classifier.InputColumns[0], IsText && Classifier.InputColumns.Count > 1 ? Classifier.InputColumns[1] : null);

    public static LoadedModel Open(MLContext context, string path)
    {
        if (!File.Exists(path)) throw new FileNotFoundException($"The model '{path}' does not exist.");
        // The zip names this library's assembly; in a program that has not used it yet it must be there first.
        context.ComponentCatalog.RegisterAssembly(typeof(ClassificationTransformer).Assembly);
        return new LoadedModel(Predictions.Find(context.Model.Load(path, out _), path));
    }

    /// <summary>A table's rows with the columns named as the model wants them.</summary>
    public IDataView Rows(MLContext context, TableFile table, string? text, string? text2, string? label)
    {
        List<(string From, string To)> columns = [(text ?? Text.First, Text.First)];
        if (Text.Second is { } second) columns.Add((text2 ?? second, second));
        if (label is not null) columns.Add((label, LabelColumn));
        return table.Load(context, columns);
    }

    /// <summary>Files of images or sounds as the model wants them: a folder, a file, or a table with paths.</summary>
    public IDataView Files(MLContext context, string data, string? path, string? label, bool labelled) => MediaFiles.View(
        context, MediaFiles.Read(context, data, Hears, path, label, labelled), Classifier.InputColumns[0], labelled ? LabelColumn : null);

    public void Dispose() => Classifier.Dispose();
}
