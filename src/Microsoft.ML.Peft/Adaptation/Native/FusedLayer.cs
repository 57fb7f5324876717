// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static Microsoft.ML.Peft.Adaptation.NativeKernels;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A layer of an encoder as one node of the graph, where nothing is worn but low-rank terms at projections: post-norm,
/// <c>a = LN(x + out(attention(x)))</c>, <c>LN(a + down(act(up a)))</c>, or pre-norm, <c>a = x + out(attention(LN x))</c>, <c>a + down(act(up(LN a)))</c>. The sums, products and dropped entries are those of the parts run one by one;
/// gradients of one tensor are added up in place, nothing is kept that can be made again, and what only feeds products in bfloat16
/// is written in it.
/// </summary>
internal static unsafe partial class FusedLayer
{
    private const int Query = 0, Key = 1, Value = 2, Output = 3, Up = 4, Down = 5, Sites = 6;

    /// <summary>The frozen parts of a layer.</summary>
    /// <param name="Projections">Query, key, value, attention output, feed-forward up and down.</param>
    /// <param name="AttentionNorm">The norm of the attention part.</param>
    /// <param name="FeedForwardNorm">The norm of the feed-forward part.</param>
    /// <param name="Core">Attention by heads.</param>
    /// <param name="Activation">The feed-forward part's activation.</param>
    /// <param name="AttentionDropout">Dropout of the shares while training.</param>
    /// <param name="HiddenDropout">Dropout of both parts' outputs while training; a pre-norm layer must have none.</param>
    /// <param name="Bare">Sites that must wear nothing.</param>
    /// <param name="NormFirst">True for a pre-norm layer: each norm stands before its part, and the stream runs beside both.</param>
    internal sealed record Parts(
        Projection[] Projections, Norm AttentionNorm, Norm FeedForwardNorm, AttentionCore Core, ActivationKind Activation,
        double AttentionDropout, double HiddenDropout, Site[] Bare, bool NormFirst = false);

    /// <summary>The layer's output <c>[batch, tokens, hidden]</c>; null where the parts have to run one by one.</summary>
    /// <param name="parts">The layer.</param>
    /// <param name="x">Input <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="first">True to make each row's first token alone, <c>[batch, 1, hidden]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    public static Tensor? Apply(Parts parts, Tensor x, bool first, Pass pass)
    {
        if (!Fits(parts, x, pass) || !Padding(x, pass, out int[]? lengths)) return null;
        var terms = new LowRankTerm?[Sites];
        for (int site = 0; site < Sites; site++)
            if (pass.Patches[parts.Projections[site]] is WeightPatch patch)
            {
                IReadOnlyList<LowRankTerm> own = patch.Terms(pass);
                if (own.Count == 0) continue;
                if (!FrozenLinear.Fits(own, pass)) return null;
                terms[site] = FrozenLinear.Joined(own);
            }
        x = Contiguous(x);
        Call call = Of(parts, x, first, lengths, terms, pass);
        List<Tensor> factors = [];
        for (int site = 0; site < Sites; site++)
            if (terms[site] is { } term) factors.AddRange([Contiguous(term.A), Contiguous(term.B)]);
        if (is_grad_enabled() && (x.requires_grad || factors.Any(f => f.requires_grad))) return Function.apply([call, x, .. factors]);
        return Forward(call, x, factors, null);
    }

    private static bool Fits(Parts parts, Tensor x, Pass pass)
    {
        if (!On || !pass.CanKey(0.5) || parts.Activation == ActivationKind.None) return false;
        if (x.ndim != 3 || !NativeKernels.Fits(x)) return false;
        Precision precision = FrozenLinear.Usable(pass.Precision, parts.Projections[Query]);
        foreach (Site site in parts.Bare)
            if (pass.Patches[site] is not null) return false;
        if (!Frozen(parts.AttentionNorm) || !Frozen(parts.FeedForwardNorm)) return false;
        foreach (Projection site in parts.Projections)
        {
            if (!FrozenLinear.Fits(site, x, site.Bias) || site.Bias is { requires_grad: true }) return false;
            if (FrozenLinear.Usable(pass.Precision, site) != precision || site.Bias is { } bias && !bias.is_contiguous()) return false;
            if (pass.Patches[site] is not { } patch) continue;
            if (patch is not WeightPatch { Form: PatchForm.LowRank } worn || !ReferenceEquals(worn.RewriteBias(site.Bias, pass), site.Bias)) return false;
        }
        return x.shape[0] * x.shape[1] * parts.Projections[Up].Out <= int.MaxValue / sizeof(float);
    }

