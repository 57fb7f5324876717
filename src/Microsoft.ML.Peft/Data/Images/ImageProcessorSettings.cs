// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;

namespace Microsoft.ML.Peft.Data;

/// <summary>How a processor finds the target size.</summary>
/// <param name="Width">The width, or 0 where the shortest edge counts.</param>
/// <param name="Height">The height, or 0 where the shortest edge counts.</param>
/// <param name="ShortestEdge">The length of the short side, or 0.</param>
/// <param name="LongestEdge">The most that the long side may become, or 0 for any.</param>
public readonly record struct ImageTargetSize(int Width, int Height, int ShortestEdge = 0, int LongestEdge = 0)
{
    internal bool IsFixed => ShortestEdge == 0;

    internal JsonObject ToJson()
    {
        if (IsFixed)
            return new JsonObject { ["height"] = Height, ["width"] = Width };
        var json = new JsonObject { ["shortest_edge"] = ShortestEdge };
        if (LongestEdge > 0)
            json["longest_edge"] = LongestEdge;
        return json;
    }
}

/// <summary>What a processor does: resize, crop from the centre, rescale, normalise. Each step may be off.</summary>
public sealed record ImageProcessorSettings
{
    /// <summary>The processor's class in Transformers, for instance <c>ViTImageProcessor</c>.</summary>
    public required string Type { get; init; }

    /// <summary>Whether images are resized to <see cref="Size"/>.</summary>
    public bool Resize { get; init; } = true;

    /// <summary>The size to which they are resized.</summary>
    public ImageTargetSize Size { get; init; }

    /// <summary>How samples are weighted.</summary>
    public ResizeFilter Filter { get; init; } = ResizeFilter.Bicubic;

    /// <summary>ConvNeXt's share of the short side that is kept: below 384 images are resized to size / share, and cropped. 0 for none.</summary>
    public double CropShare { get; init; }

    /// <summary>Whether a part of <see cref="CropWidth"/> x <see cref="CropHeight"/> is taken from the centre.</summary>
    public bool CentreCrop { get; init; }

    /// <summary>The width of the part.</summary>
    public int CropWidth { get; init; }

    /// <summary>The height of the part.</summary>
    public int CropHeight { get; init; }

    /// <summary>Whether bytes are multiplied by <see cref="RescaleFactor"/>.</summary>
    public bool Rescale { get; init; } = true;

    /// <summary>What bytes are multiplied by.</summary>
    public double RescaleFactor { get; init; } = 1 / 255.0;

    /// <summary>Whether <see cref="Mean"/> is taken away and the rest is divided by <see cref="Std"/>.</summary>
    public bool Normalize { get; init; } = true;

    /// <summary>The mean of each channel: red, green, blue.</summary>
    public IReadOnlyList<double> Mean { get; init; } = [0.5, 0.5, 0.5];

    /// <summary>The standard deviation of each channel.</summary>
    public IReadOnlyList<double> Std { get; init; } = [0.5, 0.5, 0.5];

    /// <summary>Whether label 0 of a label map means "nothing" (255) and the others count from 0.</summary>
    public bool ReduceLabels { get; init; }

    /// <summary>The settings as a <c>preprocessor_config.json</c>, with every value written out.</summary>
    public JsonObject ToJson()
    {
        var json = new JsonObject
        {
            ["image_processor_type"] = Type,
            ["do_resize"] = Resize,
            ["size"] = Size.ToJson(),
            ["resample"] = (int)Filter,
            ["do_center_crop"] = CentreCrop,
            ["do_rescale"] = Rescale,
            ["rescale_factor"] = RescaleFactor,
            ["do_normalize"] = Normalize,
            ["image_mean"] = new JsonArray([.. Mean.Select(value => (JsonNode)value)]),
            ["image_std"] = new JsonArray([.. Std.Select(value => (JsonNode)value)]),
        };
        if (CentreCrop)
            json["crop_size"] = new JsonObject { ["height"] = CropHeight, ["width"] = CropWidth };
        if (CropShare > 0)
            json["crop_pct"] = CropShare;
        if (ReduceLabels)
            json["do_reduce_labels"] = true;
        return json;
    }
}
