// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.IO.Compression;
using Microsoft.ML;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

// Teaches a network that knows a few spoken words ("yes", "stop", ...) the digits: a linear head on the frozen network against LoRA.
// Then saves the model and asks it in another context.
if (args.Length < 2 || !Directory.Exists(args[0]) || !Directory.Exists(args[1]))
{
    Console.Error.WriteLine("""
        usage: SpokenDigits BACKBONE RECORDINGS [--rows N] [--epochs N]
          BACKBONE    Hugging Face folder of a network that hears: a Keyword Transformer, wav2vec2, audio-spectrogram-transformer or whisper
          RECORDINGS  folder with the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0):
                      files DIGIT_SPEAKER_TAKE.wav at any depth, or zips of them
        """);
    return 2;
}
string? Option(string name) => args.SkipWhile(a => a != name).Skip(1).FirstOrDefault();
int rows = int.Parse(Option("--rows") ?? "900"), epochs = int.Parse(Option("--epochs") ?? "10");

// Takes 0 to 4 of each speaker are for testing, as the data set says. In the order of takes, the first N are of all digits and speakers.
string folder = args[1];
string[] zips = Directory.GetFiles(folder, "*.zip");
foreach (string zip in zips) ZipFile.ExtractToDirectory(zip, folder = "recordings", overwriteFiles: true);
(string File, int Take)[] files = [.. Directory.GetFiles(folder, "*_*_*.wav", SearchOption.AllDirectories)
    .Select(file => (file, int.Parse(Path.GetFileNameWithoutExtension(file).Split('_')[2])))
    .OrderBy(f => f.Item2).ThenBy(f => f.file, StringComparer.Ordinal)];
Recording[] train = [.. files.Where(f => f.Take > 4).Take(rows).Select(f => new Recording(f.File))];
Recording[] test = [.. files.Where(f => f.Take <= 4).Take(rows).Select(f => new Recording(f.File))];

var ml = new MLContext(seed: 1);
IDataView trainSet = ml.Data.LoadFromEnumerable(train), testSet = ml.Data.LoadFromEnumerable(test);
Console.WriteLine($"{train.Length} recordings to learn from, {test.Length} to ask about");
Train("frozen backbone, linear head", new HeadOnlyOptions(), 3 * epochs);
ITransformer model = Train("LoRA, rank 8", new LoraOptions { Rank = 8, Alpha = 16 }, epochs);
ml.Model.Save(model, trainSet.Schema, "digits.zip");   // backbone, adapter, head and labels

var elsewhere = new MLContext();
ITransformer loaded = elsewhere.Model.Load("digits.zip", out _);
using var engine = elsewhere.Model.CreatePredictionEngine<Recording, Answer>(loaded);
foreach (Recording recording in test.GroupBy(r => r.Label).Select(g => g.First()))
{
    Answer answer = engine.Predict(recording);
    Console.WriteLine(FormattableString.Invariant($"{Path.GetFileName(recording.Audio)}: {answer.PredictedLabel} ({answer.Score.Max():0.00})"));
}
return 0;

ITransformer Train(string name, PeftMethod method, int passes)
{
    var clock = Stopwatch.StartNew();
    ITransformer trained = ml.Transforms.Conversion.MapValueToKey("Label")
        .Append(ml.Peft().AudioClassification(args[0], method, maxEpochs: passes))
        .Append(ml.Transforms.Conversion.MapKeyToValue("PredictedLabel"))
        .Fit(trainSet);
    double seconds = clock.Elapsed.TotalSeconds;
    double accuracy = ml.MulticlassClassification.Evaluate(trained.Transform(testSet)).MicroAccuracy;
    Console.WriteLine(FormattableString.Invariant($"{name,-30}{accuracy,8:0.000}   {seconds:0} s"));
    return trained;
}

/// <summary>A file and the digit that is spoken in it.</summary>
internal sealed class Recording
{
    public Recording()
    {
    }

    public Recording(string file) => (Audio, Label) = (file, Path.GetFileName(file)[..1]);

    public string Audio { get; set; } = "";

    public string Label { get; set; } = "";
}

/// <summary>What the model answers.</summary>
internal sealed class Answer
{
    public string PredictedLabel { get; set; } = "";

    public float[] Score { get; set; } = [];   // a probability for each class
}
