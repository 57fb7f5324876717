// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;
using Spectre.Console;

namespace Microsoft.ML.Peft.Cli;

/// <summary>Shows a training run on standard error: one line that moves on a terminal, plain lines elsewhere.</summary>
internal sealed class ProgressScreen : IDisposable
{
    private const int BarWidth = 28;
    private readonly IAnsiConsole _console = Terminal.On(Console.Error, Console.IsErrorRedirected);
    private readonly bool _live = !Console.IsErrorRedirected;
    private DateTime _next = DateTime.MinValue;
    private bool _open;

    /// <summary>Prints what the trainer logs, but not the progress that the bar shows.</summary>
    public void Log(LoggingEventArgs e)
    {
        if (e.Kind is ChannelMessageKind.Trace || !e.Source.Contains("ClassificationTrainer", StringComparison.Ordinal)) return;
        if (e.RawMessage.StartsWith("epoch ", StringComparison.Ordinal)) return;
        EndLine();
        string color = e.Kind is ChannelMessageKind.Warning or ChannelMessageKind.Error ? "yellow" : "grey";
        _console.MarkupLineInterpolated($"[{color}]{e.RawMessage}[/]");
    }

    public void Show(TrainingProgress progress)
    {
        bool last = progress.Step >= progress.TotalSteps;
        if (!last && progress.Validation is null && DateTime.UtcNow < _next) return;
        _next = DateTime.UtcNow + (_live ? TimeSpan.FromMilliseconds(100) : TimeSpan.FromSeconds(5));
        string text = Line(progress);
        if (!_live)
        {
            Console.Error.WriteLine(text);
            return;
        }
        int full = (int)(BarWidth * progress.Step / Math.Max(1, progress.TotalSteps));
        string bar = new string('━', full) + new string('─', BarWidth - full);
        int room = Math.Max(20, _console.Profile.Width - 1);
        string line = bar + " " + text;
        Console.Error.Write("\r" + (line.Length > room ? line[..room] : line.PadRight(room)));
        _open = true;
        if (progress.Validation is not null || last) EndLine();
    }

    private static string Line(TrainingProgress p)
    {
        var invariant = CultureInfo.InvariantCulture;
        string text = string.Create(invariant,
            $"step {p.Step}/{p.TotalSteps}  loss {p.Loss:0.0000}  rate {p.LearningRate:0.0e+0}  {p.TokensPerSecond:0} tokens/s  {p.TimeLeft:m\\:ss} left");
        return p.Validation is null ? text : text + "  " + p.Validation;
    }

    private void EndLine()
    {
        if (!_open) return;
        Console.Error.WriteLine();
        _open = false;
    }

    public void Finish() => EndLine();

    public void Dispose() => EndLine();
}
