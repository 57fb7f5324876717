// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.RegularExpressions;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// Transformers 5 renamed modules of its vision and audio models in memory while their checkpoints kept the old names.
/// Adapter files carry the in-memory names of their day, so both spellings are read; sites here have the checkpoint's.
/// </summary>
internal static partial class ModuleNames
{
    private static readonly (string Memory, string Checkpoint)[] _vision =
    [
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ];

    private static readonly (string Memory, string Checkpoint)[] _swin =
    [
        ("attention.q_proj", "attention.self.query"),
        ("attention.k_proj", "attention.self.key"),
        ("attention.v_proj", "attention.self.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("attention.relative_position_bias.relative_position_bias_table", "attention.self.relative_position_bias_table"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ];

    /// <summary>The checkpoint's name of a module or parameter; the same name where both are equal.</summary>
    /// <param name="modelType">The <c>model_type</c>.</param>
    /// <param name="name">A name in either spelling.</param>
    public static string ToCheckpoint(string modelType, string name) => modelType switch
    {
        "vit" or "audio-spectrogram-transformer" => Replace(Layers().Replace(name, "encoder.layer.$1."), EncoderLayer(), _vision, true),
        "swin" => Replace(name, SwinBlock(), _swin, true),
        _ => name,
    };

    /// <summary>The in-memory name of a module or parameter; the same name where both are equal.</summary>
    /// <param name="modelType">The <c>model_type</c>.</param>
    /// <param name="name">A name in either spelling.</param>
    public static string ToMemory(string modelType, string name) => modelType switch
    {
        "vit" or "audio-spectrogram-transformer" => EncoderLayer().Replace(Replace(name, EncoderLayer(), _vision, false), "layers.$1."),
        "swin" => Replace(name, SwinBlock(), _swin, false),
        _ => name,
    };

    private static string Replace(string name, Regex layer, (string Memory, string Checkpoint)[] table, bool toCheckpoint)
    {
        if (layer.Match(name) is not { Success: true } match) return name;
        int start = match.Index + match.Length;
        string rest = name[start..];
        foreach ((string memory, string checkpoint) in table)
        {
            (string from, string to) = toCheckpoint ? (memory, checkpoint) : (checkpoint, memory);
            if (rest == from || rest.StartsWith(from + ".", StringComparison.Ordinal))
                return string.Concat(name.AsSpan(0, start), to, rest.AsSpan(from.Length));
        }
        return name;
    }

    [GeneratedRegex(@"(?<!encoder\.)\blayers\.(\d+)\.")]
    private static partial Regex Layers();

    [GeneratedRegex(@"\bencoder\.layer\.(\d+)\.")]
    private static partial Regex EncoderLayer();

    [GeneratedRegex(@"\blayers\.\d+\.blocks\.\d+\.")]
    private static partial Regex SwinBlock();
}
