// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static Microsoft.ML.Peft.Adaptation.NativeKernels;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <content>The kernels of both directions, in their order.</content>
internal static unsafe partial class FusedLayer
{
    // Pointers to the factors of each site's term.
    private struct Factors
    {
        public fixed long A[Sites], B[Sites];

        public static Factors Of(Call call, List<Tensor> tensors)
        {
            Factors factors = default;
            int at = 0;
            for (int site = 0; site < Sites; site++)
                if (call.Terms[site] is not null)
                {
                    factors.A[site] = (long)Pointer(tensors[at++]);
                    factors.B[site] = (long)Pointer(tensors[at++]);
                }
            return factors;
        }
    }

    private static Tensor Forward(Call call, Tensor x, List<Tensor> tensors, Tensor? kept)
    {
        Factors factors = Factors.Of(call, tensors);
        Room measure = default;
        if (kept is null) Kept.Place(call, ref measure);
        using Tensor? own = kept is null ? Memory(measure.Taken) : null;
        var room = new Room(Pointer(kept ?? own!));
        Kept k = Kept.Place(call, ref room);
        long rows = call.Asked * call.Width;
        bool context = k.Context is null, small = call.SmallInner;
        using Tensor work = Memory((context ? rows + 16 : 0) + rows + 16 + (call.Asked * call.Inner));
        room = new Room(Pointer(work));
        if (context) k.Context = room.Take(rows);
        if (kept is null) k.Before = k.Sums = null;
        float* attended = room.Take(rows), inner = room.Take(call.Asked * call.Inner, small), given = Pointer(x);

        long[] shape = [call.Batch, call.Asked / call.Batch, call.Width];
        Tensor y = empty(shape, dtype: ScalarType.Float32);
        NativeProduct* list = stackalloc NativeProduct[3];
        list[Query] = Product(call, Query, given + call.AskedAt, call.AskedRow, factors, ref k, k.Q);
        list[Key] = Product(call, Key, given, call.Width, factors, ref k, k.K);
        list[Value] = Product(call, Value, given, call.Width, factors, ref k, k.V);
        Run(list, 3, call.Precision, false, call.Parts.Projections);
        NativeAttention a = Attention(call, k);
        a.Out = Heads(call, k.Context, call.Asked);
        Run(call, a, Calls.AttentionForward);

        NativeProduct p = Product(call, Output, k.Context, call.Width, factors, ref k, k.Attended);
        p.Residual = given + call.AskedAt;
        p.ResidualRow = call.AskedRow;
        p.Dropout = call.Attended;
        Run(call, Output, p);
        Norm(call.Parts.AttentionNorm, call.Asked, k.Attended, attended);

        p = Product(call, Up, attended, call.Width, factors, ref k, inner);
        p.Activation = (int)call.Parts.Activation;
        p.Before = k.Before;
        p.BeforeBFloat16 = small ? 1 : 0;
        p.YBFloat16 = small ? 1 : 0;
        Run(call, Up, p);
        p = Product(call, Down, inner, call.Inner, factors, ref k, k.Fed);
        p.Residual = attended;
        p.ResidualRow = call.Width;
        p.Dropout = call.Fed;
        p.XBFloat16 = small ? 1 : 0;
        Run(call, Down, p);
        Norm(call.Parts.FeedForwardNorm, call.Asked, k.Fed, Pointer(y));
        GC.KeepAlive(x);
        GC.KeepAlive(tensors);
        return y;
    }

    // A site's product and, where it has a term, the term's first factor.
    private static NativeProduct Product(Call call, int site, float* x, long row, in Factors factors, ref Kept kept, float* y)
    {
        Projection projection = call.Parts.Projections[site];
        long rows = call.RowsOf(site);
        var p = new NativeProduct { Rows = rows, Out = projection.Out, In = projection.In, X = x, XRow = row, XIn = 1, Y = y, YRow = projection.Out, Bias = projection.Bias is { } bias ? Pointer(bias) : null };
        if (call.Terms[site] is not { } term) return p;
        float* low = (float*)kept.Low[site];
        FrozenLinear.Run(new NativeLowRank
        {
            Rows = rows,
            In = projection.In,
            Rank = term.Rank,
            X = x,
            XRow = row,
            A = (float*)factors.A[site],
            ARank = projection.In,
            AIn = 1,
            Low = low,
            LowRow = term.Rank,
            Scale = 1,
            Dropout = call.Low[site],
        });
        p.Low = low;
        p.LowRow = term.Rank;
        p.Rank = term.Rank;
        p.Up = (float*)factors.B[site];
        p.UpOut = term.Rank;
        p.UpRank = 1;
        p.Scale = term.Scale;
        return p;
    }

