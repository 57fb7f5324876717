// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// Files that are embedded in an assembly, as resources whose names begin with a prefix. They lie in the mapped
/// assembly: reading them copies nothing.
/// </summary>
public sealed class ResourceFileSet : IFileSet
{
    private readonly Assembly _assembly;
    private readonly string _prefix;

    /// <summary>Looks at the resources of an assembly.</summary>
    /// <param name="assembly">The assembly.</param>
    /// <param name="prefix">What the resources' names begin with (<c>minilm/</c>); the rest is the file's name.</param>
    public ResourceFileSet(Assembly assembly, string prefix)
    {
        _assembly = assembly ?? throw new ArgumentNullException(nameof(assembly));
        _prefix = prefix ?? throw new ArgumentNullException(nameof(prefix));
        Names = assembly.GetManifestResourceNames()
            .Where(name => name.Length > prefix.Length && name.StartsWith(prefix, StringComparison.Ordinal))
            .Select(name => name[prefix.Length..]).Order(StringComparer.Ordinal).ToArray();
    }

    /// <inheritdoc/>
    public string Description => $"{_assembly.GetName().Name} resources {_prefix.TrimEnd('/')}";

    /// <inheritdoc/>
    public IReadOnlyList<string> Names { get; }

    /// <inheritdoc/>
    public bool Exists(string name) => Names.Contains(name, StringComparer.Ordinal);

    /// <inheritdoc/>
    public Stream Open(string name) =>
        _assembly.GetManifestResourceStream(_prefix + name) ?? throw new FileNotFoundException(
            $"There is no file '{name}' in {Description}.{NearNames.Hint(name, Names)}", name);
}
