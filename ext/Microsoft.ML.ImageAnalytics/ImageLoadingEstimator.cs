// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;

namespace Microsoft.ML.Data;

/// <summary>Loads the pictures that a text column names.</summary>
public sealed class ImageLoadingEstimator : TrivialEstimator<ImageLoadingTransformer>
{
    internal ImageLoadingEstimator(IHostEnvironment env, string imageFolder, bool asImages, string outputColumnName, string inputColumnName)
        : base(Contracts.CheckRef(env, nameof(env)).Register(nameof(ImageLoadingEstimator)),
            new ImageLoadingTransformer(env, imageFolder, asImages, [(outputColumnName, inputColumnName)]))
    {
    }

    public override SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        var columns = ByName(inputSchema);
        foreach (var (output, input) in Transformer.ColumnPairs)
        {
            SchemaShape.Column source = Find(inputSchema, input);
            if (source.ItemType is not TextDataViewType || source.Kind != SchemaShape.Column.VectorKind.Scalar)
                throw Host.ExceptSchemaMismatch(nameof(inputSchema), "input", input, TextDataViewType.Instance.ToString(), source.GetTypeString());
            columns[output] = Transformer.AsImages
                ? new SchemaShape.Column(output, SchemaShape.Column.VectorKind.Scalar, new ImageDataViewType(), false)
                : new SchemaShape.Column(output, SchemaShape.Column.VectorKind.VariableVector, NumberDataViewType.Byte, false);
        }

        return new SchemaShape(columns.Values);
    }
}
