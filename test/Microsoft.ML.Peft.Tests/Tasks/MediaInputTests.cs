// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.TextClassification;

/// <summary>Images and sounds as rows: in every form of column, bad ones, read when they are needed, changed by seed, epoch and row.</summary>
[TestClass]
public sealed class MediaInputTests : OneThread
{
    private readonly MLContext _ml = new(1);
    private readonly string _folder = Directory.CreateTempSubdirectory("media").FullName;

    public TestContext TestContext { get; set; } = null!;

    [TestCleanup]
    public void Cleanup() => Directory.Delete(_folder, recursive: true);

    private sealed class Bytes
    {
        public int Id { get; set; }

        public string Label { get; set; } = "";

        public byte[] Image { get; set; } = [];

        public byte[] Sound { get; set; } = [];
    }

    private sealed class Samples
    {
        public string Label { get; set; } = "";

        public float[] Sound { get; set; } = [];

        public int Rate { get; set; }
    }

    [TestMethod]
    public void BytesAreReadAsTheirFilesAre()
    {
        Review[] rows = TinyTexts.Rows(24);
        IDataView paths = _ml.Data.LoadFromEnumerable(rows);
        IDataView bytes = _ml.Data.LoadFromEnumerable(rows.Select(r => new Bytes { Id = r.Id, Label = r.Label, Image = File.ReadAllBytes(r.Image), Sound = File.ReadAllBytes(r.Sound) }).ToArray());
        foreach (TinyTask tiny in (TinyTask[])[TinyTask.Image, TinyTask.Audio])
        {
            using ClassificationTransformer first = tiny.Train(_ml, paths), second = tiny.Train(_ml, bytes);
            Assert.IsTrue(TinyTexts.Same(TinyTexts.Parameters(first), TinyTexts.Parameters(second)), tiny.Name);
            TinyTexts.AreSame(TinyTexts.Scores(first, paths), TinyTexts.Scores(first, bytes), tiny.Name);
        }
    }

    [TestMethod]
    public void ImagesOfTheLoaderAreReadAsTheirFilesAre()
    {
        IDataView paths = TinyTexts.View(_ml, 24), data = _ml.Transforms.LoadImages("Picture", "", "Image").Fit(paths).Transform(paths);
        using ClassificationTransformer first = TinyTask.Image.Train(_ml, data), second = TinyTask.Image.Train(_ml, data, o => ((ImageClassificationOptions)o).ImageColumnName = "Picture");
        Assert.IsTrue(TinyTexts.Same(TinyTexts.Parameters(first), TinyTexts.Parameters(second)));
        TinyTexts.AreSame(TinyTexts.Scores(first, data), TinyTexts.Scores(second, data));
    }

    [TestMethod]
    public void SamplesAreReadAtTheirRate()
    {
        Review[] rows = TinyTexts.Rows(24);
        IDataView paths = _ml.Data.LoadFromEnumerable(rows);
        IDataView samples = _ml.Data.LoadFromEnumerable(rows.Select(r =>
        {
            AudioClip clip = AudioReader.Default.Read(r.Sound);
            return new Samples { Label = r.Label, Sound = clip.Channels[0], Rate = clip.Rate };
        }).ToArray());
        using ClassificationTransformer model = TinyTask.Audio.Train(_ml, paths);
        using ClassificationTransformer fixedRate = TinyTask.Audio.Train(_ml, samples, o => ((AudioClassificationOptions)o).SampleRate = 16000);
        using ClassificationTransformer column = TinyTask.Audio.Train(_ml, samples, o => ((AudioClassificationOptions)o).SampleRateColumnName = "Rate");
        using ClassificationTransformer slow = TinyTask.Audio.Train(_ml, samples, o => ((AudioClassificationOptions)o).SampleRate = 8000);
        TinyTexts.AreSame(TinyTexts.Scores(model, paths), TinyTexts.Scores(fixedRate, samples));
        TinyTexts.AreSame(TinyTexts.Scores(model, paths), TinyTexts.Scores(column, samples));
        Assert.IsGreaterThan(1e-4, TinyTexts.Gap(TinyTexts.Scores(model, paths), TinyTexts.Scores(slow, samples)));
        CollectionAssert.AreEqual(new[] { "Sound", "Rate" }, column.InputColumns.ToArray());
        StringAssert.Contains(Assert.Throws<ArgumentException>(() => TinyTask.Audio.Train(_ml, samples)).Message, "SampleRate");
    }

