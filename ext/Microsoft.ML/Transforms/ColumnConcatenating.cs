// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Transforms;

/// <summary>Joins columns of one item type into a vector.</summary>
public sealed class ColumnConcatenatingEstimator : IEstimator<ColumnConcatenatingTransformer>
{
    private readonly IHost _host;
    private readonly string _output;
    private readonly string[] _inputs;

    internal ColumnConcatenatingEstimator(IHostEnvironment env, string outputColumnName, params string[] inputColumnNames)
    {
        Contracts.CheckValue(env, nameof(env));
        _host = env.Register(nameof(ColumnConcatenatingEstimator));
        _host.CheckNonEmpty(outputColumnName, nameof(outputColumnName));
        _host.CheckValue(inputColumnNames, nameof(inputColumnNames));
        _host.CheckParam(inputColumnNames.Length > 0, nameof(inputColumnNames), "Input columns not specified");
        _host.CheckParam(!inputColumnNames.Any(string.IsNullOrEmpty), nameof(inputColumnNames), "Contained some null or empty items");
        _output = outputColumnName;
        _inputs = inputColumnNames;
    }

    public ColumnConcatenatingTransformer Fit(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        return new ColumnConcatenatingTransformer(_host, [new ConcatenatedColumn(_output, _inputs.Select(name => (name, (string)null)).ToArray())]);
    }

    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        var columns = inputSchema.ToDictionary(column => column.Name);
        columns[_output] = Shape(_inputs.Select(name => inputSchema.TryFindColumn(name, out SchemaShape.Column column)
            ? column
            : throw _host.ExceptSchemaMismatch(nameof(inputSchema), "input", name)).ToArray());
        return new SchemaShape(columns.Values);
    }

    private SchemaShape.Column Shape(SchemaShape.Column[] sources)
    {
        DataViewType item = sources[0].ItemType;
        foreach (SchemaShape.Column source in sources)
        {
            if (source.IsKey)
                throw _host.Except($"Column '{source.Name}' is key. Concatenation of keys is unsupported.");
            if (!source.ItemType.Equals(item))
            {
                throw _host.Except($"Concatenated columns should have the same type. Column '{source.Name}' has type of {source.ItemType}, "
                    + $"but expected column type is {item}.");
            }
        }

        var annotations = new List<SchemaShape.Column>();
        if (sources.All(source => source.IsNormalized()))
            annotations.Add(new(AnnotationUtils.Kinds.IsNormalized, SchemaShape.Column.VectorKind.Scalar, BooleanDataViewType.Instance, false));
        if (sources.Any(HasCategories))
            annotations.Add(new(AnnotationUtils.Kinds.CategoricalSlotRanges, SchemaShape.Column.VectorKind.Vector, NumberDataViewType.Int32, false));
        if (sources.Any(source => source.Kind == SchemaShape.Column.VectorKind.Scalar || source.HasSlotNames()))
            annotations.Add(new(AnnotationUtils.Kinds.SlotNames, SchemaShape.Column.VectorKind.Vector, TextDataViewType.Instance, false));
        bool variable = sources.Any(source => source.Kind == SchemaShape.Column.VectorKind.VariableVector);
        return new SchemaShape.Column(_output, variable ? SchemaShape.Column.VectorKind.VariableVector : SchemaShape.Column.VectorKind.Vector,
            item, false, new SchemaShape(annotations));
    }

    private static bool HasCategories(SchemaShape.Column column)
        => column.Annotations.TryFindColumn(AnnotationUtils.Kinds.CategoricalSlotRanges, out SchemaShape.Column ranges)
            && ranges.Kind == SchemaShape.Column.VectorKind.Vector && ranges.ItemType.Equals(NumberDataViewType.Int32);
}
