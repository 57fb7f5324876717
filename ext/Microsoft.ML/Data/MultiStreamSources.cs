// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Where a loader reads from: one or more streams.</summary>
public interface IMultiStreamSource
{
    int Count { get; }

    string GetPathOrNull(int index);

    Stream Open(int index);

    TextReader OpenTextReader(int index);
}

/// <summary>Files, read one after the other.</summary>
public sealed class MultiFileSource : IMultiStreamSource
{
    private readonly string[] _paths;

    public MultiFileSource(params string[] paths)
    {
        // Several files may also be given in one string, separated by '+'; a folder, or a pattern, means the files in it.
        _paths = paths == null ? [] : [.. paths.SelectMany(path => Expand(Contracts.CheckNonWhiteSpace(path, nameof(paths))))];
    }

    public int Count => _paths.Length;

    private static IEnumerable<string> Expand(string path)
    {
        if (File.Exists(path))
            return [path];
        return path.Split('+').SelectMany(part =>
        {
            string folder = Path.GetDirectoryName(part);
            string pattern = Path.GetFileName(part);
            if (!pattern.Contains('*') && !pattern.Contains('?'))
                return [part];
            return Directory.EnumerateFiles(string.IsNullOrEmpty(folder) ? "." : folder, pattern).Order(StringComparer.Ordinal);
        });
    }

    public string GetPathOrNull(int index)
    {
        Contracts.CheckParam(0 <= index && index < Count, nameof(index));
        return _paths[index];
    }

    public Stream Open(int index)
    {
        string path = GetPathOrNull(index);
        if (!File.Exists(path))
            throw Contracts.Except(new FileNotFoundException($"Could not find file '{Path.GetFullPath(path)}'.", path), $"Error opening file '{path}'");
        return new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read);
    }

    public TextReader OpenTextReader(int index) => new StreamReader(Open(index), Encoding.UTF8, detectEncodingFromByteOrderMarks: true);
}