    [TestMethod]
    [DataRow("layer", "true")]
    [DataRow("group", "false")]
    public void SoundsOfEveryLengthAreScoredAsIfAlone(string norm, string masked)
    {
        string folder = TinyNetwork.Write(Path.Combine(_folder, "waves"), TinyNetwork.WaveConfig.Replace("NORM", norm, StringComparison.Ordinal),
            TinyNetwork.WaveProcessor.Replace("MASK", masked, StringComparison.Ordinal));
        Review[] rows = TinyTexts.Rows(30);
        using ClassificationTransformer model = TinyTask.Audio.Train(_ml, _ml.Data.LoadFromEnumerable(rows), o =>
        {
            o.BackboneFolder = folder;
            ((AudioClassificationOptions)o).Augmentation = null;
        });
        Assert.IsTrue(model.Training!.Losses.All(double.IsFinite));
        float[][] together = TinyTexts.Scores(model, _ml.Data.LoadFromEnumerable(rows));
        for (int i = 0; i < rows.Length; i += 5)
            Assert.IsLessThan(1e-4, TinyTexts.Gap([together[i]], TinyTexts.Scores(model, _ml.Data.LoadFromEnumerable((Review[])[rows[i]]))), $"row {i}");
        // Of one length: padded with a mask, or with silence that the network hears.
        using ClassificationTransformer cut = TinyTask.Audio.Train(_ml, _ml.Data.LoadFromEnumerable(rows), o =>
        {
            o.BackboneFolder = folder;
            (((AudioClassificationOptions)o).Augmentation, ((AudioClassificationOptions)o).Seconds) = (null, 0.4);
        });
        _ml.Model.Save(cut, _ml.Data.LoadFromEnumerable(rows).Schema, Path.Combine(_folder, "cut.zip"));
        using var loaded = (AudioClassificationTransformer)_ml.Model.Load(Path.Combine(_folder, "cut.zip"), out _);
        Assert.AreEqual(6400, loaded.Processor.Length);
        TinyTexts.AreSame(TinyTexts.Scores(cut, _ml.Data.LoadFromEnumerable(rows)), TinyTexts.Scores(loaded, _ml.Data.LoadFromEnumerable(rows)));
    }

    private string Bad(string name, byte[] content)
    {
        string path = Path.Combine(_folder, name);
        File.WriteAllBytes(path, content);
        return path;
    }

    // A header that promises more pixels than any machine has.
    private static byte[] Huge()
    {
        byte[] png = TinyMedia.Png(4, 4, new byte[48]);
        (png[16], png[20]) = (0x7F, 0x7F);
        return png;
    }

    private Dictionary<string, string> BadFiles(TinyTask tiny)
    {
        bool image = tiny == TinyTask.Image;
        byte[] good = image ? TinyMedia.Png(1, 1) : TinyMedia.Wav(TinyMedia.Samples(1, 1));
        string end = image ? ".png" : ".wav";
        return new()
        {
            ["missing"] = Path.Combine(_folder, "nowhere" + end),
            ["a folder"] = _folder,
            ["no path"] = "",
            ["empty"] = Bad("empty" + end, []),
            ["cut"] = Bad("cut" + end, good[..(good.Length / 2)]),
            ["text"] = Bad("text" + end, Encoding.ASCII.GetBytes("Not what its name says, though long enough for a header of any kind.")),
            ["the other kind"] = Bad("other" + end, image ? TinyMedia.Wav(TinyMedia.Samples(1, 1)) : TinyMedia.Png(1, 1)),
            ["huge"] = Bad("huge" + end, image ? Huge() : TinyMedia.Wav([])),
        };
    }

