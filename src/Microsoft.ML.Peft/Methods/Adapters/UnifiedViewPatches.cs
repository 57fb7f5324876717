// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Places and patches of the unified view's points.</summary>
internal static class UnifiedPlaces
{
    private const double NormEpsilon = 1e-5;

    public static IReadOnlyList<AttentionCore> Cores(Backbone backbone)
    {
        AttentionCore[] cores = [.. backbone.Sites.OfType<AttentionCore>().Where(c => c.Role == SiteRole.AttentionCore)];
        return cores.Length > 0 && !cores.Any(c => c.Windowed) ? cores
            : throw new ArgumentException($"A {backbone.Config.ModelType} backbone has no attention over all tokens, which this target changes; choose FeedForwardOutput, or lora.");
    }

    public static IReadOnlyList<Block> Blocks(Backbone backbone, UnifiedTarget target)
    {
        SiteRole role = target == UnifiedTarget.FeedForwardOutput ? SiteRole.FeedForwardBlock : SiteRole.AttentionBlock;
        Block[] blocks = [.. backbone.Sites.OfType<Block>().Where(b => b.Role == role)];
        return blocks.Length > 0 ? blocks : throw new ArgumentException($"A {backbone.Config.ModelType} backbone has no part of the kind {target}; choose another target, or lora.");
    }

    private static T At<T>(Backbone backbone, SiteRole role, int layer) where T : Site => backbone.Sites.OfType<T>().First(s => s.Role == role && s.Layer == layer);

    private static Func<Tensor, Tensor> Norm(UnifiedViewOptions options, string path, long width, Func<string, Func<Draws, Tensor>, NamedParameter> add)
    {
        if (!options.NormBefore) return x => x;
        NamedParameter weight = add($"{path}.norm.weight", _ => ones([width])), bias = add($"{path}.norm.bias", _ => zeros([width]));
        return x => nn.functional.layer_norm(x, [width], weight.Value, bias.Value, NormEpsilon);
    }

    private static Func<Tensor, Tensor> Scaled(UnifiedViewOptions options, string path, Func<string, Func<Draws, Tensor>, NamedParameter> add)
    {
        if (!options.LearnedScale) return y => options.Scale == 1 ? y : y * options.Scale;
        NamedParameter scale = add($"{path}.scale", _ => ones([1]));
        return y => y * scale.Value;
    }

    private static Tensor Activate(UnifiedFunction function, Tensor x) => function switch
    {
        UnifiedFunction.Relu => x.relu(),
        UnifiedFunction.Gelu => nn.functional.gelu(x),
        _ => x,
    };

    /// <summary>Bottlenecks at attention and feed-forward parts.</summary>
    public static void AttachBottlenecks(UnifiedViewOptions options, PeftAdaptation adaptation, Func<string, Func<Draws, Tensor>, NamedParameter> add)
    {
        Backbone backbone = adaptation.Backbone;
        long r = options.Bottleneck;
        bool attention = options.Target == UnifiedTarget.AttentionOutput, sequential = options.Insertion == UnifiedInsertion.Sequential;
        foreach (Block block in Blocks(backbone, options.Target))
        {
            string path = $"{backbone.PathOf(block)}.unified";
            (long d, long wide) = (backbone.WidthAt(block.Layer), options.Wide(backbone, block.Layer));
            Func<Tensor, Tensor> norm = Norm(options, path, d, add), scale = Scaled(options, path, add);
            NamedParameter downWeight = add($"{path}.down.weight", draws => options.First(draws, r, d)), downBias = add($"{path}.down.bias", _ => zeros([r]));
            NamedParameter upWeight = add($"{path}.up.weight", draws => options.Second(draws, wide, r)), upBias = add($"{path}.up.bias", _ => zeros([wide]));
            Tensor Change(Tensor x)
            {
                Tensor low = nn.functional.linear(norm(x.to_type(ScalarType.Float32)), downWeight.Value, downBias.Value);
                return scale(nn.functional.linear(Activate(options.Function, low), upWeight.Value, upBias.Value)).to_type(x.dtype);
            }
            if (attention && !sequential)
            {
                var input = new InputPatch();
                adaptation.Attach(block, input);
                adaptation.Attach(At<Projection>(backbone, SiteRole.AttentionOutput, block.Layer), new InFrontPatch(input, Change));
            }
            else if (options.ReadsNormed) adaptation.Attach(block, new BesidePatch(Change));
            else adaptation.Attach(At<Residual>(backbone, attention ? SiteRole.AttentionResidual : SiteRole.FeedForwardResidual, block.Layer), new JoinPatch(sequential, Change));
        }
    }