    private static bool Frozen(Norm norm) => !norm.OverTime && Frozen(norm.Weight) && (norm.Bias is null || Frozen(norm.Bias));

    private static bool Frozen(Tensor numbers) => Lies(numbers) && !numbers.requires_grad;

    // False where padding stands elsewhere than at the rows' ends.
    private static bool Padding(Tensor x, Pass pass, out int[]? lengths)
    {
        lengths = null;
        if (pass.Layout.KeyBias(ScalarType.Float32) is not { } bias) return true;
        lengths = pass.Layout.LengthsOf(bias);
        return lengths is not null && lengths.Length == x.shape[0] && pass.Layout.Tokens == x.shape[1];
    }

    // Masks are drawn in the order in which the parts would draw them.
    private static readonly int[] _postNorm = [Query, Key, Value, Output, Up, Down], _preNorm = [Key, Value, Query, Output, Up, Down];

    private static Call Of(Parts parts, Tensor x, bool first, int[]? lengths, LowRankTerm?[] terms, Pass pass)
    {
        bool graph = is_grad_enabled();
        var call = new Call
        {
            Parts = parts,
            Precision = FrozenLinear.Usable(pass.Precision, parts.Projections[Query]),
            Lengths = lengths,
            Batch = x.shape[0],
            Tokens = x.shape[1],
            First = first ? pass.Layout.First : null,
            Input = graph && x.requires_grad,
        };
        int[] order = parts.NormFirst ? _preNorm : _postNorm;
        foreach (int site in order)
        {
            if (terms[site] is { } term)
            {
                call.Terms[site] = new(term.A.shape[0], (float)term.Scale, graph && term.A.requires_grad, graph && term.B.requires_grad);
                call.Low[site] = pass.Mask(term.Dropout);
            }
            if (site == order[2]) call.Shares = pass.Mask(parts.AttentionDropout);
            if (site == Output) call.Attended = pass.Mask(parts.HiddenDropout);
            if (site == Down) call.Fed = pass.Mask(parts.HiddenDropout);
        }
        return call;
    }

    // What is known of a site's low-rank term beside its factors.
    private sealed record Term(long Rank, float Scale, bool A, bool B)
    {
        public bool Trained => A || B;
    }

    private sealed class Call
    {
        public required Parts Parts { get; init; }
        public Precision Precision { get; init; }
        public int[]? Lengths { get; init; }
        public long Batch { get; init; }
        public long Tokens { get; init; }
        public long? First { get; init; }
        public bool Input { get; init; }
        public Term?[] Terms { get; } = new Term?[Sites];
        public NativeDropout[] Low { get; } = new NativeDropout[Sites];
        public NativeDropout Shares { get; set; }
        public NativeDropout Attended { get; set; }
        public NativeDropout Fed { get; set; }

        public long Rows => Batch * Tokens;

        /// <summary>Rows that ask: all, or each row's first token.</summary>
        public long Asked => First is null ? Rows : Batch;

        /// <summary>From one asking token of the input to the next, and to the first of them.</summary>
        public long AskedRow => First is null ? Width : Tokens * Width;

        public long AskedAt => (First ?? 0) * Width;

        public long RowsOf(int site) => site is Key or Value ? Rows : Asked;

        public long Width => Parts.Projections[Up].In;

        public long Inner => Parts.Projections[Up].Out;

        /// <summary>Tokens that ask, of each row.</summary>
        public long Queries => Asked / Batch;

        /// <summary>True where what feeds frozen products alone is written in bfloat16.</summary>
        public bool Small => Precision == Precision.BFloat16 && (Width | Inner) % 2 == 0;

        /// <summary>The same inside of the feed-forward part, where low-rank factors may read: the activation's argument and result, all gradients.</summary>
        public bool SmallInner => Small && Terms[Up] is null && Terms[Down] is null;

        public bool Trained(int site) => Terms[site] is { Trained: true };

        public bool NormFirst => Parts.NormFirst;

        /// <summary>True where the backward pass reads the layer's input.</summary>
        public bool KeepsInput => ReadsInput || (NormFirst && Input);

        public bool ReadsInput => Terms[Query] is { A: true } || Terms[Key] is { A: true } || Terms[Value] is { A: true };
    }

    /// <summary>Some rows of a matrix.</summary>
    private readonly record struct Stretch(long From, long Count);

    /// <summary>Some of a batch's rows: what one thread computes of a layer by itself.</summary>
    private readonly record struct Slice(long From, long Batch, Stretch Asked, Stretch All)
    {
        public Stretch Of(int site) => site is Key or Value ? All : Asked;
    }

