// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Spectre.Console;

namespace Microsoft.ML.Peft.Cli;

/// <summary>Consoles that write plain text, a table's row in one line, where nobody looks at a screen.</summary>
internal static class Terminal
{
    private const int Wide = 4096;

    public static IAnsiConsole On(TextWriter writer, bool redirected)
    {
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings
        {
            Out = new AnsiConsoleOutput(writer),
            Ansi = redirected ? AnsiSupport.No : AnsiSupport.Detect,
            ColorSystem = redirected ? ColorSystemSupport.NoColors : ColorSystemSupport.Detect,
        });
        if (redirected) console.Profile.Width = Wide;
        return console;
    }
}
