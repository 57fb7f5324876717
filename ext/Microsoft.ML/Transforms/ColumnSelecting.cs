// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms;

[assembly: LoadableClass("Selects which columns from the dataset to keep.", typeof(ColumnSelectingTransformer), null, typeof(SignatureLoadModel),
    "Select Columns Transform", ColumnSelectingTransformer.LoaderSignature)]

namespace Microsoft.ML.Transforms;

/// <summary>Keeps the named columns in the order named, or drops the named ones.</summary>
public sealed class ColumnSelectingEstimator : TrivialEstimator<ColumnSelectingTransformer>
{
    internal ColumnSelectingEstimator(IHostEnvironment env, string[] keepColumns, string[] dropColumns, bool keepHidden)
        : base(Contracts.CheckRef(env, nameof(env)).Register(nameof(ColumnSelectingEstimator)),
            new ColumnSelectingTransformer(env, keepColumns, dropColumns, keepHidden, ignoreMissing: false))
    {
    }

    public override SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        Host.CheckValue(inputSchema, nameof(inputSchema));
        Transformer.CheckColumns(inputSchema.Select(column => column.Name), nameof(inputSchema));
        return new SchemaShape(inputSchema.Where(column => Transformer.Keeps(column.Name)));
    }
}

/// <summary>Keeps the named columns in the order named, or drops the named ones.</summary>
public sealed class ColumnSelectingTransformer : ITransformer
{
    internal const string LoaderSignature = "SelectColumnsTransform";

    private readonly IHost _host;
    private readonly string[] _names;
    private readonly bool _keep;
    private readonly bool _keepHidden;
    private readonly bool _ignoreMissing;

    internal ColumnSelectingTransformer(IHostEnvironment env, string[] keepColumns, string[] dropColumns, bool keepHidden, bool ignoreMissing)
    {
        _host = Contracts.CheckRef(env, nameof(env)).Register(nameof(ColumnSelectingTransformer));
        _keep = keepColumns is { Length: > 0 };
        bool drop = dropColumns is { Length: > 0 };
        _host.Check(!(_keep && drop), "Both keepColumns and dropColumns are set. Exactly one can be specified.");
        _host.Check(_keep || drop, "Neither keepColumns and dropColumns is set. Exactly one must be specified.");
        _names = _keep ? keepColumns : dropColumns;
        _keepHidden = keepHidden;
        _ignoreMissing = ignoreMissing;
    }

    bool ITransformer.IsRowToRowMapper => true;

    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        CheckColumns(inputSchema.Select(column => column.Name), nameof(inputSchema));
        return OutputSchema(inputSchema, Map(inputSchema));
    }

    public IDataView Transform(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        CheckColumns(input.Schema.Select(column => column.Name), nameof(input));
        return Select(input);
    }

    IRowToRowMapper ITransformer.GetRowToRowMapper(DataViewSchema inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        CheckColumns(inputSchema.Select(column => column.Name), nameof(inputSchema));
        return Select(new EmptyDataView(_host, inputSchema));
    }

    void ICanSaveModel.Save(ModelSaveContext ctx) => Save(ctx);

    internal static ColumnSelectingTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        ctx.CheckAtModel(GetVersionInfo());
        bool keep = ctx.Reader.ReadByte() != 0;
        bool keepHidden = ctx.Reader.ReadByte() != 0;
        bool ignoreMissing = ctx.Reader.ReadByte() != 0;
        int count = ctx.Reader.ReadInt32();
        Contracts.CheckDecode(count > 0);
        var names = new string[count];
        for (int i = 0; i < count; i++)
            names[i] = ctx.LoadNonEmptyString();
        return new ColumnSelectingTransformer(env, keep ? names : null, keep ? null : names, keepHidden, ignoreMissing);
    }

    // Three flags (keep rather than drop; keep hidden columns; ignore missing ones), the count and the names.
    internal void Save(ModelSaveContext ctx)
    {
        ctx.SetVersionInfo(GetVersionInfo());
        ctx.Writer.Write((byte)(_keep ? 1 : 0));
        ctx.Writer.Write((byte)(_keepHidden ? 1 : 0));
        ctx.Writer.Write((byte)(_ignoreMissing ? 1 : 0));
        ctx.Writer.Write(_names.Length);
        foreach (string name in _names)
            ctx.SaveNonEmptyString(name);
    }

    internal bool Keeps(string name) => _names.Contains(name) == _keep;

    internal void CheckColumns(IEnumerable<string> given, string paramName)
    {
        string[] missing = _ignoreMissing ? [] : _names.Except(given).ToArray();
        if (missing.Length > 0)
            throw _host.ExceptSchemaMismatch(paramName, "input", string.Join(",", missing));
    }

    private SelectedColumns Select(IDataView input)
    {
        int[] map = Map(input.Schema);
        return new SelectedColumns(_host, input, OutputSchema(input.Schema, map), map);
    }

    /// <summary>For each output column the index of its input column.</summary>
    private int[] Map(DataViewSchema schema)
    {
        if (!_keep)
            return schema.Where(column => !_names.Contains(column.Name)).Select(column => column.Index).ToArray();
        ILookup<string, int> byName = schema.Where(column => _keepHidden || !column.IsHidden).ToLookup(column => column.Name, column => column.Index);
        return _names.SelectMany(name => byName[name]).ToArray();
    }

    private static DataViewSchema OutputSchema(DataViewSchema input, int[] map)
    {
        var builder = new DataViewSchema.Builder();
        builder.AddColumns(map.Select(index => input[index]));
        return builder.ToSchema();
    }

    private static VersionInfo GetVersionInfo()
        => new("SELCOLST", 0x00010001, 0x00010001, 0x00010001, RealAssembly.Data, LoaderSignature);
}
