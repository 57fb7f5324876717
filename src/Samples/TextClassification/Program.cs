// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;

// Fine-tunes the embedded backbone by LoRA on a handful of reviews, saves a model zip, loads it and asks it something new.
string data = args.Length > 0 ? args[0] : Path.Combine(AppContext.BaseDirectory, "reviews.tsv");
string zip = args.Length > 1 ? args[1] : "reviews.zip";

var ml = new MLContext(seed: 1);
IDataView reviews = ml.Data.LoadFromTextFile<Review>(data, hasHeader: true);
var pipeline = ml.Transforms.Conversion.MapValueToKey("Label")
    .Append(ml.Peft().LoraTextClassification(sentence1ColumnName: "Text", rank: 8, batchSize: 4, maxEpochs: 10, learningRate: 2e-3))
    .Append(ml.Transforms.Conversion.MapKeyToValue("PredictedLabel"));
ITransformer model = pipeline.Fit(reviews);
ml.Model.Save(model, reviews.Schema, zip);

ITransformer loaded = new MLContext().Model.Load(zip, out _);
using var engine = ml.Model.CreatePredictionEngine<Review, Answer>(loaded);
foreach (string text in new[] { "it broke after one day", "great quality and fast delivery" })
    Console.WriteLine($"{text}: {engine.Predict(new Review { Text = text }).PredictedLabel}");

// Output:
// it broke after one day: bad
// great quality and fast delivery: good

/// <summary>A row of the table.</summary>
internal sealed class Review
{
    [LoadColumn(0)] public string Text { get; set; } = "";

    [LoadColumn(1)] public string Label { get; set; } = "";
}

/// <summary>What the model answers.</summary>
internal sealed class Answer
{
    public string PredictedLabel { get; set; } = "";

    public float[] Score { get; set; } = [];
}
