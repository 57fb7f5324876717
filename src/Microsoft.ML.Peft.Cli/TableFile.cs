// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Microsoft.ML.Peft.Cli;

/// <summary>
/// A table in a text file with a header: tab-separated without quoting, or comma-separated with quoting (by the name's
/// ending). Files ending in .gz are unpacked.
/// </summary>
internal sealed class TableFile : IDisposable
{
    private readonly string? _unpacked;

    private TableFile(string path, string shown, string? unpacked)
    {
        Path = path;
        Shown = shown;
        _unpacked = unpacked;
        bool csv = (shown.EndsWith(".gz", StringComparison.OrdinalIgnoreCase) ? shown[..^3] : shown).EndsWith(".csv", StringComparison.OrdinalIgnoreCase);
        Separator = csv ? ',' : '\t';
        using var reader = new StreamReader(path);
        string header = reader.ReadLine() ?? throw new InvalidDataException($"{shown} is empty; expected a header line with the column names.");
        Columns = csv ? [.. SplitCsv(header)] : header.Split('\t');
    }

    public string Path { get; }

    public string Shown { get; }

    public char Separator { get; }

    public IReadOnlyList<string> Columns { get; }

    public static TableFile Open(string path)
    {
        if (!File.Exists(path)) throw new FileNotFoundException($"The data file '{path}' does not exist.");
        if (!path.EndsWith(".gz", StringComparison.OrdinalIgnoreCase)) return new TableFile(path, path, null);
        string unpacked = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"peft-{Guid.NewGuid():N}");
        using (var source = new System.IO.Compression.GZipStream(File.OpenRead(path), System.IO.Compression.CompressionMode.Decompress))
        using (FileStream target = File.Create(unpacked))
            source.CopyTo(target);
        return new TableFile(unpacked, path, unpacked);
    }

    /// <summary>Number of a column.</summary>
    public int IndexOf(string column)
    {
        int index = Columns.ToList().IndexOf(column);
        return index >= 0 ? index : throw new InvalidDataException(
            $"{Shown} has no column '{column}'.{Checkpoints.NearNames.Hint(column, Columns)} Its columns: {string.Join(", ", Columns)}.");
    }

    /// <summary>Columns as text, in ML.NET's loader.</summary>
    public IDataView Load(MLContext context, IEnumerable<string> columns) => Load(context, columns.Distinct().Select(c => (c, c)));

    /// <summary>Columns as text under other names, in ML.NET's loader.</summary>
    public IDataView Load(MLContext context, IEnumerable<(string From, string To)> columns)
    {
        var options = new TextLoader.Options
        {
            Columns = [.. columns.Select(c => new TextLoader.Column(c.To, DataKind.String, IndexOf(c.From)))],
            Separators = [Separator],
            HasHeader = true,
            AllowQuoting = Separator == ',',
            ReadMultilines = Separator == ',',
        };
        return context.Data.CreateTextLoader(options).Load(new MultiFileSource(Path));
    }

    private static IEnumerable<string> SplitCsv(string line)
    {
        var field = new System.Text.StringBuilder();
        bool quoted = false;
        for (int i = 0; i < line.Length; i++)
        {
            if (line[i] == '"' && quoted && i + 1 < line.Length && line[i + 1] == '"') field.Append(line[i++]);
            else if (line[i] == '"') quoted = !quoted;
            else if (line[i] == ',' && !quoted)
            {
                yield return field.ToString();
                field.Clear();
            }
            else field.Append(line[i]);
        }
        yield return field.ToString();
    }

    public void Dispose()
    {
        if (_unpacked is not null) File.Delete(_unpacked);
    }
}
