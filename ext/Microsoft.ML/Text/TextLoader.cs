// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

[assembly: LoadableClass("Loads text data file.", typeof(TextLoader), null, typeof(SignatureLoadModel), "Text Loader", TextLoader.LoaderSignature)]

namespace Microsoft.ML.Data;

/// <summary>Reads delimited text files, lazily: each cursor opens them anew.</summary>
public sealed partial class TextLoader : IDataLoader<IMultiStreamSource>
{
    internal const string LoaderSignature = "TextLoader";
    private const uint VersionWithForcedVectors = 0x0001000A;
    private const uint VersionWithKeyCounts = 0x0001000C;
    private const uint VersionWithEscape = 0x0001000D;

    private readonly IHost _host;
    private readonly TextFormat _format;
    private readonly TextColumn[] _columns;
    private readonly string _header;
    private readonly DataViewSchema _schema;

    internal TextLoader(IHostEnvironment env, Options options = null, IMultiStreamSource dataSample = null)
    {
        _host = env.Register(LoaderSignature);
        dataSample ??= new MultiFileSource(null);
        options = EmbeddedOptions.Resolve(_host, options ?? new Options(), dataSample);
        var headerFile = string.IsNullOrWhiteSpace(options.HeaderFile) ? null : new MultiFileSource(options.HeaderFile);
        _format = TextFormat.Of(_host, options, hasHeader: headerFile == null && options.HasHeader);
        // The lines to learn from: the header's, and a sample where a column reaches to the end of the line.
        string[] lines = headerFile == null ? [] : LineReader.FirstLines(headerFile, _format, 1);
        bool needsSize = _format.InputSize == 0 && TextColumn.NeedInputSize(_host, options.Columns);
        if (needsSize)
            lines = [.. lines, .. LineReader.FirstLines(dataSample, _format, 100)];
        else if (_format.HasHeader)
            lines = LineReader.FirstLines(dataSample, _format, 1);
        _columns = TextColumn.Bind(_host, options.Columns, needsSize ? TextColumn.FindInputSize(_host, _format, lines) : _format.InputSize);
        if (headerFile != null || _format.HasHeader)
            _header = lines.FirstOrDefault();
        _schema = TextColumn.SchemaOf(_host, _format, _columns, _header);
    }

    private TextLoader(IHost host, ModelLoadContext ctx)
    {
        _host = host;
        uint version = ctx.Header.ModelVerWritten;
        host.CheckDecode(ctx.Reader.ReadInt32() == sizeof(float));
        _format = TextFormat.Load(host, ctx, version >= VersionWithEscape);
        int count = ctx.Reader.ReadInt32();
        host.CheckDecode(count > 0);
        _columns = new TextColumn[count];
        for (int i = 0; i < count; i++)
            _columns[i] = TextColumn.Load(host, ctx, version >= VersionWithKeyCounts, version >= VersionWithForcedVectors);
        string header = null;
        ctx.TryLoadTextStream("Header.txt", reader => header = reader.ReadLine());
        _header = header;
        _schema = TextColumn.SchemaOf(host, _format, _columns, header);
    }

    private static VersionInfo Version => new("TXTLOADR", 0x0001000E, 0x0001000A, 0x00010009, RealAssembly.Data, LoaderSignature);

    internal static TextLoader Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        var host = env.Register(LoaderSignature);
        ctx.CheckAtModel(Version);
        return new TextLoader(host, ctx);
    }

    void ICanSaveModel.Save(ModelSaveContext ctx)
    {
        // int: 4; the format; int: number of columns, the columns; the header line in a stream of its own
        ctx.CheckAtModel();
        ctx.SetVersionInfo(Version);
        ctx.Writer.Write(sizeof(float));
        _format.Save(ctx);
        ctx.Writer.Write(_columns.Length);
        foreach (var column in _columns)
            column.Save(ctx);
        if (!string.IsNullOrEmpty(_header))
            ctx.SaveTextStream("Header.txt", writer => writer.WriteLine(_header));
    }

    public DataViewSchema GetOutputSchema() => _schema;

    public IDataView Load(IMultiStreamSource source) => new TextView(_host, _format, _columns, _schema, Contracts.CheckRef(source, nameof(source)));

    public class Options
    {
        public bool AllowQuoting;
        public bool AllowSparse;
        public int? InputSize;
        public char[] Separators = ['\t'];
        public char DecimalMarker = '.';
        public Column[] Columns;
        public bool TrimWhitespace;
        public bool HasHeader;
        public bool UseThreads = true;
        public bool ReadMultilines;
        public string HeaderFile;
        public long? MaxRows;
        public char EscapeChar = '"';
        public bool MissingRealsAsNaNs;
    }

    public sealed class Column
    {
        public string Name;
        public Range[] Source;
        public KeyCount KeyCount;

        public Column() { }

        public Column(string name, DataKind dataKind, int index) : this(name, dataKind, [new Range(index)]) { }

        public Column(string name, DataKind dataKind, int minIndex, int maxIndex) : this(name, dataKind, [new Range(minIndex, maxIndex)]) { }

        public Column(string name, DataKind dataKind, Range[] source, KeyCount keyCount = null)
        {
            Name = Contracts.CheckRef(name, nameof(name));
            DataKind = dataKind;
            Source = Contracts.CheckRef(source, nameof(source));
            KeyCount = keyCount;
        }

        public DataKind DataKind { get; set; } = DataKind.Single;
    }

    public sealed class Range
    {
        public int Min;
        public int? Max;
        public bool AutoEnd;
        public bool VariableEnd;
        public bool AllOther;
        public bool ForceVector;

        public Range() { }

        public Range(int index)
        {
            Contracts.CheckParam(index >= 0, nameof(index), "Must be non-negative");
            Min = index;
            Max = index;
        }

        public Range(int min, int? max)
        {
            Contracts.CheckParam(min >= 0, nameof(min), "Must be non-negative");
            Contracts.CheckParam(!(max < min), nameof(max), "If specified, must be greater than or equal to " + nameof(min));
            Min = min;
            Max = max;
            ForceVector = true;
            AutoEnd = max == null;
        }
    }
}