    [TestMethod]
    public void BadFilesAreNamedWithTheirRow()
    {
        foreach (TinyTask tiny in (TinyTask[])[TinyTask.Image, TinyTask.Audio])
        {
            using ClassificationTransformer model = tiny.Train(_ml, TinyTexts.View(_ml, 12), o => o.Training.Epochs = 1);
            long before = LiveTensors.Count();
            foreach ((string what, string path) in BadFiles(tiny))
            {
                Review[] rows = TinyTexts.Rows(12);
                foreach (int at in (int[])[7, 9]) (rows[at].Image, rows[at].Sound) = (path, path);
                IDataView data = _ml.Data.LoadFromEnumerable(rows);
                foreach (Action run in (Action[])[() => tiny.Train(_ml, data), () => TinyTexts.Scores(model, data)])
                {
                    var e = Assert.Throws<UnreadableInputException>(run, $"{tiny.Name}, {what}");
                    Assert.AreEqual(7, e.Row, $"{tiny.Name}, {what}");
                    foreach (string part in (string[])["Row 7: ", path, "Leave such rows out", "to Skip"]) StringAssert.Contains(e.Message, part, $"{tiny.Name}, {what}");
                }
            }
            Assert.AreEqual(before, LiveTensors.Count(), tiny.Name);
        }
    }

    [TestMethod]
    public void BadFilesMayBeSkippedAndAreCounted()
    {
        foreach (TinyTask tiny in (TinyTask[])[TinyTask.Image, TinyTask.Audio])
        {
            string[] bad = [.. BadFiles(tiny).Values];
            Review[] good = TinyTexts.Rows(24), rows = [.. good.Take(10), .. bad.Select(path => new Review { Id = -1, Label = "praise", Image = path, Sound = path }), .. good.Skip(10)];
            IDataView data = _ml.Data.LoadFromEnumerable(rows), held = TinyTexts.Keyed(_ml, _ml.Data.LoadFromEnumerable(rows.Skip(12).ToArray()));
            var warnings = new List<string>();
            _ml.Log += (_, e) => { if (e.Kind == Runtime.ChannelMessageKind.Warning) warnings.Add(e.RawMessage); };
            void Skip(ClassificationOptions o)
            {
                if (o is ImageClassificationOptions images) images.OnBadImage = OnBadInput.Skip;
                if (o is AudioClassificationOptions sounds) sounds.OnBadSound = OnBadInput.Skip;
            }

            using ClassificationTransformer model = tiny.Train(_ml, data, o =>
            {
                Skip(o);
                o.ValidationSet = held;
            });
            Assert.AreEqual(bad.Length + (bad.Length - 2), model.Training!.SkippedRows);
            Assert.AreEqual(2 * good.Length, model.Training.Rows);
            Assert.IsTrue(warnings.Any(w => w.StartsWith($"{bad.Length} of {rows.Length} ", StringComparison.Ordinal) && w.Contains("Row 10: ", StringComparison.Ordinal)), string.Join('\n', warnings));

            float[][] scores = TinyTexts.Scores(model, data);
            for (int i = 0; i < rows.Length; i++) Assert.AreEqual(rows[i].Id < 0, scores[i].All(float.IsNaN), $"row {i}");
            uint[] predicted = [.. model.Transform(data).GetColumn<uint>("PredictedLabel")];
            for (int i = 0; i < rows.Length; i++) Assert.AreEqual(rows[i].Id < 0, predicted[i] == 0, $"row {i}");
            long skipped = model is ImageClassificationTransformer image ? image.SkippedImages : ((AudioClassificationTransformer)model).SkippedSounds;
            Assert.AreEqual(2 * bad.Length, skipped);
            IDataView none = _ml.Data.LoadFromEnumerable(bad.Select((path, i) => new Review { Label = i % 2 == 0 ? "a" : "b", Image = path, Sound = path }).ToArray());
            StringAssert.Contains(Assert.Throws<InvalidOperationException>(() => tiny.Train(_ml, none, Skip)).Message, $"None of the {bad.Length} rows can be read");
        }
    }

