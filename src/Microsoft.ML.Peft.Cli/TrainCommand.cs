// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using System.Diagnostics;
using System.Text.Json.Nodes;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>peft train text-classification</c>.</summary>
internal static class TrainCommand
{
    private static readonly Option<string> _data = new("--data") { Description = "Training table: TSV with a header and no quoting, or CSV with quoting.", Required = true };
    private static readonly Option<string> _text = new("--text") { Description = "Column with the text.", Required = true };
    private static readonly Option<string?> _text2 = new("--text2") { Description = "Column with the second text of a pair." };
    private static readonly Option<string> _label = new("--label") { Description = "Column with the label.", Required = true };
    private static readonly Option<string?> _eval = new("--eval") { Description = "Table to evaluate on at the end." };
    private static readonly Option<string?> _validation = new("--validation") { Description = "Table to evaluate on while training; the best epoch is kept." };
    private static readonly Option<string?> _backbone = new("--backbone") { Description = "Hugging Face folder; the embedded all-MiniLM-L6-v2 where none is named." };
    private static readonly Option<string> _method = new("--method") { Description = "Method: see 'peft methods'.", DefaultValueFactory = _ => "lora" };
    private static readonly Option<string[]> _set = new("--set") { Description = "Option of the method, NAME=VALUE; may be given again.", AllowMultipleArgumentsPerToken = true };
    private static readonly Option<int> _epochs = new("--epochs") { Description = "Passes over the data.", DefaultValueFactory = _ => 3 };
    private static readonly Option<double?> _rate = new("--learning-rate") { Description = "Highest learning rate; the method's own, higher in short runs, where none is given." };
    private static readonly Option<double?> _headRate = new("--head-learning-rate") { Description = "Highest learning rate of the head; that of --learning-rate where only that is given." };
    private static readonly Option<int> _batch = new("--batch") { Description = "Rows in a batch.", DefaultValueFactory = _ => 16 };
    private static readonly Option<int> _accumulate = new("--accumulate") { Description = "Batches in an optimizer step.", DefaultValueFactory = _ => 1 };
    private static readonly Option<int> _maxTokens = new("--max-tokens") { Description = "Longest text in tokens.", DefaultValueFactory = _ => 128 };
    private static readonly Option<double> _warmup = new("--warmup") { Description = "Warm-up as a share of all steps.", DefaultValueFactory = _ => 0.06 };
    private static readonly Option<double?> _decay = new("--weight-decay") { Description = "Weight decay." };
    private static readonly Option<Pooling> _pooling = new("--pooling") { Description = "How a text becomes one vector: Family, Mean or FirstToken.", DefaultValueFactory = _ => Pooling.Family };
    private static readonly Option<int> _seed = new("--seed") { Description = "Seed of all random numbers.", DefaultValueFactory = _ => 1 };
    private static readonly Option<int> _threads = new("--threads") { Description = "Threads of libtorch; 0 for all cores." };
    private static readonly Option<string?> _checkpoints = new("--checkpoints") { Description = "Folder for checkpoints." };
    private static readonly Option<int> _checkpointEvery = new("--checkpoint-every") { Description = "Steps between checkpoints; 0 for one an epoch." };
    private static readonly Option<bool> _resume = new("--resume") { Description = "Go on from the newest checkpoint in the folder." };
    private static readonly Option<string> _out = new("--out") { Description = "Model zip to write.", Required = true };
    private static readonly Option<string?> _report = new("--report") { Description = "JSON file with the figures of the run." };

    public static System.CommandLine.Command Make()
    {
        var task = new System.CommandLine.Command("text-classification", "Classify one text or a pair of texts.")
        {
            _data, _text, _text2, _label, _eval, _validation, _backbone, _method, _set, _epochs, _rate, _headRate, _batch, _accumulate, _maxTokens,
            _warmup, _decay, _pooling, _seed, _threads, _checkpoints, _checkpointEvery, _resume, _out, _report,
        };
        task.SetAction(Run);
        return new System.CommandLine.Command("train", "Fine-tune a model.") { task };
    }

