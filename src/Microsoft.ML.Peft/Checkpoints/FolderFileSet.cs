// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>The files of a folder and of the folders directly inside it (a Hugging Face checkpoint folder).</summary>
public sealed class FolderFileSet : IFileSet
{
    private IReadOnlyList<string>? _names;

    /// <summary>Looks at a folder.</summary>
    /// <param name="folder">Path of an existing folder.</param>
    /// <exception cref="DirectoryNotFoundException">There is no such folder.</exception>
    public FolderFileSet(string folder)
    {
        ArgumentException.ThrowIfNullOrEmpty(folder);
        if (!Directory.Exists(folder))
        {
            throw new DirectoryNotFoundException(File.Exists(folder)
                ? $"'{folder}' is a file; the folder that holds config.json and the weights is expected."
                : $"There is no folder '{Path.GetFullPath(folder)}'.");
        }

        Folder = Path.GetFullPath(folder);
    }

    /// <summary>The folder's full path.</summary>
    public string Folder { get; }

    /// <inheritdoc/>
    public string Description => Folder;

    /// <inheritdoc/>
    public IReadOnlyList<string> Names => _names ??= List();

    /// <inheritdoc/>
    public bool Exists(string name) => PathOf(name) is string path && File.Exists(path);

    /// <inheritdoc/>
    public Stream Open(string name)
    {
        string? path = PathOf(name);
        if (path is null || !File.Exists(path))
            throw new FileNotFoundException($"There is no file '{name}' in {Folder}.{NearNames.Hint(name, Names)}", name);
        return new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read);
    }

    /// <summary>The full path of a file of this folder; null for a name that would lead out of it.</summary>
    /// <param name="name">A relative name.</param>
    internal string? PathOf(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        if (name.Length == 0 || name.Contains('\0') || name.Contains('\\') || Path.IsPathRooted(name))
            return null;
        foreach (string part in name.Split('/'))
        {
            if (part is "" or "." or "..")
                return null;
        }

        return Path.Combine(Folder, name);
    }

    private string[] List()
    {
        IEnumerable<string> inside = Directory.EnumerateDirectories(Folder)
            .SelectMany(Directory.EnumerateFiles);
        string[] names = Directory.EnumerateFiles(Folder).Concat(inside)
            .Select(path => Path.GetRelativePath(Folder, path).Replace(Path.DirectorySeparatorChar, '/'))
            .ToArray();
        Array.Sort(names, StringComparer.Ordinal);
        return names;
    }
}