    [TestMethod]
    public void WhatIsKeptInMemoryChangesNothing()
    {
        IDataView data = TinyTexts.View(_ml);
        foreach (TinyTask tiny in (TinyTask[])[TinyTask.Image, TinyTask.Audio])
        {
            SortedDictionary<string, float[]> Weights(int cache, int prefetch)
            {
                using ClassificationTransformer model = tiny.Train(_ml, data, o => (((MediaClassificationOptions)o).CacheMegabytes, o.Training.Prefetch) = (cache, prefetch));
                return TinyTexts.Parameters(model);
            }

            SortedDictionary<string, float[]> expected = Weights(256, 2);
            Assert.IsTrue(TinyTexts.Same(expected, Weights(0, 2)), tiny.Name);
            Assert.IsTrue(TinyTexts.Same(expected, Weights(256, 0)), tiny.Name);
        }
    }

    private static (ImageRowEncoder Encoder, BackboneConfig Config) Images(ImageAugmentation? augmentation, ImageMixing? mixing)
    {
        using CheckpointFolder folder = CheckpointFolder.Open(TinyTask.Image.Folder);
        using Backbone backbone = BackboneLoader.Load(folder);
        return (new ImageRowEncoder(ImageRowEncoder.Load(folder.Files, backbone.Config, null), backbone.Config, new ImageColumns("Image", null), null, OnBadInput.Throw, augmentation, mixing), backbone.Config);
    }

    private static Example[] Examples(ImageRowEncoder encoder, int count) =>
        [.. TinyTexts.Rows(count).Select(r => encoder.Encode(new MediaRow<PixelImage>(r.Id, r.Image, null, null), r.Id, (int)r.Kind))];

    [TestMethod]
    public void ChangesFollowFromSeedEpochAndRow()
    {
        (ImageRowEncoder encoder, BackboneConfig config) = Images(ImageClassificationOptions.DefaultAugmentation, null);
        Example[] rows = Examples(encoder, 6);
        float[] Of(IReadOnlyList<Example> some, TrainingDraw? draw) => BatchArrays.Of(some, config, 1, draw).Values;
        float[] plain = Of(rows, null), first = Of(rows, new TrainingDraw(1, 0));
        CollectionAssert.AreEqual(plain, Of(rows, null));
        CollectionAssert.AreEqual(first, Of(rows, new TrainingDraw(1, 0)));
        CollectionAssert.AreNotEqual(plain, first);
        CollectionAssert.AreNotEqual(first, Of(rows, new TrainingDraw(1, 1)));
        CollectionAssert.AreNotEqual(first, Of(rows, new TrainingDraw(2, 0)));
        // Whatever shares a row's batch.
        CollectionAssert.AreEqual(first[^(3 * 16 * 16)..], Of([rows[5]], new TrainingDraw(1, 0)));
        CollectionAssert.AreEqual(new long[] { 6, 3, 16, 16 }, BatchArrays.Of(rows, config, 1).Shape);
    }

