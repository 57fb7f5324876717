// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>Walks the cases of pictures: decoding, resizing, processors, augmentation. Which test does a case is said by its name's beginning.</summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed partial class ImageFixtureTests
{
    private const string Area = "vision-audio";

    // Which beginnings of names belong here; everything else of the area is of models and sounds.
    private static readonly (string Start, Action<ImageFixtureTests, FixtureCase> Run)[] Kinds =
    [
        ("png-decoding", (tests, fixture) => tests.PngDecoding(fixture)),
        ("png-kinds", (tests, fixture) => tests.PngKinds(fixture)),
        ("jpeg-decoding", (tests, fixture) => tests.JpegDecoding(fixture)),
        ("pillow-resize", (tests, fixture) => tests.PillowResize(fixture)),
        ("resize-sizes", (tests, fixture) => tests.ResizeSizes(fixture)),
        ("preprocess-", (tests, fixture) => tests.Preprocess(fixture)),
        ("augment-mixing", (tests, fixture) => tests.Mixing(fixture)),
        ("augment-crops", (tests, fixture) => tests.Crops(fixture)),
        ("augment-rotations", (tests, fixture) => tests.Rotations(fixture)),
    ];

    private readonly Worst _worst = new();

    public TestContext TestContext { get; set; } = null!;

    public static IEnumerable<object[]> ImageCases() =>
        Shared.Exists ? Shared.Cases(Area).Select(Path.GetFileName).Where(name => Kinds.Any(kind => name!.StartsWith(kind.Start, StringComparison.Ordinal))).Select(name => new object[] { name! }) : [];

    [TestMethod]
    [DynamicData(nameof(ImageCases))]
    public void ImagesEqualPillow(string name)
    {
        using var scope = TorchSharp.torch.NewDisposeScope();
        using var fixture = new FixtureCase(Path.Combine(Shared.Fixtures, Area, name));
        var asked = new HashSet<string>(fixture.Names);
        Kinds.First(kind => name.StartsWith(kind.Start, StringComparison.Ordinal)).Run(this, fixture);
        foreach (string tensor in asked.Except(_used).Order(StringComparer.Ordinal))
            _worst.Fail($"{tensor}: nothing here compares it");
        _worst.Done(TestContext);
    }

    private readonly HashSet<string> _used = [];

    private void PngDecoding(FixtureCase fixture)
    {
        foreach (var file in fixture.Json.GetProperty("config").GetProperty("files").EnumerateObject())
        {
            string path = FileOf(fixture, file.Value);
            PngReader png = PngReader.Read(File.ReadAllBytes(path), path, ImageLimits.Default);
            int[]? raw = null;
            if (fixture.Has(file.Name + ".raw"))
            {
                raw = Raw(png);
                Exact(fixture, file.Name + ".raw", raw);
            }

            ComparePng(fixture, file.Name, path, png);
        }
    }

    private void PngKinds(FixtureCase fixture)
    {
        foreach (var file in fixture.Json.GetProperty("config").GetProperty("files").EnumerateObject())
        {
            string path = FileOf(fixture, file.Value);
            ComparePng(fixture, file.Name, path, PngReader.Read(File.ReadAllBytes(path), path, ImageLimits.Default));
        }
    }

    private void ComparePng(FixtureCase fixture, string name, string path, PngReader png)
    {
        if (png is { Channels: 1, SampleBytes: 2 })
        {
            // The reference cuts 16-bit grey off at 255, which nobody wants: checked on the raw samples. Here it is their high byte.
            int[] raw = Raw(png);
            Exact(fixture, name + ".rgb", [.. raw.SelectMany(sample => Enumerable.Repeat(Math.Min(sample, 255), 3))]);
            int[] high = [.. raw.SelectMany(sample => Enumerable.Repeat(sample >> 8, 3))];
            _worst.Compare($"{name}: high bytes", Off(Ints(ImageReader.Read(path, AlphaTreatment.Drop)), high), 0);
        }
        else
        {
            Exact(fixture, name + ".rgb", Ints(ImageReader.Read(path, AlphaTreatment.Drop)));
        }

        if (fixture.Has(name + ".white")) Exact(fixture, name + ".white", Ints(ImageReader.Read(path)));
        if (fixture.Has(name + ".rgba")) Exact(fixture, name + ".rgba", Ints(ImageReader.Read(path, AlphaTreatment.Keep)));
    }

    // Grey of few bits is stored scaled to 0..255, as the reference opens it.
    private static int[] Raw(PngReader png)
    {
        if (png.SampleBytes == 1)
            return [.. png.Samples.Select(sample => png.IsIndexed || png.Depth == 8 ? sample : sample * 255 / ((1 << png.Depth) - 1))];
        return [.. Enumerable.Range(0, png.Samples.Length / 2).Select(i => png.Samples[2 * i] << 8 | png.Samples[2 * i + 1])];
    }

    private void JpegDecoding(FixtureCase fixture)
    {
        foreach (var file in fixture.Json.GetProperty("config").GetProperty("files").EnumerateObject())
        {
            int[] found = Ints(ImageReader.Read(FileOf(fixture, file.Value)));
            Exact(fixture, file.Name + ".pixels", found);
            // The planes are not handed out by decoders; their conversion is what is.
            if (fixture.Has(file.Name + ".ycbcr"))
                _worst.Compare($"{file.Name}.ycbcr converted", Off(found, FromYcbcr(Expected(fixture, file.Name + ".ycbcr"))), 0);
        }
    }

    private static int[] FromYcbcr(int[] planes)
    {
        int[] rgb = new int[planes.Length];
        for (int i = 0; i < planes.Length; i += 3)
        {
            int y = planes[i], cb = planes[i + 1] - 128, cr = planes[i + 2] - 128;
            rgb[i] = Math.Clamp(y + ((91881 * cr + 32768) >> 16), 0, 255);
            rgb[i + 1] = Math.Clamp(y + ((-22554 * cb - 46802 * cr + 32768) >> 16), 0, 255);
            rgb[i + 2] = Math.Clamp(y + ((116130 * cb + 32768) >> 16), 0, 255);
        }

        return rgb;
    }

    private void PillowResize(FixtureCase fixture)
    {
        foreach (string tensor in fixture.Names.Where(name => !name.StartsWith("source.", StringComparison.Ordinal)))
        {
            var parts = tensor.Split('.').ToList();
            bool horizontalFirst = parts.Remove("horizontal_first");
            string source = parts.Count == 3 ? parts[0] : "rgb";
            if (parts.Count is not (2 or 3) || !fixture.Has("source." + source) || !Enum.TryParse(parts[^2], ignoreCase: true, out ResizeFilter filter))
            {
                _worst.Fail($"{tensor}: a name of an unknown form");
                continue;
            }

            int[] size = [.. parts[^1].Split('x').Select(int.Parse)];
            PixelImage image = Picture(fixture, "source." + source);
            PixelImage resized = ImageResizer.Resize(image, size[0], size[1], filter, new ResizeWindow(0, 0, size[0], size[1]), horizontalFirst);
            Exact(fixture, tensor, Ints(resized));
        }
    }

    private void ResizeSizes(FixtureCase fixture)
    {
        JsonElement config = fixture.Json.GetProperty("config");
        foreach (JsonElement row in config.GetProperty("shortest_edge").EnumerateArray())
        {
            int Number(string field) => row.GetProperty(field).GetInt32();
            var free = ImageGeometry.ShortestEdge(Number("width"), Number("height"), Number("shortest_edge"));
            var bounded = ImageGeometry.ShortestEdge(Number("width"), Number("height"), Number("shortest_edge"), Number("longest_edge"));
            Same(row, free, (Number("new_width"), Number("new_height")));
            Same(row, bounded, (Number("bounded_width"), Number("bounded_height")));
        }

        foreach (JsonElement row in config.GetProperty("center_crop").EnumerateArray())
        {
            int Number(string field) => row.GetProperty(field).GetInt32();
            CentreCrop found = ImageGeometry.Centre(Number("width"), Number("height"), Number("crop_width"), Number("crop_height"));
            Same(row, found, new CentreCrop(Number("source_left"), Number("source_top"), Number("columns"), Number("rows"), Number("target_left"), Number("target_top")));
        }
    }

    private void Same<T>(JsonElement row, T found, T expected)
    {
        _worst.Compare(row.GetRawText(), Equals(found, expected) ? 0 : 1, 0);
        if (!Equals(found, expected)) _worst.Fail($"{row.GetRawText()}: {found}, expected {expected}");
    }

    // ---- values ----

    private static string FileOf(FixtureCase fixture, JsonElement entry)
    {
        string name = entry.ValueKind == JsonValueKind.String ? entry.GetString()! : entry.GetProperty("file").GetString()!;
        string inside = Path.Combine(fixture.Folder, name);
        return File.Exists(inside) ? inside : Path.Combine(fixture.Folder, "..", name);
    }

    private int[] Expected(FixtureCase fixture, string tensor)
    {
        _used.Add(tensor);
        return [.. fixture[tensor].to_type(TorchSharp.torch.ScalarType.Int32).contiguous().data<int>()];
    }

    private PixelImage Picture(FixtureCase fixture, string tensor)
    {
        long[] shape = fixture[tensor].shape;
        return new PixelImage((int)shape[1], (int)shape[0], shape.Length == 3 ? (int)shape[2] : 1, [.. Expected(fixture, tensor).Select(value => (byte)value)]);
    }

    private static int[] Ints(PixelImage image) => [.. image.Pixels.Select(value => (int)value)];

    private static double Off(int[] found, int[] expected) =>
        found.Length != expected.Length ? double.PositiveInfinity : found.Zip(expected, (a, b) => Math.Abs(a - b)).Max();

    private void Exact(FixtureCase fixture, string tensor, int[] found)
    {
        if (!fixture.Has(tensor))
            _worst.Fail($"{tensor}: the case does not hold it");
        else
            _worst.Compare(tensor, Off(found, Expected(fixture, tensor)), 0);
    }
}
