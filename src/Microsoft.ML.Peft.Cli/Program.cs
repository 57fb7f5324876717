// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using Microsoft.ML.Peft.Cli;
using Spectre.Console;

AnsiConsole.Console = Terminal.On(Console.Out, Console.IsOutputRedirected);
var root = new RootCommand("Parameter-efficient fine-tuning of Hugging Face backbones, in ML.NET model zips.")
{
    TrainCommand.Make(),
    EvaluateCommand.Make(),
    PredictCommand.Make(),
    InspectCommand.Make(),
    MethodsCommand.Make(),
    CompareCommand.Make(),
    ExportCommand.Make(),
};
ParseResult parsed = root.Parse(args);
if (parsed.Errors.Count > 0)
{
    // 2 is for usage, so that scripts can tell a wrong call from a failed run.
    foreach (var error in parsed.Errors) Console.Error.WriteLine(error.Message);
    Console.Error.WriteLine("Try 'peft --help' or 'peft COMMAND --help'.");
    return 2;
}
return Failures.Guard(() => parsed.Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false }));
