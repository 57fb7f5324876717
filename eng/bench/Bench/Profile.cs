// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Bench;

/// <summary>
/// Where the time of a step goes. A patch around every site times it, less what runs inside at other sites; the backward
/// pass, which is libtorch's, is timed as a whole.
/// </summary>
internal static class Profile
{
    /// <summary>Exclusive times by name.</summary>
    private sealed class Times
    {
        private readonly Dictionary<string, (double Seconds, long Calls)> _parts = [];
        private readonly Stack<double> _inner = [];

        public T Time<T>(string name, Func<T> body)
        {
            long began = Stopwatch.GetTimestamp();
            _inner.Push(0);
            T result = body();
            double whole = Stopwatch.GetElapsedTime(began).TotalSeconds, own = whole - _inner.Pop();
            if (_inner.TryPop(out double outer)) _inner.Push(outer + whole);
            (double seconds, long calls) = _parts.GetValueOrDefault(name);
            _parts[name] = (seconds + own, calls + 1);
            return result;
        }

        public void Time(string name, Action body) => Time(name, () =>
        {
            body();
            return 0;
        });

        public void Clear() => _parts.Clear();

        public void Print(TextWriter writer, string title, int steps, long tokens)
        {
            double total = _parts.Values.Sum(p => p.Seconds);
            writer.WriteLine(FormattableString.Invariant($"{title}: {total * 1000 / steps:0.0} ms a batch, {tokens / total:0} tokens/s"));
            foreach ((string name, (double seconds, long calls)) in _parts.OrderByDescending(p => p.Value.Seconds))
                writer.WriteLine(FormattableString.Invariant($"  {name,-28} {seconds * 1000 / steps,8:0.00} ms {100 * seconds / total,6:0.0} %  {(double)calls / steps,6:0.#} calls"));
        }
    }

    public static void Run(string folder, Arguments arguments, TextWriter writer)
    {
        using AdaptedModel model = Material.Load(folder, dropout: true, Material.Trained);
        set_num_threads(arguments.Int("threads", Machine.Cores()));
        int steps = arguments.Int("steps", 20);
        var times = new Times();
        var inner = new Inner(model.Patches);
        var table = new PatchTable(model.Backbone.Sites.Where(s => s is not Sequence and not Taps)
            .Select(s => KeyValuePair.Create(s, Timed(s, times, inner, model.Patches[s]?.Trainable ?? false))));
        Train(folder, model, table, inner, times, steps, writer);
        Score(folder, model, table, inner, times, steps, writer);
    }

    private static void Train(string folder, AdaptedModel model, PatchTable table, Inner inner, Times times, int steps, TextWriter writer)
    {
        Material material = Material.Read(folder, "train");
        using var optimizer = new AdamW(model.Parameters, 0);
        var objective = new CrossEntropyObjective(((SequenceClassificationHead)model.Head).Outputs);
        long tokens = 0;
        for (int step = -3; step < steps; step++)
        {
            if (step == 0)
            {
                times.Clear();
                tokens = 0;
            }
            Example[] rows = Array.ConvertAll(material.Batches[step + 3], r => material.Rows[r]);
            DisposeScope scope = NewDisposeScope();
            TokenBatch batch = times.Time("batch assembly", () =>
                MiniBatch.ToTokens(BatchArrays.Of(rows, model.Backbone.Config, 1), CPU));
            Pass pass = inner.Start(table, training: true, (ulong)step);
            BackboneOutput output = times.Time("forward, rest", () => model.Backbone.Forward(batch, pass));
            Tensor loss = times.Time("head and loss", () =>
                objective.Sum(model.Head.Forward(model.Backbone, output, pass), new MiniBatch(rows, CPU)) / rows.Length);
            times.Time("backward", () => loss.backward());
            times.Time("optimizer", () => optimizer.Step(5e-4));
            times.Time("end of the dispose scope", scope.Dispose);
            tokens += rows.Sum(r => (long)r.Length);
        }
        times.Print(writer, "training", steps, tokens);
        times.Clear();
    }

