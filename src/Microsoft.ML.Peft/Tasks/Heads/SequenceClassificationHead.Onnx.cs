// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Export;

namespace Microsoft.ML.Peft.Tasks;

/// <content>The head as a graph.</content>
public sealed partial class SequenceClassificationHead
{
    /// <summary>Adds the head to a graph.</summary>
    /// <param name="graph">The graph.</param>
    /// <param name="backbone">The backbone, for its pooler.</param>
    /// <param name="hidden">Hidden states <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="mask">1 for real tokens, float <c>[batch, tokens]</c>; null where nothing is padding.</param>
    /// <returns>Scores <c>[batch, outputs]</c>.</returns>
    internal string Export(OnnxGraph graph, Backbone backbone, string hidden, string? mask)
    {
        if (_readsLast || (_readsFamily && !_readsFirst && _pooling != Pooling.Mean))
            throw new NotSupportedException($"The head of a {backbone.Config.ModelType} backbone cannot be exported to ONNX.");
        string x = _pooling == Pooling.Mean ? Mean(graph, hidden, mask) : graph.Node("Gather", [hidden, graph.Number(0)], ("axis", 1L));
        if (_usesPooler) x = graph.Activation(graph.Linear(x, backbone.Pooler!), "tanh");
        if (_normWeight is not null)
        {
            x = graph.LayerNorm(x, graph.Tensor(_normWeight, _normWeight.Name, () => _normWeight.Value), graph.Tensor(_normBias!, _normBias!.Name, () => _normBias.Value), _normEpsilon);
        }
        if (_denseWeight is not null) x = graph.Activation(graph.Linear(x, _denseWeight, _denseBias), _activation);
        return graph.Linear(x, _outWeight, _outBias);
    }

    private static string Mean(OnnxGraph graph, string hidden, string? mask)
    {
        // The second input of ReduceSum is the list of axes; ReduceMean has them as an attribute at this version.
        if (mask is null) return graph.Node("ReduceMean", [hidden], ("axes", new long[] { 1 }), ("keepdims", 0L));
        string weights = graph.Node("Unsqueeze", [mask, graph.Numbers(2)]);
        string sum = graph.Node("ReduceSum", [graph.Mul(hidden, weights), graph.Numbers(1)], ("keepdims", 0L));
        return graph.Node("Div", [sum, graph.Node("ReduceSum", [weights, graph.Numbers(1)], ("keepdims", 0L))]);
    }
}