    // A slice a thread where they are about even; else one, in which the threads share each product.
    private static Slice[] Slices(Call call)
    {
        const long Least = 16;   // tokens
        long threads = Math.Min(get_num_threads(), call.Batch), most = (call.Batch + threads - 1) / threads;
        if (call.Rows < Least * threads || 8 * most * threads > 9 * call.Batch) threads = 1;
        long queries = call.Queries, from = 0;
        var slices = new Slice[threads];
        for (int i = 0; i < threads; i++)
        {
            long batch = (call.Batch - from) / (threads - i);
            slices[i] = new Slice(from, batch, new(from * queries, batch * queries), new(from * call.Tokens, batch * call.Tokens));
            from += batch;
        }
        return slices;
    }

    /// <summary>A stretch of memory, taken piece by piece; from null, how much it has to be.</summary>
    private ref struct Room(float* start)
    {
        private float* _next = start;

        public readonly long Taken => (long)_next / sizeof(float);

        public float* Take(long floats)
        {
            float* taken = _next;
            _next += (floats + 15) / 16 * 16;
            return taken;
        }

        public float* Take(long count, bool small) => Take(small ? (count + 1) / 2 : count);
    }

    /// <summary>What the backward pass reads, in one tensor.</summary>
    private struct Kept
    {
        public float* Q, K, V, Sums, Context, Attended, Before, Fed;
        public fixed long Low[Sites];

        public static Kept Place(Call call, ref Room room)
        {
            var kept = new Kept
            {
                Q = room.Take(call.Asked * call.Width),
                K = room.Take(call.Rows * call.Width),
                V = room.Take(call.Rows * call.Width),
                Sums = room.Take(2 * call.Asked * call.Parts.Core.Heads),
                Context = call.Terms[Output] is { A: true } ? room.Take(call.Asked * call.Width) : null,
                Attended = room.Take(call.Asked * call.Width),
                Before = room.Take(call.Asked * call.Inner, call.SmallInner),
                Fed = call.NormFirst ? null : room.Take(call.Asked * call.Width),
            };
            for (int site = 0; site < Sites; site++)
                if (call.Terms[site] is { } term) kept.Low[site] = (long)room.Take(call.RowsOf(site) * term.Rank);
            return kept;
        }

        /// <summary>The same from a slice's first row on.</summary>
        public readonly Kept From(Call call, Slice slice)
        {
            long asked = slice.Asked.From, all = slice.All.From;
            Kept part = this;
            part.Q += asked * call.Width;
            part.K += all * call.Width;
            part.V += all * call.Width;
            part.Attended += asked * call.Width;
            if (Fed is not null) part.Fed += asked * call.Width;
            if (Sums is not null) part.Sums += 2 * asked * call.Parts.Core.Heads;
            if (Context is not null) part.Context += asked * call.Width;
            if (Before is not null) part.Before = At(Before, asked * call.Inner, call.SmallInner);
            for (int site = 0; site < Sites; site++)
                if (call.Terms[site] is { } term) part.Low[site] += slice.Of(site).From * term.Rank * sizeof(float);
            return part;
        }
    }

    // So many entries on; two of them in a float's place where they are small.
    private static float* At(float* start, long entries, bool small) => small ? (float*)((ushort*)start + entries) : start + entries;

    private static Tensor Memory(long floats) => empty([Math.Max(1, floats)], dtype: ScalarType.Float32);

    private sealed class Function : autograd.SingleTensorFunction<Function>
    {
        public override string Name => nameof(FusedLayer);

        public override Tensor forward(autograd.AutogradContext ctx, params object[] vars)
        {
            var (call, x) = ((Call)vars[0], (Tensor)vars[1]);
            List<Tensor> factors = [.. vars[2..].Cast<Tensor>()];
            Room measure = default;
            Kept.Place(call, ref measure);
            Tensor kept = Memory(measure.Taken);
            Tensor y = Forward(call, x, factors, kept);
            ctx.save_data("call", call);
            ctx.save_for_backward(call.KeepsInput ? [kept, .. factors, x] : [kept, .. factors]);
            return y;
        }

        public override List<Tensor> backward(autograd.AutogradContext ctx, Tensor grad_output)
        {
            using var scope = NewDisposeScope();
            var call = (Call)ctx.get_data("call")!;
            List<Tensor> saved = ctx.get_saved_variables();
            int count = 2 * call.Terms.Count(t => t is not null);
            List<Tensor> results = [null!, .. Backward(call, saved[0], saved.GetRange(1, count), call.KeepsInput ? saved[^1] : null, Contiguous(grad_output))];
            foreach (Tensor result in results)
                if (result is not null) scope.MoveToOuter(result);
            return results;
        }
    }
}
