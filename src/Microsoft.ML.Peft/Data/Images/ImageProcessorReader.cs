// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>From a <c>preprocessor_config.json</c>, of any age, to settings.</summary>
internal static class ImageProcessorReader
{
    // Far beyond every model, near enough to keep a file from asking for terabytes.
    private const int MaxSize = 1 << 14;

    public static ImageProcessorSettings Load(IFileSet files, JsonObject config)
    {
        string modelType = Text(config["model_type"]) ?? "";
        if (files.Exists(ProcessorFiles.Name))
            return Read(JsonAt.Read(files, ProcessorFiles.Name), modelType);
        if (files.Exists(ProcessorFiles.NewerName) && JsonAt.Read(files, ProcessorFiles.NewerName)["image_processor"] is { IsNull: false } inner)
            return Read(inner, modelType);
        ImageProcessorFamily family = ImageProcessorFamily.OfModel(modelType)
            ?? throw ImageProcessorFamily.Unknown(files.Description, $"no {ProcessorFiles.Name}, and the model type '{modelType}', for which no defaults are known");
        return ForModel(family.Defaults, config);
    }

    public static ImageProcessorSettings Read(JsonAt file, string modelType)
    {
        string? name = file["image_processor_type"].TextOrNull() ?? file["feature_extractor_type"].TextOrNull();
        ImageProcessorFamily family = (name is null ? null : ImageProcessorFamily.OfClass(name))
            ?? (name is null ? ImageProcessorFamily.OfModel(modelType) : null)
            ?? throw ImageProcessorFamily.Unknown(file.File, name is null ? $"no image_processor_type, and the model type '{modelType}'" : $"the image processor '{name}'");
        ImageProcessorSettings defaults = family.Defaults;
        var crop = Size(file["crop_size"], new ImageTargetSize(defaults.CropWidth, defaults.CropHeight), shortest: false);
        if (!crop.IsFixed)
            throw file["crop_size"].Bad("height and width");
        var settings = defaults with
        {
            Resize = file["do_resize"].Flag(defaults.Resize),
            Size = Size(file["size"], defaults.Size, family.NumberIsShortest),
            Filter = Filter(file["resample"], defaults.Filter),
            CentreCrop = file["do_center_crop"].Flag(defaults.CentreCrop),
            CropWidth = crop.Width,
            CropHeight = crop.Height,
            CropShare = CropShare(file["crop_pct"], defaults.CropShare),
            Rescale = file["do_rescale"].Flag(defaults.Rescale),
            RescaleFactor = file["rescale_factor"].IsNull ? defaults.RescaleFactor : Positive(file["rescale_factor"]),
            Normalize = file["do_normalize"].Flag(defaults.Normalize),
            Mean = Three(file["image_mean"], defaults.Mean, anything: true),
            Std = Three(file["image_std"], defaults.Std, anything: false),
            ReduceLabels = (file["do_reduce_labels"].IsNull ? file["reduce_labels"] : file["do_reduce_labels"]).Flag(defaults.ReduceLabels),
        };
        if (settings.CentreCrop && settings.CropWidth == 0)
            throw file["crop_size"].Bad("the size of the centre crop, as do_center_crop is true");
        return settings;
    }

    // A network of another size than its family's usual one: the target follows, in proportion.
    private static ImageProcessorSettings ForModel(ImageProcessorSettings defaults, JsonObject config)
    {
        JsonNode? of = config["image_size"] ?? (config["vision_config"] as JsonObject)?["image_size"];
        (int Height, int Width)? size = of switch
        {
            JsonArray { Count: 2 } two when Whole(two[0]) is { } h && Whole(two[1]) is { } w => (h, w),
            _ when Whole(of) is { } side => (side, side),
            _ => null,
        };
        if (size is not { } model)
            return defaults;
        int usual = defaults.CentreCrop ? defaults.CropWidth : Math.Max(defaults.Size.Width, defaults.Size.ShortestEdge);
        int Scaled(int value, int side) => (int)((long)value * side / usual);
        return defaults with
        {
            Size = new ImageTargetSize(Scaled(defaults.Size.Width, model.Width), Scaled(defaults.Size.Height, model.Height),
                Scaled(defaults.Size.ShortestEdge, Math.Max(model.Height, model.Width))),
            CropWidth = defaults.CentreCrop ? model.Width : 0,
            CropHeight = defaults.CentreCrop ? model.Height : 0,
        };
    }

    private static ImageTargetSize Size(JsonAt size, ImageTargetSize missing, bool shortest)
    {
        if (size.IsNull)
            return missing;
        if (!size.IsObject)
        {
            if (size.Value.ValueKind == JsonValueKind.Array && size.Value.GetArrayLength() == 2)
                return new ImageTargetSize(Side(size.At(1)), Side(size.At(0)));
            int side = Side(size);
            return shortest ? new ImageTargetSize(0, 0, side) : new ImageTargetSize(side, side);
        }

        if (!size["shortest_edge"].IsNull)
            return new ImageTargetSize(0, 0, Side(size["shortest_edge"]), size["longest_edge"].IsNull ? 0 : Side(size["longest_edge"]));
        if (size["height"].IsNull || size["width"].IsNull)
            throw size.Bad("a whole number, or an object with 'height' and 'width' or with 'shortest_edge'");
        return new ImageTargetSize(Side(size["width"]), Side(size["height"]));
    }

    private static int Side(JsonAt value)
    {
        int side = value.Whole();
        return side is > 0 and <= MaxSize ? side : throw value.Bad($"a size of 1 to {MaxSize}");
    }

    private static ResizeFilter Filter(JsonAt value, ResizeFilter missing)
    {
        if (value.IsNull)
            return missing;
        int number = value.Whole();
        return number is >= 0 and <= 5 ? (ResizeFilter)number : throw value.Bad("one of Pillow's filters, 0 to 5");
    }

    private static double CropShare(JsonAt value, double missing)
    {
        if (value.IsNull || missing == 0)
            return missing;
        double share = value.Number();
        return share is > 0.01 and <= 1 ? share : throw value.Bad("a share above 0.01, at most 1");
    }

    private static double Positive(JsonAt value)
    {
        double number = value.Number();
        return number > 0 && double.IsFinite(number) ? number : throw value.Bad("a positive number");
    }

    private static IReadOnlyList<double> Three(JsonAt values, IReadOnlyList<double> missing, bool anything)
    {
        if (values.IsNull)
            return missing;
        double One(JsonAt value) => anything ? value.Number() : Positive(value);
        if (values.Value.ValueKind == JsonValueKind.Number)
            return [One(values), One(values), One(values)];
        double[] three = [.. values.Items().Select(One)];
        return three.Length == 3 ? three : throw values.Bad("three numbers, for red, green and blue");
    }

    private static string? Text(JsonNode? node) => node is JsonValue value && value.TryGetValue(out string? text) ? text : null;

    private static int? Whole(JsonNode? node) => node is JsonValue value && value.TryGetValue(out int number) && number is > 0 and <= MaxSize ? number : null;
}
