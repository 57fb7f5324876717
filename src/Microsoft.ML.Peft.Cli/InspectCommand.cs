// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using Spectre.Console;
using TorchSharp;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>peft inspect</c>: what a model zip, an adapter folder, a backbone folder or this machine is.</summary>
internal static class InspectCommand
{
    private static readonly Argument<string?> _path = new("path") { Description = "Model zip, adapter folder or backbone folder.", Arity = ArgumentArity.ZeroOrOne };
    private static readonly Option<bool> _machine = new("--machine") { Description = "Show libtorch, its BLAS and its threads, and the native kernels." };
    private static readonly Option<string?> _picture = new("--picture") { Description = "PNG to write: samples as the model sees them, with their labels and what it takes them for; needs --data." };
    private static readonly Option<string?> _data = new("--data") { Description = "Where the samples of --picture come from: a folder (of class folders), a file, or a table with paths." };
    private static readonly Option<string?> _pathColumn = new("--path-column") { Description = "Column with the paths, where --data is a table." };
    private static readonly Option<int> _rows = new("--rows") { Description = "Samples of --picture, spread over the data.", DefaultValueFactory = _ => 25 };
    private static readonly Option<bool> _methods = new("--methods") { Description = "List the methods with their options." };

    public static System.CommandLine.Command Make()
    {
        var command = new System.CommandLine.Command("inspect", "Show what a file or this machine is.") { _path, _machine, _methods, _picture, _data, _pathColumn, _rows };
        command.SetAction(Run);
        return command;
    }

    private static int Run(ParseResult call)
    {
        string? path = call.GetValue(_path);
        if (path is null && !call.GetValue(_machine) && !call.GetValue(_methods)) throw new UsageException("Name a model zip or a folder, or give --machine or --methods.");
        if (call.GetValue(_machine)) Machine();
        if (call.GetValue(_methods)) Methods();
        if (path is null) return 0;
        if (call.GetValue(_picture) is { } picture) Picture(call, path, picture);
        else if (File.Exists(path)) Model(path);
        else if (File.Exists(Path.Combine(path, "adapter_config.json"))) Adapter(path);
        else if (File.Exists(Path.Combine(path, "config.json"))) BackboneFolder(path);
        else if (Directory.Exists(path)) throw new FileNotFoundException($"'{path}' holds neither adapter_config.json nor config.json.");
        else throw new FileNotFoundException($"'{path}' does not exist.");
        return 0;
    }

    private static void Picture(ParseResult call, string path, string picture)
    {
        if (call.GetValue(_data) is not { } data) throw new UsageException("--picture needs --data: the images or sounds to show.");
        if (call.GetValue(_rows) is < 1 or > 400) throw new UsageException($"--rows is {call.GetValue(_rows)}; it must be 1 to 400.");
        var context = new MLContext(1);
        using LoadedModel loaded = LoadedModel.Open(context, path);
        if (loaded.IsText) throw new UsageException("--picture shows images and sounds; this model reads texts.");
        bool labelled = Directory.Exists(data) && Directory.GetDirectories(data).Length > 0;
        MediaFile[] files = MediaFiles.Read(context, data, loaded.Hears, call.GetValue(_pathColumn), null, labelled);
        if (files.Length == 0) throw new InvalidDataException($"'{data}' holds nothing to show.");
        int count = Math.Min(call.GetValue(_rows), files.Length);
        MediaFile[] some = [.. Enumerable.Range(0, count).Select(i => files[(long)i * files.Length / count])];
        Canvas sheet = SampleSheet.Draw(context, loaded, some);
        sheet.Save(picture);
        Console.WriteLine($"{picture} written: {count} of {files.Length} samples, {sheet.Width} x {sheet.Height} pixels.");
    }

    private static void Print(string title, IEnumerable<(string Name, object? Value)> rows)
    {
        var table = new Table { Title = new TableTitle(Markup.Escape(title)), Border = TableBorder.Minimal, ShowHeaders = false };
        table.AddColumn("").AddColumn("");
        foreach ((string name, object? value) in rows) table.AddRow(Markup.Escape(name), Markup.Escape(value?.ToString() ?? "-"));
        AnsiConsole.Write(table);
    }

