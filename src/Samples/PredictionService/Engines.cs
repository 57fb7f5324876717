// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.Extensions.ObjectPool;
using Microsoft.ML;

namespace Samples.PredictionService;

/// <summary>The request; its columns are those that the model was trained on.</summary>
internal sealed class Question
{
    public string Text { get; set; } = "";

    public string Label { get; set; } = "";
}

/// <summary>What the model answers.</summary>
internal sealed class Answer
{
    public string PredictedLabel { get; set; } = "";

    public float[] Score { get; set; } = [];
}

/// <summary>Makes engines that leave the transformer alone when they are disposed.</summary>
internal sealed class EnginePolicy(MLContext context, ITransformer model) : PooledObjectPolicy<PredictionEngine<Question, Answer>>
{
    private readonly Lock _making = new();

    public override PredictionEngine<Question, Answer> Create()
    {
        lock (_making)
            return context.Model.CreatePredictionEngine<Question, Answer>(model, new PredictionEngineOptions { OwnsTransformer = false });
    }

    public override bool Return(PredictionEngine<Question, Answer> obj) => true;
}
