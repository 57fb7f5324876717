// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Transforms.Image;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>A column of images.</summary>
/// <param name="name">Name of the column.</param>
/// <param name="root">Folder that relative paths begin in.</param>
internal sealed class ImageColumns(string name, string? root) : MediaColumn<PixelImage>(name, "image", root)
{
    protected override string Decoded => "Image";

    protected override bool IsDecoded(DataViewType item, bool vector) => !vector && item is ImageDataViewType;

    // The value stays its owner's: the pixels are copied.
    protected override Func<PixelImage> DecodedReader(DataViewRow row)
    {
        ValueGetter<MLImage> getter = row.GetGetter<MLImage>(row.Schema[Name]);
        MLImage value = null!;
        return () =>
        {
            getter(ref value);
            return value is null ? throw new FormatException("the image is missing.") : ImageReader.Read(value, "the image");
        };
    }
}
