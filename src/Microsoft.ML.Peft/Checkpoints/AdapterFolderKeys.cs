// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// Names of tensors in adapter files against names of parameters: the prefix of the wrapping model, a base model without
/// its task model, adapter names that were left in the keys, both spellings of renamed modules.
/// </summary>
internal sealed class AdapterKeys
{
    private const string Prefix = "base_model.model.", ShortPrefix = "base_model.";
    private readonly HashSet<string> _all;
    private readonly Backbone _backbone;

    public AdapterKeys(IReadOnlyList<string> names, Backbone backbone)
    {
        _all = [.. names];
        _backbone = backbone;
        NoneHasPrefix = names.Count > 0 && !names.Any(n => n.StartsWith("base_model.", StringComparison.Ordinal));
        Bare = backbone.Prefix.Length > 0 && !names.Any(n => n.StartsWith($"{Prefix}{backbone.Prefix}.", StringComparison.Ordinal));
    }

    /// <summary>True where no key is one of an adapter file.</summary>
    public bool NoneHasPrefix { get; }

    /// <summary>True where the adapter was made for the base model alone.</summary>
    public bool Bare { get; }

    /// <summary>The parameter's name behind a key; null for a second copy of a tensor.</summary>
    /// <param name="key">A name in the file.</param>
    /// <param name="known">Whether a parameter has a name: what fits as it stands is not touched.</param>
    public string? Canonical(string key, Func<string, bool> known)
    {
        string whole = key.StartsWith(Prefix, StringComparison.Ordinal) ? key[Prefix.Length..] : key;
        foreach (string name in (string[])[whole, ModuleNames.ToCheckpoint(_backbone.Config.ModelType, whole)])
            if (whole != key && known(name)) return name;
        // Prompts wrap the task model once less.
        if (key.StartsWith(ShortPrefix, StringComparison.Ordinal) && known(key[ShortPrefix.Length..])) return key[ShortPrefix.Length..];
        if (key.Contains(".original_module.", StringComparison.Ordinal)) return null;
        string plain = key.Replace(".modules_to_save.default.", ".", StringComparison.Ordinal).Replace(".modules_to_save.", ".", StringComparison.Ordinal);
        if (plain != key && _all.Contains(plain)) return null;
        plain = plain.Replace(".default.", ".", StringComparison.Ordinal);
        if (plain.EndsWith(".default", StringComparison.Ordinal)) plain = plain[..^".default".Length];
        if (plain.EndsWith(".lora_magnitude_vector.weight", StringComparison.Ordinal)) plain = plain[..^".weight".Length];
        if (plain.StartsWith(Prefix, StringComparison.Ordinal)) plain = plain[Prefix.Length..];
        string inside = Bare && IsInside(plain) ? $"{_backbone.Prefix}.{plain}" : plain;
        return ModuleNames.ToCheckpoint(_backbone.Config.ModelType, inside);
    }

    /// <summary>The key under which a parameter is expected.</summary>
    public string KeyOf(string name) => KeyOf(name, _backbone, Bare, Prefix);

    /// <summary>The key under which a parameter is written.</summary>
    public static string KeyOf(string name, Backbone backbone, bool bare, string prefix) =>
        prefix + (bare && name.StartsWith(backbone.Prefix + ".", StringComparison.Ordinal) ? name[(backbone.Prefix.Length + 1)..] : name);

    // What lies below a module of the backbone; a head beside a bare model keeps its name.
    private bool IsInside(string name)
    {
        string checkpoint = ModuleNames.ToCheckpoint(_backbone.Config.ModelType, name);
        string first = checkpoint.IndexOf('.') is var dot and >= 0 ? checkpoint[..(dot + 1)] : checkpoint;
        return _backbone.Sites.Any(s => s.Name.StartsWith(first, StringComparison.Ordinal) || s.Name + "." == first);
    }
}
