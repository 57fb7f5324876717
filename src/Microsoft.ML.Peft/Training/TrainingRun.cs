// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>One run of the trainer, from the first step to the restored weights.</summary>
internal sealed class TrainingRun : IDisposable
{
    private static readonly Lock _drawing = new();
    private readonly AdaptedModel _model;
    private readonly TrainingOptions _options;
    private readonly Objective _objective;
    private readonly BatchPlan _plan;
    private readonly IReadOnlyList<Example>? _validation;
    private readonly double _rate;
    private readonly LearningRateSchedule _schedule;
    private readonly Optimizer _optimizer;
    private readonly Forwarder _forwarder;
    private readonly CheckpointStore? _store;
    private readonly Stopwatch _clock = Stopwatch.StartNew();
    private readonly List<string> _warnings = [];
    private readonly Precision _precisionBefore;
    private RunState _state = new();
    private WeightSnapshot? _best, _good;
    private double _secondsBefore;
    private long _tokensBefore, _rowsBefore, _stepsBefore;
    private int _reported;

    public TrainingRun(
        AdaptedModel model, BatchPlan plan, IReadOnlyList<Example>? validation, Objective objective, TrainingOptions options)
    {
        (_model, _plan, _validation, _objective, _options) = (model, plan, validation, objective, options);
        PeftMethod? method = model.Adaptation?.Method;
        _rate = options.LearningRate ?? method?.LearningRateFor(model.Backbone, plan.TotalSteps) ?? 1e-3;
        _schedule = options.MakeSchedule(plan.TotalSteps, _rate);
        // A fresh head learns from nothing; the method's rate is meant for what starts near the base model.
        if ((options.HeadLearningRate ?? (options.LearningRate is null ? method?.DefaultHeadLearningRate : null)) is { } headRate)
            foreach (NamedParameter parameter in model.Head.Parameters) parameter.OwnRate ??= headRate;
        _store = options.CheckpointFolder is { } folder ? new CheckpointStore(folder, options, Warn) : null;
        _forwarder = new Forwarder(model);
        _precisionBefore = model.Precision;
        _optimizer = MakeOptimizer(model, options);
    }

    public Action<long, Optimizer>? BeforeStep { get; init; }

    public Action<long>? AfterStep { get; init; }

    internal static Optimizer MakeOptimizer(AdaptedModel model, TrainingOptions options)
    {
        double decay = options.WeightDecay ?? (model.Adaptation?.Method.Family == "low rank" ? 0 : 0.01);
        return options.Optimizer switch
        {
            OptimizerKind.AdamW => new AdamW(model.Parameters, decay, options.Beta1, options.Beta2, options.Epsilon),
            OptimizerKind.Adam => new Adam(model.Parameters, decay, options.Beta1, options.Beta2, options.Epsilon),
            _ => new Sgd(model.Parameters, decay, options.Momentum),
        };
    }

    public TrainingResult Execute()
    {
        if (_options.Resume) Resume();
        TakePrecision();
        _model.Adaptation?.Planned(_plan.TotalSteps);
        (_secondsBefore, _tokensBefore, _rowsBefore, _stepsBefore) = (_state.TrainingSeconds, _state.Tokens, _state.Rows, _state.Step);
        _reported = _state.Losses.Count;
        if (_state.Stopped is null or StopReason.Cancelled)
        {
            _state.Stopped = null;
            FillCache();
            // Cancelled in the middle of an evaluation: that comes first.
            if (_state.Step == 0 || AfterSteps()) Loop();
        }
        if (_options.KeepBest && _best is not null) _best.Restore();
        _model.Adaptation?.Finished();
        return Result();
    }

    // A resumed run goes on in what was chosen then: another precision would give other bits.
    private void TakePrecision()
    {
        if (_options.Precision != Precision.Auto) (_state.Precision, _state.PrecisionReason) = (_options.Precision, null);
        else if (_state.Precision is null)
        {
            PrecisionChoice choice = new PrecisionSample(_model, _plan.Steps(0).SelectMany(s => s.MicroBatches), rows => Assemble(rows, 0)).Choose();
            (_state.Precision, _state.PrecisionReason) = (choice.Precision, choice.ToString());
        }
        _model.Precision = _state.Precision.Value;
        if (_state.PrecisionReason is { } reason) _options.Note?.Invoke(reason);
    }

    private void Loop()
    {
        // Texts on the CPU cost less than another thread takes from those that compute.
        Backbone backbone = _model.Backbone;
        bool ahead = backbone.Config.Input != BackboneInput.Text || backbone.Device.type != DeviceType.CPU;
        using var queue = new BatchQueue(_plan, _state.Step, ahead ? _options.Prefetch : 0, Assemble);
        while (_state.Stopped is null)
            if (_options.CancellationToken.IsCancellationRequested || !Advance(queue)) Cancel();
    }

    // Called on the queue's thread.
    private BatchArrays Assemble(IReadOnlyList<Example> rows, int epoch) =>
        BatchArrays.Of(rows, _model.Backbone.Config, _options.PadToMultiple, new TrainingDraw(_options.Seed, epoch), _forwarder.Keeps(rows));

