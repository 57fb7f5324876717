// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json;
using Microsoft.ML.Peft.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Data;

public sealed partial class ImageFixtureTests
{
    private void Mixing(FixtureCase fixture)
    {
        JsonElement config = fixture.Json.GetProperty("config");
        int classes = config.GetProperty("classes").GetInt32();
        double own = config.GetProperty("lam").GetDouble(), smoothing = config.GetProperty("smoothing").GetDouble();
        int[] order = Expected(fixture, "order"), labels = Expected(fixture, "labels");
        int height = (int)fixture["images"].shape[2], width = (int)fixture["images"].shape[3];
        float[] smoothed = ImageMixing.Targets(labels, classes, smoothing), plain = ImageMixing.Targets(labels, classes, 0);
        Near(fixture, "smoothed_loss", [Loss(fixture, smoothed)]);

        Near(fixture, "mixup.images", Mixed(Floats(fixture, "images"), order, own));
        float[] targets = Mixed([.. smoothed], order, own);
        Near(fixture, "mixup.targets", targets);
        Near(fixture, "mixup.loss", [Loss(fixture, targets)]);
        Near(fixture, "mixup.loss_unsmoothed", [Loss(fixture, Mixed(plain, order, own))]);

        JsonElement centre = config.GetProperty("centre"), cut = config.GetProperty("cutmix");
        ImageBox box = ImageMixing.CutMixBox(width, height, own, centre.GetProperty("column").GetInt32(), centre.GetProperty("row").GetInt32());
        Same(cut, (box.Left, box.Top, box.Left + box.Width, box.Top + box.Height),
            (Whole(cut, "left"), Whole(cut, "top"), Whole(cut, "right"), Whole(cut, "bottom")));
        double left = ImageMixing.OwnShare(box, width, height);
        _worst.Compare("cutmix.lam", Math.Abs(left - cut.GetProperty("lam").GetDouble()), 1e-12);
        float[] images = Floats(fixture, "images");
        ImageMixing.Paste(images, order, height, width, box);
        Near(fixture, "cutmix.images", images);
        Near(fixture, "cutmix.targets", Mixed(smoothed, order, left));
    }

    private static int Whole(JsonElement element, string field) => element.GetProperty(field).GetInt32();

    private static float[] Mixed(float[] values, int[] order, double own)
    {
        ImageMixing.Mix(values, order, own);
        return values;
    }

    private float Loss(FixtureCase fixture, float[] targets)
    {
        _used.Add("logits");
        Tensor logits = fixture["logits"];
        Tensor shares = tensor(targets).reshape(logits.shape);
        return (float)-(shares * nn.functional.log_softmax(logits, -1)).sum().item<float>() / logits.shape[0];
    }

    private float[] Floats(FixtureCase fixture, string tensor)
    {
        _used.Add(tensor);
        return [.. fixture[tensor].to_type(ScalarType.Float32).contiguous().data<float>()];
    }

    private void Near(FixtureCase fixture, string tensor, float[] found)
    {
        float[] expected = Floats(fixture, tensor);
        double off = found.Length == expected.Length ? found.Zip(expected, (a, b) => Math.Abs((double)a - b)).Max() : double.PositiveInfinity;
        _worst.Compare(tensor, off, fixture.Json.GetProperty("tolerance").GetDouble());
    }

    private void Crops(FixtureCase fixture)
    {
        JsonElement config = fixture.Json.GetProperty("config");
        var boxes = config.GetProperty("boxes").EnumerateArray().ToArray();
        foreach (JsonElement row in boxes)
        {
            var numbers = new Queue<double>(row.GetProperty("uniform").EnumerateArray().SelectMany(trial => trial.EnumerateArray()).Select(value => value.GetDouble()));
            ImageBox box = RandomCrop.Box(Whole(row, "image_width"), Whole(row, "image_height"), Pair(row, "scale"), Pair(row, "ratio"), numbers.Dequeue);
            Same(row, box, new ImageBox(Whole(row, "left"), Whole(row, "top"), Whole(row, "width"), Whole(row, "height")));
        }

        PixelImage image = Picture(fixture, "image");
        foreach (string tensor in fixture.Names.Where(name => name != "image"))
        {
            string[] parts = tensor.Split('.');
            JsonElement row = boxes[int.Parse(parts[1], CultureInfo.InvariantCulture)];
            long[] shape = fixture[tensor].shape;
            PixelImage part = image.Crop(Whole(row, "left"), Whole(row, "top"), Whole(row, "width"), Whole(row, "height"));
            PixelImage resized = ImageResizer.Resize(part, (int)shape[1], (int)shape[0], ResizeFilter.Bicubic);
            if (parts[0] is not ("crop" or "flipped")) _worst.Fail($"{tensor}: a tensor of an unknown kind");
            else Exact(fixture, tensor, Ints(parts[0] == "flipped" ? ImageTurns.Mirror(resized) : resized));
        }
    }

    private static (double, double) Pair(JsonElement row, string field) => (row.GetProperty(field)[0].GetDouble(), row.GetProperty(field)[1].GetDouble());

    private void Rotations(FixtureCase fixture)
    {
        PixelImage image = Picture(fixture, "image");
        foreach (string tensor in fixture.Names.Where(name => name != "image"))
        {
            string kind = tensor[..tensor.IndexOf('.', StringComparison.Ordinal)];
            if (kind is not ("nearest" or "bilinear"))
                _worst.Fail($"{tensor}: a tensor of an unknown kind");
            else
                Exact(fixture, tensor, Ints(ImageTurns.Rotate(image, double.Parse(tensor[(kind.Length + 1)..], CultureInfo.InvariantCulture), kind == "bilinear")));
        }
    }
}