    [TestMethod]
    public void MixedBatchesHaveMixedTargets()
    {
        foreach (ImageMixing mixing in (ImageMixing[])[new() { MixupAlpha = 0.8 }, new() { CutMixAlpha = 1 }])
        {
            (ImageRowEncoder encoder, BackboneConfig config) = Images(null, mixing);
            Example[] rows = Examples(encoder, 8);
            BatchArrays plain = BatchArrays.Of(rows, config, 1), mixed = BatchArrays.Of(rows, config, 1, new TrainingDraw(5, 2));
            Assert.IsNull(plain.Mixing);
            float[] shares = mixed.Mixing!;
            for (int r = 0; r < 8; r++)
            {
                Assert.AreEqual(1, Enumerable.Range(0, 8).Sum(k => (double)shares[(r * 8) + k]), 1e-6);
                Assert.AreEqual(1, Enumerable.Range(0, 8).Sum(k => (double)shares[(k * 8) + r]), 1e-6);
                if (mixing.MixupAlpha == 0) continue;
                for (int i = 0; i < 768; i += 37)
                    Assert.AreEqual(Enumerable.Range(0, 8).Sum(k => (double)shares[(r * 8) + k] * plain.Values[(k * 768) + i]), mixed.Values[(r * 768) + i], 1e-5);
            }
            using var scope = NewDisposeScope();
            Tensor scores = new Draws(1, "scores").Normal(1, 8, 3);
            var objective = new CrossEntropyObjective(3, 0.1, [1, 2, 0.5f]);
            double expected = 0;
            for (int r = 0; r < 8; r++)
                for (int k = 0; k < 8; k++)
                    expected += shares[(r * 8) + k] * objective.Sum(scores.narrow(0, r, 1), tensor(new long[] { rows[k].Label }, [1])).item<float>();
            Assert.AreEqual(expected, objective.Sum(scores, new MiniBatch(rows, CPU, shares)).item<float>(), 1e-4);
        }
        // A run with both is the same again, and not the one without.
        IDataView data = TinyTexts.View(_ml);
        double[] Losses(ImageMixing? mixing)
        {
            using ClassificationTransformer model = TinyTask.Image.Train(_ml, data, o => ((ImageClassificationOptions)o).Mixing = mixing);
            return [.. model.Training!.Losses];
        }

        var both = new ImageMixing { MixupAlpha = 0.4, CutMixAlpha = 1 };
        CollectionAssert.AreEqual(Losses(both), Losses(both));
        CollectionAssert.AreNotEqual(Losses(null), Losses(both));
    }

    [TestMethod]
    public void AHeadAloneSeesEachImageOnce()
    {
        IDataView data = TinyTexts.View(_ml);
        double[] Losses(bool cache, ImageAugmentation? augmentation)
        {
            using ClassificationTransformer model = TinyTask.Image.Train(_ml, data, o =>
            {
                o.Method = new HeadOnlyOptions();
                (o.Training.CacheFeatures, ((ImageClassificationOptions)o).Augmentation) = (cache, augmentation);
            });
            return [.. model.Training!.Losses];
        }

        double[] without = Losses(false, null);
        AreClose(without, Losses(true, ImageClassificationOptions.DefaultAugmentation));
        AreClose(without, Losses(true, null));
        Assert.IsGreaterThan(1e-4, Losses(true, new ImageAugmentation()).Zip(without, (a, b) => Math.Abs(a - b)).Max());

        static void AreClose(double[] expected, double[] actual) => Assert.IsLessThan(1e-5, expected.Zip(actual, (a, b) => Math.Abs(a - b)).Max());
    }

    [TestMethod]
    public void ColumnsOfTheWrongTypeAreNamed()
    {
        IDataView keyed = TinyTexts.Keyed(_ml, TinyTexts.View(_ml, 12));
        void Refused(TinyTask tiny, Action<ClassificationOptions> change, params string[] parts)
        {
            var e = Assert.Throws<ArgumentException>(() => tiny.Fit(_ml, keyed, change));
            foreach (string part in parts) StringAssert.Contains(e.Message, part);
        }

        Refused(TinyTask.Image, o => ((ImageClassificationOptions)o).ImageColumnName = "Imgae", "The image column 'Imgae' was not found", "'Image'");
        Refused(TinyTask.Image, o => ((ImageClassificationOptions)o).ImageColumnName = "Stars", "image column 'Stars': expected String (a path), Vector<Byte> (the file's bytes) or Image, got Single");
        Refused(TinyTask.Audio, o => ((AudioClassificationOptions)o).AudioColumnName = "Stars", "audio column 'Stars': expected String (a path), Vector<Byte> (the file's bytes) or Vector<Single> (samples), got Single");
        Refused(TinyTask.Audio, o => ((AudioClassificationOptions)o).SampleRateColumnName = "Text", "sample rate column 'Text': expected Int32 or Single, got String");
        IEstimator<ITransformer> pipeline = _ml.Transforms.CopyColumns("Copy", "Id").Append(TinyTask.Image.Trainer(_ml, o => ((ImageClassificationOptions)o).ImageColumnName = "Stars"))
            .Append(_ml.Transforms.CopyColumns("Copy2", "Id"));
        StringAssert.Contains(Assert.Throws<ArgumentOutOfRangeException>(() => pipeline.Fit(keyed)).Message, "image column 'Stars'");
    }

