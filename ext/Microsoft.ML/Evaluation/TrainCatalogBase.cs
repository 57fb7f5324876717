// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>What the catalogs of the learning tasks share: the environment and cross-validation.</summary>
public abstract class TrainCatalogBase : IInternalCatalog
{
    private protected TrainCatalogBase(IHostEnvironment env)
    {
        Contracts.CheckValue(env, nameof(env));
        Environment = env;
    }

    IHostEnvironment IInternalCatalog.Environment => Environment;

    private protected IHostEnvironment Environment { get; }

    /// <summary>One fold of a cross-validation.</summary>
    public sealed class CrossValidationResult<T>
        where T : class
    {
        public readonly T Metrics;
        public readonly ITransformer Model;
        public readonly IDataView ScoredHoldOutSet;
        public readonly int Fold;

        internal CrossValidationResult(ITransformer model, T metrics, IDataView scores, int fold)
        {
            Model = model;
            Metrics = metrics;
            ScoredHoldOutSet = scores;
            Fold = fold;
        }
    }

    /// <summary>Holds the trainers of a task; libraries add theirs as extension methods.</summary>
    public abstract class CatalogInstantiatorBase : IInternalCatalog
    {
        private protected CatalogInstantiatorBase(TrainCatalogBase catalog) => Owner = catalog;

        IHostEnvironment IInternalCatalog.Environment => Owner.Environment;

        internal TrainCatalogBase Owner { get; }
    }

    /// <summary>Fits on all folds but one, scores that one, and evaluates the scores; in turn for every fold.</summary>
    private protected CrossValidationResult<T>[] CrossValidateCore<T>(IDataView data, IEstimator<ITransformer> estimator, int numFolds,
        string? samplingKeyColumn, int? seed, Func<IDataView, T> evaluate)
        where T : class
    {
        Environment.CheckValue(data, nameof(data));
        Environment.CheckValue(estimator, nameof(estimator));
        Environment.CheckParam(numFolds > 1, nameof(numFolds), "Must be more than 1");

        var splits = new DataOperationsCatalog(Environment).CrossValidationSplit(data, numFolds, samplingKeyColumn, seed);
        var fitted = new (ITransformer Model, IDataView Scores)[splits.Count];
        for (int fold = 0; fold < splits.Count; fold++)
        {
            ITransformer model = estimator.Fit(splits[fold].TrainSet);
            fitted[fold] = (model, model.Transform(splits[fold].TestSet));
        }

        // All folds are trained before the first is evaluated, as in the real package.
        return fitted.Select((x, fold) => new CrossValidationResult<T>(x.Model, evaluate(x.Scores), x.Scores, fold)).ToArray();
    }
}
