// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>Ranking: trainers and evaluation.</summary>
public sealed class RankingCatalog : TrainCatalogBase
{
    internal RankingCatalog(IHostEnvironment env)
        : base(env) => Trainers = new RankingTrainers(this);

    public RankingTrainers Trainers { get; }

    public RankingMetrics Evaluate(IDataView data, string labelColumnName = DefaultColumnNames.Label,
        string rowGroupColumnName = DefaultColumnNames.GroupId, string scoreColumnName = DefaultColumnNames.Score)
        => Evaluate(data, new RankingEvaluatorOptions(), labelColumnName, rowGroupColumnName, scoreColumnName);

    public RankingMetrics Evaluate(IDataView data, RankingEvaluatorOptions options, string labelColumnName = DefaultColumnNames.Label,
        string rowGroupColumnName = DefaultColumnNames.GroupId, string scoreColumnName = DefaultColumnNames.Score)
    {
        Environment.CheckValue(data, nameof(data));
        Environment.CheckNonEmpty(labelColumnName, nameof(labelColumnName));
        Environment.CheckNonEmpty(scoreColumnName, nameof(scoreColumnName));
        Environment.CheckNonEmpty(rowGroupColumnName, nameof(rowGroupColumnName));
        Environment.Register("RankingEvaluator");
        return RankingEvaluation.Evaluate(data, options ?? new RankingEvaluatorOptions(), labelColumnName, rowGroupColumnName, scoreColumnName);
    }

    public IReadOnlyList<CrossValidationResult<RankingMetrics>> CrossValidate(
        IDataView data, IEstimator<ITransformer> estimator, int numberOfFolds = 5, string labelColumnName = DefaultColumnNames.Label,
        string rowGroupColumnName = DefaultColumnNames.GroupId, int? seed = null)
    {
        Environment.CheckNonEmpty(labelColumnName, nameof(labelColumnName));

        // The group is the sampling key too: a query is never split over two folds.
        return CrossValidateCore(data, estimator, numberOfFolds, rowGroupColumnName, seed,
            scores => Evaluate(scores, labelColumnName, rowGroupColumnName));
    }

    /// <summary>The trainers for this task.</summary>
    public sealed class RankingTrainers : CatalogInstantiatorBase
    {
        internal RankingTrainers(RankingCatalog catalog)
            : base(catalog)
        {
        }
    }
}
