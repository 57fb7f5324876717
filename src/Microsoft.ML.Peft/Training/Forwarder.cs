// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>Scores batches: by the whole model, or by the head alone over features that were computed once.</summary>
internal sealed class Forwarder : IDisposable
{
    private readonly AdaptedModel _model;
    private readonly Dictionary<Example, long> _places = new(ReferenceEqualityComparer.Instance);
    private Tensor? _features;

    public Forwarder(AdaptedModel model) => _model = model;

    /// <summary>True where features are kept.</summary>
    public bool Caches => _features is not null;

    /// <summary>True where nothing that is trained lies below the head.</summary>
    public static bool CanCache(AdaptedModel model) => model.Patches.LowestTrainable == int.MaxValue;

    /// <summary>True where the features of all rows are kept, so that their images or sounds need not be read.</summary>
    public bool Keeps(IReadOnlyList<Example> rows) => _features is not null && rows.All(_places.ContainsKey);

    /// <summary>Scores of a batch.</summary>
    public Tensor Score(BatchArrays arrays, Pass pass)
    {
        if (!Keeps(arrays.Rows))
            return _model.Forward(MiniBatch.ToTokens(arrays, _model.Backbone.Device), pass);
        Tensor places = tensor(Array.ConvertAll([.. arrays.Rows], r => _places[r]), device: _features!.device);
        return _model.Head.FromFeatures(_features.index_select(0, places), pass);
    }

    /// <summary>Runs the backbone over all rows and keeps what the head reads; heads that read whole sequences are left as they are.</summary>
    public void Fill(IEnumerable<Example> rows, int batch, int multiple)
    {
        Example[] sorted = [.. rows.Distinct(ReferenceEqualityComparer.Instance).Cast<Example>().OrderByDescending(r => r.Length)];
        if (sorted.Length == 0) return;
        var parts = new List<Tensor>();
        using var off = no_grad();
        using var scope = NewDisposeScope();
        foreach (BatchArrays arrays in Assembled(sorted.Chunk(batch), multiple))
        {
            using var inner = NewDisposeScope();
            var pass = new Pass(_model.Patches) { Precision = _model.Precision };
            Backbone backbone = _model.Backbone;
            BackboneOutput output = backbone.Forward(MiniBatch.ToTokens(arrays, backbone.Device), pass);
            Tensor features = _model.Head.Features(backbone, output, pass);
            if (features.dim() != 2) return;
            parts.Add(features.MoveToOuterDisposeScope());
        }
        for (int i = 0; i < sorted.Length; i++) _places[sorted[i]] = i;
        _features = cat(parts).DetachFromDisposeScope();
    }

    /// <summary>Metrics of all rows, without gradient and dropout; rows of like lengths share a batch.</summary>
    public Evaluation Evaluate(IReadOnlyList<Example> rows, Objective objective, int batch, int multiple, CancellationToken cancel = default)
    {
        MetricSums sums = objective.NewMetrics();
        using var off = no_grad();
        foreach (BatchArrays arrays in Assembled(rows.OrderByDescending(r => r.Length).Chunk(batch), multiple))
        {
            cancel.ThrowIfCancellationRequested();
            using var scope = NewDisposeScope();
            var pass = new Pass(_model.Patches);
            Tensor scores = Score(arrays, pass);
            double loss = objective.Sum(scores, new MiniBatch(arrays.Rows, scores.device)).item<float>();
            float[] numbers = scores.to_type(ScalarType.Float32).cpu().contiguous().data<float>().ToArray();
            sums.Add(numbers, arrays.Rows, loss, arrays.Rows.Sum(objective.Count));
        }
        return sums.Result();
    }

    private IEnumerable<BatchArrays> Assembled(IEnumerable<Example[]> chunks, int multiple) =>
        ReadAhead.Of(chunks, rows => BatchArrays.Of(rows, _model.Backbone.Config, multiple, bare: Keeps(rows)));

    public void Dispose() => _features?.Dispose();
}
