// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

[TestClass]
public sealed class ImageProcessorTests
{
    [TestMethod]
    [DataRow("vit", 224, 224, false, 2)]
    [DataRow("swin", 224, 224, false, 2)]
    [DataRow("swinv2", 224, 224, false, 2)]
    [DataRow("deit", 224, 224, true, 3)]
    [DataRow("beit", 224, 224, true, 3)]
    [DataRow("clip", 224, 224, true, 3)]
    [DataRow("dinov2", 224, 224, true, 3)]
    [DataRow("siglip", 224, 224, false, 3)]
    [DataRow("convnext", 384, 384, false, 3)]
    [DataRow("resnet", 384, 384, false, 3)]
    [DataRow("segformer", 512, 512, false, 2)]
    public void WithoutAFileTheFamilyDecides(string modelType, int width, int height, bool crops, int filter)
    {
        var processor = ImageProcessor.Load(Files(), new JsonObject { ["model_type"] = modelType });
        Assert.AreEqual((width, height, crops, filter), (processor.Width, processor.Height, processor.Settings.CentreCrop, (int)processor.Settings.Filter));
        // A network of another size: the picture follows it.
        JsonObject small = modelType is "clip" or "siglip"
            ? new() { ["model_type"] = modelType, ["vision_config"] = new JsonObject { ["image_size"] = 32 } }
            : new() { ["model_type"] = modelType, ["image_size"] = 32 };
        Assert.AreEqual((32, 32), (ImageProcessor.Load(Files(), small).Width, ImageProcessor.Load(Files(), small).Height));
    }

    [TestMethod]
    public void FilesOfEveryFormAreUnderstood()
    {
        (string Json, int Width, int Height)[] forms =
        [
            ("""{"feature_extractor_type": "ViTFeatureExtractor", "size": 30}""", 30, 30),
            ("""{"image_processor_type": "ViTImageProcessorFast", "size": {"height": 20, "width": 30}}""", 30, 20),
            ("""{"image_processor_type": "ViTImageProcessor", "size": [20, 30], "image_mean": 0.5}""", 30, 20),
            ("""{"image_processor_type": "CLIPImageProcessor", "size": 30, "crop_size": {"height": 24, "width": 20}}""", 20, 24),
            ("""{"image_processor_type": "ConvNextFeatureExtractor", "size": 30, "crop_pct": null}""", 30, 30),
            ("""{"image_processor_type": "SegformerImageProcessor", "size": 40, "reduce_labels": true}""", 40, 40),
        ];
        foreach (var (json, width, height) in forms)
        {
            var processor = ImageProcessor.FromJson(JsonNode.Parse(json)!.AsObject());
            Assert.AreEqual((width, height), (processor.Width, processor.Height), json);
            Assert.AreEqual(processor.ToJson().ToJsonString(), ImageProcessor.FromJson(processor.ToJson()).ToJson().ToJsonString());
        }

        var nested = Files(("processor_config.json", """{"image_processor": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 8, "width": 8}}}"""));
        Assert.AreEqual(8, ImageProcessor.Load(nested, []).Width);
        var free = ImageProcessor.FromJson(JsonNode.Parse("""{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}""")!.AsObject());
        Assert.IsFalse(free.HasFixedSize);
        Assert.AreEqual((448, 224), free.OutputSize(100, 50));
        StringAssert.Contains(Assert.ThrowsExactly<InvalidOperationException>(() => free.Width).Message, "do_center_crop");
    }

    [TestMethod]
    [DataRow("""{"image_processor_type": "VitMatteImageProcessor"}""", "VitMatteImageProcessor")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "size": 0}""", "size")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "size": {"height": 3}}""", "size")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "size": 100000000}""", "size")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0, 0.5]}""", "image_std[1]")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "image_mean": [0.5]}""", "image_mean")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "resample": 9}""", "resample")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "do_resize": "yes"}""", "do_resize")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "do_center_crop": true}""", "crop_size")]
    [DataRow("""{"image_processor_type": "ViTImageProcessor", "rescale_factor": "x"}""", "rescale_factor")]
    [DataRow("""[1]""", "preprocessor_config.json")]
    [DataRow("""{""", "preprocessor_config.json")]
    public void WrongFilesAreNamed(string json, string says)
    {
        var error = Assert.ThrowsExactly<CheckpointFormatException>(() => ImageProcessor.Load(Files((ImageProcessor.FileName, json)), []));
        StringAssert.Contains(error.Message, says);
        StringAssert.Contains(error.Message, "preprocessor_config.json");
    }

    [TestMethod]
    public void UnknownFamiliesWithoutAFileAreRefused() =>
        StringAssert.Contains(Assert.ThrowsExactly<CheckpointFormatException>(() => ImageProcessor.Load(Files(), new JsonObject { ["model_type"] = "sam" })).Message, "'sam'");

    [TestMethod]
    public void SpansOfAnotherLengthAreRefused()
    {
        var processor = new ImageProcessor(new() { Type = "ViTImageProcessor", Size = new(4, 4) });
        var image = new PixelImage(2, 2, 1, [0, 85, 170, 255]);
        Assert.ThrowsExactly<ArgumentException>(() => processor.Process(image, new float[47]));
        float[] pixels = processor.Process(image);
        Assert.HasCount(48, pixels);
        CollectionAssert.AreEqual(pixels[..16], pixels[16..32]);
    }

    private static MemoryFileSet Files(params (string Name, string Content)[] files)
    {
        var set = new MemoryFileSet("the folder");
        foreach (var (name, content) in files) set.Add(name, Encoding.UTF8.GetBytes(content));
        return set;
    }
}
