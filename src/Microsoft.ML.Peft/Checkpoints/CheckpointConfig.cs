// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Unicode;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// A JSON file of settings (config.json and its like). The getters check kind and range, and say which file and field
/// is wrong. A field that is null counts as absent.
/// </summary>
public sealed class CheckpointConfig
{
    // Published files have a few kilobytes; a parsed document takes several times its text.
    private const int MaxLength = 16 << 20;

    private CheckpointConfig(string source, JsonElement root)
    {
        Source = source;
        Root = root;
    }

    /// <summary>The file, and the field within it for a section.</summary>
    public string Source { get; }

    /// <summary>The JSON object itself.</summary>
    public JsonElement Root { get; }

    /// <summary>Names of all fields.</summary>
    public IReadOnlyList<string> Names => [.. Root.EnumerateObject().Select(p => p.Name)];

    /// <summary>The field <c>model_type</c>, which names the family.</summary>
    /// <exception cref="CheckpointFormatException">There is none.</exception>
    public string ModelType => String("model_type");

    /// <summary>Reads a file of settings.</summary>
    /// <param name="files">The files of the checkpoint.</param>
    /// <param name="name">The file's name.</param>
    /// <exception cref="CheckpointFormatException">The file is missing, or is not a JSON object.</exception>
    public static CheckpointConfig Read(IFileSet files, string name = "config.json")
    {
        ArgumentNullException.ThrowIfNull(files);
        if (!files.Exists(name))
        {
            string found = files.Names.Count == 0 ? "It is empty." : $"It has {NearNames.List(files.Names, 12)}.";
            throw new CheckpointFormatException($"{files.Description} has no {name}. {found}");
        }

        return Parse(SmallFile.Read(files, name, MaxLength), $"{files.Description}/{name}");
    }

    /// <summary>Reads settings from their JSON text.</summary>
    /// <param name="json">UTF-8 text of a JSON object.</param>
    /// <param name="source">What messages call it.</param>
    /// <exception cref="CheckpointFormatException">The text is not a JSON object.</exception>
    public static CheckpointConfig Parse(ReadOnlyMemory<byte> json, string source)
    {
        JsonElement root;
        json = SmallFile.WithoutMark(json);
        try
        {
            CheckTexts(json.Span, source);

            // The document is copied once and its pooled memory returned: an element may then live as long as it likes.
            using JsonDocument document = JsonDocument.Parse(json, new JsonDocumentOptions { AllowDuplicateProperties = false });
            root = document.RootElement.Clone();
        }
        catch (JsonException e)
        {
            throw new CheckpointFormatException(
                $"{source} is not valid JSON (line {e.LineNumber + 1}, byte {e.BytePositionInLine}).", e);
        }

        if (root.ValueKind != JsonValueKind.Object)
            throw new CheckpointFormatException($"{source} is a JSON {Kind(root)}; an object is expected.");
        return new CheckpointConfig(source, root);
    }

    /// <summary>Whether a field is there and not null.</summary>
    /// <param name="name">The field's name.</param>
    public bool Has(string name) => TryGet(name, out _);

    /// <summary>A whole number.</summary>
    /// <param name="name">The field's name.</param>
    /// <param name="fallback">Its value when absent; null: the field must be there.</param>
    /// <param name="min">Smallest allowed value.</param>
    /// <param name="max">Largest allowed value.</param>
    /// <exception cref="CheckpointFormatException">Absent without fallback, of another kind, or out of range.</exception>
    public int Int(string name, int? fallback = null, int min = int.MinValue, int max = int.MaxValue)
    {
        if (!TryGet(name, out JsonElement value))
            return fallback ?? throw Missing(name);
        if (value.ValueKind != JsonValueKind.Number || !value.TryGetDouble(out double number)
            || number != Math.Floor(number) || number < min || number > max)
        {
            throw Wrong(name, value, min == int.MinValue ? "a whole number"
                : max == int.MaxValue ? $"a whole number from {min}" : $"a whole number from {min} to {max}");
        }

        return (int)number;
    }

