// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Fields of adapter_config.json that many methods read and write alike.</summary>
internal static class ConfigFields
{
    /// <summary>Reads a field that names one of some choices.</summary>
    /// <typeparam name="T">What the choices stand for.</typeparam>
    /// <param name="config">The whole configuration.</param>
    /// <param name="field">Name of the field.</param>
    /// <param name="otherwise">The choice of a missing field.</param>
    /// <param name="choices">Names and what they stand for.</param>
    /// <exception cref="ArgumentException">The field names none of them.</exception>
    public static T Choice<T>(JsonObject config, string field, string otherwise, params (string Name, T Value)[] choices)
    {
        string found = AdapterConfig.Get(config, field, otherwise);
        foreach ((string name, T value) in choices)
            if (name == found) return value;
        throw new ArgumentException(
            $"adapter_config.json: the field '{field}' is {NearNames.Quote(found)}; expected is one of {string.Join(", ", choices.Select(c => c.Name))}.", field);
    }

    /// <summary>Reads a table of whole numbers by expression.</summary>
    /// <param name="config">The whole configuration.</param>
    /// <param name="field">Name of the field.</param>
    public static OrderedDictionary<string, int> Ranks(JsonObject config, string field) =>
        new(AdapterConfig.Table(config, field).Select(p => KeyValuePair.Create(p.Key, (int)p.Value)));

    /// <summary>
    /// Writes a table of numbers by expression. Files sort their keys and the first match wins: where sorting would change the
    /// winner, every module gets a key of its own.
    /// </summary>
    /// <param name="config">The object to fill.</param>
    /// <param name="field">Name of the field.</param>
    /// <param name="pattern">Expressions and numbers, in their order.</param>
    /// <param name="paths">Paths of all adapted modules.</param>
    public static void Write(JsonObject config, string field, IEnumerable<KeyValuePair<string, double>> pattern, IReadOnlyList<string> paths)
    {
        var table = new OrderedDictionary<string, double>(pattern);
        string[] sorted = [.. table.Keys.Order(StringComparer.Ordinal)];
        bool same = paths.All(path => TargetMatcher.FirstKey(sorted, path) == TargetMatcher.FirstKey(table.Keys, path));
        config[field] = new JsonObject((same ? table : paths.Where(path => TargetMatcher.FirstKey(table.Keys, path) is not null)
                .Select(path => KeyValuePair.Create($"^{path.Replace(".", @"\.", StringComparison.Ordinal)}", table[TargetMatcher.FirstKey(table.Keys, path)!])))
            .Select(p => KeyValuePair.Create(p.Key, (JsonNode?)AdapterConfig.Number(p.Value))));
    }
}

/// <summary>Fields that mean nothing here and are handed on as they were read.</summary>
/// <param name="defaults">Names of the fields and their values where nothing was read.</param>
internal sealed class CarriedFields(params (string Field, JsonNode? Default)[] defaults)
{
    private readonly Dictionary<string, JsonNode?> _read = [];

    /// <summary>Keeps the fields of a configuration.</summary>
    /// <param name="config">The whole configuration.</param>
    public void Read(JsonObject config)
    {
        foreach ((string field, _) in defaults)
            if (config.TryGetPropertyValue(field, out JsonNode? value)) _read[field] = value?.DeepClone();
    }

    /// <summary>Writes what was kept.</summary>
    /// <param name="config">The object to fill.</param>
    public void Write(JsonObject config)
    {
        foreach ((string field, JsonNode? value) in defaults) config[field] = (_read.TryGetValue(field, out JsonNode? kept) ? kept : value)?.DeepClone();
    }
}
