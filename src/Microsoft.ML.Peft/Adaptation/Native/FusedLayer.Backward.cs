// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static Microsoft.ML.Peft.Adaptation.NativeKernels;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <content>The backward pass.</content>
internal static unsafe partial class FusedLayer
{
    // The gradients of the input and of the factors, null where none was asked for.
    private static Tensor[] Backward(Call call, Tensor keptTensor, List<Tensor> tensors, Tensor? x, Tensor given)
    {
        Slice[] slices = Slices(call);
        using KernelSteps steps = KernelSteps.Take();
        using var back = new BackwardPass(call, steps, keptTensor, tensors);
        fixed (int* lengths = call.Lengths)
        {
            steps.Threads = slices.Length > 1 ? 1 : get_num_threads();
            foreach (Slice slice in slices) back.Add(slice, x is null ? null : Pointer(x), Pointer(given), lengths);
            steps.Run(slices.Length);
        }
        // Sums over all rows: a factor a thread, so that they are the same however many there are.
        steps.Threads = 1;
        Tensor[] gradients = back.Learn(x is null ? null : Pointer(x), Pointer(given));
        steps.Run(get_num_threads());
        GC.KeepAlive(keptTensor);
        GC.KeepAlive(tensors);
        GC.KeepAlive(x);
        GC.KeepAlive(given);
        return [back.Below!, .. gradients];
    }

