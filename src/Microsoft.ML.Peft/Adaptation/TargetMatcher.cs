// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.RegularExpressions;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>What a <see cref="TargetMatcher"/> says of a module path.</summary>
public enum TargetMatch
{
    /// <summary>No target names the path.</summary>
    None,
    /// <summary>A target names the path.</summary>
    Matched,
    /// <summary>The path is excluded, or is saved whole.</summary>
    Excluded,
}

/// <summary>Which module paths are adapted, in the words of Hugging Face PEFT.</summary>
public sealed record TargetRule
{
    /// <summary>Names: a path matches where it equals one or ends with "." and one.</summary>
    public IReadOnlyList<string> Targets { get; init; } = [];

    /// <summary>Names that a role stands for: as <see cref="Targets"/>, but <see cref="Layers"/> filters those that are whole paths too.</summary>
    public IReadOnlyList<string> OfRoles { get; init; } = [];

    /// <summary>A regular expression that must match the whole path; in place of <see cref="Targets"/>.</summary>
    public string? Pattern { get; init; }

    /// <summary>Names of paths that are left out; they win over targets.</summary>
    public IReadOnlyList<string> Excluded { get; init; } = [];

    /// <summary>A regular expression of whole paths that are left out.</summary>
    public string? ExcludedPattern { get; init; }

    /// <summary>Modules saved whole: they and what lies below them are never adapted.</summary>
    public IReadOnlyList<string> SavedWhole { get; init; } = [];

    /// <summary>Layer numbers that are adapted; empty for all. Filters <see cref="Targets"/> only.</summary>
    public IReadOnlyList<int> Layers { get; init; } = [];

    /// <summary>Names (regular expressions) of the list of layers, as <c>layer</c> in <c>encoder.layer.0</c>; empty for the usual place.</summary>
    public IReadOnlyList<string> LayersPattern { get; init; } = [];
}

/// <summary>
/// Decides which module paths a <see cref="TargetRule"/> names, exactly as Hugging Face PEFT does, so that a configuration
/// means the same modules here and there.
/// </summary>
public sealed class TargetMatcher
{
    // A configuration may come from anywhere: a pattern may not hang the process.
    private static readonly TimeSpan _patience = TimeSpan.FromSeconds(1);
    private const RegexOptions Options = RegexOptions.CultureInvariant;
    private static readonly Regex _usualLayer = new(@"\A.*?\.[^.]*\.(\d+)\.", Options, _patience);

    private readonly TargetRule _rule;
    private readonly Regex? _pattern;
    private readonly Regex? _excluded;
    private readonly Regex[] _saved;
    private readonly Regex[] _layers;

    /// <summary>Prepares the rule's patterns.</summary>
    /// <param name="rule">Which paths.</param>
    /// <exception cref="ArgumentException">A pattern is not a regular expression; the message names the field.</exception>
    public TargetMatcher(TargetRule rule)
    {
        _rule = rule;
        _pattern = rule.Pattern is null ? null : Compile($@"\A(?:{rule.Pattern})\z", "target_modules", rule.Pattern);
        _excluded = rule.ExcludedPattern is null ? null : Compile($@"\A(?:{rule.ExcludedPattern})\z", "exclude_modules", rule.ExcludedPattern);
        _saved = [.. rule.SavedWhole.Select(name => Compile($@"\A(?:.*\.)?{Regex.Escape(name)}(?:\z|\..*)", "modules_to_save", name))];
        _layers = [.. rule.LayersPattern.Select(name => Compile($@"\A(?:|.*?\.)(?:{name})\.(\d+)\.", "layers_pattern", name))];
    }