    /// <summary>A finite number.</summary>
    /// <param name="name">The field's name.</param>
    /// <param name="fallback">Its value when absent; null: the field must be there.</param>
    /// <exception cref="CheckpointFormatException">Absent without fallback, or of another kind.</exception>
    public double Double(string name, double? fallback = null)
    {
        if (!TryGet(name, out JsonElement value))
            return fallback ?? throw Missing(name);
        if (value.ValueKind != JsonValueKind.Number || !value.TryGetDouble(out double number) || !double.IsFinite(number))
            throw Wrong(name, value, "a number");
        return number;
    }

    /// <summary>A truth value.</summary>
    /// <param name="name">The field's name.</param>
    /// <param name="fallback">Its value when absent; null: the field must be there.</param>
    /// <exception cref="CheckpointFormatException">Absent without fallback, or of another kind.</exception>
    public bool Bool(string name, bool? fallback = null)
    {
        if (!TryGet(name, out JsonElement value))
            return fallback ?? throw Missing(name);
        return value.ValueKind is JsonValueKind.True or JsonValueKind.False
            ? value.GetBoolean() : throw Wrong(name, value, "true or false");
    }

    /// <summary>A text.</summary>
    /// <param name="name">The field's name.</param>
    /// <param name="fallback">Its value when absent; null: the field must be there.</param>
    /// <exception cref="CheckpointFormatException">Absent without fallback, or of another kind.</exception>
    public string String(string name, string? fallback = null)
    {
        if (!TryGet(name, out JsonElement value))
            return fallback ?? throw Missing(name);
        return Text(value) ?? throw Wrong(name, value, "a text");
    }

    /// <summary>A list of texts; a single text counts as a list of one, an absent field as an empty list.</summary>
    /// <param name="name">The field's name.</param>
    /// <exception cref="CheckpointFormatException">Of another kind.</exception>
    public IReadOnlyList<string> Strings(string name)
    {
        if (!TryGet(name, out JsonElement value))
            return [];
        if (Text(value) is string single)
            return [single];
        if (value.ValueKind != JsonValueKind.Array)
            throw Wrong(name, value, "a list of texts");
        return [.. value.EnumerateArray().Select(item => Text(item) ?? throw Wrong(name, item, "a list of texts"))];
    }

    /// <summary>An object within; null where it is absent.</summary>
    /// <param name="name">The field's name.</param>
    /// <exception cref="CheckpointFormatException">Of another kind.</exception>
    public CheckpointConfig? Section(string name)
    {
        if (!TryGet(name, out JsonElement value))
            return null;
        return value.ValueKind == JsonValueKind.Object
            ? new CheckpointConfig($"{Source}: {name}", value) : throw Wrong(name, value, "an object");
    }

    // Bytes that are no UTF-8 and halves of surrogate pairs pass as JSON, and would fail only where they are looked at.
    private static void CheckTexts(ReadOnlySpan<byte> json, string source)
    {
        if (!Utf8.IsValid(json))
            throw new CheckpointFormatException($"{source} is not valid UTF-8.");
        var reader = new Utf8JsonReader(json);
        while (reader.Read())
        {
            if (reader.TokenType is not (JsonTokenType.PropertyName or JsonTokenType.String) || !reader.ValueIsEscaped)
                continue;
            try
            {
                reader.GetString();
            }
            catch (InvalidOperationException e)
            {
                throw new CheckpointFormatException(
                    $"{source} holds a string that is not valid text (byte {reader.TokenStartIndex}).", e);
            }
        }
    }

    private bool TryGet(string name, out JsonElement value) =>
        Root.TryGetProperty(name, out value) && value.ValueKind != JsonValueKind.Null;

    private static string? Text(JsonElement value) =>
        value.ValueKind == JsonValueKind.String ? value.GetString() : null;

    private static string Kind(JsonElement value) => value.ValueKind.ToString().ToLowerInvariant();

    private CheckpointFormatException Missing(string name) =>
        new($"{Source} has no field '{name}'.{NearNames.Hint(name, Names)}");

    private CheckpointFormatException Wrong(string name, JsonElement value, string expected)
    {
        string found = value.GetRawText();
        if (found.Length > 60)
            found = found[..60] + "...";
        return new CheckpointFormatException($"{Source}: '{name}' is {found}; {expected} is expected.");
    }
}
