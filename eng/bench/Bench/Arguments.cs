// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;

namespace Microsoft.ML.Peft.Bench;

/// <summary>Pairs of <c>--name value</c>.</summary>
internal sealed class Arguments
{
    private readonly Dictionary<string, string> _values = new(StringComparer.Ordinal);

    public Arguments(string[] arguments)
    {
        if (arguments.Length % 2 != 0) throw new ArgumentException($"'{arguments[^1]}' lacks a value.");
        foreach (string[] pair in arguments.Chunk(2)) _values[pair[0].TrimStart('-')] = pair[1];
    }

    public string Text(string name, string otherwise) => _values.GetValueOrDefault(name, otherwise);

    /// <summary>Words between commas.</summary>
    public string[] List(string name, string[] otherwise) => _values.TryGetValue(name, out string? text) ? text.Split(',') : otherwise;

    public int Int(string name, int otherwise) =>
        _values.TryGetValue(name, out string? text) ? int.Parse(text, CultureInfo.InvariantCulture) : otherwise;

    public double Number(string name, double otherwise) =>
        _values.TryGetValue(name, out string? text) ? double.Parse(text, CultureInfo.InvariantCulture) : otherwise;
}
