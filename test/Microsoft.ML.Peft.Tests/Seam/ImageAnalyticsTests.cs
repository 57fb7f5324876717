// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Tests.Data;
using Microsoft.ML.Transforms.Image;

namespace Microsoft.ML.Peft.Tests.Seam;

/// <summary>What this repository relies on in Microsoft.ML.ImageAnalytics; both package sources pass.</summary>
[TestClass]
public sealed class ImageAnalyticsTests
{
    private readonly string _folder = Directory.CreateTempSubdirectory("peft-seam-images-").FullName;

    [TestCleanup]
    public void Clean() => Directory.Delete(_folder, recursive: true);

    private sealed class Named
    {
        public string Path { get; set; } = "";
    }

    private sealed class Loaded
    {
        [ImageType(16, 24)]
        public MLImage? Image { get; set; }
    }

    private IDataView Rows(MLContext ml, params string[] names)
    {
        foreach (string name in names.Where(name => ImageSamples.Files.ContainsKey(name)))
            File.WriteAllBytes(Path.Combine(_folder, name), ImageSamples.Files[name]);
        return ml.Data.LoadFromEnumerable(names.Select(name => new Named { Path = name }));
    }

    [TestMethod]
    public void ImagesAreLoadedByName()
    {
        var ml = new MLContext(1);
        IDataView rows = Rows(ml, "png", "", "jpeg");
        ITransformer model = ml.Transforms.LoadImages("Image", _folder, "Path").Fit(rows);
        string zip = Path.Combine(_folder, "model.zip");
        ml.Model.Save(model, rows.Schema, zip);
        foreach (ITransformer transformer in (ITransformer[])[model, new MLContext().Model.Load(zip, out _)])
        {
            IDataView view = transformer.Transform(rows);
            Assert.IsInstanceOfType<ImageDataViewType>(view.Schema["Image"].Type);
            using DataViewRowCursor cursor = view.GetRowCursor(view.Schema);
            var getter = cursor.GetGetter<MLImage>(view.Schema["Image"]);
            MLImage? image = null;
            foreach (string? name in (string?[])["png", null, "jpeg"])
            {
                Assert.IsTrue(cursor.MoveNext());
                getter(ref image!);
                if (name is null)
                {
                    Assert.IsNull(image);
                    continue;
                }

                Assert.AreEqual((24, 16, 32), (image.Width, image.Height, image.BitsPerPixel));
                Assert.AreEqual(Path.Combine(_folder, name), image.Tag);
                Assert.AreEqual(24 * 16 * 4, image.Pixels.Length);
                Assert.AreEqual(24 * 16 * 3, image.GetBGRPixels.Length);
            }
        }
    }

    [TestMethod]
    public void FilesAreLoadedAsBytes()
    {
        var ml = new MLContext(1);
        IDataView view = ml.Transforms.LoadRawImageBytes("Bytes", _folder, "Path").Fit(Rows(ml, "gif")).Transform(Rows(ml, "gif"));
        CollectionAssert.AreEqual(ImageSamples.Files["gif"], view.GetColumn<byte[]>("Bytes").Single());
        Assert.IsInstanceOfType<VectorDataViewType>(view.Schema["Bytes"].Type);
    }

    [TestMethod]
    public void ImagesAreMembersOfClasses()
    {
        var ml = new MLContext(1);
        using MLImage image = MLImage.CreateFromStream(new MemoryStream(ImageSamples.Files["bmp"]));
        IDataView view = ml.Data.LoadFromEnumerable([new Loaded { Image = image }]);
        Assert.AreEqual(new ImageDataViewType(16, 24), view.Schema["Image"].Type);
        Assert.AreEqual(24, ml.Data.CreateEnumerable<Loaded>(view, reuseRowObject: false).Single().Image!.Width);
    }

    [TestMethod]
    public void WrongInputsAreRefused()
    {
        Assert.ThrowsExactly<ArgumentNullException>(() => MLImage.CreateFromStream(null));
        Assert.ThrowsExactly<ArgumentException>(() => MLImage.CreateFromStream(new MemoryStream([1, 2, 3])));
        Assert.ThrowsExactly<ArgumentException>(() => MLImage.CreateFromFile(Path.Combine(_folder, "none.png")));
        Assert.ThrowsExactly<ArgumentException>(() => MLImage.CreateFromPixels(0, 1, MLPixelFormat.Rgba32, []));
        Assert.ThrowsExactly<ArgumentException>(() => MLImage.CreateFromPixels(1, 1, MLPixelFormat.Unknown, new byte[4]));
        Assert.ThrowsExactly<ArgumentException>(() => MLImage.CreateFromPixels(1, 1, MLPixelFormat.Rgba32, new byte[3]));
        MLImage image = MLImage.CreateFromPixels(1, 1, MLPixelFormat.Rgba32, [1, 2, 3, 255]);
        Assert.ThrowsExactly<ArgumentException>(() => image.Save(Path.Combine(_folder, "x.nonsense")));
        image.Dispose();
        Assert.ThrowsExactly<InvalidOperationException>(() => image.Width);
        Assert.ThrowsExactly<InvalidOperationException>(() => image.Pixels.Length);
        Assert.ThrowsExactly<ArgumentException>(() => new MLContext().Transforms.LoadImages("Image", Path.Combine(_folder, "none")));
    }

    [TestMethod]
    public void WhatEndsEarlyIsAnImageWithAnEmptyRest()
    {
        using MLImage image = MLImage.CreateFromStream(new MemoryStream(ImageSamples.Files["jpeg"][..680]));
        Assert.AreEqual((24, 16), (image.Width, image.Height));
    }

    [TestMethod]
    public void SavedImagesAreReadAgain()
    {
        byte[] pixels = new byte[5 * 7 * 4];
        new Random(1).NextBytes(pixels);
        for (int i = 3; i < pixels.Length; i += 4) pixels[i] = 255;
        string file = Path.Combine(_folder, "saved.png");
        using (MLImage image = MLImage.CreateFromPixels(5, 7, MLPixelFormat.Rgba32, pixels))
            image.Save(file);
        using MLImage read = MLImage.CreateFromFile(file);
        CollectionAssert.AreEqual(pixels, read.Pixels.ToArray());
        CollectionAssert.AreEqual(new byte[] { pixels[2], pixels[1], pixels[0] }, read.GetBGRPixels[..3]);
    }
}
