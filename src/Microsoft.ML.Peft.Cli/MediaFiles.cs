// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Cli;

/// <summary>A picture or sound file, with its class where it is known.</summary>
internal sealed class MediaFile
{
    public string Path { get; set; } = "";

    public string Label { get; set; } = "";
}

/// <summary>Data sets of files: a folder of class folders, a folder, one file, or a table with paths.</summary>
internal static class MediaFiles
{
    private static readonly string[] _images = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"], _sounds = [".wav", ".flac", ".ogg", ".oga"];
    private static readonly string[] _pathNames = ["path", "file", "filename", "image", "picture", "audio", "sound"], _labelNames = ["label", "class"];

    /// <summary>Reads a data set.</summary>
    /// <param name="context">For tables.</param>
    /// <param name="data">Folder, file or table.</param>
    /// <param name="sounds">True for sounds, false for images.</param>
    /// <param name="path">Column with the paths, in tables; null to guess.</param>
    /// <param name="label">Column with the labels, in tables; null to guess.</param>
    /// <param name="labelled">True where labels are needed.</param>
    public static MediaFile[] Read(MLContext context, string data, bool sounds, string? path, string? label, bool labelled)
    {
        if (Directory.Exists(data)) return labelled ? ClassFolders(data, sounds) : [.. Files(data, sounds).Select(f => new MediaFile { Path = f })];
        if (!labelled && File.Exists(data) && Kinds(sounds).Contains(Path.GetExtension(data).ToLowerInvariant())) return [new MediaFile { Path = Path.GetFullPath(data) }];
        using TableFile table = TableFile.Open(data);
        path ??= Guess(table, _pathNames, null) ?? table.Columns[0];
        List<(string From, string To)> columns = [(path, nameof(MediaFile.Path))];
        if (labelled)
        {
            label ??= Guess(table, _labelNames, path) ?? throw new UsageException($"Name the label column with --label; {table.Shown} has {string.Join(", ", table.Columns)}.");
            columns.Add((label, nameof(MediaFile.Label)));
        }
        string folder = Path.GetDirectoryName(Path.GetFullPath(data))!;
        IDataView rows = table.Load(context, columns);
        MediaFile[] files = labelled
            ? [.. context.Data.CreateEnumerable<MediaFile>(rows, reuseRowObject: false)]
            : [.. rows.GetColumn<string>(nameof(MediaFile.Path)).Select(p => new MediaFile { Path = p })];
        // Paths in a table are meant from where the table lies.
        foreach (MediaFile file in files) file.Path = file.Path.Length == 0 ? "" : Path.GetFullPath(file.Path, folder);
        return files;
    }

    private static string? Guess(TableFile table, string[] usual, string? taken)
    {
        string[] others = [.. table.Columns.Where(c => c != taken)];
        return others.FirstOrDefault(c => usual.Contains(c.ToLowerInvariant())) ?? (taken is not null && others.Length == 1 ? others[0] : null);
    }

    private static MediaFile[] ClassFolders(string folder, bool sounds)
    {
        string[] classes = [.. Directory.GetDirectories(folder).Order(StringComparer.Ordinal)];
        if (classes.Length == 0) throw new InvalidDataException($"'{folder}' has no folders; expected is one folder a class, named as the class.");
        MediaFile[] files = [.. classes.SelectMany(c => Files(c, sounds).Select(f => new MediaFile { Path = f, Label = Path.GetFileName(c) }))];
        return files.Length > 0 ? files : throw Nothing(folder, sounds);
    }

    private static string[] Files(string folder, bool sounds)
    {
        string[] kinds = Kinds(sounds);
        return [.. Directory.EnumerateFiles(folder, "*", SearchOption.AllDirectories)
            .Where(f => !Path.GetFileName(f).StartsWith('.') && kinds.Contains(Path.GetExtension(f).ToLowerInvariant())).Select(Path.GetFullPath).Order(StringComparer.Ordinal)];
    }

    private static string[] Kinds(bool sounds) => sounds ? _sounds : _images;

    private static InvalidDataException Nothing(string folder, bool sounds) =>
        new($"'{folder}' holds no {(sounds ? "sounds" : "images")}; looked for {string.Join(", ", Kinds(sounds))}.");

    /// <summary>The files as a data view.</summary>
    /// <param name="context">The context.</param>
    /// <param name="files">The files.</param>
    /// <param name="column">Name of the column with the paths.</param>
    /// <param name="label">Name of the column with the labels; null for none.</param>
    public static IDataView View(MLContext context, MediaFile[] files, string column, string? label)
    {
        if (files.Length == 0) throw new InvalidDataException("The data has no rows.");
        var schema = SchemaDefinition.Create(typeof(MediaFile));
        schema[nameof(MediaFile.Path)].ColumnName = column;
        if (label is null) schema.Remove(schema[nameof(MediaFile.Label)]);
        else schema[nameof(MediaFile.Label)].ColumnName = label;
        return context.Data.LoadFromEnumerable(files, schema);
    }

    /// <summary>Parts files into training and validation, by the seed alone; both keep the order of the whole.</summary>
    public static (MediaFile[] Train, MediaFile[] Held) Split(MediaFile[] files, double share, int seed)
    {
        int count = Math.Clamp((int)Math.Round(share * files.Length), 1, Math.Max(1, files.Length - 1));
        HashSet<int> held = [.. Training.RowOrder.Permutation(files.Length, (ulong)seed, 0).Take(count)];
        return ([.. files.Where((_, i) => !held.Contains(i))], [.. files.Where((_, i) => held.Contains(i))]);
    }
}
