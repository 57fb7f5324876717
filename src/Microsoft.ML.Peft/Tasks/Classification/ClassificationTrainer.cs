// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Persistence;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// What the trainers of all classification tasks have in common. Fit may be called again and again, also from
/// <c>CrossValidate</c>; each call starts anew.
/// </summary>
/// <typeparam name="TTransformer">What Fit gives.</typeparam>
public abstract class ClassificationTrainer<TTransformer> : IEstimator<TTransformer> where TTransformer : ClassificationTransformer
{
    private readonly ClassificationOptions _options;

    private protected ClassificationTrainer(IHostEnvironment environment, ClassificationOptions options)
    {
        ArgumentNullException.ThrowIfNull(environment);
        ArgumentNullException.ThrowIfNull(options);
        Environment = environment;
        _options = options.Copy();
        _options.Validate();
    }

    private protected IHostEnvironment Environment { get; }

    private protected ClassificationOptions Options => _options;

    private protected abstract void CheckInput(SchemaShape shape);

    private protected abstract TTransformer Train(IDataView input, IDataView? validation);

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of the wrong type.</exception>
    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        CheckInput(inputSchema);
        return OutputShapes.Classifier(inputSchema, _options.LabelColumnName, _options.ScoreColumnName, _options.PredictedLabelColumnName, _options.ProbabilityColumnName);
    }

    /// <inheritdoc/>
    public TTransformer Fit(IDataView input) => Fit(input, _options.ValidationSet);

    /// <summary>Trains with rows to evaluate on.</summary>
    /// <param name="input">Rows to train on.</param>
    /// <param name="validation">Rows to evaluate on, of the same schema; null for none.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of the wrong type.</exception>
    /// <exception cref="InvalidOperationException">The data has no rows, labels that are missing, rows that cannot be read, or one class only; or training diverged.</exception>
    public TTransformer Fit(IDataView input, IDataView? validation)
    {
        ArgumentNullException.ThrowIfNull(input);
        return Train(input, validation);
    }
}
