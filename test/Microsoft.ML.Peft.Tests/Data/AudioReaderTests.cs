// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Diagnostics;
using System.Numerics;
using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;

namespace Microsoft.ML.Peft.Tests.Data;

/// <summary>Sounds that are damaged, lie, or are of other kinds: read, or refused in words; and the transform of any length.</summary>
[TestClass]
public class AudioReaderTests
{
    public TestContext TestContext { get; set; } = null!;

    private sealed record Wav(int Tag = 1, int Channels = 1, int Rate = 16_000, int Bits = 16, bool Extensible = false, bool Extra = false, int Frames = 40)
    {
        public byte[] Bytes()
        {
            using var stream = new MemoryStream();
            using var writer = new BinaryWriter(stream);
            int frame = Channels * Bits / 8;
            writer.Write("RIFF"u8);
            writer.Write(0);
            writer.Write("WAVEfmt "u8);
            writer.Write(Extensible ? 40 : 16);
            writer.Write((ushort)(Extensible ? 0xFFFE : Tag));
            writer.Write((ushort)Channels);
            writer.Write(Rate);
            writer.Write(Rate * frame);
            writer.Write((ushort)frame);
            writer.Write((ushort)Bits);
            if (Extensible)
            {
                writer.Write((ushort)22);
                writer.Write((ushort)Bits);
                writer.Write(0);
                writer.Write((ushort)Tag);
                writer.Write(Convert.FromHexString("000000001000800000AA00389B71"));
            }
            if (Extra)
            {
                writer.Write("LIST"u8);
                writer.Write(3);
                writer.Write("abc\0"u8);
            }
            writer.Write("data"u8);
            writer.Write(Frames * frame);
            var random = new Random(Frames + Bits);
            for (int i = 0; i < Frames * Channels; i++)
            {
                double value = random.NextDouble() * 1.8 - 0.9;
                switch (Tag, Bits)
                {
                    case (1, 8): writer.Write((byte)(128 + value * 127)); break;
                    case (1, 16): writer.Write((short)(value * 32767)); break;
                    case (1, 24): writer.Write(BitConverter.GetBytes((int)(value * 8388607)).AsSpan(0, 3)); break;
                    case (1, _): writer.Write((int)(value * int.MaxValue)); break;
                    case (_, 32): writer.Write((float)value); break;
                    default: writer.Write(value); break;
                }
            }
            byte[] bytes = stream.ToArray();
            BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(4), bytes.Length - 8);
            return bytes;
        }
    }

    private static readonly Wav[] _kinds =
    [
        new(Bits: 8), new(), new(Bits: 24, Channels: 2, Extra: true), new(Bits: 32, Extensible: true), new(Tag: 3, Bits: 32, Channels: 3),
        new(Tag: 3, Bits: 64, Extensible: true, Extra: true), new(Bits: 16, Channels: 2, Rate: 44_100),
    ];

    private static string Refused(byte[] bytes, AudioReader? reader = null) =>
        Assert.ThrowsExactly<AudioFormatException>(() => (reader ?? AudioReader.Default).Read(bytes, "row 7")).Message;

    [TestMethod]
    public void MutatedFilesAreReadOrRefusedInWords()
    {
        const int Files = 2000;
        var random = new Random(20);
        int read = 0, refused = 0;
        var clock = Stopwatch.StartNew();
        long before = GC.GetTotalAllocatedBytes();
        for (int i = 0; i < Files; i++)
        {
            byte[] bytes = Mutated(_kinds[i % _kinds.Length].Bytes(), random);
            try
            {
                AudioClip clip = AudioReader.Default.Read(bytes, "row 7");
                Assert.IsTrue(clip.Length > 0 && clip.Channels.All(c => c.Length == clip.Length && c.All(float.IsFinite)));
                read++;
            }
            catch (AudioFormatException e)
            {
                StringAssert.Contains(e.Message, "row 7");
                refused++;
            }
        }
        TestContext.WriteLine($"{read} read, {refused} refused, {clock.ElapsedMilliseconds} ms, {(GC.GetTotalAllocatedBytes() - before) / Files} bytes a file");
        Assert.IsTrue(read > Files / 20 && refused > Files / 20);
        Assert.IsLessThan(100_000L, (GC.GetTotalAllocatedBytes() - before) / Files, "what a header says is allocated");
    }

    private static byte[] Mutated(byte[] bytes, Random random)
    {
        switch (random.Next(5))
        {
            case 0:
                return bytes[..random.Next(bytes.Length)];
            case 1:
                for (int n = random.Next(1, 4); n > 0; n--) bytes[random.Next(Math.Min(bytes.Length, 80))] = (byte)random.Next(256);
                return bytes;
            case 2:
                BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(4 * random.Next(1, 16)), random.Next(3) switch { 0 => uint.MaxValue, 1 => 0, _ => (uint)random.NextInt64(uint.MaxValue) });
                return bytes;
            case 3:
                int at = random.Next(bytes.Length), count = random.Next(Math.Min(12, bytes.Length - at));
                return [.. bytes[..at], .. bytes[(at + count)..]];
            default:
                for (int n = 0; n < bytes.Length / 20; n++) bytes[random.Next(bytes.Length)] ^= (byte)(1 << random.Next(8));
                return bytes;
        }
    }

    [TestMethod]
    public void LyingHeadersAreTold()
    {
        byte[] Set(int at, int value)
        {
            byte[] bytes = new Wav().Bytes();
            BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(at), value);
            return bytes;
        }
        const int Length = 40, Rate = 24, Format = 20, Block = 32;
        StringAssert.Contains(Refused([]), "is empty");
        StringAssert.Contains(Refused(Encoding.ASCII.GetBytes("<!DOCTYPE html>")), "no sound file");
        StringAssert.Contains(Refused(Set(Length, int.MaxValue)), "cut off: its chunk 'data' says 2147483647 bytes, and 80 are there");
        StringAssert.Contains(Refused(Set(Length, 0)), "no samples");
        StringAssert.Contains(Refused(Set(Rate, 0)), "a rate of 0");
        StringAssert.Contains(Refused(Set(Format, 6 | 1 << 16)), "A-law");
        StringAssert.Contains(Refused(Set(Format, 1 | 0 << 16)), "no channels");
        StringAssert.Contains(Refused(Set(Format, 1 | 7 << 16)), "7 channels of 16 bits take 14");
        StringAssert.Contains(Refused(Set(Block, 2 | 12 << 16)), "of 12 bits");
        StringAssert.Contains(Refused(new Wav(Tag: 3, Bits: 32).Bytes() is var nan && Nan(nan) ? nan : nan), "sample 3 of channel 0 is NaN");
        StringAssert.Contains(Refused(new Wav(Frames: 500).Bytes(), new AudioReader { MostSamples = 100 }), "at most 100");
        StringAssert.Contains(Refused(new Wav(Channels: 70).Bytes()), "70 channels");
        // A writer to a pipe leaves the length open.
        Assert.AreEqual(40, AudioReader.Default.Read(Set(Length, -1)).Length);
        StringAssert.Contains(Assert.ThrowsExactly<FileNotFoundException>(() => AudioReader.Default.Read("nowhere.wav")).Message, "nowhere.wav");
    }

    private static bool Nan(byte[] bytes)
    {
        BinaryPrimitives.WriteSingleLittleEndian(bytes.AsSpan(44 + 12), float.NaN);
        return true;
    }

    [TestMethod]
    public void OtherKindsNeedTheLibrary()
    {
        string flac = Refused([.. "fLaC"u8, .. new byte[60]]), ogg = Refused([.. "OggS"u8, .. new byte[60]]);
        foreach ((string words, string kind) in ((string, string)[])[(flac, "FLAC"), (ogg, "Ogg")])
        {
            StringAssert.Contains(words, kind);
            StringAssert.Contains(words, AudioReader.ReadsCompressed ? "does not read it" : "libsndfile1");
        }
        TestContext.WriteLine(flac);
    }

    // 64 samples of two channels at 8 kHz, written by libsndfile.
    private const string Flac =
        "ZkxhQwAAACIQABAAAADbAADbAfQC8AAAAECrQtVrow8CzNgGd9sbkTrthAAAKCAAAAByZWZlcmVuY2UgbGliRkxBQyAxLjQuMiAyMDIyMTAyMgAAAAD/+GQYAD/8EUCy4fRNLA9tj5a9" +
        "LU7ICZTznzomTsfWqNeY+ntyV/RQuI1FSXPn5K2pC4Wu4li9r8IJxbUVkTauMh54mRziLVtd0fj9GV1osu3q8JMPne1ife4NXg3diWeFJw8sCyTalGUQBzHs5F9IjAtidRKRMoNOPyo7" +
        "BpSy50gAc5qWsGSo3kBBmRNUTMTWQE+ZDOhm4NKwMTFE7qaDJyCqMvnKW+ckAJGZSwwbZZTgkGqJjdsryx+T6u2IZHB6r67Uop6k/PI/qil9LOSY8gDRlbUlkmWAV2s=";

    [TestMethod]
    public void FlacIsReadWhereTheLibraryIs()
    {
        byte[] bytes = Convert.FromBase64String(Flac);
        if (!AudioReader.ReadsCompressed)
        {
            StringAssert.Contains(Refused(bytes), "libsndfile1");
            Assert.Inconclusive("libsndfile is not on this machine.");
        }
        AudioClip clip = AudioReader.Default.Read(bytes);
        Assert.AreEqual((64, 8000, 2), (clip.Length, clip.Rate, clip.Channels.Count));
        for (int i = 0; i < 128; i++)
            Assert.AreEqual(((i * 37 % 201) - 100) * (i % 2 == 0 ? 100 : -50) / 32768f, clip.Channels[i % 2][i / 2]);
        StringAssert.Contains(Refused(bytes, new AudioReader { MostSamples = 100 }), "at most 100");
        StringAssert.Contains(Refused(bytes[..200]), "FLAC");
        var random = new Random(5);
        int read = 0;
        for (int i = 0; i < 500; i++)
        {
            try
            {
                read += AudioReader.Default.Read(Mutated([.. bytes], random), "row 7").Length > 0 ? 1 : 0;
            }
            catch (AudioFormatException e)
            {
                StringAssert.Contains(e.Message, "row 7");
            }
        }
        TestContext.WriteLine($"{read} of 500 damaged files read");
    }

    [TestMethod]
    public void ClipsAreChecked()
    {
        foreach (Action bad in (Action[])[() => _ = new AudioClip(Array.Empty<float>(), 16_000), () => _ = new AudioClip([[1, 2], [1]], 16_000), () => _ = new AudioClip(new float[1], 0), () => _ = new AudioClip(new[] { float.PositiveInfinity }, 8000)])
            Assert.ThrowsExactly<AudioFormatException>(bad);
        var clip = new AudioClip([.. Enumerable.Range(0, 1000).Select(i => (float)Math.Sin(i * 0.05))], 8000);
        Assert.AreSame(clip, clip.Resampled(8000));
        AudioClip there = clip.Resampled(48_000).Resampled(8000);
        Assert.AreEqual(1000, there.Length);
        for (int i = 100; i < 900; i++) Assert.AreEqual(clip.Channels[0][i], there.Channels[0][i], 2e-3);
        StringAssert.Contains(Assert.ThrowsExactly<AudioFormatException>(() => new AudioClip(new float[1_000_000], 100).Resampled(768_000)).Message, "more than");
    }

    [TestMethod]
    [DataRow(1)]
    [DataRow(2)]
    [DataRow(60)]
    [DataRow(97)]
    [DataRow(400)]
    [DataRow(512)]
    [DataRow(1001)]
    public void SpectraAreThoseOfTheDefinition(int length)
    {
        var random = new Random(length);
        double[][] frames = [.. Enumerable.Range(0, 2 * Vector<double>.Count + 1).Select(_ => Enumerable.Range(0, length).Select(_ => random.NextDouble() - 0.5).ToArray())];
        var spectra = new PowerSpectra(length);
        int taken = 0;
        spectra.Run(frames.Length, (frame, to) => frames[frame].CopyTo(to), (frame, power) =>
        {
            Assert.AreEqual(length / 2 + 1, power.Length);
            for (int bin = 0; bin < power.Length; bin++)
            {
                Complex sum = 0;
                for (int t = 0; t < length; t++) sum += frames[frame][t] * Complex.FromPolarCoordinates(1, -2 * Math.PI * ((long)bin * t % length) / length);
                Assert.AreEqual(sum.Magnitude * sum.Magnitude, power[bin], 1e-11 * length);
            }
            taken++;
        });
        Assert.AreEqual(frames.Length, taken);
    }

    [TestMethod]
    public void SettingsAreCheckedByName()
    {
        static string Words(string settings, string config = "{}") => Assert.ThrowsExactly<CheckpointFormatException>(() => AudioProcessor.Load(
            new MemoryFileSet("model").Add("preprocessor_config.json", Encoding.UTF8.GetBytes(settings)), JsonNode.Parse(config)!.AsObject())).Message;
        StringAssert.Contains(Words("[1]"), "no JSON object");
        StringAssert.Contains(Words("{"), "not valid JSON");
        StringAssert.Contains(Words("""{"feature_extractor_type": "ViTFeatureExtractor"}"""), "ViTFeatureExtractor");
        StringAssert.Contains(Words("{}", """{"model_type": "bert"}"""), "bert");
        StringAssert.Contains(Words("""{"feature_extractor_type": "ASTFeatureExtractor", "max_length": -3}"""), "preprocessor_config.json: field 'max_length' is -3");
        StringAssert.Contains(Words("""{"feature_extractor_type": "ASTFeatureExtractor", "max_length": 2000000000}"""), "at most");
        StringAssert.Contains(Words("""{"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 2000000000}"""), "at most");
        StringAssert.Contains(Words("""{"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 1}"""), "sampling_rate is 1");
        StringAssert.Contains(Words("""{"feature_extractor_type": "Wav2Vec2FeatureExtractor", "padding_side": "left"}"""), "padding_side");
        // Without a file of its own a family's usual settings hold, with what config.json knows; newer folders have another file.
        var ast = AudioProcessor.Load(new MemoryFileSet("model"), JsonNode.Parse("""{"model_type": "audio-spectrogram-transformer", "max_length": 50, "num_mel_bins": 40}""")!.AsObject());
        CollectionAssert.AreEqual(new[] { 50, 40 }, ast.Process(new AudioClip(new float[16_000], 16_000)).Shape);
        var whisper = AudioProcessor.Load(new MemoryFileSet("model").Add("processor_config.json", """{"feature_extractor": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 20, "chunk_length": 2}}"""u8.ToArray()), []);
        CollectionAssert.AreEqual(new[] { 20, 200 }, whisper.Process(new AudioClip(new float[100], 8000)).Shape);
        StringAssert.Contains(Assert.ThrowsExactly<AudioFormatException>(() => ast.Process(new AudioClip(new float[399], 16_000, "clip 3"))).Message, "clip 3 has 399 samples");
    }

    [TestMethod]
    public void LengthsCanBeGiven()
    {
        static AudioProcessor Of(string type) => AudioProcessor.Load(new MemoryFileSet("model"), JsonNode.Parse($$"""{"model_type": "{{type}}"}""")!.AsObject(), seconds: 0.5);
        var clip = new AudioClip([.. Enumerable.Range(0, 12_000).Select(i => (float)Math.Sin(i * 0.05))], 16_000);
        Assert.AreEqual(1 + (8000 - 400) / 160, Of("audio-spectrogram-transformer").Process(clip).Shape[0]);
        Assert.AreEqual(50, Of("whisper").Process(clip).Shape[1]);
        AudioFeatures samples = Of("wav2vec2").Process(clip);
        Assert.AreEqual((8000, 8000), (samples.Shape[0], samples.Real));
        Assert.AreEqual(0, samples.Values.Average(), 1e-6);
        Assert.AreEqual(1, samples.Values.Average(x => x * x), 1e-3);
        Assert.IsTrue(Of("wav2vec2").RowsStandAlone);
    }

    [TestMethod]
    public void MasksFollowSeedEpochAndRow()
    {
        var features = new AudioFeatures([.. Enumerable.Repeat(1f, 60 * 32)], [60, 32], 45);
        var augment = new SpecAugment { FrequencyLimit = 10, TimeLimit = 200, Masks = 2 };
        float[] first = augment.Apply(features, 0, 5, 1, 9).Values;
        CollectionAssert.AreEqual(first, augment.Apply(features, 0, 5, 1, 9).Values);
        foreach ((long seed, int epoch, long row) in ((long, int, long)[])[(6, 1, 9), (5, 2, 9), (5, 1, 10)])
            CollectionAssert.AreNotEqual(first, augment.Apply(features, 0, seed, epoch, row).Values);
        Assert.IsTrue(features.Values.All(v => v == 1), "the sound itself stays as it is");
        Assert.ThrowsExactly<ArgumentOutOfRangeException>(() => new SpecAugment { TimeLimit = -1 }.Apply(features, 0, 1, 1, 1));
    }
}
