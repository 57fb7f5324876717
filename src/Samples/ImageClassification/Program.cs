// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using Microsoft.ML;
using Microsoft.ML.Peft.Methods;
using Samples.ImageClassification;

// Teaches the embedded ViT, which has seen generated patterns alone, to tell cloth patterns apart: what guessing, a linear head on the
// frozen network and LoRA make of them. Then saves the model and asks it in another context.
//   ImageClassification [--rows N] [--epochs N] [--data FOLDER] [--backbone FOLDER]
// FOLDER of --data has train/CLASS/ and test/CLASS/ with pictures; without it N patterns are drawn. --backbone is a Hugging Face folder.
string? Option(string name) => args.SkipWhile(a => a != name).Skip(1).FirstOrDefault();
int rows = int.Parse(Option("--rows") ?? "1600"), epochs = int.Parse(Option("--epochs") ?? "6");
string? backbone = Option("--backbone");
string data = Option("--data") ?? Cloth.Draw($"cloth-{rows}", train: rows, test: 400);

var ml = new MLContext(seed: 1);
Picture[] train = Read("train"), test = Read("test");
IDataView trainSet = ml.Data.LoadFromEnumerable(train), testSet = ml.Data.LoadFromEnumerable(test);
double guess = test.GroupBy(p => p.Label).Max(g => g.Count()) / (double)test.Length;   // always the commonest class
Console.WriteLine($"{train.Length} pictures to learn from, {test.Length} to ask about");
Console.WriteLine(FormattableString.Invariant($"{"guessing",-30}{guess,8:0.000}"));

Train("frozen backbone, linear head", ml.Peft().ImageClassification(new HeadOnlyOptions(), maxEpochs: 30, backboneFolder: backbone));
ITransformer model = Train("LoRA, rank 16", ml.Peft().LoraImageClassification(
    rank: 16, alpha: 32, batchSize: 8, maxEpochs: epochs, learningRate: 4e-3, backboneFolder: backbone));   // small networks bear high rates
ml.Model.Save(model, trainSet.Schema, "cloth.zip");   // backbone, adapter, head and labels

var elsewhere = new MLContext();
ITransformer loaded = elsewhere.Model.Load("cloth.zip", out _);
using var engine = elsewhere.Model.CreatePredictionEngine<Picture, Answer>(loaded);
foreach (Picture picture in test.GroupBy(p => p.Label).Select(g => g.First()))
{
    Answer answer = engine.Predict(picture);
    Console.WriteLine(FormattableString.Invariant($"{picture.Image}: {answer.PredictedLabel} ({answer.Score.Max():0.00})"));
}

// A folder a class: the path is the input, the folder's name the label.
Picture[] Read(string part) =>
    [.. Directory.GetFiles(Path.Combine(data, part), "*.*", SearchOption.AllDirectories).Order(StringComparer.Ordinal)
        .Select(file => new Picture { Image = file, Label = Path.GetFileName(Path.GetDirectoryName(file)!) })];

ITransformer Train(string name, IEstimator<ITransformer> trainer)
{
    var clock = Stopwatch.StartNew();
    ITransformer trained = ml.Transforms.Conversion.MapValueToKey("Label")
        .Append(trainer)
        .Append(ml.Transforms.Conversion.MapKeyToValue("PredictedLabel"))
        .Fit(trainSet);
    double seconds = clock.Elapsed.TotalSeconds;
    double accuracy = ml.MulticlassClassification.Evaluate(trained.Transform(testSet)).MicroAccuracy;
    Console.WriteLine(FormattableString.Invariant($"{name,-30}{accuracy,8:0.000}   {seconds:0} s"));
    return trained;
}

/// <summary>A picture and what it shows.</summary>
internal sealed class Picture
{
    public string Image { get; set; } = "";

    public string Label { get; set; } = "";
}

/// <summary>What the model answers.</summary>
internal sealed class Answer
{
    public string PredictedLabel { get; set; } = "";

    public float[] Score { get; set; } = [];   // a probability for each class
}