    [TestMethod]
    public void OptionsOutOfRangeAreNamed()
    {
        void Image(Action<ImageClassificationOptions> change, params string[] parts) => Refused(TinyTask.Image, o => change((ImageClassificationOptions)o), parts);
        void Audio(Action<AudioClassificationOptions> change, params string[] parts) => Refused(TinyTask.Audio, o => change((AudioClassificationOptions)o), parts);
        void Refused(TinyTask tiny, Action<ClassificationOptions> change, string[] parts)
        {
            Exception e = Assert.Throws<Exception>(() => tiny.Trainer(_ml, change));
            foreach (string part in parts) StringAssert.Contains(e.Message, part);
        }

        Image(o => o.ImageColumnName = " ", "ImageColumnName is empty");
        Image(o => o.ImageSize = 0, "ImageSize is 0");
        Image(o => o.CacheMegabytes = -1, "CacheMegabytes is -1");
        Image(o => o.OnBadImage = (OnBadInput)5, "OnBadImage is 5", "Throw, Skip");
        Image(o => o.Folder = "/no such folder", "Folder '/no such folder' does not exist");
        Image(o => o.Augmentation = new ImageAugmentation { HorizontalFlip = 2 }, "HorizontalFlip is 2");
        Image(o => o.Mixing = new ImageMixing { MixupAlpha = -1 }, "MixupAlpha is -1");
        Audio(o => o.AudioColumnName = "", "AudioColumnName is empty");
        Audio(o => o.SampleRate = 3, "SampleRate is 3");
        Audio(o => (o.SampleRate, o.SampleRateColumnName) = (16000, "Rate"), "give one of them");
        Audio(o => o.Seconds = -1, "Seconds is -1");
        Audio(o => o.BackboneFolder = null, "no backbone for sounds is embedded");
    }

    [TestMethod]
    public void BackbonesOfAnotherInputAreNamed()
    {
        IDataView keyed = TinyTexts.Keyed(_ml, TinyTexts.View(_ml, 12));
        foreach ((TinyTask tiny, TinyTask other, string part) in ((TinyTask, TinyTask, string)[])
            [(TinyTask.Text, TinyTask.Image, "vit, which reads images; a text classifier needs"), (TinyTask.Image, TinyTask.Text, "bert, which reads texts; a classifier of images needs"),
                (TinyTask.Audio, TinyTask.Image, "vit, which reads images; a classifier of sounds needs"), (TinyTask.Image, TinyTask.Audio, "which reads sounds")])
        {
            long before = LiveTensors.Count();
            StringAssert.Contains(Assert.Throws<ArgumentException>(() => tiny.Fit(_ml, keyed, o => o.BackboneFolder = other.Folder)).Message, part);
            Assert.AreEqual(before, LiveTensors.Count(), "tensors left");
        }
    }

    [TestMethod]
    public void AdaptersAreWrittenForHuggingFace()
    {
        using ClassificationTransformer model = TinyTask.Image.Train(_ml, TinyTexts.View(_ml, 12), o => o.Training.Epochs = 1);
        model.SaveAdapter(_folder);
        AdapterFolder folder = AdapterFolder.Open(_folder);
        Assert.IsNull(folder.TaskType);
        CollectionAssert.AreEqual(new[] { "classifier" }, folder.Config["modules_to_save"]!.AsArray().Select(n => (string)n!).ToArray());
        using SafetensorsFile file = SafetensorsFile.Open(Path.Combine(_folder, "adapter_model.safetensors"));
        CollectionAssert.Contains(file.Names.ToArray(), "base_model.model.vit.layers.0.attention.q_proj.lora_A.weight");
        CollectionAssert.Contains(file.Names.ToArray(), "base_model.model.classifier.weight");
    }
}
