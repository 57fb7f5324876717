// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

[assembly: LoadableClass(typeof(ColumnConcatenatingTransformer), null, typeof(SignatureLoadModel),
    "Concat Transform", ColumnConcatenatingTransformer.LoaderSignature)]

namespace Microsoft.ML.Data;

/// <summary>Joins columns of one item type into a vector.</summary>
public sealed class ColumnConcatenatingTransformer : RowToRowTransformerBase
{
    internal const string LoaderSignature = "ConcatTransform";

    private readonly ConcatenatedColumn[] _columns;

    internal ColumnConcatenatingTransformer(IHostEnvironment env, ConcatenatedColumn[] columns)
        : base(Contracts.CheckRef(env, nameof(env)).Register(nameof(ColumnConcatenatingTransformer)))
        => _columns = columns;

    internal static ColumnConcatenatingTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        ctx.CheckAtModel(GetVersionInfo());
        if (ctx.Header.ModelVerWritten < 0x00010003)
            throw Contracts.ExceptNotSupp("This model was saved by an old ML.NET: load it with the package Microsoft.ML.");
        int count = ctx.Reader.ReadInt32();
        Contracts.CheckDecode(count > 0);
        var columns = new ConcatenatedColumn[count];
        for (int i = 0; i < count; i++)
            columns[i] = ConcatenatedColumn.Load(ctx);
        return new ColumnConcatenatingTransformer(env, columns);
    }

    private protected override void SaveModel(ModelSaveContext ctx)
    {
        ctx.CheckAtModel();
        ctx.SetVersionInfo(GetVersionInfo());
        ctx.Writer.Write(_columns.Length);
        foreach (ConcatenatedColumn column in _columns)
            column.Save(ctx);
    }

    private protected override IRowMapper MakeRowMapper(DataViewSchema schema) => new Mapper(this, schema);

    private static VersionInfo GetVersionInfo()
        => new("CONCAT F", 0x00010003, 0x00010003, 0x00010001, RealAssembly.Data, LoaderSignature, "ConcatFunction");

    private sealed class Mapper : MapperBase
    {
        private readonly ColumnConcatenatingTransformer _parent;
        private readonly ConcatenatedColumn.Bound[] _columns;

        public Mapper(ColumnConcatenatingTransformer parent, DataViewSchema inputSchema)
            : base(parent.Host.Register(nameof(Mapper)), inputSchema, parent)
        {
            _parent = parent;
            _columns = parent._columns.Select(column => column.Bind(Host, inputSchema)).ToArray();
        }

        private protected override Func<int, bool> GetDependenciesCore(Func<int, bool> activeOutput)
        {
            var active = new bool[InputSchema.Count];
            for (int i = 0; i < _columns.Length; i++)
            {
                foreach (DataViewSchema.Column source in activeOutput(i) ? _columns[i].Sources : [])
                    active[source.Index] = true;
            }

            return col => active[col];
        }

        protected override DataViewSchema.DetachedColumn[] GetOutputColumnsCore() => _columns.Select(column => column.Describe()).ToArray();

        protected override Delegate MakeGetter(DataViewRow input, int iinfo, Func<int, bool> activeOutput, out Action disposer)
        {
            disposer = null;
            return _columns[iinfo].MakeGetter(input);
        }

        private protected override void SaveModel(ModelSaveContext ctx) => _parent.SaveModel(ctx);
    }
}
