// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

public sealed partial class ImageFixtureTests
{
    private void Preprocess(FixtureCase fixture)
    {
        string model = Path.Combine(fixture.Folder, "model"), configFile = Path.Combine(model, "config.json");
        JsonObject config = File.Exists(configFile) ? JsonNode.Parse(File.ReadAllText(configFile))!.AsObject() : [];
        ImageProcessor read = ImageProcessor.Load(new FolderFileSet(model), config);
        // Written and read again, it is the same processor.
        ImageProcessor processor = ImageProcessor.FromJson(read.ToJson());
        Assert.AreEqual(read.ToJson().ToJsonString(), processor.ToJson().ToJsonString());
        foreach (string tensor in fixture.Names)
        {
            string[] parts = tensor.Split('.');
            string kind = parts[0], way = parts.Length > 2 ? parts[2] : "";
            switch (kind)
            {
                case "pixel_values":
                    CompareValues(fixture, tensor, processor, Source(fixture, parts[1], way));
                    break;
                case "resized":
                    PixelImage bytes = Thinned(processor.Bytes(Source(fixture, parts[1], way)), fixture[tensor].shape);
                    Exact(fixture, tensor, Ints(bytes));
                    break;
                case "labels" or "labels_reduced":
                    var reducing = new ImageProcessor(processor.Settings with { ReduceLabels = kind == "labels_reduced" });
                    string file = FileOf(fixture, fixture.Json.GetProperty("config").GetProperty("files").GetProperty(parts[1]));
                    Exact(fixture, tensor, Ints(reducing.ProcessLabels(ImageReader.ReadLabels(file))));
                    break;
                default:
                    _worst.Fail($"{tensor}: a tensor of an unknown kind");
                    break;
            }
        }
    }

    private static PixelImage Source(FixtureCase fixture, string name, string way)
    {
        string images = fixture.Text("images") ?? "_images";
        string file = Path.Combine(fixture.Folder, images, name + ".png");
        if (!File.Exists(file)) file = Path.Combine(fixture.Folder, "..", images, name + ".png");
        return ImageReader.Read(file, way switch
        {
            "dropped" => AlphaTreatment.Drop,
            "white" or "" => AlphaTreatment.White,
            _ => throw new AssertFailedException($"{name}: an unknown treatment of transparency '{way}'"),
        });
    }

    private void CompareValues(FixtureCase fixture, string tensor, ImageProcessor processor, PixelImage image)
    {
        var (width, height) = processor.OutputSize(image.Width, image.Height);
        float[] found = processor.Process(image);
        long[] shape = fixture[tensor].shape;
        _used.Add(tensor);
        float[] expected = [.. fixture[tensor].contiguous().data<float>()];
        if (expected.Length != found.Length)
            found = Thinned(found, height, width, shape);
        double off = found.Length == expected.Length ? found.Zip(expected, (a, b) => Math.Abs((double)a - b)).Max() : double.PositiveInfinity;
        // What the case allows, and what there is no reason to fall short of: every value the same number.
        _worst.Compare(tensor, off, fixture.Json.GetProperty("tolerance").GetDouble());
        _worst.Compare(tensor + ", to the bit", off, 0);
    }

    // A case with large results keeps each 16th row and column, from number 5 on.
    private const int First = 5, Step = 16;

    private static PixelImage Thinned(PixelImage image, long[] shape)
    {
        if (image.Height == shape[0] && image.Width == shape[1])
            return image;
        byte[] kept = [.. from y in Kept(image.Height) from x in Kept(image.Width) from c in Enumerable.Range(0, 3) select image.Pixels[(y * image.Width + x) * 3 + c]];
        return new PixelImage(Kept(image.Width).Count(), Kept(image.Height).Count(), 3, kept);
    }

    private static float[] Thinned(float[] values, int height, int width, long[] shape) =>
        [.. from c in Enumerable.Range(0, (int)shape[0]) from y in Kept(height) from x in Kept(width) select values[(c * height + y) * width + x]];

    private static IEnumerable<int> Kept(int length) => Enumerable.Range(0, length).Where(i => i >= First && (i - First) % Step == 0);
}
