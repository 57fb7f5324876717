// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Cli;

/// <summary>A sheet of samples as the network sees them, each with its label and what the model takes it for: a wrong processor is seen at once.</summary>
internal static class SampleSheet
{
    private const int Cell = 112, Caption = 30, Gap = 8;
    private static readonly Colour _paper = new(255, 255, 255), _ink = new(40, 40, 40), _right = new(20, 120, 40), _wrong = new(190, 30, 30);

    /// <summary>Draws a sheet.</summary>
    /// <param name="context">The context.</param>
    /// <param name="loaded">The model.</param>
    /// <param name="files">The samples.</param>
    public static Canvas Draw(MLContext context, LoadedModel loaded, MediaFile[] files)
    {
        Prediction[] predictions = [.. Predictions.Of(loaded.Classifier, MediaFiles.View(context, files, loaded.Classifier.InputColumns[0], null))];
        Func<MediaFile, Canvas> see = loaded.Classifier switch
        {
            ImageClassificationTransformer images => file => Image(images, file),
            AudioClassificationTransformer sounds => file => Sound(sounds, file),
            _ => throw new UsageException("--picture shows images and sounds; this model reads texts."),
        };
        int columns = (int)Math.Ceiling(Math.Sqrt(files.Length)), rows = (files.Length + columns - 1) / columns;
        var sheet = new Canvas(Gap + columns * (Cell + Gap), Gap + rows * (Cell + Caption + Gap), _paper);
        for (int i = 0; i < files.Length; i++)
        {
            int left = Gap + i % columns * (Cell + Gap), top = Gap + i / columns * (Cell + Caption + Gap);
            Prediction made = predictions[i];
            string label = files[i].Label, guess = made.Best < 0 ? "UNREADABLE" : loaded.Classifier.Labels[made.Best];
            if (made.Best >= 0) Fit(sheet, see(files[i]), left, top);
            sheet.Text(left, top + Cell + 4, label.Length > 0 ? label : Path.GetFileName(files[i].Path), _ink, Cell);
            string share = made.Best < 0 ? "" : FormattableString.Invariant($" {100 * made.Probabilities[made.Best]:0}%");
            int room = Cell / 8 - share.Length;
            sheet.Text(left, top + Cell + 17, (guess.Length > room ? guess[..room] : guess) + share, label.Length == 0 ? _ink : guess == label ? _right : _wrong, Cell);
        }
        return sheet;
    }

    // Each dot of the network's own picture becomes a block, so that what is blurred there is blurred here.
    private static void Fit(Canvas sheet, Canvas seen, int left, int top)
    {
        double scale = Math.Min((double)Cell / seen.Width, (double)Cell / seen.Height);
        int width = Math.Max(1, (int)(seen.Width * scale)), height = Math.Max(1, (int)(seen.Height * scale));
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++)
                sheet.Set(left + x, top + y, seen.At(Math.Min(seen.Width - 1, (int)(x / scale)), Math.Min(seen.Height - 1, (int)(y / scale))));
    }

    private static (float[] Values, int[] Shape) Read<T>(MediaEncoder<T> encoder, BackboneConfig config, MediaFile file) where T : class
    {
        BatchArrays arrays = BatchArrays.Of([encoder.Encode(new MediaRow<T>(-1, file.Path, null, null))], config, 1);
        return (arrays.Values, [.. arrays.Shape.Skip(1).Select(n => (int)n)]);
    }

    private static Canvas Image(ImageClassificationTransformer model, MediaFile file)
    {
        var encoder = (ImageRowEncoder)model.Inner.Encoder;
        (float[] values, int[] shape) = Read(encoder, model.Model.Backbone.Config, file);
        ImageProcessorSettings settings = model.Processor.Settings;
        var seen = new Canvas(shape[2], shape[1], _paper);
        int plane = shape[1] * shape[2];
        byte Denormalised(int channel, int at)
        {
            double value = values[channel * plane + at];
            if (settings.Normalize) value = value * settings.Std[channel] + settings.Mean[channel];
            return (byte)Math.Clamp(Math.Round(settings.Rescale ? value / settings.RescaleFactor : value), 0, 255);
        }

        for (int at = 0; at < plane; at++) seen.Set(at % shape[2], at / shape[2], new Colour(Denormalised(0, at), Denormalised(1, at), Denormalised(2, at)));
        return seen;
    }

    private static Canvas Sound(AudioClassificationTransformer model, MediaFile file)
    {
        var encoder = (AudioEncoder)model.Inner.Encoder;
        (float[] values, int[] shape) = Read(encoder, model.Model.Backbone.Config, file);
        return shape.Length == 1 ? Wave(values) : Spectrogram(values, shape, encoder.Processor.TimeAxis);
    }

    // Time to the right, frequency upwards, dark is loud.
    private static Canvas Spectrogram(float[] values, int[] shape, int timeAxis)
    {
        int frames = shape[timeAxis], bins = shape[1 - timeAxis];
        // The few loudest and quietest places would leave one grey for all others.
        float[] sorted = [.. values.Order()];
        float low = sorted[(int)(0.03 * sorted.Length)], range = Math.Max(1e-6f, sorted[(int)(0.97 * sorted.Length)] - low);
        var seen = new Canvas(frames, bins, _paper);
        for (int frame = 0; frame < frames; frame++)
        {
            for (int bin = 0; bin < bins; bin++)
            {
                float value = values[timeAxis == 0 ? frame * bins + bin : bin * frames + frame];
                byte grey = (byte)(255 - 255 * Math.Clamp((value - low) / range, 0, 1));
                seen.Set(frame, bins - 1 - bin, new Colour(grey, grey, grey));
            }
        }
        return seen;
    }

    private static Canvas Wave(float[] samples)
    {
        var seen = new Canvas(Cell, Cell, _paper);
        float loudest = Math.Max(1e-6f, samples.Max(Math.Abs));
        int Row(float sample) => (int)((1 - sample / loudest) / 2 * (Cell - 1));
        for (int x = 0; x < Cell; x++)
        {
            int from = (int)((long)x * samples.Length / Cell), to = Math.Max(from + 1, (int)((long)(x + 1) * samples.Length / Cell));
            ReadOnlySpan<float> part = samples.AsSpan(Math.Min(from, samples.Length - 1), Math.Min(to, samples.Length) - Math.Min(from, samples.Length - 1));
            float low = 0, high = 0;
            foreach (float sample in part) (low, high) = (Math.Min(low, sample), Math.Max(high, sample));
            for (int y = Row(high); y <= Row(low); y++) seen.Set(x, y, _ink);
        }
        return seen;
    }
}
