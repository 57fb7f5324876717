// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Estimators that are fitted one after the other, each on what the fitted ones before it make of the data.</summary>
public sealed class EstimatorChain<TLastTransformer> : IEstimator<TransformerChain<TLastTransformer>>
    where TLastTransformer : class, ITransformer
{
    public readonly IEstimator<TLastTransformer> LastEstimator;

    private readonly IHost _host;
    private readonly Step[] _steps;

    private readonly record struct Step(IEstimator<ITransformer> Estimator, TransformerScope Scope, bool CacheAfter);

    public EstimatorChain() => _steps = [];

    private EstimatorChain(IHost host, Step[] steps)
    {
        _host = host;
        _steps = steps;
        LastEstimator = steps.LastOrDefault().Estimator as IEstimator<TLastTransformer>;
    }

    public TransformerChain<TLastTransformer> Fit(IDataView input)
    {
        // The schema of the whole chain first: mistakes show before the first step trains.
        GetOutputSchema(SchemaShape.Create(input.Schema));
        var fitted = new ITransformer[_steps.Length];
        var current = input;
        for (int i = 0; i < _steps.Length; i++)
        {
            fitted[i] = _steps[i].Estimator.Fit(current);
            current = fitted[i] is ITransformerWithDifferentMappingAtTrainingTime training
                ? training.TransformForTrainingPipeline(current)
                : fitted[i].Transform(current);
            if (_steps[i].CacheAfter && i < _steps.Length - 1)
                current = new CacheDataView(_host, current, []);
        }
        return new TransformerChain<TLastTransformer>(fitted, _steps.Select(step => step.Scope));
    }

    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
        => _steps.Aggregate(inputSchema, (shape, step) => step.Estimator.GetOutputSchema(shape));

    public EstimatorChain<TNewTrans> Append<TNewTrans>(IEstimator<TNewTrans> estimator, TransformerScope scope = TransformerScope.Everything)
        where TNewTrans : class, ITransformer
        => Append<TNewTrans>(_host, Contracts.CheckRef(estimator, nameof(estimator)), scope);

    private EstimatorChain<TNewTrans> Append<TNewTrans>(IHost host, IEstimator<TNewTrans> estimator, TransformerScope scope)
        where TNewTrans : class, ITransformer
        => new(host?.Register(nameof(EstimatorChain<TNewTrans>)), [.. _steps.Select(Convert<TNewTrans>), new((IEstimator<ITransformer>)estimator, scope, false)]);

    private static EstimatorChain<TNewTrans>.Step Convert<TNewTrans>(Step step) where TNewTrans : class, ITransformer
        => new(step.Estimator, step.Scope, step.CacheAfter);

    public EstimatorChain<TLastTransformer> AppendCacheCheckpoint(IHostEnvironment env)
    {
        Contracts.CheckValue(env, nameof(env));
        if (_steps.Length == 0)
            throw new InvalidOperationException("Current estimator chain has no estimator, can't append cache checkpoint.");
        return _steps[^1].CacheAfter ? this : new(env.Register(nameof(EstimatorChain<TLastTransformer>)), [.. _steps[..^1], _steps[^1] with { CacheAfter = true }]);
    }
}