    private void Cancel()
    {
        _state.Stopped = StopReason.Cancelled;
        if (_store is not null && _state.Step > 0 && _store.Newest != _state.Step) Save();
    }

    // One optimizer step with all that follows it; false where it was cancelled half-way or there is none.
    private bool Advance(BatchQueue queue)
    {
        ReadyStep? step = queue.Next();
        return step is not null && Step(step) && AfterSteps();
    }

    private bool AfterSteps()
    {
        bool last = _state.Step >= _plan.TotalSteps;
        Evaluation? evaluation = null;
        if (_validation is not null && (last || Due(_options.EvaluateEvery)) && _state.Evaluations.LastOrDefault()?.Step != _state.Step)
        {
            evaluation = TryEvaluate();
            if (evaluation is null)
            {
                Cancel();
                return false;
            }
            Judge(evaluation);
        }
        else if (Due(0)) Remember(ref _good);
        if (last) _state.Stopped ??= StopReason.Completed;
        bool saved = evaluation is null && _store?.Newest == _state.Step;
        if (_store is not null && !saved && (_state.Stopped is not null || Due(_options.CheckpointEvery))) Save();
        if (evaluation is not null || (_state.Step > _stepsBefore && (last || _state.Step % _options.LogEvery == 0))) Report(evaluation);
        return true;
    }

    // Zero steps: at the end of each epoch.
    private bool Due(int every) => _state.Step % (every > 0 ? every : _plan.StepsAnEpoch) == 0;

    private bool Step(ReadyStep step)
    {
        long began = Stopwatch.GetTimestamp();
        double count = step.Plan.MicroBatches.Sum(rows => rows.Sum(_objective.Count));
        double schedule = _schedule.Factor(_state.Step);
        using var scope = NewDisposeScope();
        Tensor total = zeros(1, device: _model.Backbone.Device);
        for (int i = 0; i < step.Batches.Count; i++)
        {
            if (_options.CancellationToken.IsCancellationRequested)
            {
                _optimizer.ClearGradients();
                return false;
            }
            MicroStep(step, i, count, total);
        }
        _model.Adaptation?.BeforeStep(_state.Step);
        BeforeStep?.Invoke(_state.Step, _optimizer);
        Tensor gradient = _optimizer.GatherGradients();
        // The only number that leaves the device in a step: loss and norm together.
        float[] seen = cat([total, GradientClip.Norm(gradient).reshape(1)]).cpu().data<float>().ToArray();
        if (!float.IsFinite(seen[0]) || !float.IsFinite(seen[1])) throw Diverged(step, seen);
        double factor = _options.MaxGradNorm > 0 ? GradientClip.Factor(seen[1], _options.MaxGradNorm) : 1;
        _optimizer.Apply(gradient, _rate, schedule, factor);
        _model.Adaptation?.AfterStep(_state.Step);
        _optimizer.ClearGradients();
        _optimizer.Refresh(_model.Parameters);
        Record(step, seen, _rate * schedule);
        _state.TrainingSeconds += Stopwatch.GetElapsedTime(began).TotalSeconds;
        AfterStep?.Invoke(_state.Step);
        return true;
    }

    private void MicroStep(ReadyStep step, int index, double count, Tensor total)
    {
        using var scope = NewDisposeScope();
        BatchArrays arrays = step.Batches[index];
        ulong key = Pass.Mix(Pass.Mix((ulong)_options.Seed) + (ulong)(step.Plan.FirstMicroStep + index));
        var pass = new Pass(_model.Patches, training: true, key) { Checkpointing = _options.GradientCheckpointing };
        PeftAdaptation? adaptation = _model.Adaptation;
        // Dropout draws from libtorch's one generator, seeded for each part of the pass: two runs must not draw in turn.
        using Lock.Scope alone = _drawing.EnterScope();
        Tensor scores = _forwarder.Score(arrays, pass);
        double scale = count > 0 ? 1 / count : 1;
        Tensor loss = _objective.Sum(scores, new MiniBatch(arrays.Rows, scores.device, arrays.Mixing)) * scale;
        if (adaptation?.ExtraLoss(pass) is { } extra) loss = loss + extra * (arrays.Rows.Sum(_objective.Count) * scale);
        loss.backward();
        using var off = no_grad();
        total.add_(loss.detach());
    }

    private void Record(ReadyStep step, float[] seen, double rate)
    {
        _state.Step++;
        _state.Losses.Add(seen[0]);
        _state.GradientNorms.Add(seen[1]);
        _state.LearningRates.Add(rate);
        foreach (BatchArrays batch in step.Batches)
        {
            _state.Tokens += batch.RealTokens;
            _state.Rows += batch.Rows.Count;
        }
    }

