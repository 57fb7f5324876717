// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>Files from anywhere, or from memory, under names of our choice.</summary>
internal sealed class MappedFiles : IFileSet
{
    private readonly SortedDictionary<string, Func<byte[]>> files = new(StringComparer.Ordinal);

    public IReadOnlyList<string> Names => files.Keys.ToArray();

    public string Description => "test files";

    public bool Exists(string name) => files.ContainsKey(name);

    public Stream Open(string name) => new MemoryStream(files[name](), writable: false);

    public MappedFiles Add(string name, string path)
    {
        files[name] = () => File.ReadAllBytes(path);
        return this;
    }

    public MappedFiles Add(string name, byte[] content)
    {
        files[name] = () => content;
        return this;
    }

    public MappedFiles AddFolder(string folder)
    {
        foreach (string path in Directory.EnumerateFiles(folder))
            Add(Path.GetFileName(path), path);
        return this;
    }

    public MappedFiles Remove(string name)
    {
        files.Remove(name);
        return this;
    }
}
