// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>Every case of fixtures/vision-audio about sounds that runs no network: reading, resampling, features, masks.</summary>
[TestClass]
[TestCategory("Fixtures")]
public sealed class AudioFixtureTests
{
    public TestContext TestContext { get; set; } = null!;

    public static IEnumerable<object[]> Cases
    {
        get
        {
            if (!Shared.Exists) yield break;
            foreach (string folder in Shared.Cases("vision-audio"))
            {
                using var c = new FixtureCase(folder);
                if (Kind(c) is not null) yield return [c.Name];
            }
        }
    }

    // What is called tells what to do, whatever the case's name.
    private static string? Kind(FixtureCase c)
    {
        string api = c.Text("api") ?? "";
        return ((string[])["wavfile.read", "resample_poly", "ASTFeatureExtractor", "WhisperFeatureExtractor", "Wav2Vec2FeatureExtractor", "mask_along_axis"])
            .FirstOrDefault(name => api.Contains(name, StringComparison.Ordinal));
    }

    [TestMethod]
    [DynamicData(nameof(Cases))]
    public void SoundEqualsReference(string name)
    {
        using var scope = NewDisposeScope();
        using var c = new FixtureCase(Path.Combine(Shared.Fixtures, "vision-audio", name));
        var run = new AudioRun(c);
        switch (Kind(c))
        {
            case "wavfile.read": run.Reading(); break;
            case "resample_poly": run.Resampling(); break;
            case "ASTFeatureExtractor": run.FilterBank(); break;
            case "WhisperFeatureExtractor": run.LogMel(); break;
            case "Wav2Vec2FeatureExtractor": run.Waveforms(); break;
            case "mask_along_axis": run.Masks(); break;
            default: Assert.Fail($"{name}: no test knows what to do."); break;
        }
        run.Worst.Done(TestContext);
    }
}

/// <summary>One case about sounds.</summary>
internal sealed class AudioRun(FixtureCase c)
{
    private readonly double _tolerance = c.Json.GetProperty("tolerance").GetDouble();
    private readonly JsonElement _config = c.Json.TryGetProperty("config", out JsonElement config) ? config : default;

    public Worst Worst { get; } = new();

    private void Compare(string name, float[] found, params long[] shape) => Compare(name, tensor(found, shape.Length == 0 ? [found.Length] : shape));

    private void Compare(string name, Tensor found)
    {
        // Where nothing may differ, nothing does: half of the smallest number would be seen.
        if (!c.Has(name)) Worst.Fail($"{c.Name}: there is no tensor '{name}' to compare with");
        else Worst.Compare($"{c.Name} {name}", found, c[name], _tolerance == 0 ? 1e-45 : _tolerance);
    }

    private AudioClip Clip(string name) => AudioReader.Default.Read(Path.Combine(Path.GetDirectoryName(c.Folder)!, c.Text("sounds")!, name + ".wav"));

    private AudioProcessor Processor(string? settings = null) => settings is null
        ? AudioProcessor.Load(new FolderFileSet(Path.Combine(c.Folder, "model")), [])
        : AudioProcessor.Load(new MemoryFileSet("settings").Add("preprocessor_config.json", System.Text.Encoding.UTF8.GetBytes(settings)), []);

    public void Reading()
    {
        foreach (JsonProperty file in _config.GetProperty("files").EnumerateObject())
        {
            string relative = file.Value.GetProperty("file").GetString()!;
            string path = Path.Combine(relative.Contains('/') ? Path.GetDirectoryName(c.Folder)! : c.Folder, relative);
            AudioClip clip = AudioReader.Default.Read(path);
            Assert.AreEqual(file.Value.GetProperty("sample_rate").GetInt32(), clip.Rate, file.Name);
            Assert.HasCount(file.Value.GetProperty("channels").GetInt32(), clip.Channels, file.Name);
            if (file.Value.TryGetProperty("samples", out JsonElement samples)) Assert.AreEqual(samples.GetInt32(), clip.Length, file.Name);
            Tensor planar = stack([.. clip.Channels.Select(channel => tensor(channel))], 1);
            Compare($"{file.Name}.samples", clip.Channels.Count == 1 ? planar.squeeze(1) : planar);
            if (c.Has($"{file.Name}.mono")) Compare($"{file.Name}.mono", clip.ToMono().Channels[0]);
            AudioClip again = AudioReader.Default.Read(File.ReadAllBytes(path));
            CollectionAssert.AreEqual(clip.Channels[^1], again.Channels[^1]);
        }
    }