    private static int Run(ParseResult call)
    {
        PeftMethod method = MakeMethod(call.GetValue(_method)!, call.GetValue(_set) ?? []);
        if (call.GetValue(_resume) && call.GetValue(_checkpoints) is null) throw new UsageException("--resume needs --checkpoints DIR.");
        string output = call.GetValue(_out)!;
        if (Path.GetDirectoryName(Path.GetFullPath(output)) is { } folder && !Directory.Exists(folder))
            throw new UsageException($"The folder of --out, '{folder}', does not exist.");
        if (call.GetValue(_threads) is > 0 and var threads) TorchSharp.torch.set_num_threads(threads);

        var context = new MLContext(call.GetValue(_seed));
        using TableFile table = TableFile.Open(call.GetValue(_data)!);
        using TableFile? held = call.GetValue(_validation) is { } path ? TableFile.Open(path) : null;
        var text = new TextColumns(call.GetValue(_text)!, call.GetValue(_text2));
        string label = call.GetValue(_label)!;
        IDataView rows = table.Load(context, [.. text.Names, label]);
        ITransformer keys = context.Transforms.Conversion.MapValueToKey(LabelKey, label).Fit(rows);

        using var cancel = new CancellationTokenSource();
        Console.CancelKeyPress += (_, press) =>
        {
            press.Cancel = !cancel.IsCancellationRequested;   // the second one ends the process
            cancel.Cancel();
        };
        using var screen = new ProgressScreen();
        TextClassificationOptions options = Options(call, method, text, screen, cancel.Token);
        if (held is not null) options.ValidationSet = keys.Transform(held.Load(context, [.. text.Names, label]));
        context.Log += (_, e) => screen.Log(e);
        var clock = Stopwatch.StartNew();
        using TextClassificationTransformer model = context.Peft().TextClassification(options).Fit(keys.Transform(rows));
        double seconds = clock.Elapsed.TotalSeconds;
        screen.Finish();
        Save(context, model, rows, output);
        Finish(call, context, model, text, label, seconds);
        return 0;
    }

    private const string LabelKey = "LabelKey";

    private static TextClassificationOptions Options(ParseResult call, PeftMethod method, TextColumns text, ProgressScreen screen, CancellationToken cancel) => new()
    {
        LabelColumnName = LabelKey,
        Sentence1ColumnName = text.First,
        Sentence2ColumnName = text.Second,
        Method = method,
        BackboneFolder = call.GetValue(_backbone),
        MaxTokens = call.GetValue(_maxTokens),
        Pooling = call.GetValue(_pooling),
        Training = new TrainingOptions
        {
            Epochs = call.GetValue(_epochs),
            BatchSize = call.GetValue(_batch),
            Accumulation = call.GetValue(_accumulate),
            LearningRate = call.GetValue(_rate),
            HeadLearningRate = call.GetValue(_headRate),
            WeightDecay = call.GetValue(_decay),
            WarmupShare = call.GetValue(_warmup),
            CheckpointFolder = call.GetValue(_checkpoints),
            CheckpointEvery = call.GetValue(_checkpointEvery),
            Resume = call.GetValue(_resume),
            CancellationToken = cancel,
            Progress = screen.Show,
        },
    };

    private static PeftMethod MakeMethod(string id, string[] settings)
    {
        try
        {
            PeftMethod method = PeftMethods.Create(id);
            foreach (string setting in settings)
            {
                int at = setting.IndexOf('=');
                if (at <= 0) throw new UsageException($"--set {setting}: expected NAME=VALUE.");
                PeftMethods.Set(method, setting[..at], setting[(at + 1)..]);
            }
            method.Validate();
            return method;
        }
        catch (ArgumentException e)
        {
            throw new UsageException(e.Message);
        }
    }

    private static void Save(MLContext context, TextClassificationTransformer model, IDataView rows, string output)
    {
        IDataView texts = context.Transforms.SelectColumns([.. model.TextColumns]).Fit(rows).Transform(rows);
        ITransformer back = context.Transforms.Conversion.MapKeyToValue(model.PredictedLabelColumn).Fit(model.Transform(texts));
        var chain = new TransformerChain<ITransformer>(model, back);
        AtomicFile.Write(output, stream => context.Model.Save(chain, texts.Schema, stream));
    }

    private static void Finish(ParseResult call, MLContext context, TextClassificationTransformer model, TextColumns text, string label, double seconds)
    {
        TrainingResult result = model.Training!;
        var report = new JsonObject
        {
            ["metrics"] = null,
            ["trainableParameters"] = model.TrainableParameters,
            ["totalParameters"] = model.TotalParameters,
            ["trainSeconds"] = seconds,
            ["trainTokensPerSecond"] = result.TokensPerSecond,
            ["evalTokensPerSecond"] = null,
            ["peakMemoryMb"] = null,
            ["steps"] = result.Steps,
            ["stopped"] = result.Stopped.ToString(),
            ["modelBytes"] = new FileInfo(call.GetValue(_out)!).Length,
        };
        if (call.GetValue(_eval) is { } path)
        {
            using TableFile table = TableFile.Open(path);
            (Evaluation metrics, double speed) = Report.Evaluate(model, table.Load(context, [.. text.Names, label]), label);
            report["metrics"] = Report.Metrics(metrics);
            report["evalTokensPerSecond"] = speed;
            Console.WriteLine(metrics);
        }
        report["peakMemoryMb"] = Report.PeakMemory();
        report["losses"] = new JsonArray([.. result.Losses.Select(l => (JsonNode?)JsonValue.Create(l))]);
        if (call.GetValue(_report) is { } file) Report.Write(file, report);
        Console.WriteLine($"{call.GetValue(_out)} written, {new FileInfo(call.GetValue(_out)!).Length / 1048576.0:0.0} MiB, trained {seconds:0.0} s.");
    }
}