    /// <summary>Learned keys and values at each head.</summary>
    public static void AttachHeads(UnifiedViewOptions options, PeftAdaptation adaptation, Func<string, Func<Draws, Tensor>, NamedParameter> add)
    {
        Backbone backbone = adaptation.Backbone;
        foreach (AttentionCore core in Cores(backbone))
        {
            long d = backbone.WidthAt(core.Layer);
            Block block = At<Block>(backbone, SiteRole.AttentionBlock, core.Layer);
            string path = $"{backbone.PathOf(block)}.unified";
            Func<Tensor, Tensor>? norm = options.NormBefore ? Norm(options, path, d, add) : null;
            Func<Tensor, Tensor> scale = Scaled(options, path, add);
            NamedParameter key = add($"{path}.key", draws => options.First(draws, core.Heads, options.Bottleneck, core.HeadWidth));
            NamedParameter value = add($"{path}.value", draws => options.Second(draws, core.Heads, options.Bottleneck, core.HeadWidth));
            InputPatch? input = norm is null ? null : new InputPatch();
            if (input is not null) adaptation.Attach(block, input);
            Projection query = backbone.Sites.OfType<Projection>().First(p => p.Layer == core.Layer && p.Role is SiteRole.Query or SiteRole.QueryKeyValue);
            // With a norm of its own the change asks by the frozen map of what that norm gives.
            Tensor Queries(AttentionInput a, Pass pass)
            {
                if (input is null) return a.Query;
                Tensor x = input.Read(pass);
                Tensor asking = norm!(x.to_type(ScalarType.Float32)).to_type(x.dtype);
                return Heads.Split(query.Forward(asking, null, pass).narrow(-1, 0, core.Heads * core.HeadWidth), core);
            }
            adaptation.Attach(core, new HeadPatch(options, core, key, value, Queries, scale));
        }
    }
}

/// <summary>Leaves what a part reads in the pass, for patches inside of it.</summary>
internal sealed class InputPatch : BlockPatch
{
    private sealed record Key(InputPatch Patch, int Layer, int Group);

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
    {
        pass.Once(new Key(this, pass.Layer, pass.Group), () => x);
        return next(x);
    }

    public Tensor Read(Pass pass) =>
        pass.Once<Tensor>(new Key(this, pass.Layer, pass.Group), () => throw new InvalidOperationException("A patch of the attention ran outside of its attention part."));
}

/// <summary>A change of what enters the output projection, by what the attention part reads.</summary>
internal sealed class InFrontPatch(InputPatch input, Func<Tensor, Tensor> change) : WeightPatch
{
    public override PatchForm Form => PatchForm.Around;

    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => next(x + change(input.Read(pass)));
}

/// <summary>A change beside a part that reads what the part reads.</summary>
internal sealed class BesidePatch(Func<Tensor, Tensor> change) : BlockPatch
{
    public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass) => next(x) + change(x);
}

/// <summary>A change of a part's output, by that output or by the stream.</summary>
internal sealed class JoinPatch(bool sequential, Func<Tensor, Tensor> change) : ResidualPatch
{
    public override Tensor Around(Tensor stream, Tensor output, Func<Tensor, Tensor, Tensor> next, Pass pass) =>
        next(stream, output + change(sequential ? output : stream));
}

/// <summary>A change of each head's output by learned keys and values.</summary>
internal sealed class HeadPatch(
    UnifiedViewOptions options, AttentionCore core, NamedParameter key, NamedParameter value, Func<AttentionInput, Pass, Tensor> queries, Func<Tensor, Tensor> scale) : AttentionPatch
{
    public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
    {
        Tensor heads = next(input), query = queries(input, pass).to_type(ScalarType.Float32);
        Tensor scores = query.matmul(key.Value.transpose(1, 2));                                     // [batch, heads, tokens, r]
        if (options.Function != UnifiedFunction.SoftmaxKv)
        {
            if (options.ScaledQueries) scores = scores * core.Scale;
            Tensor weights = options.Function switch { UnifiedFunction.Relu => scores.relu(), UnifiedFunction.Gelu => nn.functional.gelu(scores), _ => scores };
            return heads + scale(weights.matmul(value.Value)).to_type(heads.dtype);
        }
        scores = scores * core.Scale;
        Tensor prefix = scores.softmax(-1).matmul(value.Value);
        if (options.Composition != UnifiedComposition.Gated) return heads + scale(prefix).to_type(heads.dtype);
        Tensor lambda = Share(input, scores, core.Scale).unsqueeze(-1);
        return heads + (lambda * (prefix - heads.to_type(ScalarType.Float32))).to_type(heads.dtype);
    }

    /// <summary>λ: the prefix's share of the attention, <c>[batch, heads, tokens]</c>, by the masses of all scores in logarithms.</summary>
    internal static Tensor Share(AttentionInput input, Tensor scores, double scale)
    {
        long groups = input.Query.shape[1] / input.Key.shape[1];
        Tensor keys = input.Key.to_type(ScalarType.Float32);
        if (groups > 1) keys = keys.repeat_interleave(groups, 1);
        Tensor own = input.Query.to_type(ScalarType.Float32).matmul(keys.transpose(2, 3)) * scale;
        if (input.Bias is { } bias) own = own + bias.to_type(ScalarType.Float32);
        return (scores.logsumexp(-1) - own.logsumexp(-1)).sigmoid();
    }
}
