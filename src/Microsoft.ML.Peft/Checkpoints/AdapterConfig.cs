// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// adapter_config.json: reading fields with errors that name them, and writing as Python's <c>json.dumps(indent=2,
/// sort_keys=True)</c> does, so that a folder that is loaded and saved again has the same bytes.
/// </summary>
public static class AdapterConfig
{
    /// <summary>Parses a configuration.</summary>
    /// <param name="text">JSON text.</param>
    /// <param name="description">Name of the file, for messages.</param>
    /// <exception cref="CheckpointFormatException">The text is no JSON object.</exception>
    public static JsonObject Parse(string text, string description)
    {
        try
        {
            return JsonNode.Parse(text) as JsonObject
                ?? throw new CheckpointFormatException($"{description}: found no JSON object.");
        }
        catch (Exception e) when (e is JsonException or ArgumentException)
        {
            throw new CheckpointFormatException($"{description} is not valid JSON: {e.Message}", e);
        }
    }

    /// <summary>A field's value, or a default where the field is missing or null.</summary>
    /// <typeparam name="T">A string, number or bool.</typeparam>
    /// <param name="config">The configuration.</param>
    /// <param name="field">Name of the field.</param>
    /// <param name="otherwise">The default.</param>
    /// <exception cref="ArgumentException">The field holds another kind of value.</exception>
    public static T Get<T>(JsonObject config, string field, T otherwise) => config[field] switch
    {
        null => otherwise,
        JsonValue value when Read(value, out T? read) => read!,
        var other => throw Wrong(field, other, Kind<T>()),
    };

    /// <summary>A field that holds a list, one value, or null (an empty list).</summary>
    /// <typeparam name="T">A string or number.</typeparam>
    /// <param name="config">The configuration.</param>
    /// <param name="field">Name of the field.</param>
    /// <exception cref="ArgumentException">The field holds something else.</exception>
    public static IReadOnlyList<T> List<T>(JsonObject config, string field) => config[field] switch
    {
        null => [],
        JsonArray array => [.. array.Select(item => item is JsonValue v && Read(v, out T? read) ? read! : throw Wrong(field, item, $"a list of {Kind<T>()}"))],
        JsonValue value when Read(value, out T? read) => [read!],
        var other => throw Wrong(field, other, $"a list of {Kind<T>()}"),
    };

    /// <summary>A field that holds a table of numbers by name, in the file's order.</summary>
    /// <param name="config">The configuration.</param>
    /// <param name="field">Name of the field.</param>
    /// <exception cref="ArgumentException">The field holds something else.</exception>
    public static OrderedDictionary<string, double> Table(JsonObject config, string field)
    {
        var table = new OrderedDictionary<string, double>();
        if (config[field] is null) return table;
        if (config[field] is not JsonObject entries) throw Wrong(field, config[field], "a table of numbers");
        foreach ((string key, JsonNode? node) in entries)
            table[key] = node is JsonValue v && Read(v, out double number) ? number : throw Wrong($"{field}.{key}", node, "a number");
        return table;
    }

    /// <summary>True where a field holds nothing: missing, null, false, an empty list or table.</summary>
    /// <param name="config">The configuration.</param>
    /// <param name="field">Name of the field.</param>
    public static bool IsEmpty(JsonObject config, string field) => config[field] switch
    {
        null => true,
        JsonArray array => array.Count == 0,
        JsonObject table => table.Count == 0,
        JsonValue value => value.TryGetValue(out bool flag) && !flag,
        _ => false,
    };

    /// <summary>A JSON array of the items.</summary>
    /// <typeparam name="T">A string or number.</typeparam>
    /// <param name="items">The items.</param>
    public static JsonArray Array<T>(IEnumerable<T> items) => new([.. items.Select(item => JsonValue.Create(item))]);

    /// <summary>A number as Python's int where it is whole, else as its float.</summary>
    /// <param name="number">Any finite number.</param>
    public static JsonNode Number(double number) =>
        number == Math.Floor(number) && Math.Abs(number) < 1e15 ? JsonValue.Create((long)number) : JsonValue.Create(number);

    /// <summary>The text of a configuration, as Python writes it: sorted keys, two spaces, ASCII.</summary>
    /// <param name="config">The configuration.</param>
    public static string ToText(JsonNode config)
    {
        var text = new StringBuilder();
        Write(text, config, 0);
        return text.ToString();
    }

