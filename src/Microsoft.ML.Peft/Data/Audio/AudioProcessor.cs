// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Turns sounds into what a network reads, as its <c>preprocessor_config.json</c> says: channels averaged, resampled, then a
/// Kaldi filter bank (AST), Whisper's log-mel spectrogram, normalised samples (wav2vec 2.0), or the cepstrum of a Keyword
/// Transformer. Immutable, safe for several threads.
/// </summary>
public sealed class AudioProcessor
{
    private const string File = ProcessorFiles.Name;

    private readonly AudioFrontEnd _front;

    private AudioProcessor(AudioFrontEnd front) => _front = front;

    internal AudioFrontEnd Front => _front;

    /// <summary>Samples a second that the network wants; clips are resampled to it.</summary>
    public int Rate => _front.Rate;

    /// <summary>Which axis of <see cref="AudioFeatures.Shape"/> is time.</summary>
    public int TimeAxis => _front.TimeAxis;

    /// <summary>Samples or frames of every row; null where a row is as long as its sound.</summary>
    public int? Length => _front.Length;

    /// <summary>True where the network is told what is padding.</summary>
    public bool Masked => _front.Masked;

    /// <summary>What rows are padded with.</summary>
    public float Padding => _front.Padding;

    /// <summary>
    /// True where what the network makes of a sound does not depend on the other sounds of its batch. Where it is false (wav2vec
    /// 2.0 without attention mask), batches should hold sounds of one length, or a length should be given.
    /// </summary>
    public bool RowsStandAlone => Length is not null || _front.Masked;

    /// <summary>Loads the settings that lie beside a backbone.</summary>
    /// <param name="files">Files of the checkpoint; without preprocessor_config.json the family's usual settings hold.</param>
    /// <param name="config">Fields of the backbone's config.json.</param>
    /// <param name="seconds">
    /// Length that every sound is cut or padded to; null for the checkpoint's own. Networks with a table of positions must be told
    /// to fit it to another length (<see cref="TokenBatch.InterpolatePositions"/>, <see cref="TokenBatch.CutPositions"/>).
    /// </param>
    /// <exception cref="CheckpointFormatException">The settings are not understood, or of no network that hears.</exception>
    public static AudioProcessor Load(IFileSet files, JsonObject config, double? seconds = null)
    {
        ArgumentNullException.ThrowIfNull(files);
        ArgumentNullException.ThrowIfNull(config);
        if (seconds is { } length && !(length > 0 && length <= 3600))
            throw new ArgumentOutOfRangeException(nameof(seconds), seconds, "A sound's length is more than 0 and at most 3600 seconds.");
        JsonObject raw = Settings(files);
        string family = (raw["feature_extractor_type"] ?? raw["processor_class"])?.ToString() is { } type && Families(type) is { } named
            ? named
            : BackboneLoader.ModelType(config) ?? "";
        var read = new ConfigReader(raw, file: File);
        if (read.Text("padding_side", "right") != "right")
            throw new CheckpointFormatException($"{files.Description}: {File} has padding_side '{read.Text("padding_side", "right")}'; expected right.");
        if (read.Number("dither", 0) != 0)
            throw new CheckpointFormatException($"{files.Description}: {File} has dither {read.Number("dither", 0)}; noise is not added here, set it to 0.");
        var model = new ConfigReader(config);
        return new AudioProcessor(family switch
        {
            "audio-spectrogram-transformer" => new KaldiFrontEnd(read, model, seconds),
            "whisper" => new WhisperFrontEnd(read, model, seconds),
            "wav2vec2" => new WaveformFrontEnd(read, model, seconds),
            "kwt" when seconds is null => new CepstrumFrontEnd(files, model),
            "kwt" => throw new ArgumentException("A Keyword Transformer hears sounds of one length alone; leave out the seconds.", nameof(seconds)),
            _ => throw new CheckpointFormatException(
                $"{files.Description}: {(raw.Count == 0 ? "there is no " + File + " for sounds, and config.json" : File)} is of {(family.Length == 0 ? raw["feature_extractor_type"]?.ToString() ?? "no known family" : family)}; sounds are read by "
                + "audio-spectrogram-transformer, whisper, wav2vec2 and kwt."),
        });
    }

    private static string? Families(string type) => type switch
    {
        "ASTFeatureExtractor" => "audio-spectrogram-transformer",
        "WhisperFeatureExtractor" or "WhisperProcessor" => "whisper",
        "Wav2Vec2FeatureExtractor" or "Wav2Vec2Processor" => "wav2vec2",
        _ => type.EndsWith("FeatureExtractor", StringComparison.Ordinal) || type.EndsWith("ImageProcessor", StringComparison.Ordinal) ? "" : null,
    };

