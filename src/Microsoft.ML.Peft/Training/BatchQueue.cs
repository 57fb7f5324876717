// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Threading.Channels;

namespace Microsoft.ML.Peft.Training;

/// <summary>A step with its padded arrays.</summary>
internal sealed record ReadyStep(PlannedStep Plan, IReadOnlyList<BatchArrays> Batches);

/// <summary>Assembles the arrays of the next steps on another thread, a few steps ahead.</summary>
internal sealed class BatchQueue : IDisposable
{
    private readonly CancellationTokenSource _stop = new();
    private readonly Channel<ReadyStep> _channel;
    private readonly IEnumerator<PlannedStep>? _direct;
    private readonly Func<PlannedStep, ReadyStep> _assemble;
    private readonly Task? _producer;

    public BatchQueue(BatchPlan plan, long from, int ahead, Func<IReadOnlyList<Example>, int, BatchArrays> assemble)
    {
        _assemble = step => new ReadyStep(step, [.. step.MicroBatches.Select(rows => assemble(rows, step.Epoch))]);
        _channel = Channel.CreateBounded<ReadyStep>(new BoundedChannelOptions(Math.Max(1, ahead)) { SingleReader = true, SingleWriter = true });
        if (ahead == 0) _direct = plan.Steps(from).GetEnumerator();
        else _producer = Task.Run(() => Produce(plan, from));
    }

    /// <summary>The next step, or null at the end.</summary>
    public ReadyStep? Next()
    {
        if (_direct is not null) return _direct.MoveNext() ? _assemble(_direct.Current) : null;
        ValueTask<bool> wait = _channel.Reader.WaitToReadAsync();
        bool more = wait.IsCompleted ? wait.Result : wait.AsTask().GetAwaiter().GetResult();
        return more && _channel.Reader.TryRead(out ReadyStep? step) ? step : null;
    }

    private async Task Produce(BatchPlan plan, long from)
    {
        try
        {
            foreach (PlannedStep step in plan.Steps(from))
                await _channel.Writer.WriteAsync(_assemble(step), _stop.Token).ConfigureAwait(false);
            _channel.Writer.Complete();
        }
        catch (Exception e)
        {
            _channel.Writer.TryComplete(e is OperationCanceledException ? null : e);
        }
    }

    public void Dispose()
    {
        _stop.Cancel();
        _producer?.GetAwaiter().GetResult();
        _direct?.Dispose();
        _stop.Dispose();
    }
}
