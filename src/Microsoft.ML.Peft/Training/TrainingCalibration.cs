// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>The first micro-batches of a run, as a method sees them before training.</summary>
internal sealed class TrainingCalibration : Calibration
{
    private readonly AdaptedModel _model;
    private readonly Objective _objective;
    private readonly TrainingOptions _options;
    private readonly IReadOnlyList<Example>[] _batches;

    public TrainingCalibration(AdaptedModel model, BatchPlan plan, int most, Objective objective, TrainingOptions options)
    {
        (_model, _objective, _options) = (model, objective, options);
        _batches = [.. plan.Steps(0).SelectMany(step => step.MicroBatches).Where(rows => rows.Sum(objective.Count) > 0).Take(Math.Min(most, plan.MicroBatchesAnEpoch))];
    }

    public override int Batches => _batches.Length;

    private Backbones.TokenBatch Tokens(int batch) =>
        MiniBatch.ToTokens(BatchArrays.Of(_batches[batch], _model.Backbone.Config, _options.PadToMultiple), _model.Backbone.Device);

    public override Tensor Run(int batch, PatchTable worn)
    {
        Backbones.TokenBatch tokens = Tokens(batch);
        var pass = new Pass(worn);
        _model.Backbone.Forward(tokens, pass);
        // What tokens an image or a sound makes, the network alone knows.
        return _model.Backbone.Config.Input == Backbones.BackboneInput.Text ? tokens.Mask : pass.Layout.Mask;
    }

    public override Tensor Loss(int batch, PatchTable worn)
    {
        var pass = new Pass(worn);
        Tensor scores = _model.Head.Forward(_model.Backbone, _model.Backbone.Forward(Tokens(batch), pass), pass);
        return _objective.Sum(scores, new MiniBatch(_batches[batch], scores.device)) / _batches[batch].Sum(_objective.Count);
    }
}
