// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// A trained classifier. Key labels: adds <c>PredictedLabel</c> (a key with the label's values) and <c>Score</c> (one
/// probability a class, they sum to 1). Boolean labels: adds <c>PredictedLabel</c>, <c>Score</c> (log-odds) and
/// <c>Probability</c>. <see cref="Transform"/> is lazy and scores in batches; scoring is thread-safe.
/// </summary>
public abstract class ClassificationTransformer : ITransformer, IScoresInPrecision, IDisposable
{
    private readonly IClassificationModel _model;

    private protected ClassificationTransformer(IClassificationModel model) => _model = model;

    /// <summary>Name of the task, e.g. <c>text-classification</c>.</summary>
    public string Task => _model.Task;

    /// <summary>The method with its options.</summary>
    public PeftMethod Method => _model.Method;

    /// <summary>Short texts of the classes, in the order of the scores.</summary>
    public IReadOnlyList<string> Labels => _model.Labels.Names;

    /// <summary>The network: backbone, adaptation and head. It belongs to the transformer.</summary>
    public AdaptedModel Model => _model.Network;

    /// <summary>True for Boolean labels.</summary>
    public bool IsBinary => _model.Labels.IsBinary;

    /// <summary>Names of the columns that are read.</summary>
    public IReadOnlyList<string> InputColumns => _model.Inputs;

    /// <summary>Name of the score column that is added.</summary>
    public string ScoreColumn => _model.Outputs.Score;

    /// <summary>Name of the predicted-label column that is added.</summary>
    public string PredictedLabelColumn => _model.Outputs.PredictedLabel;

    /// <summary>Name of the probability column that is added for Boolean labels.</summary>
    public string ProbabilityColumn => _model.Outputs.Probability;

    /// <summary>Number of trained numbers, the head included.</summary>
    public long TrainableParameters => Model.Parameters.Where(p => p.Trainable).Sum(p => p.Value.numel());

    /// <summary>Number of all numbers, frozen ones included.</summary>
    public long TotalParameters => Model.Backbone.ParameterCount + Model.Parameters.Sum(p => p.Value.numel());

    /// <summary>Figures of the training run; null for a model that was loaded.</summary>
    public Training.TrainingResult? Training { get; internal init; }

    /// <summary>
    /// In what numbers rows are scored; it may be changed at any time, and holds for rows scored from then on. It belongs to the
    /// transformer and not to the model zip: a loaded model scores in <see cref="Precision.Float32"/> until told otherwise.
    /// With <see cref="Precision.Auto"/> the first 32 rows (fewer long ones) decide; until they have been seen, rows are scored in float32.
    /// </summary>
    /// <exception cref="ArgumentOutOfRangeException">No such precision.</exception>
    public Precision ScoringPrecision
    {
        get => _model.Precision;
        set => _model.Precision = value;
    }

    /// <summary>What <see cref="Precision.Auto"/> chose for scoring, and why; null where it was not asked, or has not yet seen the rows to choose by.</summary>
    public PrecisionChoice? ScoringPrecisionChoice => _model.Choice;

    private protected long Skipped => _model.Skipped;

    /// <inheritdoc/>
    public bool IsRowToRowMapper => true;

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">An input column is missing or of the wrong type.</exception>
    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        return _model.OutputSchema(inputSchema);
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">An input column is missing or of the wrong type.</exception>
    public IDataView Transform(IDataView input)
    {
        ArgumentNullException.ThrowIfNull(input);
        return _model.Transform(input);
    }

    /// <inheritdoc/>
    public IRowToRowMapper GetRowToRowMapper(DataViewSchema inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        return _model.Mapper(inputSchema);
    }

    /// <summary>Writes the adaptation and the head as a Hugging Face PEFT folder.</summary>
    /// <param name="folder">Folder to write; made where it does not exist.</param>
    /// <exception cref="NotSupportedException">The method does not exist in Hugging Face PEFT.</exception>
    public void SaveAdapter(string folder) => _model.SaveAdapter(folder);

    /// <summary>Writes the classifier as an ONNX file, the adapter merged into the weights; see <see cref="Export.OnnxExport"/>.</summary>
    /// <param name="path">File to write.</param>
    /// <exception cref="NotSupportedException">The family has no form in ONNX here, or the method cannot be merged; the message says which.</exception>
    public void SaveOnnx(string path) => Export.OnnxExport.Save(Model, path, Labels);

    void ICanSaveModel.Save(ModelSaveContext ctx) => _model.Save(ctx);

    /// <summary>Frees the network's memory. Prediction engines over this transformer end with it.</summary>
    public void Dispose()
    {
        _model.Dispose();
        GC.SuppressFinalize(this);
    }
}