    private static void Write(StringBuilder text, JsonNode? node, int depth)
    {
        switch (node)
        {
            case null:
                text.Append("null");
                break;
            case JsonObject table:
                Write(text, '{', '}', depth, table.OrderBy(p => p.Key, StringComparer.Ordinal), pair =>
                {
                    Quote(text, pair.Key);
                    Write(text.Append(": "), pair.Value, depth + 1);
                });
                break;
            case JsonArray list:
                Write(text, '[', ']', depth, list, item => Write(text, item, depth + 1));
                break;
            default:
                Write(text, node.AsValue());
                break;
        }
    }

    private static void Write<T>(StringBuilder text, char open, char close, int depth, IEnumerable<T> items, Action<T> write)
    {
        text.Append(open);
        bool any = false;
        foreach (T item in items)
        {
            text.Append(any ? ",\n" : "\n").Append(' ', 2 * depth + 2);
            write(item);
            any = true;
        }
        if (any) text.Append('\n').Append(' ', 2 * depth);
        text.Append(close);
    }

    private static void Write(StringBuilder text, JsonValue value)
    {
        switch (value.GetValueKind())
        {
            case JsonValueKind.String: Quote(text, value.GetValue<string>()); break;
            case JsonValueKind.True: text.Append("true"); break;
            case JsonValueKind.False: text.Append("false"); break;
            case JsonValueKind.Number when value.TryGetValue(out JsonElement raw): text.Append(raw.GetRawText()); break;
            case JsonValueKind.Number when value.TryGetValue(out double number): text.Append(Float(number)); break;
            default: text.Append(value.ToJsonString()); break;
        }
    }

    // Python's repr: 0.0, 1e-05, 1e+16, 0.0001.
    private static string Float(double number)
    {
        string text = number.ToString("R", CultureInfo.InvariantCulture);
        if (number != 0 && Math.Abs(number) is < 1e-4 or >= 1e16)
        {
            text = number.ToString("E16", CultureInfo.InvariantCulture);
            for (int digits = 0; digits < 17; digits++)
            {
                string shorter = number.ToString("E" + digits, CultureInfo.InvariantCulture);
                if (double.Parse(shorter, CultureInfo.InvariantCulture) != number) continue;
                text = shorter;
                break;
            }
            int e = text.IndexOf('E');
            int exponent = int.Parse(text.AsSpan(e + 1), NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture);
            return $"{text[..e]}e{(exponent < 0 ? '-' : '+')}{Math.Abs(exponent):00}";
        }
        return text.Contains('.') ? text : text + ".0";
    }

    private static void Quote(StringBuilder text, string value)
    {
        text.Append('"');
        foreach (char c in value)
        {
            _ = c switch
            {
                '"' => text.Append("\\\""),
                '\\' => text.Append("\\\\"),
                '\n' => text.Append("\\n"),
                '\r' => text.Append("\\r"),
                '\t' => text.Append("\\t"),
                '\b' => text.Append("\\b"),
                '\f' => text.Append("\\f"),
                _ => c is >= ' ' and < (char)127 ? text.Append(c) : text.Append($"\\u{(int)c:x4}"),
            };
        }
        text.Append('"');
    }

    private static bool Read<T>(JsonValue value, out T? read)
    {
        if (value.TryGetValue(out read)) return true;
        if (value.GetValueKind() != JsonValueKind.Number || (typeof(T) != typeof(int) && typeof(T) != typeof(double))) return false;
        // Whole numbers are often written with a point, and numbers made in memory keep their C# type.
        double number = double.Parse(value.ToJsonString(), CultureInfo.InvariantCulture);
        if (typeof(T) == typeof(double))
        {
            read = (T)(object)number;
            return true;
        }
        if (number == Math.Floor(number) && Math.Abs(number) < int.MaxValue)
        {
            read = (T)(object)(int)number;
            return true;
        }
        return false;
    }

    private static string Kind<T>() => typeof(T) == typeof(bool) ? "true or false" : typeof(T) == typeof(string) ? "text"
        : typeof(T) == typeof(int) ? "a whole number" : "a number";

    private static ArgumentException Wrong(string field, JsonNode? found, string expected) =>
        new($"adapter_config.json: the field '{field}' is {found?.ToJsonString() ?? "null"}; expected is {expected}.", field);
}
