// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>One part of a pre-norm layer with its residual connection: <c>stream + part(norm(stream))</c>.</summary>
internal sealed record PreNormPart(Norm Norm, Block Block, Residual Residual)
{
    /// <summary>Runs the part; where it gives each row's own first token alone, the stream is cut to it as well.</summary>
    public Tensor Run(Tensor stream, Func<Tensor, Tensor> part, Pass pass)
    {
        Tensor output = pass.Scoped(() => Block.Forward(Norm.Forward(stream, pass), part, pass));
        if (output.shape[1] < stream.shape[1]) stream = stream.narrow(1, pass.Layout.First, 1);
        return Residual.Forward(stream, output, (x, y) => x + y, pass);
    }

    /// <summary>True where a token's output depends on the others' through the part's body alone, whatever is worn.</summary>
    public bool TokenByToken(Pass pass) => pass.Patches[Block] is null && pass.Patches[Residual] is null
        && pass.Patches[Norm] is not WeightPatch { Form: PatchForm.Around };
}

/// <summary>The sites of one attention.</summary>
internal sealed record AttentionParts(Projection Query, Projection Key, Projection Value, Projection Output, AttentionCore Core)
{
    /// <summary>Keys and values of tokens, each <c>[batch, heads, tokens, head width]</c>.</summary>
    public (Tensor Key, Tensor Value) KeyValue(Tensor answering, Pass pass) =>
        (Heads.Split(Key.Forward(answering, pass), Core), Heads.Split(Value.Forward(answering, pass), Core));

    /// <summary>Attention of tokens to keys and values.</summary>
    /// <param name="asking">Tokens that ask <c>[batch, queries, hidden]</c>.</param>
    /// <param name="key">Keys of the tokens that answer.</param>
    /// <param name="value">Values of the tokens that answer.</param>
    /// <param name="bias">Added to the scores, or null.</param>
    /// <param name="relative">The part of the bias by distance, for other keys; or null.</param>
    /// <param name="dropout">Dropout of the shares while training.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <returns><c>[batch, queries, hidden]</c>.</returns>
    public Tensor Run(Tensor asking, Tensor key, Tensor value, Tensor? bias, RelativeBias? relative, double dropout, Pass pass)
    {
        var input = new AttentionInput(Heads.Split(Query.Forward(asking, pass), Core), key, value, bias, relative);
        return Output.Forward(Heads.Join(Core.Forward(input, a => Heads.Attend(a, Core.Scale, dropout, pass), pass)), pass);
    }

    /// <summary>True where nothing that is worn looks at several asking tokens at once.</summary>
    public bool TokenByToken(Pass pass) => pass.Patches[Core] is null
        && pass.Patches[Query] is not WeightPatch { Form: PatchForm.Around } && pass.Patches[Output] is not WeightPatch { Form: PatchForm.Around };
}
