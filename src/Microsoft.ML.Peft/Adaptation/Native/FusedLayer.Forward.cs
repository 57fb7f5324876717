// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static Microsoft.ML.Peft.Adaptation.NativeKernels;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <content>The forward pass, and what both directions share: kernels in their order, written down for each slice of the batch, then run side by side.</content>
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
        Room measure = default;
        if (kept is null) Kept.Place(call, ref measure);
        using Tensor? own = kept is null ? Memory(measure.Taken) : null;
        var room = new Room(Pointer(kept ?? own!));
        Kept k = Kept.Place(call, ref room);
        long rows = call.Asked * call.Width;
        bool context = k.Context is null;
        long normed = call.NormFirst ? call.Rows * call.Width : 0;
        using Tensor work = Memory((context ? rows + 16 : 0) + normed + 16 + rows + 16 + (call.Asked * call.Inner));
        room = new Room(Pointer(work));
        if (context) k.Context = room.Take(rows);
        if (kept is null) k.Before = k.Sums = null;
        Tensor y = empty([call.Batch, call.Queries, call.Width], dtype: ScalarType.Float32);

        Slice[] slices = Slices(call);
        using KernelSteps steps = KernelSteps.Take();
        fixed (int* lengths = call.Lengths)
        {
            var pass = new ForwardPass(call, steps, lengths, Factors.Of(call, tensors))
            {
                Given = Pointer(x),
                Normed = call.NormFirst ? room.Take(normed) : null,
                Attended = room.Take(rows),
                Inner = room.Take(call.Asked * call.Inner, call.SmallInner),
                Y = Pointer(y),
            };
            steps.Threads = slices.Length > 1 ? 1 : get_num_threads();
            foreach (Slice slice in slices) pass.Add(slice, k.From(call, slice));
            steps.Run(slices.Length);
        }
        GC.KeepAlive(x);
        GC.KeepAlive(tensors);
        return y;
    }

    private readonly ref struct ForwardPass(Call call, KernelSteps steps, int* lengths, Factors factors)
    {
        public float* Given { get; init; }

        public float* Normed { get; init; }

        public float* Attended { get; init; }

        public float* Inner { get; init; }

        public float* Y { get; init; }

        // Pointers of `k` are the slice's, those above the batch's.
        public void Add(Slice slice, Kept k)
        {
            Parts parts = call.Parts;
            long width = call.Width, rows = slice.Asked.From * width;
            bool small = call.SmallInner, before = parts.NormFirst;
            float* given = Given + (slice.All.From * width), attended = Attended + rows, inner = At(Inner, slice.Asked.From * call.Inner, small);
            float* read = before ? Normed + (slice.All.From * width) : given;
            if (before) steps.Add(Norm(parts.AttentionNorm, slice.All, given, read), backward: false);
            ReadOnlySpan<NativeProduct> asked =
            [
                Product(Query, slice, read + call.AskedAt, call.AskedRow, k, k.Q),
                Product(Key, slice, read, width, k, k.K),
                Product(Value, slice, read, width, k, k.V),
            ];
            steps.Add(asked);
            NativeAttention a = Attention(call, slice, k, lengths);
            a.Out = Heads(call, k.Context, call.Queries);
            steps.Add(a, backward: false);

            NativeProduct p = Product(Output, slice, k.Context, width, k, k.Attended);
            p.Residual = given + call.AskedAt;
            p.ResidualRow = call.AskedRow;
            p.Dropout = call.Attended.From(rows);
            steps.Add([p]);
            steps.Add(Norm(before ? parts.FeedForwardNorm : parts.AttentionNorm, slice.Asked, k.Attended, attended), backward: false);

            p = Product(Up, slice, attended, width, k, inner);
            p.Activation = (int)parts.Activation;
            p.Before = k.Before;
            p.BeforeBFloat16 = p.YBFloat16 = small ? 1 : 0;
            steps.Add([p]);
            p = Product(Down, slice, inner, call.Inner, k, before ? Y + rows : k.Fed);
            p.Residual = before ? k.Attended : attended;
            p.ResidualRow = width;
            p.Dropout = call.Fed.From(rows);
            p.XBFloat16 = small ? 1 : 0;
            steps.Add([p]);
            if (!before) steps.Add(Norm(parts.FeedForwardNorm, slice.Asked, k.Fed, Y + rows), backward: false);
            steps.Next();
        }

        // A site's product; where it has a term, the term's first factor comes before it.
        private NativeProduct Product(int site, Slice slice, float* x, long row, in Kept k, float* y)
        {
            Projection projection = call.Parts.Projections[site];
            Stretch rows = slice.Of(site);
            var p = new NativeProduct
            {
                Rows = rows.Count,
                Out = projection.Out,
                In = projection.In,
                X = x,
                XRow = row,
                XIn = 1,
                Y = y,
                YRow = projection.Out,
                Bias = projection.Bias is { } bias ? Pointer(bias) : null,
                Packed = steps.Hold(projection.PackedForward(call.Precision)),
            };
            if (call.Terms[site] is not { } term) return p;
            float* low = (float*)k.Low[site];
            steps.Add(new NativeLowRank
            {
                Rows = rows.Count,
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
                Dropout = call.Low[site].From(rows.From * projection.In),
            });
            p.Beside(low, term.Rank, term.Rank, (float*)factors.B[site], turned: false, term.Scale);
            return p;
        }
    }

    private static NativeHeads Heads(Call call, float* data, long tokens) => new()
    {
        Data = data,
        Batch = tokens * call.Width,
        Head = call.Parts.Core.HeadWidth,
        Token = call.Width,
    };

    private static NativeAttention Attention(Call call, Slice slice, in Kept kept, int* lengths)
    {
        long queries = call.Queries, heads = call.Parts.Core.Heads;
        return new NativeAttention
        {
            Batch = slice.Batch,
            Heads = heads,
            KeyHeads = heads,
            Queries = queries,
            Keys = call.Tokens,
            Width = call.Parts.Core.HeadWidth,
            Q = Heads(call, kept.Q, queries),
            K = Heads(call, kept.K, call.Tokens),
            V = Heads(call, kept.V, call.Tokens),
            Lengths = lengths is null ? null : lengths + slice.From,
            Scale = (float)call.Parts.Core.Scale,
            Dropout = call.Shares.From(slice.From * heads * queries * call.Tokens),
            Sums = kept.Sums,
        };
    }

    private static NativeNorm Norm(Norm norm, Stretch rows, float* x, float* y = null) => new()
    {
        Rows = rows.Count,
        Width = norm.Weight.shape[0],
        X = x,
        Y = y,
        Weight = Pointer(norm.Weight),
        Bias = norm.Bias is { } bias ? Pointer(bias) : null,
        Epsilon = (float)norm.Epsilon,
        RootMeanSquare = norm.RootMeanSquare ? 1 : 0,
    };
}
