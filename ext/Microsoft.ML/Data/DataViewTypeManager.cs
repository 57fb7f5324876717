// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Which column types stand for users' own .NET types.</summary>
public static class DataViewTypeManager
{
    private static readonly Lock _lock = new();
    private static readonly Dictionary<(Type, DataViewTypeAttribute), DataViewType> _types = [];

    public static void Register(DataViewType dataViewType, Type type, DataViewTypeAttribute typeAttribute = null)
    {
        lock (_lock)
        {
            if (ColumnTypeExtensions.TryPrimitiveTypeFromType(type, out _) || type == typeof(string) || type == typeof(char) || type == typeof(decimal))
                throw Contracts.ExceptParam(nameof(type), $"Type {type} is a type of the library and cannot be registered again.");
            if (_types.TryGetValue((type, typeAttribute), out var known))
            {
                if (known.Equals(dataViewType))
                    return;
                throw Contracts.ExceptParam(nameof(type), $"Repeated type register. The raw type {type} has been associated with {known} so it cannot be associated with {dataViewType}.");
            }
            if (_types.FirstOrDefault(pair => pair.Value.Equals(dataViewType)) is { Value: not null } other)
                throw Contracts.ExceptParam(nameof(dataViewType), $"Repeated type register. The DataView type {dataViewType} has been associated with {other.Key.Item1} so it cannot be associated with {type}.");
            _types.Add((type, typeAttribute), dataViewType);
        }
    }

    internal static DataViewType Find(Type type, IEnumerable<Attribute> attributes)
    {
        var marks = attributes?.OfType<DataViewTypeAttribute>().ToArray() ?? [];
        if (marks.Length > 1)
            throw Contracts.ExceptParam(nameof(type), $"Type {type.Name} cannot be marked with several attributes derived from {typeof(DataViewTypeAttribute)}.");
        lock (_lock)
            return _types.GetValueOrDefault((type, marks.FirstOrDefault()));
    }

    internal static bool Knows(DataViewType type)
    {
        lock (_lock)
            return _types.ContainsValue(type);
    }
}