    private static void Run(Call call, int site, NativeProduct p) => FrozenLinear.Run(p, call.Parts.Projections[site].PackedForward(call.Precision));

    private static void Run(NativeProduct* list, int count, Precision precision, bool backward, ReadOnlySpan<Projection> sites)
    {
        Span<bool> held = stackalloc bool[count];
        var packed = new PackedWeight[count];
        try
        {
            for (int i = 0; i < count; i++)
            {
                packed[i] = backward ? sites[i].PackedBackward(precision) : sites[i].PackedForward(precision);
                packed[i].DangerousAddRef(ref held[i]);
                (list[i].Packed, list[i].Threads) = (packed[i].DangerousGetHandle(), get_num_threads());
            }
            Check(Calls.Products(list, count));
        }
        finally
        {
            for (int i = 0; i < count; i++)
                if (held[i]) packed[i].DangerousRelease();
        }
    }

    private static NativeHeads Heads(Call call, float* data, long rows) => new()
    {
        Data = data,
        Batch = rows / call.Batch * call.Width,
        Head = call.Parts.Core.HeadWidth,
        Token = call.Width,
    };

    private static NativeAttention Attention(Call call, in Kept kept) => new()
    {
        Batch = call.Batch,
        Heads = call.Parts.Core.Heads,
        KeyHeads = call.Parts.Core.Heads,
        Queries = call.Asked / call.Batch,
        Keys = call.Tokens,
        Width = call.Parts.Core.HeadWidth,
        Q = Heads(call, kept.Q, call.Asked),
        K = Heads(call, kept.K, call.Rows),
        V = Heads(call, kept.V, call.Rows),
        Scale = (float)call.Parts.Core.Scale,
        Threads = get_num_threads(),
        Dropout = call.Shares,
        Sums = kept.Sums,
    };

    private static void Run(Call call, NativeAttention a, delegate* unmanaged<NativeAttention*, int> kernel)
    {
        fixed (int* lengths = call.Lengths)
        {
            a.Lengths = lengths;
            Check(kernel(&a));
        }
    }

    private static NativeNorm Norm(Norm norm, long rows, float* x) => new()
    {
        Rows = rows,
        Width = norm.Weight.shape[0],
        X = x,
        Weight = Pointer(norm.Weight),
        Bias = norm.Bias is { } bias ? Pointer(bias) : null,
        Epsilon = (float)norm.Epsilon,
        RootMeanSquare = norm.RootMeanSquare ? 1 : 0,
        Threads = get_num_threads(),
    };

    private static void Norm(Norm norm, long rows, float* x, float* y)
    {
        NativeNorm n = Norm(norm, rows, x);
        n.Y = y;
        Check(Calls.NormForward(&n));
    }

    private static void NormBackward(Norm norm, long rows, float* x, float* given, float* below, float* dropped, NativeDropout dropout, bool small)
    {
        NativeNorm n = Norm(norm, rows, x);
        n.DY = given;
        n.DX = below;
        n.DDropped = dropped;
        n.Dropout = dropout;
        n.DroppedBFloat16 = small ? 1 : 0;
        Check(Calls.NormBackward(&n));
    }

    // The gradients of the input and of the factors, null where none was asked for.
    private static Tensor[] Backward(Call call, Tensor keptTensor, List<Tensor> tensors, Tensor? x, Tensor given)
    {
        var back = new BackwardPass(call, keptTensor, tensors, x);
        back.FeedForward(given);
        if (back.NeedsAttention) back.Attention();
        GC.KeepAlive(keptTensor);
        GC.KeepAlive(x);
        GC.KeepAlive(given);
        return [back.Below!, .. back.Gradients];
    }