    private ref struct BackwardPass
    {
        private readonly Call _call;
        private readonly KernelSteps _steps;
        private readonly Factors _factors;
        private readonly Kept _kept;
        private readonly Tensor _work = null!;
        private readonly float* _fed, _fedDropped, _inner, _attended, _attendedDropped, _context, _dq, _dk, _dv, _upInput, _downInput, _normed, _normedBelow;
        private readonly bool _before, _smallInner, _smallOut, _needsQueries, _needsAttention;
        private fixed long _back[Sites];

        public BackwardPass(Call call, KernelSteps steps, Tensor kept, List<Tensor> tensors)
        {
            (_call, _steps, _factors) = (call, steps, Factors.Of(call, tensors));
            var room = new Room(Pointer(kept));
            _kept = Kept.Place(call, ref room);
            // Gradients that feed products alone are written in bfloat16.
            _before = call.NormFirst;
            (_smallInner, _smallOut) = (call.SmallInner, call.Small && call.Terms[Output] is null && !_before);
            _needsQueries = call.Input || call.Trained(Query) || call.Trained(Key) || call.Trained(Value);
            _needsAttention = _needsQueries || call.Trained(Output);
            Below = call.Input ? empty([call.Batch, call.Tokens, call.Width], dtype: ScalarType.Float32) : null;
            bool own = Below is null || call.First is not null || _before;
            room = default;
            for (int turn = 0; turn < 2; turn++)
            {
                // Measured, then taken.
                if (turn == 1) room = new Room(Pointer(_work = Memory(room.Taken)));
                long rows = call.Asked * call.Width, inner = call.Asked * call.Inner;
                _fed = room.Take(rows);
                _fedDropped = _before ? null : room.Take(rows, _smallInner);
                _inner = room.Take(inner, _smallInner);
                _attended = own ? room.Take(rows) : null;
                _attendedDropped = _before ? null : room.Take(rows, _smallOut);
                _context = room.Take(rows);
                _dq = room.Take(rows);
                _dk = room.Take(call.Rows * call.Width);
                _dv = room.Take(call.Rows * call.Width);
                _upInput = call.Terms[Up] is { A: true } ? room.Take(rows) : null;
                _downInput = call.Terms[Down] is { A: true } ? room.Take(inner) : null;
                _normed = _before && call.ReadsInput ? room.Take(call.Rows * call.Width) : null;
                _normedBelow = _before && call.Input ? room.Take(call.Rows * call.Width) : null;
                for (int site = 0; site < Sites; site++)
                    if (call.Terms[site] is { } term) _back[site] = (long)room.Take(call.RowsOf(site) * term.Rank);
            }
            if (!own) _attended = Pointer(Below!);
        }

        public Tensor? Below { get; }

        public readonly void Dispose() => _work.Dispose();

        /// <summary>Writes down what a slice's rows need; <paramref name="given"/> is the gradient of the batch's output, <paramref name="x"/> its input.</summary>
        public readonly void Add(Slice slice, float* x, float* given, int* lengths)
        {
            Kept k = _kept.From(_call, slice);
            FeedForward(slice, k, given + (slice.Asked.From * _call.Width));
            if (_needsAttention) Attention(slice, k, x is null ? null : x + (slice.All.From * _call.Width), lengths);
            _steps.Next();
        }

        private readonly float* Asked(float* start, Slice slice, bool small = false) => At(start, slice.Asked.From * _call.Width, small);

        // From the layer's output to the sum behind the attention part, in _attended.
        private readonly void FeedForward(Slice slice, in Kept k, float* given)
        {
            Parts parts = _call.Parts;
            float* fed = Asked(_fed, slice), dropped = _before ? given : Asked(_fedDropped, slice, _smallInner), inner = At(_inner, slice.Asked.From * _call.Inner, _smallInner);
            if (!_before) NormBack(parts.FeedForwardNorm, slice, k.Fed, given, fed, dropped, _call.Fed, _smallInner);
            NativeProduct p = Back(Down, slice, dropped, inner, _smallInner && !_before);
            p.Slopes = 1;
            p.Activation = (int)parts.Activation;
            p.Before = k.Before;
            p.BeforeBFloat16 = p.YBFloat16 = _smallInner ? 1 : 0;
            _steps.Add([p]);
            if (_downInput is not null)
                _steps.Add(new NativeActivate { X = k.Before, Y = _downInput + (slice.Asked.From * _call.Inner), Count = slice.Asked.Count * _call.Inner, Activation = (int)parts.Activation });
            if (!_needsAttention && !_call.Trained(Up)) return;
            p = Back(Up, slice, inner, fed, _smallInner);
            p.Accumulate = _before ? 0 : 1;
            if (_needsAttention) _steps.Add([p]);
            Norm norm = _before ? parts.FeedForwardNorm : parts.AttentionNorm;
            if (_upInput is not null) _steps.Add(Norm(norm, slice.Asked, k.Attended, Asked(_upInput, slice)), backward: false);
            if (!_needsAttention) return;
            if (_before) NormBack(norm, slice.Asked, k.Attended, fed, Asked(_attended, slice), beside: given, every: 1, first: 0);
            else NormBack(norm, slice, k.Attended, fed, Asked(_attended, slice), Asked(_attendedDropped, slice, _smallOut), _call.Attended, _smallOut);
        }

        // From there to the layer's input.
        private readonly void Attention(Slice slice, in Kept k, float* x, int* lengths)
        {
            long width = _call.Width, queries = _call.Queries, all = slice.All.From * width;
            float* context = Asked(_context, slice);
            NativeProduct p = Back(Output, slice, _before ? Asked(_attended, slice) : Asked(_attendedDropped, slice, _smallOut), context, _smallOut);
            if (!_needsQueries) return;
            _steps.Add([p]);
            NativeAttention a = FusedLayer.Attention(_call, slice, k, lengths);
            float* dq = Asked(_dq, slice), dk = _dk + all, dv = _dv + all;
            (a.DOut, a.DQ, a.DK, a.DV) = (Heads(_call, context, queries), Heads(_call, dq, queries), Heads(_call, dk, _call.Tokens), Heads(_call, dv, _call.Tokens));
            _steps.Add(a, backward: true);

            Norm norm = _call.Parts.AttentionNorm;
            if (_normed is not null) _steps.Add(Norm(norm, slice.All, x, _normed + all), backward: false);
            float* start = _before ? _normedBelow : Below is null ? null : Pointer(Below), below = start is null ? null : start + all;
            NativeProduct q = Back(Query, slice, dq, below, false), key = Back(Key, slice, dk, below, false), value = Back(Value, slice, dv, below, false);
            if (below is null) return;
            float* attended = Asked(_attended, slice);
            value.Accumulate = 1;
            if (_call.First is null)
            {
                // What the stream gives lies there already; before a norm it comes after it.
                (q.Accumulate, key.Accumulate) = (_before ? 0 : 1, 1);
                _steps.Add([q, key, value]);
            }
            else
            {
                // All tokens answer; those that ask have more.
                _steps.Add([key, value]);
                q.Accumulate = 1;
                q.Y = below + _call.AskedAt;
                q.YRow = _call.AskedRow;
                q.Residual = _before ? null : attended;
                q.ResidualRow = width;
                _steps.Add([q]);
            }
            if (_before) NormBack(norm, slice.All, x, below, Pointer(Below!) + all, attended, _call.First is null ? 1 : _call.Tokens, _call.First ?? 0);
        }

        private readonly void NormBack(Norm norm, Slice slice, float* x, float* given, float* below, float* dropped, NativeDropout dropout, bool small)
        {
            NativeNorm n = Norm(norm, slice.Asked, x);
            n.DY = given;
            n.DX = below;
            n.DDropped = dropped;
            n.Dropout = dropout.From(slice.Asked.From * _call.Width);
            n.DroppedBFloat16 = small ? 1 : 0;
            _steps.Add(n, backward: true);
        }

        // The same of a norm before a part; what the stream beside it gives, row by row to every so-many-th row of it, is added.
        private readonly void NormBack(Norm norm, Stretch rows, float* x, float* given, float* below, float* beside, long every, long first)
        {
            NativeNorm n = Norm(norm, rows, x);
            n.DY = given;
            n.DX = below;
            n.Add = beside;
            n.AddEvery = every;
            n.AddFirst = first;
            _steps.Add(n, backward: true);
        }

        // dy W, with what a term's first factor gives back, through its mask.
        private readonly NativeProduct Back(int site, Slice slice, float* given, float* below, bool small)
        {
            Projection projection = _call.Parts.Projections[site];
            Stretch rows = slice.Of(site);
            var p = new NativeProduct
            {
                Rows = rows.Count,
                Out = projection.In,
                In = projection.Out,
                X = given,
                XRow = projection.Out,
                XIn = 1,
                Y = below,
                YRow = projection.In,
                XBFloat16 = small ? 1 : 0,
                Packed = _steps.Hold(projection.PackedBackward(_call.Precision)),
            };
            if (_call.Terms[site] is not { } term) return p;
            float* back = (float*)_back[site] + (rows.From * term.Rank);
            _steps.Add(Second(site, term, rows.Count, given, back) with { A = (float*)_factors.B[site], Scale = term.Scale });
            p.Beside(back, term.Rank, term.Rank, (float*)_factors.A[site], turned: true, 1);
            p.LowDropout = _call.Low[site].From(rows.From * projection.In);
            return p;
        }

        // The second factor [out, rank] beside the gradient of the site's output.
        private readonly NativeLowRank Second(int site, Term term, long rows, float* given, float* low) => new()
        {
            Rows = rows,
            In = _call.Parts.Projections[site].Out,
            Rank = term.Rank,
            X = given,
            XRow = _call.Parts.Projections[site].Out,
            ARank = 1,
            AIn = term.Rank,
            Low = low,
            LowRow = term.Rank,
        };

        /// <summary>Writes down the gradients of the factors, a program each, over all rows; <paramref name="x"/> is the layer's input, <paramref name="given"/> the gradient of its output.</summary>
        public readonly Tensor[] Learn(float* x, float* given)
        {
            if (_before) x = _normed;
            List<Tensor> gradients = [];
            for (int site = 0; site < Sites; site++)
            {
                if (_call.Terms[site] is not { } term) continue;
                long wide = _call.Parts.Projections[site].In, rows = _call.RowsOf(site);
                Tensor? first = term.A ? empty([term.Rank, wide], dtype: ScalarType.Float32) : null, second = term.B ? empty([_call.Parts.Projections[site].Out, term.Rank], dtype: ScalarType.Float32) : null;
                gradients.AddRange([first!, second!]);
                if (first is not null)
                {
                    (nint input, long row) = Input(site, x);
                    _steps.Add(
                        new NativeLowRank { Rows = rows, In = wide, Rank = term.Rank, X = (float*)input, XRow = row, A = Pointer(first), ARank = wide, AIn = 1, Low = (float*)_back[site], LowRow = term.Rank, Scale = 1, Dropout = _call.Low[site] },
                        gradient: true);
                    _steps.Next();
                }
                if (second is null) continue;
                _steps.Add(Second(site, term, rows, Given(site, given), (float*)_kept.Low[site]) with { A = Pointer(second), Scale = term.Scale }, gradient: true);
                _steps.Next();
            }
            return [.. gradients];
        }

        // Where a site's input lies, and how far its rows are apart.
        private readonly (nint Start, long Row) Input(int site, float* x) => site switch
        {
            Query => ((nint)(x + _call.AskedAt), _call.AskedRow),
            Key or Value => ((nint)x, _call.Width),
            Output => ((nint)_kept.Context, _call.Width),
            Up => ((nint)_upInput, _call.Width),
            _ => ((nint)_downInput, _call.Inner),
        };

        // The gradient of a site's output.
        private readonly float* Given(int site, float* given) => site switch
        {
            Query => _dq,
            Key => _dk,
            Value => _dv,
            Output => _before ? _attended : _attendedDropped,
            Up => _inner,
            _ => _before ? given : _fedDropped,
        };
    }
}
