// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;

namespace Microsoft.ML;

/// <summary>Transforms of pictures.</summary>
public static class ImageEstimatorsCatalog
{
    public static ImageLoadingEstimator LoadImages(this TransformsCatalog catalog, string outputColumnName, string imageFolder, string inputColumnName = null)
        => new(CatalogUtils.GetEnvironment(catalog), imageFolder, asImages: true, outputColumnName, inputColumnName ?? outputColumnName);

    public static ImageLoadingEstimator LoadRawImageBytes(this TransformsCatalog catalog, string outputColumnName, string imageFolder, string inputColumnName = null)
        => new(CatalogUtils.GetEnvironment(catalog), imageFolder, asImages: false, outputColumnName, inputColumnName ?? outputColumnName);
}