    private static void Score(string folder, AdaptedModel model, PatchTable table, Inner inner, Times times, int steps, TextWriter writer)
    {
        Material material = Material.Read(folder, "score");
        using var off = no_grad();
        long tokens = 0;
        int[][] batches = [.. material.Batches.Where((_, i) => i % Math.Max(1, material.Batches.Count / steps) == 0)];
        for (int turn = 0; turn < 2; turn++)
        {
            tokens = 0;
            times.Clear();
            foreach (int[] numbers in batches)
            {
                Example[] rows = Array.ConvertAll(numbers, r => material.Rows[r]);
                DisposeScope scope = NewDisposeScope();
                TokenBatch batch = times.Time("batch assembly", () => MiniBatch.ToTokens(BatchArrays.Of(rows, model.Backbone.Config, 1), CPU));
                Pass pass = inner.Start(table, training: false, 0);
                BackboneOutput output = times.Time("forward, rest", () => model.Backbone.Forward(batch, pass));
                times.Time("head", () => model.Head.Forward(model.Backbone, output, pass).data<float>().ToArray());
                times.Time("end of the dispose scope", scope.Dispose);
                tokens += rows.Sum(r => (long)r.Length);
            }
        }
        times.Print(writer, "scoring", batches.Length, tokens);
    }

    /// <summary>The pass of the timed sites: what the model wears without the timing.</summary>
    private sealed class Inner(PatchTable bare)
    {
        private Pass _pass = new();

        public Pass Start(PatchTable timed, bool training, ulong seed)
        {
            _pass = new Pass(bare, training, seed);
            _pass.BeginSegment(0);
            return new Pass(timed, training, seed);
        }

        public Pass At(Pass outer)
        {
            _pass.Layout = outer.Layout;
            return _pass;
        }
    }

    private static Patch Timed(Site site, Times times, Inner inner, bool trainable)
    {
        string name = site.Role.ToString();
        return site switch
        {
            Projection p => new TimedWeight(trainable, (x, pass) => times.Time(name, () => p.Forward(x, inner.At(pass)))),
            Norm n => new TimedWeight(trainable, (x, pass) => times.Time("norms", () => n.Forward(x, inner.At(pass)))),
            Embedding e => new TimedWeight(trainable, (x, pass) => times.Time("embeddings", () => e.Forward(x, inner.At(pass)))),
            Block b => new TimedBlock((x, next, pass) => times.Time(b.Role switch
            {
                SiteRole.AttentionBlock => "attention: heads, dropout",
                SiteRole.FeedForwardBlock => "activation, dropout",
                _ => "layer, rest",
            }, () => next(x))),
            Residual r => new TimedResidual((x, y, next, pass) => times.Time("residual sums", () => next(x, y))),
            AttentionCore a => new TimedAttention((x, next, pass) => times.Time("attention core", () => next(x))),
            _ => throw new NotSupportedException($"{site}"),
        };
    }

    private sealed class TimedWeight(bool trainable, Func<Tensor, Pass, Tensor> body) : WeightPatch
    {
        public override bool Trainable => trainable;

        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => body(x, pass);
    }

    private sealed class TimedBlock(Func<Tensor, Func<Tensor, Tensor>, Pass, Tensor> body) : BlockPatch
    {
        public override bool Trainable => false;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => body(x, next, pass);
    }

    private sealed class TimedResidual(Func<Tensor, Tensor, Func<Tensor, Tensor, Tensor>, Pass, Tensor> body) : ResidualPatch
    {
        public override bool Trainable => false;

        public override Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass) => body(stream, output, next, pass);
    }

    private sealed class TimedAttention(Func<AttentionInput, Func<AttentionInput, Tensor>, Pass, Tensor> body) : AttentionPatch
    {
        public override bool Trainable => false;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass) => body(input, next, pass);
    }
}