    private static JsonObject Settings(IFileSet files)
    {
        string? name = ProcessorFiles.In(files).FirstOrDefault();
        if (name is null) return [];
        try
        {
            var whole = JsonNode.Parse(SmallFile.WithoutMark(SmallFile.Read(files, name, 1 << 24)).Span) as JsonObject
                ?? throw new CheckpointFormatException($"{files.Description}: {name} holds no JSON object.");
            return name == File ? whole : whole["feature_extractor"] as JsonObject ?? [];
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or ArgumentException)
        {
            throw new CheckpointFormatException($"{files.Description}: {name} is not valid JSON: {e.Message}", e);
        }
    }

    /// <summary>Makes what the network reads of one sound.</summary>
    /// <param name="clip">The sound, of any rate and number of channels.</param>
    /// <exception cref="AudioFormatException">It is too short to make anything of.</exception>
    public AudioFeatures Process(AudioClip clip)
    {
        ArgumentNullException.ThrowIfNull(clip);
        AudioClip heard = clip.ToMono().Resampled(Rate);
        return _front.Make(heard.Channels[0], clip.Source, Length);
    }

    /// <summary>
    /// Makes a batch of several sounds, as Hugging Face's extractors do: without attention mask wav2vec 2.0 normalises each row with
    /// its padding, so that a row depends on the longest of its batch.
    /// </summary>
    /// <param name="clips">The sounds.</param>
    /// <param name="multiple">The common length is a multiple of this.</param>
    /// <exception cref="AudioFormatException">One is too short to make anything of.</exception>
    public AudioBatch Process(IReadOnlyList<AudioClip> clips, int multiple = 1)
    {
        ArgumentNullException.ThrowIfNull(clips);
        ArgumentOutOfRangeException.ThrowIfLessThan(multiple, 1);
        float[][] heard = [.. clips.Select(clip => clip.ToMono().Resampled(Rate).Channels[0])];
        int? length = Length;
        if (length is null && !_front.Masked) length = (heard.Max(samples => samples.Length) + multiple - 1) / multiple * multiple;
        return Pad([.. heard.Select((samples, i) => _front.Make(samples, clips[i].Source, length))], multiple);
    }

    /// <summary>Pads rows that were made one by one to the longest of them.</summary>
    /// <param name="rows">What <see cref="Process(AudioClip)"/> gave.</param>
    /// <param name="multiple">The common length is a multiple of this.</param>
    public AudioBatch Pad(IReadOnlyList<AudioFeatures> rows, int multiple = 1)
    {
        ArgumentNullException.ThrowIfNull(rows);
        ArgumentOutOfRangeException.ThrowIfLessThan(multiple, 1);
        return AudioBatch.Of(rows, TimeAxis, _front.Masked, _front.Padding, Length is null ? multiple : 1);
    }
}

/// <summary>How a family makes its input of samples of one channel at its rate.</summary>
internal abstract class AudioFrontEnd
{
    private const long MostNumbers = 1 << 28;

    /// <summary>Samples a second.</summary>
    public int Rate { get; protected init; } = 16_000;

    /// <summary>Which axis of a row is time.</summary>
    public virtual int TimeAxis => 0;

    /// <summary>Samples or frames of every row; null for as many as there are.</summary>
    public int? Length { get; protected init; }

    /// <summary>True where the network is told what is padding.</summary>
    public virtual bool Masked => false;

    /// <summary>What rows are padded with.</summary>
    public virtual float Padding => 0;

    /// <summary>Makes one row.</summary>
    /// <param name="samples">Samples of one channel at <see cref="Rate"/>.</param>
    /// <param name="source">Where they come from, for messages.</param>
    /// <param name="length">Samples or frames of the row; null for as many as there are.</param>
    public abstract AudioFeatures Make(float[] samples, string source, int? length);

    protected static int Rated(ConfigReader read, int missing = 16_000)
    {
        int rate = read.Int("sampling_rate", missing);
        return rate is >= AudioClip.LowestRate and <= AudioClip.HighestRate
            ? rate
            : throw new CheckpointFormatException($"{ProcessorFiles.Name}: sampling_rate is {rate}; expected {AudioClip.LowestRate} to {AudioClip.HighestRate}.");
    }

    protected static void CheckSize(string what, params ReadOnlySpan<long> numbers)
    {
        double size = 1;
        foreach (long number in numbers) size *= number;
        if (size > MostNumbers) throw new CheckpointFormatException($"{ProcessorFiles.Name}: {what} makes rows of {size:N0} numbers; at most {MostNumbers:N0} are made.");
    }
}
