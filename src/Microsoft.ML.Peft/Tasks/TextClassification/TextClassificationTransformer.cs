// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Runtime;

[assembly: LoadableClass(typeof(TextClassificationTransformer), null, typeof(SignatureLoadModel),
    TextClassificationTask.UserName, TextClassificationTask.Loader)]

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A trained text classifier; what it adds to data: see <see cref="ClassificationTransformer"/>.</summary>
public sealed class TextClassificationTransformer : ClassificationTransformer
{
    internal TextClassificationTransformer(ClassificationModel<TextRow> model) : base(model) => Inner = model;

    internal ClassificationModel<TextRow> Inner { get; }

    internal TextEncoder Encoder => (TextEncoder)Inner.Encoder;

    /// <summary>Longest text in tokens; longer ones are cut.</summary>
    public int MaxTokens => Encoder.MaxTokens;

    /// <summary>Names of the text columns that are read.</summary>
    public IReadOnlyList<string> TextColumns => InputColumns;

    /// <summary>Number of tokens that a text, or a pair of texts, has for the network.</summary>
    /// <param name="first">The text.</param>
    /// <param name="second">The second text of a pair, or null.</param>
    public int CountTokens(string first, string? second = null) => Encoder.Encode(new TextRow(first, second)).Length;

    // Found by mlContext.Model.Load through the attribute above.
    private static TextClassificationTransformer Create(IHostEnvironment env, ModelLoadContext ctx) =>
        new(ClassificationModel<TextRow>.Load(TextClassificationTask.Instance, env, ctx));
}
