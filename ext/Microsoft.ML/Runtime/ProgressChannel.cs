// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Runtime;

/// <summary>
/// Keeps to the contract of a progress channel. Nobody reads the numbers: as in the real library only a console
/// environment prints them, an <see cref="MLContext"/> does not; what people should see goes through a message channel too.
/// </summary>
internal sealed class ProgressChannel(IExceptionContext context, string name, bool isRoot = true) : IProgressChannel
{
    private ProgressHeader _header = new();
    private bool _disposed;

    internal string Name => name;

    public void SetHeader(ProgressHeader header, Action<IProgressEntry> fillAction) => _header = header;

    public void Checkpoint(params double?[] values)
    {
        // Only the outermost channel's checkpoints are recorded, so only there they are checked.
        if (!isRoot)
            return;
        context.Check(!_disposed, "Can't report checkpoints after disposing");
        int room = _header.MetricNames.Count + 2 * _header.UnitNames.Count;
        context.Check((values?.Length ?? 0) <= room, "Too many values provided in Checkpoint");
    }

    public IProgressChannel StartProgressChannel(string name) => new ProgressChannel(context, name, isRoot: false);

    public void Dispose() => _disposed = true;
}
