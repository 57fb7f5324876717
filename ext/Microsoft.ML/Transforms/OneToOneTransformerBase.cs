// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>A transformer each of whose output columns is made of one input column.</summary>
public abstract class OneToOneTransformerBase : RowToRowTransformerBase
{
    internal readonly (string outputColumnName, string inputColumnName)[] ColumnPairs;

    private protected OneToOneTransformerBase(IHost host, params (string outputColumnName, string inputColumnName)[] columns)
        : base(host)
    {
        host.CheckValue(columns, nameof(columns));
        var names = new HashSet<string>();
        foreach (var (output, input) in columns)
        {
            host.CheckNonEmpty(input, nameof(columns));
            host.CheckNonEmpty(output, nameof(columns));
            if (!names.Add(output))
                throw Contracts.ExceptParam(nameof(columns), $"Name of the result column '{output}' specified multiple times");
        }

        ColumnPairs = columns;
    }

    private protected OneToOneTransformerBase(IHost host, ModelLoadContext ctx)
        : base(host)
        => ColumnPairs = LoadColumns(ctx);

    /// <summary>The count, then the names of each pair: output, input.</summary>
    internal static (string outputColumnName, string inputColumnName)[] LoadColumns(ModelLoadContext ctx)
    {
        int count = ctx.Reader.ReadInt32();
        Contracts.CheckDecode(count >= 0);
        var pairs = new (string, string)[count];
        for (int i = 0; i < count; i++)
            pairs[i] = (ctx.LoadNonEmptyString(), ctx.LoadNonEmptyString());
        return pairs;
    }

    private protected void SaveColumns(ModelSaveContext ctx)
    {
        ctx.Writer.Write(ColumnPairs.Length);
        foreach (var (output, input) in ColumnPairs)
        {
            ctx.SaveNonEmptyString(output);
            ctx.SaveNonEmptyString(input);
        }
    }

    private protected abstract class OneToOneMapperBase : MapperBase
    {
        private readonly OneToOneTransformerBase _parent;

        protected OneToOneMapperBase(IHost host, OneToOneTransformerBase parent, DataViewSchema inputSchema)
            : base(host, inputSchema, parent)
        {
            _parent = parent;
            Inputs = parent.ColumnPairs
                .Select(pair => inputSchema.GetColumnOrNull(pair.inputColumnName)
                    ?? throw host.ExceptSchemaMismatch(nameof(inputSchema), "input", pair.inputColumnName))
                .ToArray();
        }

        /// <summary>The input column of each pair.</summary>
        protected DataViewSchema.Column[] Inputs { get; }

        private protected override Func<int, bool> GetDependenciesCore(Func<int, bool> activeOutput)
        {
            var active = new bool[InputSchema.Count];
            for (int i = 0; i < Inputs.Length; i++)
                active[Inputs[i].Index] |= activeOutput(i);
            return col => active[col];
        }

        private protected override void SaveModel(ModelSaveContext ctx) => _parent.SaveModel(ctx);

        /// <summary>The getter of a raw type, made by a generic method that takes the row.</summary>
        protected DataViewSchema.Column Input(DataViewRow row, int pair) => row.Schema[Inputs[pair].Index];
    }
}
