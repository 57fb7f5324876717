// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

// Rows of embedding tables that are trained beside the update.
public sealed partial class LoraOptions
{
    private IReadOnlyList<(Embedding Table, int[] Ids)> TokenRows(Backbone backbone)
    {
        var found = new List<(Embedding, int[])>();
        foreach ((string name, int[] ids) in TrainableTokens)
        {
            Embedding[] tables = [.. backbone.Sites.OfType<Embedding>().Where(table =>
                name.Length == 0 ? table.Role == SiteRole.WordEmbedding : TargetMatcher.Names(name, backbone.PathOf(table)))];
            if (tables.Length == 0)
                throw Invalid(nameof(TrainableTokens), name, $"the name of a table: {string.Join(", ", backbone.Sites.OfType<Embedding>().Select(backbone.PathOf))}");
            foreach (Embedding table in tables)
            {
                if (ids.Any(id => id >= table.Weight.shape[0]))
                    throw Invalid($"{nameof(TrainableTokens)}['{name}']", ids.Max(), $"a row of {backbone.PathOf(table)}, 0 to {table.Weight.shape[0] - 1}");
                found.Add((table, ids));
            }
        }
        return found;
    }

    private static void AddTokens(LoraAdaptation adaptation, Embedding table, int[] ids)
    {
        string path = adaptation.Backbone.PathOf(table);
        Tensor places = tensor(Array.ConvertAll(ids, id => (long)id)).to(table.Weight.device);
        NamedParameter rows = adaptation.Add($"{path}.token_adapter.trainable_tokens_delta",
            table.Weight.index_select(0, places).to_type(ScalarType.Float32).contiguous());
        var patch = new TokenRowsPatch(rows, adaptation.Add(TokenRowsPatch.Places(path, table.Weight.shape[0], places)), ids.Length);
        adaptation.Attach(table, patch);
        foreach (Projection head in adaptation.Backbone.Sites.OfType<Projection>().Where(head => ReferenceEquals(head.TiedTo, table)))
            adaptation.Attach(head, new RewritePatch(patch.Rewrite));
    }

    // A list stands for the table of words, a table of lists names its tables.
    private static OrderedDictionary<string, int[]> ReadTokens(JsonNode? field)
    {
        var tokens = new OrderedDictionary<string, int[]>();
        switch (field)
        {
            case null: break;
            case JsonArray { Count: 0 }: break;
            case JsonArray list:
                tokens[""] = [.. AdapterConfig.List<int>(new JsonObject { ["trainable_token_indices"] = list.DeepClone() }, "trainable_token_indices")];
                break;
            case JsonObject tables:
                foreach ((string name, JsonNode? _) in tables) tokens[name] = [.. AdapterConfig.List<int>(tables, name)];
                break;
            default:
                throw new ArgumentException($"adapter_config.json: the field 'trainable_token_indices' is {field.ToJsonString()}; expected is a list of token ids, or a table of such lists.", "trainable_token_indices");
        }
        return tokens;
    }

    private JsonNode? WriteTokens()
    {
        if (TrainableTokens.Count == 0) return null;
        if (TrainableTokens.Count == 1 && TrainableTokens.TryGetValue("", out int[]? only)) return AdapterConfig.Array(only);
        return new JsonObject(TrainableTokens.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)AdapterConfig.Array(p.Value))));
    }
}
