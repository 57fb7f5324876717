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

/// <summary><c>peft train TASK</c>.</summary>
internal static class TrainCommand
{
    private static readonly Option<string> _data = new("--data") { Description = "Training data: a table (TSV with a header and no quoting, or CSV with quoting); for images and sounds also a folder of class folders.", Required = true };
    private static readonly Option<string?> _eval = new("--eval") { Description = "Data to evaluate on at the end." };
    private static readonly Option<string?> _validation = new("--validation") { Description = "Data to evaluate on while training; the best epoch is kept." };
    private static readonly Option<string?> _backbone = new("--backbone") { Description = "Hugging Face folder; the embedded one of the task where none is named." };
    private static readonly Option<string> _method = new("--method") { Description = "Method: see 'peft methods'.", DefaultValueFactory = _ => "lora" };
    private static readonly Option<string[]> _set = new("--set") { Description = "Option of the method, NAME=VALUE; may be given again.", AllowMultipleArgumentsPerToken = true };
    private static readonly Option<int> _epochs = new("--epochs") { Description = "Passes over the data.", DefaultValueFactory = _ => 3 };
    private static readonly Option<double?> _rate = new("--learning-rate") { Description = "Highest learning rate; the method's own, higher in short runs, where none is given." };
    private static readonly Option<double?> _headRate = new("--head-learning-rate") { Description = "Highest learning rate of the head; that of --learning-rate where only that is given." };
    private static readonly Option<int> _batch = new("--batch") { Description = "Rows in a batch.", DefaultValueFactory = _ => 16 };
    private static readonly Option<int> _accumulate = new("--accumulate") { Description = "Batches in an optimizer step.", DefaultValueFactory = _ => 1 };
    private static readonly Option<double> _warmup = new("--warmup") { Description = "Warm-up as a share of all steps.", DefaultValueFactory = _ => 0.06 };
    private static readonly Option<double?> _decay = new("--weight-decay") { Description = "Weight decay." };
    private static readonly Option<Pooling> _pooling = new("--pooling") { Description = "How a row becomes one vector: Family, Mean or FirstToken.", DefaultValueFactory = _ => Pooling.Family };
    internal static readonly Option<int> Seed = new("--seed") { Description = "Seed of all random numbers.", DefaultValueFactory = _ => 1 };
    private static readonly Option<int> _threads = new("--threads") { Description = "Threads of the CPU; 0 for all cores." };
    private static readonly Option<Precision> _precision = PrecisionOption.Make("while training");
    private static readonly Option<string?> _checkpoints = new("--checkpoints") { Description = "Folder for checkpoints." };
    private static readonly Option<int> _checkpointEvery = new("--checkpoint-every") { Description = "Steps between checkpoints; 0 for one an epoch." };
    private static readonly Option<bool> _resume = new("--resume") { Description = "Go on from the newest checkpoint in the folder." };
    private static readonly Option<string> _out = new("--out") { Description = "Model zip to write.", Required = true };
    private static readonly Option<string?> _report = new("--report") { Description = "JSON file with the figures of the run." };

    public static System.CommandLine.Command Make()
    {
        var train = new System.CommandLine.Command("train", "Fine-tune a model.");
        foreach (TrainTask task in TrainTask.All)
        {
            var command = new System.CommandLine.Command(task.Name, task.Description)
            {
                _data, _eval, _validation, _backbone, _method, _set, _epochs, _rate, _headRate, _batch, _accumulate,
                _warmup, _decay, _pooling, Seed, _threads, _precision, _checkpoints, _checkpointEvery, _resume, _out, _report,
            };
            foreach (Option option in task.Options) command.Options.Add(option);
            command.SetAction(call => Run(call, task));
            train.Subcommands.Add(command);
        }
        return train;
    }