    private ref struct BackwardPass
    {
        private readonly Call _call;
        private readonly Factors _factors;
        private readonly float* _x, _fed, _fedDropped, _inner, _attended, _attendedDropped, _context, _dq, _dk, _dv;
        private readonly long _width, _asked;
        private readonly bool _smallInner, _smallOut;
        private Kept _kept;
        private Room _room;

        public BackwardPass(Call call, Tensor kept, List<Tensor> tensors, Tensor? x)
        {
            (_call, _factors) = (call, Factors.Of(call, tensors));
            var room = new Room(Pointer(kept));
            _kept = Kept.Place(call, ref room);
            (_width, _asked) = (call.Width, call.Asked);
            _x = x is null ? null : Pointer(x);
            // Gradients that feed products alone are written in bfloat16.
            (_smallInner, _smallOut) = (call.SmallInnerGradients, call.SmallGradients && call.Terms[Output] is null);
            NeedsQueries = call.Input || call.Trained(Query) || call.Trained(Key) || call.Trained(Value);
            NeedsAttention = NeedsQueries || call.Trained(Output);
            Below = call.Input ? empty([call.Batch, call.Tokens, call.Width], dtype: ScalarType.Float32) : null;
            long rows = (call.Asked * call.Width) + 16, all = (call.Rows * call.Width) + 16;
            long back = call.Terms.Select((t, site) => t is null ? 0 : (call.RowsOf(site) * t.Rank) + 16).Sum();
            bool own = Below is null || call.First is not null;
            Tensor work = Memory((5 * rows) + (own ? rows : 0) + (2 * all) + (call.Asked * call.Inner) + 16 + back + (call.Terms[Up] is { A: true } ? rows : 0) + (call.Terms[Down] is { A: true } ? (call.Asked * call.Inner) + 16 : 0));
            _room = new Room(Pointer(work));
            _fed = _room.Take(rows);
            _fedDropped = _room.Take(_asked * _width, _smallInner);
            _inner = _room.Take(_asked * call.Inner, _smallInner);
            _attended = own ? _room.Take(rows) : Pointer(Below!);
            _attendedDropped = _room.Take(_asked * _width, _smallOut);
            _context = _room.Take(_asked * _width);
            _dq = _room.Take(_asked * _width);
            _dk = _room.Take(call.Rows * _width);
            _dv = _room.Take(call.Rows * _width);
            Gradients = [.. tensors.Select(_ => (Tensor)null!)];
        }

        public bool NeedsQueries { get; }

        public bool NeedsAttention { get; }

        public Tensor? Below { get; }

        public Tensor[] Gradients { get; }

        // From the layer's output to the sum before the attention part's norm, in _attended.
        public void FeedForward(Tensor given)
        {
            NormBackward(_call.Parts.FeedForwardNorm, _asked, _kept.Fed, Pointer(given), _fed, _fedDropped, _call.Fed, _smallInner);
            NativeProduct p = Back(Down, _fedDropped, _inner, _smallInner);
            p.Slopes = 1;
            p.Activation = (int)_call.Parts.Activation;
            p.Before = _kept.Before;
            p.BeforeBFloat16 = _call.SmallInner ? 1 : 0;
            p.YBFloat16 = _smallInner ? 1 : 0;
            FrozenLinear.Run(p, _call.Parts.Projections[Down].PackedBackward(_call.Gradients));
            if (_call.Terms[Down] is { A: true })
            {
                float* inner = _room.Take(_asked * _call.Inner);
                Check(Calls.ActivationForward(_kept.Before, inner, _asked * _call.Inner, (int)_call.Parts.Activation, get_num_threads()));
                Learn(Down, inner, _call.Inner, _fedDropped, (float*)p.Low);
            }
            else
            {
                Learn(Down, null, 0, _fedDropped, p.Low);
            }
            if (!NeedsAttention && !_call.Trained(Up)) return;
            p = Back(Up, _inner, _fed, _smallInner);
            p.Accumulate = 1;
            if (NeedsAttention) FrozenLinear.Run(p, _call.Parts.Projections[Up].PackedBackward(_call.Gradients));
            float* attended = null;
            if (_call.Terms[Up] is { A: true }) Norm(_call.Parts.AttentionNorm, _asked, _kept.Attended, attended = _room.Take(_asked * _width));
            Learn(Up, attended, _width, _inner, p.Low);
            if (NeedsAttention) NormBackward(_call.Parts.AttentionNorm, _asked, _kept.Attended, _fed, _attended, _attendedDropped, _call.Attended, _smallOut);
        }

        // From there to the layer's input.
        public void Attention()
        {
            NativeProduct p = Back(Output, _attendedDropped, _context, _smallOut);
            if (NeedsQueries) FrozenLinear.Run(p, _call.Parts.Projections[Output].PackedBackward(_call.Gradients));
            Learn(Output, _kept.Context, _width, _attendedDropped, p.Low);
            if (!NeedsQueries) return;
            NativeAttention a = FusedLayer.Attention(_call, _kept);
            (a.DOut, a.DQ, a.DK, a.DV) = (Heads(_call, _context, _asked), Heads(_call, _dq, _asked), Heads(_call, _dk, _call.Rows), Heads(_call, _dv, _call.Rows));
            Run(_call, a, Calls.AttentionBackward);

            float* below = Below is null ? null : Pointer(Below);
            NativeProduct* list = stackalloc NativeProduct[3];
            NativeProduct q = Back(Query, _dq, below, false), k = Back(Key, _dk, below, false), v = Back(Value, _dv, below, false);
            Projection[] sites = _call.Parts.Projections;
            if (Below is not null)
            {
                (q.Accumulate, v.Accumulate) = (1, 1);
                k.Accumulate = _call.First is null ? 1 : 0;
                if (_call.First is null)
                {
                    (list[0], list[1], list[2]) = (q, k, v);
                    Run(list, 3, _call.Gradients, true, sites);
                }
                else
                {
                    // All tokens answer; those that ask have more.
                    (list[0], list[1]) = (k, v);
                    Run(list, 2, _call.Gradients, true, [sites[Key], sites[Value]]);
                    q.Y = below + _call.AskedAt;
                    q.YRow = _call.AskedRow;
                    q.Residual = _attended;
                    q.ResidualRow = _width;
                    FrozenLinear.Run(q, sites[Query].PackedBackward(_call.Gradients));
                }
            }
            Learn(Query, _x is null ? null : _x + _call.AskedAt, _call.AskedRow, _dq, q.Low);
            Learn(Key, _x, _width, _dk, k.Low);
            Learn(Value, _x, _width, _dv, v.Low);
        }

        // dy W, with what a term's first factor gives back, through its mask.
        private NativeProduct Back(int site, float* given, float* below, bool small)
        {
            Projection projection = _call.Parts.Projections[site];
            long rows = _call.RowsOf(site);
            var p = new NativeProduct { Rows = rows, Out = projection.In, In = projection.Out, X = given, XRow = projection.Out, XIn = 1, Y = below, YRow = projection.In, XBFloat16 = small ? 1 : 0 };
            if (_call.Terms[site] is not { } term) return p;
            float* back = _room.Take(rows * term.Rank);
            FrozenLinear.Run(Given(site, term, given, back) with { A = (float*)_factors.B[site], Scale = term.Scale });
            p.Low = back;
            p.LowRow = term.Rank;
            p.Rank = term.Rank;
            p.Up = (float*)_factors.A[site];
            p.UpOut = 1;
            p.UpRank = projection.In;
            p.Scale = 1;
            p.LowDropout = _call.Low[site];
            return p;
        }

        // The second factor [out, rank] beside the gradient of the site's output.
        private readonly NativeLowRank Given(int site, Term term, float* given, float* low) => new()
        {
            Rows = _call.RowsOf(site),
            In = _call.Parts.Projections[site].Out,
            Rank = term.Rank,
            X = given,
            XRow = _call.Parts.Projections[site].Out,
            ARank = 1,
            AIn = term.Rank,
            Low = low,
            LowRow = term.Rank,
        };

        // Gradients of a term's factors, of the site's input and of what came back.
        private void Learn(int site, float* x, long row, float* given, float* back)
        {
            if (_call.Terms[site] is not { } term) return;
            Projection projection = _call.Parts.Projections[site];
            int at = 2 * _call.Terms.Take(site).Count(t => t is not null);
            if (term.A)
            {
                Tensor first = Gradients[at] = empty([term.Rank, projection.In], dtype: ScalarType.Float32);
                FrozenLinear.Run(new NativeLowRank { Rows = _call.RowsOf(site), In = projection.In, Rank = term.Rank, X = x, XRow = row, A = Pointer(first), ARank = projection.In, AIn = 1, Low = back, LowRow = term.Rank, Scale = 1, Dropout = _call.Low[site] }, gradient: true);
            }
            if (!term.B) return;
            Tensor second = Gradients[at + 1] = empty([projection.Out, term.Rank], dtype: ScalarType.Float32);
            FrozenLinear.Run(Given(site, term, given, (float*)_kept.Low[site]) with { A = Pointer(second), Scale = term.Scale }, gradient: true);
        }
    }
}