    public void Resampling()
    {
        float[] samples = [.. c["samples"].data<float>()];
        foreach (JsonElement pair in _config.GetProperty("pairs").EnumerateArray())
        {
            int from = pair[0].GetInt32(), to = pair[1].GetInt32();
            Compare($"{from}_to_{to}", new AudioClip(samples, from).Resampled(to).Channels[0]);
        }
    }

    private void Filters(MelFilters filters)
    {
        Compare("mel.count", tensor(filters.Weights.Select(w => w.Length).ToArray()));
        Compare("mel.first_bin", tensor(filters.First.ToArray()));
        Compare("mel.weights", [.. filters.Weights.SelectMany(w => w).Select(w => (float)w)]);
    }

    public void FilterBank()
    {
        AudioProcessor processor = Processor();
        Filters(((KaldiFrontEnd)processor.Front).Filters);
        foreach (string name in c.Names.Where(n => n.StartsWith("input_values.", StringComparison.Ordinal)))
        {
            string sound = name["input_values.".Length..];
            AudioClip clip = c.Has("waveform." + sound) ? new AudioClip([.. c["waveform." + sound].data<float>()], processor.Rate, sound) : Clip(sound);
            AudioFeatures features = processor.Process(clip);
            Assert.AreEqual(Math.Min(1 + (clip.Length - 400) / 160, features.Shape[0]), features.Real, name);
            Assert.AreEqual(processor.Length, features.Shape[0], name);
            Compare(name, features.Values, [.. features.Shape.Select(n => (long)n)]);
        }
        if (c.Has("window")) Steps((KaldiFrontEnd)processor.Front);
        foreach (JsonElement empty in _config.GetProperty("empty_filters").EnumerateArray())
            Assert.IsEmpty(((KaldiFrontEnd)processor.Front).Filters.Weights[empty.GetInt32()]);
    }

    // The steps of one frame, of its samples on.
    private void Steps(KaldiFrontEnd front)
    {
        Compare("window", [.. front.Window.Select(w => (float)w)]);
        string frame = c.Names.First(n => n.EndsWith(".0.samples", StringComparison.Ordinal))[..^".0.samples".Length];
        float[] samples = [.. c[frame + ".0.samples"].data<float>()];
        static float[] Singles(ReadOnlySpan<double> numbers) => Array.ConvertAll(numbers.ToArray(), x => (float)x);
        front.Spectra.Run(1, (_, to) =>
        {
            front.Windowed(samples, to);
            Compare(frame + ".3.windowed", Singles(to[..samples.Length]));
        }, (_, power) =>
        {
            double[] spectrum = power.ToArray(), mel = [.. Enumerable.Range(0, front.Filters.Count).Select(b => front.Filters.Apply(b, spectrum))];
            Compare(frame + ".4.power", Singles(power));
            Compare(frame + ".5.mel", Singles(mel));
            Compare(frame + ".6.log", Singles([.. mel.Select(m => Math.Log(Math.Max(m, 1.1920928955078125e-07)))]));
        });
    }

