// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>A value of a JSON file with the place where it stands, so that every complaint names both.</summary>
internal readonly record struct JsonAt(JsonElement Value, string File, string Path)
{
    private static readonly JsonDocumentOptions Lenient = new() { CommentHandling = JsonCommentHandling.Skip, AllowTrailingCommas = true, MaxDepth = 64 };

    public bool IsNull => Value.ValueKind is JsonValueKind.Null or JsonValueKind.Undefined;

    public bool IsObject => Value.ValueKind == JsonValueKind.Object;

    public bool IsString => Value.ValueKind == JsonValueKind.String;

    public static JsonAt Read(IFileSet files, string name)
    {
        try
        {
            using Stream stream = files.Open(name);
            using var document = JsonDocument.Parse(stream, Lenient);
            return new JsonAt(document.RootElement.Clone(), name, "");
        }
        catch (JsonException e)
        {
            throw Malformed.In(name, $"text that is not JSON ({e.Message.TrimEnd('.')})", "a JSON object", e);
        }
    }

    /// <summary>The member of that name, or a null value where it is missing or null.</summary>
    public JsonAt this[string name]
    {
        get
        {
            if (IsNull)
                return new JsonAt(default, File, Join(name));
            if (!IsObject)
                throw Bad("an object");
            try
            {
                return new JsonAt(Value.TryGetProperty(name, out var member) ? member : default, File, Join(name));
            }
            catch (InvalidOperationException e)
            {
                throw Malformed.In(Where, "a name with broken UTF-16 or UTF-8", "valid text", e);
            }
        }
    }

    public JsonAt At(int index) => new(Value[index], File, $"{Path}[{index}]");

    public string Text()
    {
        if (!IsString)
            throw Bad("a string");
        try
        {
            return Value.GetString()!;
        }
        catch (InvalidOperationException e)
        {
            throw Malformed.In(Where, "a string with broken UTF-16 or UTF-8", "valid text", e);
        }
    }

    public string? TextOrNull() => IsNull ? null : Text();

    public bool Flag(bool missing) => Value.ValueKind switch
    {
        JsonValueKind.True => true,
        JsonValueKind.False => false,
        JsonValueKind.Null or JsonValueKind.Undefined => missing,
        _ => throw Bad("true or false"),
    };

    public int Whole() =>
        Value.ValueKind == JsonValueKind.Number && Value.TryGetInt32(out int number) ? number : throw Bad("a whole number");

    /// <summary>A whole number from 0 on: an id, a count.</summary>
    public int Count()
    {
        int number = Whole();
        return number >= 0 ? number : throw Bad("a whole number from 0 on");
    }

    public int? CountOrNull() => IsNull ? null : Count();

    public double Number() =>
        Value.ValueKind == JsonValueKind.Number && Value.TryGetDouble(out double number) ? number : throw Bad("a number");

    public IEnumerable<JsonAt> Items()
    {
        if (IsNull)
            yield break;
        if (Value.ValueKind != JsonValueKind.Array)
            throw Bad("an array");
        int i = 0;
        foreach (var item in Value.EnumerateArray())
            yield return new JsonAt(item, File, $"{Path}[{i++}]");
    }

    public IEnumerable<(string Name, JsonAt Value)> Members()
    {
        if (IsNull)
            yield break;
        if (!IsObject)
            throw Bad("an object");
        foreach (var member in Value.EnumerateObject())
        {
            string name;
            try
            {
                name = member.Name;
            }
            catch (InvalidOperationException e)
            {
                throw Malformed.In(Where, "a name with broken UTF-16 or UTF-8", "valid text", e);
            }
            yield return (name, new JsonAt(member.Value, File, Join(name)));
        }
    }

    public CheckpointFormatException Bad(string expected)
    {
        string found = Value.ValueKind switch
        {
            JsonValueKind.Undefined => "nothing",
            JsonValueKind.Null => "null",
            JsonValueKind.Array => $"an array of {Value.GetArrayLength()}",
            JsonValueKind.Object => "an object",
            _ => Shorten(Value.GetRawText()),
        };
        return Malformed.In(Where, found, expected);
    }

    private string Where => Path.Length == 0 ? File : $"{File}: {Path}";

    private string Join(string name) => Path.Length == 0 ? name : $"{Path}.{name}";

    private static string Shorten(string text) => text.Length <= 60 ? text : text[..60] + "...";
}
