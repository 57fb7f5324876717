// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.IO.Compression;
using System.Text;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>The entries of a model zip. Each entry passes through a temporary file, for components seek in their streams.</summary>
internal abstract class Repository : IDisposable
{
    private readonly List<Entry> _open = [];

    /// <summary>Where entries lie while they are open; null where they are kept in memory.</summary>
    protected readonly string DirTemp;

    internal Repository(bool needDir, IExceptionContext ectx)
    {
        ExceptionContext = ectx;
        if (!needDir)
            return;
        string root = ectx is IHostEnvironmentInternal host ? host.TempFilePath : Path.GetTempPath();
        Directory.CreateDirectory(root);
        DirTemp = Directory.CreateTempSubdirectory("ml_dotnet_").FullName;
        if (!string.Equals(Path.GetFullPath(root).TrimEnd('/', '\\'), Path.GetTempPath().TrimEnd('/', '\\'), StringComparison.Ordinal))
        {
            string own = Path.Combine(Path.GetFullPath(root), Path.GetFileName(DirTemp));
            Directory.Delete(DirTemp);
            Directory.CreateDirectory(own);
            DirTemp = own;
        }
    }

    public IExceptionContext ExceptionContext { get; }

    protected bool Disposed { get; private set; }

    protected abstract void OnDispose(Entry ent);

    protected Entry AddEntry(string pathEnt, Stream stream)
    {
        var entry = new Entry(this, pathEnt, stream);
        _open.Add(entry);
        return entry;
    }

    protected void RemoveEntry(Entry ent) => _open.Remove(ent);

    protected void DisposeAllEntries()
    {
        while (_open.Count > 0)
            _open[^1].Dispose();
    }

    /// <summary>The entry's name inside the zip.</summary>
    protected string EntryName(string dir, string name)
    {
        Contracts.CheckParam(dir == null || !dir.Contains(".."), nameof(dir));
        Contracts.CheckParam(!string.IsNullOrWhiteSpace(name) && !name.Contains(".."), nameof(name));
        string path = string.IsNullOrEmpty(dir) ? name : dir + "/" + name;
        Contracts.CheckParam(!path.StartsWith('/') && !path.StartsWith('\\'), nameof(dir));
        return path.Replace('\\', '/');
    }

    protected Stream NewStream()
        => DirTemp == null ? new MemoryStream()
            : new FileStream(Path.Combine(DirTemp, Path.GetRandomFileName()), FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None, 1 << 16, FileOptions.DeleteOnClose);

    public void Dispose()
    {
        if (Disposed)
            return;
        Dispose(true);
        GC.SuppressFinalize(this);
    }

    protected virtual void Dispose(bool disposing)
    {
        DisposeAllEntries();
        try
        {
            if (DirTemp != null)
                Directory.Delete(DirTemp, recursive: true);
        }
        catch (IOException)
        {
            // A leftover temporary folder is no reason to fail.
        }
        Disposed = true;
    }

    internal sealed class Entry : IDisposable
    {
        private Repository _owner;

        internal Entry(Repository rep, string path, Stream stream)
        {
            _owner = rep;
            Path = path;
            Stream = stream;
        }

        public string Path { get; }

        public Stream Stream { get; }

        public void Dispose()
        {
            var owner = _owner;
            _owner = null;
            owner?.OnDispose(this);
        }
    }
}

internal sealed class RepositoryWriter : Repository
{
    private readonly ZipArchive _archive;
    private readonly HashSet<string> _names = new(StringComparer.Ordinal);
    private readonly Queue<Entry> _closed = new();

    private RepositoryWriter(Stream stream, IExceptionContext ectx, bool useFileSystem) : base(useFileSystem, ectx)
        => _archive = new ZipArchive(stream, ZipArchiveMode.Create, leaveOpen: true);

    public static RepositoryWriter CreateNew(Stream stream, IExceptionContext ectx = null, bool useFileSystem = true)
    {
        Contracts.CheckValue(stream, nameof(stream));
        var repository = new RepositoryWriter(stream, ectx, useFileSystem);
        using var entry = repository.CreateEntry("TrainingInfo", "Version.txt");
        entry.Stream.Write(Encoding.UTF8.GetBytes("5.0.0" + Environment.NewLine));
        return repository;
    }

    public Entry CreateEntry(string name) => CreateEntry(null, name);

    public Entry CreateEntry(string dir, string name)
    {
        Contracts.Check(ExceptionContext, !Disposed);
        Flush();
        string path = EntryName(dir, name);
        if (!_names.Add(path))
            throw ExceptionContext.ExceptParam(nameof(name), $"Duplicate entry: '{path}'");
        return AddEntry(path, NewStream());
    }

    protected override void OnDispose(Entry ent)
    {
        RemoveEntry(ent);
        _closed.Enqueue(ent);
    }

    // Entries go into the zip in the order in which they were closed.
    private void Flush()
    {
        while (_closed.TryDequeue(out var entry))
            using (var source = entry.Stream)
            using (var target = _archive.CreateEntry(entry.Path).Open())
            {
                source.Position = 0;
                source.CopyTo(target);
            }
    }

    public void Commit()
    {
        Contracts.Check(ExceptionContext, !Disposed);
        DisposeAllEntries();
        Flush();
        Dispose(true);
    }

    protected override void Dispose(bool disposing)
    {
        if (Disposed)
            return;
        while (_closed.TryDequeue(out var entry))
            entry.Stream.Dispose();
        _archive.Dispose();
        base.Dispose(disposing);
    }
}

internal sealed class RepositoryReader : Repository
{
    private readonly ZipArchive _archive;
    private readonly Dictionary<string, ZipArchiveEntry> _entries = new(StringComparer.Ordinal);

    private RepositoryReader(Stream stream, IExceptionContext ectx, bool useFileSystem) : base(useFileSystem, ectx)
    {
        try
        {
            _archive = new ZipArchive(stream, ZipArchiveMode.Read, leaveOpen: true);
        }
        catch (Exception ex)
        {
            Dispose();
            throw ectx.ExceptDecode(ex, "Failed to open a zip archive");
        }
        // Old models, written on Windows, separate by backslashes.
        foreach (var entry in _archive.Entries)
            _entries[entry.FullName.Replace('\\', '/')] = entry;
    }

    public static RepositoryReader Open(Stream stream, IExceptionContext ectx = null, bool useFileSystem = true)
    {
        Contracts.CheckValue(stream, nameof(stream));
        return new RepositoryReader(stream, ectx, useFileSystem);
    }

    public Entry OpenEntry(string name) => OpenEntry(null, name);

    public Entry OpenEntry(string dir, string name)
        => OpenEntryOrNull(dir, name) ?? throw ExceptionContext.Except($"Repository doesn't contain entry {EntryName(dir, name)}");

    public Entry OpenEntryOrNull(string name) => OpenEntryOrNull(null, name);

    public Entry OpenEntryOrNull(string dir, string name)
    {
        Contracts.Check(ExceptionContext, !Disposed);
        string path = EntryName(dir, name);
        if (!_entries.TryGetValue(path, out var entry))
            return null;
        var stream = NewStream();
        using (var source = entry.Open())
            source.CopyTo(stream);
        stream.Position = 0;
        return AddEntry(path, stream);
    }

    protected override void OnDispose(Entry ent)
    {
        RemoveEntry(ent);
        ent.Stream.Dispose();
    }

    protected override void Dispose(bool disposing)
    {
        if (Disposed)
            return;
        base.Dispose(disposing);
        _archive?.Dispose();
    }
}
