// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Concurrent;
using System.Reflection;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>The open registry of methods: those of this assembly by themselves, a user's own by <see cref="Register{T}"/>.</summary>
public static class PeftMethods
{
    private static readonly ConcurrentDictionary<string, Type> _types = FromThisAssembly();

    private static readonly JsonSerializerOptions _json = new()
    {
        WriteIndented = false,
        UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow,
        PropertyNamingPolicy = JsonNamingPolicy.CamelCase,
        Converters = { new JsonStringEnumConverter(JsonNamingPolicy.CamelCase), new MethodConverter() },
    };

    // Options that are methods themselves (the parts of a union) are written with their names.
    private sealed class MethodConverter : JsonConverter<PeftMethod>
    {
        public override PeftMethod Read(ref Utf8JsonReader reader, Type type, JsonSerializerOptions options)
        {
            using JsonDocument document = JsonDocument.ParseValue(ref reader);
            return FromJson(document.RootElement.GetRawText());
        }

        public override void Write(Utf8JsonWriter writer, PeftMethod value, JsonSerializerOptions options) => writer.WriteRawValue(ToJson(value));
    }

    /// <summary>Names of all registered methods, sorted.</summary>
    public static IReadOnlyList<string> Ids => [.. _types.Keys.Order(StringComparer.Ordinal)];

    /// <summary>Adds a method, so that training, model files and the command line know it.</summary>
    /// <typeparam name="T">A method class with default options in its parameterless constructor.</typeparam>
    /// <exception cref="InvalidOperationException">Another class has the same name.</exception>
    public static void Register<T>() where T : PeftMethod, new()
    {
        string id = new T().Id;
        Type held = _types.GetOrAdd(id, typeof(T));
        if (held != typeof(T))
            throw new InvalidOperationException($"Method name '{id}' belongs to {held.FullName}; give {typeof(T).FullName} another Id.");
    }

    /// <summary>Makes a method with its default options.</summary>
    /// <param name="id">Name of the method.</param>
    /// <exception cref="ArgumentException">No such method; the message lists near names.</exception>
    public static PeftMethod Create(string id) => (PeftMethod)Activator.CreateInstance(TypeOf(id))!;

    /// <summary>The class of a method.</summary>
    /// <param name="id">Name of the method.</param>
    public static Type TypeOf(string id) => _types.TryGetValue(id, out Type? type)
        ? type
        : throw new ArgumentException(
            $"Unknown method '{id}'. Known: {string.Join(", ", Ids)}. A method of your own assembly needs PeftMethods.Register<T>() first.", nameof(id));

    /// <summary>Sets an option by its name, as the command line does.</summary>
    /// <param name="method">The method.</param>
    /// <param name="option">Name of the option; case does not matter.</param>
    /// <param name="value">The value as text: numbers in invariant form, lists with commas or as JSON.</param>
    /// <exception cref="ArgumentException">No such option, or the value does not fit; the message lists what there is.</exception>
    public static void Set(PeftMethod method, string option, string value)
    {
        PropertyInfo[] options = [.. method.GetType().GetProperties().Where(p => p.SetMethod is { IsPublic: true })];
        PropertyInfo property = options.FirstOrDefault(p => p.Name.Equals(option, StringComparison.OrdinalIgnoreCase))
            ?? throw new ArgumentException(
                $"Method '{method.Id}' has no option '{option}'.{Checkpoints.NearNames.Hint(option, options.Select(p => p.Name))} Its options: {string.Join(", ", options.Select(p => p.Name))}.");
        foreach (string json in Forms(value, property.PropertyType))
        {
            try
            {
                property.SetValue(method, JsonSerializer.Deserialize(json, property.PropertyType, _json));
                return;
            }
            catch (JsonException)
            {
                // The next form may fit.
            }
        }
        throw new ArgumentException($"'{value}' does not fit option {property.Name} of method '{method.Id}', which is a {Describe(property.PropertyType)}.");
    }

    // A bare word is a string or an enum's name; a comma list is an array of words or of numbers.
    private static IEnumerable<string> Forms(string value, Type type)
    {
        yield return value;
        yield return type == typeof(bool) ? value.ToLowerInvariant() : JsonSerializer.Serialize(value);
        string[] parts = value.Split(',', StringSplitOptions.TrimEntries | StringSplitOptions.RemoveEmptyEntries);
        yield return JsonSerializer.Serialize(parts);
        yield return "[" + string.Join(',', parts) + "]";
    }

    private static string Describe(Type type)
    {
        Type bare = Nullable.GetUnderlyingType(type) ?? type;
        return bare.IsEnum ? string.Join(" or ", Enum.GetNames(bare)) : bare.Name;
    }

    /// <summary>Writes a method with its options as JSON.</summary>
    /// <param name="method">The method.</param>
    public static string ToJson(PeftMethod method)
    {
        var root = JsonSerializer.SerializeToNode(method, method.GetType(), _json)!.AsObject();
        foreach (string computed in (string[])["id", "family", "mergeable", "exactAtStart", "rowsAreIndependent", "defaultLearningRate", "huggingFaceType"]) root.Remove(computed);
        root.Insert(0, "method", method.Id);
        return root.ToJsonString();
    }

    /// <summary>Reads a method with its options.</summary>
    /// <param name="json">What <see cref="ToJson"/> wrote.</param>
    /// <exception cref="ArgumentException">Unknown method or option.</exception>
    public static PeftMethod FromJson(string json)
    {
        try
        {
            var root = System.Text.Json.Nodes.JsonNode.Parse(json)!.AsObject();
            string id = (string?)root["method"] ?? throw new ArgumentException("The field 'method' is missing.");
            root.Remove("method");
            return (PeftMethod)root.Deserialize(TypeOf(id), _json)!;
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or NullReferenceException)
        {
            throw new ArgumentException($"The method's options could not be read: {e.Message}", e);
        }
    }

    private static ConcurrentDictionary<string, Type> FromThisAssembly()
    {
        var types = new ConcurrentDictionary<string, Type>(StringComparer.Ordinal);
        foreach (Type type in typeof(PeftMethods).Assembly.GetTypes())
        {
            if (!type.IsPublic || type.IsAbstract || !type.IsSubclassOf(typeof(PeftMethod)) || type.GetConstructor(Type.EmptyTypes) is null) continue;
            types[((PeftMethod)Activator.CreateInstance(type)!).Id] = type;
        }
        return types;
    }
}