    private static int Run(ParseResult call, TrainTask task)
    {
        PeftMethod method = MakeMethod(call.GetValue(_method)!, call.GetValue(_set) ?? []);
        if (call.GetValue(_resume) && call.GetValue(_checkpoints) is null) throw new UsageException("--resume needs --checkpoints DIR.");
        string output = call.GetValue(_out)!;
        if (Path.GetDirectoryName(Path.GetFullPath(output)) is { } folder && !Directory.Exists(folder))
            throw new UsageException($"The folder of --out, '{folder}', does not exist.");
        // Those of the run; the process' own for what comes before and after it.
        if (call.GetValue(_threads) is > 0 and var threads) TorchSharp.torch.set_num_threads(threads);

        var context = new MLContext(call.GetValue(Seed));
        (TrainRows data, TrainRows? held) = task.Open(context, call, call.GetValue(_data)!, call.GetValue(_validation));
        using TrainRows rows = data;
        using TrainRows? heldRows = held;
        ITransformer keys = context.Transforms.Conversion.MapValueToKey(LabelKey, rows.Label).Fit(rows.View);

        using var cancel = new CancellationTokenSource();
        Console.CancelKeyPress += (_, press) =>
        {
            press.Cancel = !cancel.IsCancellationRequested;   // the second one ends the process
            cancel.Cancel();
        };
        using var screen = new ProgressScreen();
        ClassificationOptions options = Complete(task.Fresh(call), call, method, screen, cancel.Token);
        if (heldRows is not null) options.ValidationSet = keys.Transform(heldRows.View);
        context.Log += (_, e) => screen.Log(e);
        var clock = Stopwatch.StartNew();
        using ClassificationTransformer model = task.Trainer(context, options).Fit(keys.Transform(rows.View));
        double seconds = clock.Elapsed.TotalSeconds;
        screen.Finish();
        Save(context, model, rows.View, output);
        Finish(call, task, context, model, seconds);
        return 0;
    }

    private const string LabelKey = "LabelKey";

    private static ClassificationOptions Complete(ClassificationOptions options, ParseResult call, PeftMethod method, ProgressScreen screen, CancellationToken cancel)
    {
        options.LabelColumnName = LabelKey;
        options.Method = method;
        options.BackboneFolder = call.GetValue(_backbone);
        options.Pooling = call.GetValue(_pooling);
        options.Training = new TrainingOptions
        {
            Epochs = call.GetValue(_epochs),
            BatchSize = call.GetValue(_batch),
            Accumulation = call.GetValue(_accumulate),
            LearningRate = call.GetValue(_rate),
            HeadLearningRate = call.GetValue(_headRate),
            WeightDecay = call.GetValue(_decay),
            WarmupShare = call.GetValue(_warmup),
            Threads = call.GetValue(_threads),
            Precision = call.GetValue(_precision),
            CheckpointFolder = call.GetValue(_checkpoints),
            CheckpointEvery = call.GetValue(_checkpointEvery),
            Resume = call.GetValue(_resume),
            CancellationToken = cancel,
            Progress = screen.Show,
        };
        return options;
    }

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

    private static void Save(MLContext context, ClassificationTransformer model, IDataView rows, string output)
    {
        IDataView inputs = context.Transforms.SelectColumns([.. model.InputColumns]).Fit(rows).Transform(rows);
        ITransformer back = context.Transforms.Conversion.MapKeyToValue(model.PredictedLabelColumn).Fit(model.Transform(inputs));
        var chain = new TransformerChain<ITransformer>(model, back);
        AtomicFile.Write(output, stream => context.Model.Save(chain, inputs.Schema, stream));
    }

    private static void Finish(ParseResult call, TrainTask task, MLContext context, ClassificationTransformer model, double seconds)
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
            ["evalRowsPerSecond"] = null,
            ["peakMemoryMb"] = null,
            ["steps"] = result.Steps,
            ["stopped"] = result.Stopped.ToString(),
            ["precision"] = result.Precision.ToString(),
            ["precisionReason"] = result.PrecisionReason,
            ["skippedRows"] = result.SkippedRows,
            ["modelBytes"] = new FileInfo(call.GetValue(_out)!).Length,
        };
        if (call.GetValue(_eval) is { } path)
        {
            using TrainRows rows = task.OpenEval(context, call, path);
            EvaluationReport made = Report.Evaluate(model, rows.View, rows.Label);
            report["metrics"] = Report.Metrics(made.Metrics);
            report["evalTokensPerSecond"] = made.TokensPerSecond;
            report["evalRowsPerSecond"] = made.RowsPerSecond;
            Console.WriteLine(made.Metrics + made.Unread);
        }
        report["peakMemoryMb"] = Report.PeakMemory();
        report["losses"] = new JsonArray([.. result.Losses.Select(l => (JsonNode?)JsonValue.Create(l))]);
        if (call.GetValue(_report) is { } file) Report.Write(file, report);
        Console.WriteLine($"{call.GetValue(_out)} written, {new FileInfo(call.GetValue(_out)!).Length / 1048576.0:0.0} MiB, trained {seconds:0.0} s.");
    }
}
