// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Carries a training run's progress to ML.NET's progress channel and log, and to the user's callback.</summary>
internal sealed class ProgressReport : IDisposable
{
    private readonly IProgressChannel _progress;
    private TrainingProgress? _latest;

    public ProgressReport(IHost host, IChannel channel, TrainingOptions training)
    {
        _progress = host.StartProgressChannel("PEFT training");
        _progress.SetHeader(new ProgressHeader(["Loss", "Learning rate", "Tokens/s"], ["steps"]), entry =>
        {
            if (_latest is not { } latest) return;
            entry.SetProgress(0, latest.Step, latest.TotalSteps);
            entry.SetMetric(0, latest.Loss);
            entry.SetMetric(1, latest.LearningRate);
            entry.SetMetric(2, latest.TokensPerSecond);
        });
        Action<TrainingProgress>? user = training.Progress;
        training.Progress = progress =>
        {
            _latest = progress;
            _progress.Checkpoint(progress.Loss, progress.LearningRate, progress.TokensPerSecond, progress.Step);
            channel.Info(MessageSensitivity.None, progress.ToString());
            user?.Invoke(progress);
        };
        Action<string>? note = training.Note;
        training.Note = message =>
        {
            channel.Info(MessageSensitivity.None, message);
            note?.Invoke(message);
        };
        Action<string>? warn = training.Warning;
        training.Warning = message =>
        {
            channel.Warning(MessageSensitivity.None, message);
            warn?.Invoke(message);
        };
    }

    public void Dispose() => _progress.Dispose();
}
