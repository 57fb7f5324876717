// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.Extensions.ObjectPool;
using Microsoft.ML;
using Samples.PredictionService;

// A small web service over a saved model: POST /classify {"text": "..."}. Engines are pooled, because an engine belongs to
// one thread at a time; all of them share the transformer's weights.
string zip = args.FirstOrDefault(a => a.EndsWith(".zip", StringComparison.Ordinal))
    ?? throw new ArgumentException("usage: PredictionService MODEL.zip [--urls http://127.0.0.1:5000]");
var ml = new MLContext();
ITransformer model = ml.Model.Load(zip, out _);

WebApplicationBuilder builder = WebApplication.CreateSlimBuilder([.. args.Where(a => a != zip)]);   // "/path" would count as an option there
builder.Logging.SetMinimumLevel(LogLevel.Warning);
builder.Services.AddSingleton<ObjectPool<PredictionEngine<Question, Answer>>>(new DefaultObjectPool<PredictionEngine<Question, Answer>>(new EnginePolicy(ml, model)));
WebApplication app = builder.Build();
app.MapPost("/classify", (Question question, ObjectPool<PredictionEngine<Question, Answer>> pool) =>
{
    if (string.IsNullOrWhiteSpace(question.Text)) return Results.BadRequest("The field 'text' is empty.");
    PredictionEngine<Question, Answer> engine = pool.Get();
    try
    {
        Answer answer = engine.Predict(question);
        return Results.Json(new { label = answer.PredictedLabel, probability = answer.Score.Max() });
    }
    finally
    {
        pool.Return(engine);
    }
});
app.MapGet("/health", () => "ready");
app.Run();