    /// <summary>What the rule says of a path.</summary>
    /// <param name="path">Full module path in the task model.</param>
    public TargetMatch Match(string path)
    {
        if (_excluded is not null ? IsMatch(_excluded, path) : _rule.Excluded.Any(name => Names(name, path))) return TargetMatch.Excluded;
        if (_saved.Any(saved => IsMatch(saved, path))) return TargetMatch.Excluded;
        if (_pattern is not null) return IsMatch(_pattern, path) ? TargetMatch.Matched : TargetMatch.None;
        if (_rule.Targets.Contains(path)) return TargetMatch.Matched;
        return _rule.Targets.Concat(_rule.OfRoles).Any(name => Names(name, path)) && InLayers(path) ? TargetMatch.Matched : TargetMatch.None;
    }

    /// <summary>True where a name (not a pattern) names the path: equal, or the path's last parts.</summary>
    /// <param name="name">A target name.</param>
    /// <param name="path">Full module path.</param>
    public static bool Names(string name, string path) =>
        path == name || (path.Length > name.Length && path.EndsWith(name, StringComparison.Ordinal) && path[^(name.Length + 1)] == '.');

    /// <summary>
    /// The key of <c>rank_pattern</c> or <c>alpha_pattern</c> that holds for a path: the first whose expression matches the
    /// path's end; null where none does.
    /// </summary>
    /// <param name="keys">Keys in their order.</param>
    /// <param name="path">Full module path.</param>
    /// <exception cref="ArgumentException">A key is not a regular expression.</exception>
    public static string? FirstKey(IEnumerable<string> keys, string path) =>
        keys.FirstOrDefault(key => IsMatch(Compile($@"\A(?:.*\.)?(?:{key})\z", "rank_pattern or alpha_pattern", key), path));

    /// <summary>The layer number that a path carries, or null.</summary>
    /// <param name="path">Full module path.</param>
    public int? LayerOf(string path)
    {
        foreach (Regex pattern in _layers.Length == 0 ? [_usualLayer] : _layers)
            if (pattern.Match(path) is { Success: true } match)
                return int.Parse(match.Groups[^1].ValueSpan, NumberStyles.None, CultureInfo.InvariantCulture);
        return null;
    }

    /// <summary>
    /// Shortest path ends that name all of the given paths and none of the others; how long lists of targets are saved.
    /// </summary>
    /// <param name="paths">Paths that are adapted.</param>
    /// <param name="others">Paths that must not be named.</param>
    public static IReadOnlyList<string> Shorten(IEnumerable<string> paths, IEnumerable<string> others)
    {
        HashSet<string> taken = [.. others.SelectMany(Ends)];
        var names = new List<string>();
        foreach (string path in paths)
        {
            if (names.Any(name => Names(name, path))) continue;
            names.Add(Ends(path).FirstOrDefault(end => !taken.Contains(end)) ?? path);
        }
        return names;
    }

    // "a.b.c" -> "c", "b.c", "a.b.c"
    private static IEnumerable<string> Ends(string path)
    {
        for (int dot = path.LastIndexOf('.'); dot >= 0; dot = dot == 0 ? -1 : path.LastIndexOf('.', dot - 1))
            yield return path[(dot + 1)..];
        yield return path;
    }

    private bool InLayers(string path) =>
        _rule.Layers.Count == 0 || (LayerOf(path) is { } layer && _rule.Layers.Contains(layer));

    private static bool IsMatch(Regex pattern, string path)
    {
        try
        {
            return pattern.IsMatch(path);
        }
        catch (RegexMatchTimeoutException e)
        {
            throw new ArgumentException($"The pattern {pattern} takes too long to match '{path}'; write a simpler one.", e);
        }
    }

    private static Regex Compile(string pattern, string field, string given)
    {
        try
        {
            return new Regex(FromPython(pattern), Options, _patience);
        }
        catch (ArgumentException e)
        {
            throw new ArgumentException($"{field}: '{given}' is not a regular expression: {e.Message}", e);
        }
    }

    // Named groups and the end anchor are spelled differently there.
    private static string FromPython(string pattern) =>
        pattern.Replace("(?P<", "(?<", StringComparison.Ordinal).Replace(@"\Z", @"\z", StringComparison.Ordinal);
}
