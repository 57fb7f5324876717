// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Fine-tunes a frozen text backbone to classify one text or a pair of texts. Input: a key or Boolean label and text
/// columns; output: see <see cref="TextClassificationTransformer"/>.
/// </summary>
public sealed class TextClassificationTrainer : ClassificationTrainer<TextClassificationTransformer>
{
    internal TextClassificationTrainer(IHostEnvironment environment, TextClassificationOptions options) : base(environment, options)
    {
    }

    private new TextClassificationOptions Options => (TextClassificationOptions)base.Options;

    private protected override void CheckInput(SchemaShape shape) => Options.Text.Check(shape);

    private protected override TextClassificationTransformer Train(IDataView input, IDataView? validation)
    {
        TextClassificationOptions options = Options;
        (ClassificationModel<TextRow> model, Training.TrainingResult result) = new ClassificationFit<TextRow>(
            Environment, TextClassificationTask.Instance, options, options.Text,
            (files, network) => new TextEncoder(TextTokenizer.Load(files), Math.Min(options.MaxTokens, network.Backbone.Config.MaxTokens), options.Text),
            nameof(TextClassificationTrainer)).Run(input, validation);
        return new TextClassificationTransformer(model) { Training = result };
    }
}