    private TrainingDivergedException Diverged(ReadyStep step, float[] seen)
    {
        _optimizer.ClearGradients();
        bool sound = _optimizer.Flat.Values.isfinite().all().item<bool>();
        WeightSnapshot? last = _best ?? _good;
        if (!sound) last?.Restore();
        else if (_options.KeepBest) _best?.Restore();
        if (sound && _store is not null && _state.Step > _stepsBefore && _store.Newest != _state.Step) Save();
        long[] rows = [.. step.Plan.MicroBatches.SelectMany(b => b).Select(r => r.Row)];
        string what = float.IsFinite(seen[0]) ? "gradient" : "loss";
        string kept = !sound && last is null
            ? "The weights are spoilt, too: make the model anew."
            : "The model holds the last good weights" + (_best is not null ? " (those of the best evaluation)." : ".");
        return new TrainingDivergedException(
            FormattableString.Invariant($"The {what} of step {_state.Step} is not finite (loss {seen[0]}, gradient norm {seen[1]}); rows of the step: {string.Join(", ", rows.Take(32))}{(rows.Length > 32 ? ", ..." : "")}. Try a lower learning rate (now {_rate:0.###e+0}), a longer warm-up, or look at these rows. {kept}"),
            _state.Step, rows);
    }

    private Evaluation? TryEvaluate()
    {
        try
        {
            return _forwarder.Evaluate(
                _validation!, _objective, Trainer.EvaluationBatch(_options), _options.PadToMultiple, _options.CancellationToken);
        }
        catch (OperationCanceledException) when (_options.CancellationToken.IsCancellationRequested)
        {
            return null;
        }
    }

    private void Judge(Evaluation evaluation)
    {
        double value = evaluation.Metrics[_options.BestMetric], delta = _options.EarlyStoppingMinDelta;
        bool better = !double.IsNaN(value) && (_state.BestMetric is not { } best
            || (Evaluation.HigherIsBetter(_options.BestMetric) ? value > best + delta : value < best - delta));
        _state.Counter = better ? 0 : _state.Counter + 1;
        _state.Evaluations.Add(new EvaluationPoint(_state.Step, evaluation, better, _state.Counter));
        if (better)
        {
            (_state.BestMetric, _state.BestStep) = (value, _state.Step);
            Remember(ref _best);
        }
        if (_options.EarlyStoppingPatience > 0 && _state.Counter >= _options.EarlyStoppingPatience)
            _state.Stopped = StopReason.EarlyStopped;
    }

    private void Remember(ref WeightSnapshot? place)
    {
        place?.Dispose();
        place = WeightSnapshot.Of(_model.Parameters);
    }

    private void FillCache()
    {
        if (!_options.CacheFeatures || !Forwarder.CanCache(_model)) return;
        // What training sees anew each time cannot be kept; what it is judged by can.
        bool varies = _plan.Rows.Any(r => r.Input is { Varies: true });
        _forwarder.Fill((varies ? [] : _plan.Rows).Concat(_validation ?? []), Trainer.EvaluationBatch(_options), _options.PadToMultiple);
    }

    private void Resume()
    {
        if (_store!.Load(_model, _plan.Rows, _optimizer) is not { } loaded) return;
        (_state, _best) = loaded;
    }

    private void Save() => _store!.Save(_model, _plan.Rows, _optimizer, _state, _state.BestStep == _state.Step ? null : _best);

    private void Report(Evaluation? evaluation)
    {
        int since = _state.Losses.Count - _reported;
        double seconds = Math.Max(1e-9, _state.TrainingSeconds - _secondsBefore);
        long done = _state.Step - _stepsBefore;
        double left = (_plan.TotalSteps - _state.Step) * _clock.Elapsed.TotalSeconds / Math.Max(1, done);
        _options.Progress?.Invoke(new TrainingProgress(
            (double)_state.Step / _plan.StepsAnEpoch, (double)_plan.TotalSteps / _plan.StepsAnEpoch, _state.Step, _plan.TotalSteps,
            since > 0 ? _state.Losses.TakeLast(since).Average() : _state.Losses[^1], _state.LearningRates[^1],
            (_state.Tokens - _tokensBefore) / seconds, (_state.Rows - _rowsBefore) / seconds, TimeSpan.FromSeconds(left), evaluation));
        _reported = _state.Losses.Count;
    }

    private void Warn(string text)
    {
        _warnings.Add(text);
        _options.Warning?.Invoke(text);
    }

    private TrainingResult Result() => new()
    {
        Steps = _state.Step,
        Stopped = _state.Stopped!.Value,
        Losses = _state.Losses,
        LearningRates = _state.LearningRates,
        GradientNorms = _state.GradientNorms,
        Evaluations = _state.Evaluations,
        BestStep = _state.BestStep,
        BestMetric = _state.BestMetric,
        Tokens = _state.Tokens,
        Rows = _state.Rows,
        TrainingSeconds = _state.TrainingSeconds,
        Seconds = _clock.Elapsed.TotalSeconds,
        Precision = _state.Precision!.Value,
        PrecisionReason = _state.PrecisionReason,
        Warnings = _warnings,
    };

    public void Dispose()
    {
        _model.Precision = _precisionBefore;
        _best?.Dispose();
        _good?.Dispose();
        _forwarder.Dispose();
        _optimizer.Dispose();
    }
}
