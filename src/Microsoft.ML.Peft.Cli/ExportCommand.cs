// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using Spectre.Console;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>peft export onnx</c>: a model zip as an ONNX file, for ONNX Runtime and other engines.</summary>
internal static class ExportCommand
{
    private static readonly Argument<string> _model = new("model") { Description = "Model zip." };
    private static readonly Option<string?> _output = new("--out") { Description = "File to write; the model's name with .onnx where none is given." };

    public static System.CommandLine.Command Make()
    {
        var onnx = new System.CommandLine.Command("onnx", "Write the classifier with its adapter merged as an ONNX file.") { _model, _output };
        onnx.SetAction(Run);
        return new System.CommandLine.Command("export", "Write a trained model in another format.") { onnx };
    }

    private static int Run(ParseResult call)
    {
        string path = call.GetValue(_model)!, output = call.GetValue(_output) ?? Path.ChangeExtension(path, ".onnx");
        using LoadedModel loaded = LoadedModel.Open(new MLContext(1), path);
        loaded.Classifier.SaveOnnx(output);
        AnsiConsole.MarkupLineInterpolated($"{output}: {new FileInfo(output).Length / 1048576.0:0.0} MiB, classes {string.Join(", ", loaded.Classifier.Labels)}");
        return 0;
    }
}
