// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Methods;

// Deeper networks out of the same layers, each application with an update of its own.
public sealed partial class LoraOptions
{
    /// <summary>
    /// Ranges of layers, <c>[from, to)</c>, that are stacked into a new network: <c>[[0, 2], [1, 3]]</c> runs layers 0, 1, 1, 2.
    /// Frozen weights are shared, updates are not; a fresh adapter's output is that of the new network. Empty for the network
    /// as it is. Attach to what <see cref="PeftMethod.Restack"/> gives.
    /// </summary>
    public int[][] LayerReplication { get; set; } = [];

    private int[] StackedLayers() => [.. LayerReplication.SelectMany(range => Enumerable.Range(range[0], range[1] - range[0]))];

    private void CheckReplication()
    {
        foreach (int[] range in LayerReplication)
            if (range is not [>= 0, _] || range[1] <= range[0])
                throw Invalid(nameof(LayerReplication), $"[{string.Join(", ", range)}]", "ranges of two numbers, from 0 or more to a higher one");
    }

    /// <inheritdoc/>
    public override Backbone? Restack(Backbone backbone)
    {
        if (LayerReplication.Length == 0) return null;
        CheckReplication();
        return backbone.Restacked(StackedLayers());
    }

    private void CheckStacked(Backbone backbone)
    {
        if (LayerReplication.Length == 0 || StackedLayers().Length == backbone.Config.LayerCount) return;
        throw Invalid(nameof(LayerReplication), $"a stack of {StackedLayers().Length} layers",
            $"used on the backbone that Restack gives; this {backbone.Config.ModelType} backbone has {backbone.Config.LayerCount} layers");
    }

    private static int[][] ReadReplication(JsonNode? field)
    {
        if (field is null) return [];
        try
        {
            return [.. field.AsArray().Select(range => range!.AsArray().Select(n => (int)n!).ToArray())];
        }
        catch (Exception e) when (e is InvalidOperationException or FormatException or NullReferenceException)
        {
            throw new ArgumentException($"adapter_config.json: the field 'layer_replication' is {field.ToJsonString()}; expected is a list of ranges such as [[0, 2], [1, 3]].", "layer_replication", e);
        }
    }

    private JsonArray? WriteReplication() => LayerReplication.Length == 0 ? null
        : new JsonArray([.. LayerReplication.Select(range => (JsonNode)new JsonArray([.. range.Select(n => (JsonNode)n)]))]);
}
