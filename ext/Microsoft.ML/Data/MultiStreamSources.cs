// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

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

/// <summary>Files, read one after the other. A path may hold wildcards, "..." for all folders below, and '+' between several.</summary>
public sealed class MultiFileSource : IMultiStreamSource
{
    private readonly string[] _paths;

    public MultiFileSource(params string[] paths)
    {
        if (paths == null || paths is [null])
        {
            _paths = [];
            return;
        }
        string[] found = [.. paths.SelectMany(Expand)];
        // What matches nothing is kept, for an error message when it is opened.
        _paths = found.Length > 0 ? found : paths;
    }

    public int Count => _paths.Length;

    /// <summary>The files that a path means; none where there are none.</summary>
    internal static string[] Expand(string path)
    {
        if (path == null || path.AsSpan().IndexOfAny("*?+") < 0 && !path.Contains("..."))
            return File.Exists(path) ? [path] : [];
        return [.. path.Split('+', StringSplitOptions.RemoveEmptyEntries).SelectMany(ExpandOne)];
    }

    private static IEnumerable<string> ExpandOne(string path)
    {
        int dots = path.IndexOf("...", StringComparison.Ordinal);
        if (dots < 0 && path.AsSpan().IndexOfAny("*?") < 0)
            return File.Exists(path) ? [path] : [];
        string folder = dots >= 0 ? path[..dots] : Path.GetDirectoryName(path);
        string pattern = dots >= 0 ? path[(dots + 3)..].TrimStart('\\', '/') : Path.GetFileName(path);
        if (string.IsNullOrEmpty(folder))
            folder = ".";
        if (!Directory.Exists(folder))
            return [];
        return Directory.EnumerateFiles(folder, pattern.Length == 0 ? "*" : pattern, dots >= 0 ? SearchOption.AllDirectories : SearchOption.TopDirectoryOnly)
            .Order(StringComparer.Ordinal)
            .Select(file => file.StartsWith("./", StringComparison.Ordinal) && !path.StartsWith("./", StringComparison.Ordinal) ? file[2..] : file);
    }

    public string GetPathOrNull(int index)
    {
        Contracts.CheckParam(0 <= index && index < Count, nameof(index));
        return _paths[index];
    }

    public Stream Open(int index)
    {
        string path = GetPathOrNull(index);
        try
        {
            return new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new IOException($"Could not open file '{path}'. Error is: {e.Message}", e);
        }
    }

    public TextReader OpenTextReader(int index) => new StreamReader(Open(index));
}