    private static void Model(string path)
    {
        using LoadedModel loaded = LoadedModel.Open(new MLContext(1), path);
        ClassificationTransformer model = loaded.Classifier;
        BackboneConfig config = model.Model.Backbone.Config;
        Print("model zip", [
            ("task", model.Task.Replace('-', ' ')),
            ("method", PeftMethods.ToJson(model.Method)),
            ($"{model.Task.Split('-')[0]} columns", string.Join(", ", model.InputColumns)),
            ("classes", $"{model.Labels.Count}: {string.Join(", ", model.Labels.Take(20))}{(model.Labels.Count > 20 ? ", ..." : "")}"),
            ("backbone", $"{config.ModelType}, {config.LayerCount} layers, hidden {config.HiddenSize}, {config.HeadCount} heads{(loaded.IsText ? $", vocabulary {config.VocabularySize}" : "")}"),
            model switch
            {
                TextClassificationTransformer text => ("longest text", $"{text.MaxTokens} tokens"),
                ImageClassificationTransformer images => ("images", $"{images.ImageSize.Width} x {images.ImageSize.Height} pixels, mean {Numbers(images.Processor.Settings.Mean)}, deviation {Numbers(images.Processor.Settings.Std)}"),
                AudioClassificationTransformer sounds => ("sounds", $"{sounds.Processor.Rate} samples a second"),
                _ => ("input", null),
            },
            ("parameters", $"{model.TrainableParameters:N0} trained of {model.TotalParameters:N0}"),
            ("file", $"{new FileInfo(path).Length / 1048576.0:0.0} MiB"),
        ]);
    }

    private static string Numbers(IEnumerable<double> numbers) => string.Join(" ", numbers.Select(n => n.ToString("0.###", System.Globalization.CultureInfo.InvariantCulture)));

    private static void Adapter(string path)
    {
        using var stream = File.OpenRead(Path.Combine(path, "adapter_config.json"));
        var config = System.Text.Json.Nodes.JsonNode.Parse(stream)!.AsObject();
        string weights = Path.Combine(path, "adapter_model.safetensors");
        using SafetensorsFile file = SafetensorsFile.Open(weights);
        Print("adapter folder", [
            .. config.Where(f => f.Value is not null && f.Value.ToJsonString() is not ("[]" or "{}")).Select(f => (f.Key, (object?)f.Value!.ToJsonString())),
            ("tensors", file.Names.Count),
            ("numbers", file.Names.Sum(n => file.Info(n).Shape.Aggregate(1L, (a, b) => a * b)).ToString("N0")),
        ]);
    }

    private static void BackboneFolder(string path)
    {
        using CheckpointFolder folder = CheckpointFolder.Open(path);
        using Backbone backbone = BackboneLoader.Load(folder);
        BackboneConfig config = backbone.Config;
        Print("backbone folder", [
            ("family", config.ModelType), ("layers", config.LayerCount), ("hidden", config.HiddenSize), ("heads", config.HeadCount),
            ("feed-forward", config.IntermediateSize), ("vocabulary", config.VocabularySize), ("longest row", $"{config.MaxTokens} tokens"),
            ("parameters", backbone.ParameterCount.ToString("N0")), ("SHA-256", folder.Sha256()),
            ("projections", string.Join(", ", backbone.Sites.OfType<Projection>().Select(s => s.Name.Split('.')[^1]).Distinct())),
            ("unused tensors", backbone.UnusedTensors.Count == 0 ? "none" : string.Join(", ", backbone.UnusedTensors.Take(10))),
        ]);
    }

    private static void Machine()
    {
        int threads = CpuThreads.UseCores();
        double speed = BlasReport.Measure();
        Print("machine", [
            ("processors", Environment.ProcessorCount), ("libtorch threads", threads),
            ("BLAS", BlasReport.Loaded()), ("matrix products", $"{speed:0} GFLOP/s (2048x384x1536, float32)"),
            ("native kernels", NativeKernels.Description),
            ("CUDA devices", torch.cuda.is_available() ? torch.cuda.device_count() : 0),
        ]);
        if (speed < 20)
            AnsiConsole.MarkupLine("[red]The BLAS is slow: this looks like the reference BLAS. Install libopenblas0-openmp (see docs/troubleshooting.md).[/]");
    }

    private static void Methods()
    {
        foreach (string id in PeftMethods.Ids)
        {
            PeftMethod method = PeftMethods.Create(id);
            AnsiConsole.WriteLine($"{id,-12} {method.Family,-12} {(method.Mergeable ? "mergeable" : ""),-10} {PeftMethods.ToJson(method)}");
        }
    }
}
