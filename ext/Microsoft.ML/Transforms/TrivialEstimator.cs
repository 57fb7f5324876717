// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>An estimator that learns nothing: fitting only checks that its transformer takes the data.</summary>
public abstract class TrivialEstimator<TTransformer> : IEstimator<TTransformer>
    where TTransformer : class, ITransformer
{
    private protected readonly IHost Host;
    private protected readonly TTransformer Transformer;

    private protected TrivialEstimator(IHost host, TTransformer transformer)
    {
        Contracts.CheckValue(host, nameof(host));
        host.CheckValue(transformer, nameof(transformer));
        Host = host;
        Transformer = transformer;
    }

    public TTransformer Fit(IDataView input)
    {
        Host.CheckValue(input, nameof(input));
        Transformer.GetOutputSchema(input.Schema);
        return Transformer;
    }

    public abstract SchemaShape GetOutputSchema(SchemaShape inputSchema);

    /// <summary>The input columns by name, to be completed with the output columns.</summary>
    private protected Dictionary<string, SchemaShape.Column> ByName(SchemaShape inputSchema)
    {
        Host.CheckValue(inputSchema, nameof(inputSchema));
        return inputSchema.ToDictionary(column => column.Name);
    }

    private protected SchemaShape.Column Find(SchemaShape inputSchema, string name)
        => inputSchema.TryFindColumn(name, out SchemaShape.Column column)
            ? column
            : throw Host.ExceptSchemaMismatch(nameof(inputSchema), "input", name);
}