    public void LogMel()
    {
        AudioProcessor processor = Processor();
        Filters(((WhisperFrontEnd)processor.Front).Filters);
        foreach (JsonProperty clip in _config.GetProperty("clips").EnumerateObject())
        {
            float[] samples = Clip(clip.Name).ToMono().Channels[0];
            if (clip.Value.ValueKind == JsonValueKind.Number) samples = samples[..clip.Value.GetInt32()];
            AudioFeatures features = processor.Process(new AudioClip(samples, processor.Rate, clip.Name));
            Compare("input_features." + clip.Name, features.Values, [.. features.Shape.Select(n => (long)n)]);
            Compare("attention_mask." + clip.Name, tensor(Enumerable.Range(0, features.Shape[1]).Select(frame => frame < features.Real ? 1 : 0).ToArray()));
        }
    }

    public void Waveforms()
    {
        AudioClip[] clips = [.. _config.GetProperty("clips").EnumerateArray().Select(clip =>
        {
            AudioClip whole = Clip(clip.GetProperty("sound").GetString()!).ToMono();
            return new AudioClip(whole.Channels[0][clip.GetProperty("from").GetInt32()..clip.GetProperty("to").GetInt32()], whole.Rate);
        })];
        static string Settings(bool normalise, bool mask) => new JsonObject
        {
            ["feature_extractor_type"] = "Wav2Vec2FeatureExtractor",
            ["do_normalize"] = normalise,
            ["return_attention_mask"] = mask,
        }.ToJsonString();
        AudioProcessor plain = Processor(Settings(true, false)), masked = Processor(Settings(true, true)), raw = Processor(Settings(false, true));
        for (int i = 0; i < clips.Length; i++) Compare($"alone.{i}", plain.Process(clips[i]).Values);
        AudioBatch together = plain.Process(clips), told = masked.Process(clips);
        Assert.IsNull(together.Mask);
        Compare("padded.no_mask", together.Values, together.Shape);
        Compare("padded.mask", told.Values, told.Shape);
        Compare("attention_mask", tensor(told.Mask!, told.Shape));
        foreach (string name in c.Names.Where(n => n.StartsWith("raw.multiple_of_", StringComparison.Ordinal)))
        {
            AudioBatch batch = raw.Process(clips, int.Parse(name["raw.multiple_of_".Length..]));
            Compare(name, batch.Values, batch.Shape);
        }
        // Rows that were made one by one are the same where the network is told what is padding.
        AudioBatch joined = masked.Pad([.. clips.Select(masked.Process)]);
        CollectionAssert.AreEqual(told.Values, joined.Values);
        Assert.IsTrue(masked.RowsStandAlone && !plain.RowsStandAlone);
    }

    public void Masks()
    {
        Tensor spectrogram = c["spectrogram"];
        int bins = (int)spectrogram.shape[0], frames = (int)spectrogram.shape[1];
        var features = new AudioFeatures([.. spectrogram.data<float>()], [bins, frames], frames);
        var turned = new AudioFeatures([.. spectrogram.t().contiguous().data<float>()], [frames, bins], frames);
        var augment = new SpecAugment { FrequencyLimit = _config.GetProperty("frequency_limit").GetInt32(), TimeLimit = _config.GetProperty("time_limit").GetInt32() };
        int number = 0;
        foreach (JsonElement mask in _config.GetProperty("masks").EnumerateArray())
        {
            double[] uniform = [.. mask.GetProperty("uniform").EnumerateArray().Select(n => n.GetDouble())];
            Compare($"masked.{number}", augment.Apply(features, 1, uniform).Values, bins, frames);
            Compare($"masked.{number++}", tensor(augment.Apply(turned, 0, uniform).Values, [frames, bins]).t());
            foreach ((string axis, int at, int size, int limit) in new[] { ("frequency", 0, bins, augment.FrequencyLimit), ("time", 2, frames, augment.TimeLimit) })
            {
                (int start, int end) = SpecAugment.Range(uniform[at], uniform[at + 1], size, limit);
                Assert.AreEqual(mask.GetProperty(axis).GetProperty("start").GetInt32(), start);
                Assert.AreEqual(mask.GetProperty(axis).GetProperty("end").GetInt32(), end);
            }
        }
        Assert.IsGreaterThan(0, number);
    }
}
