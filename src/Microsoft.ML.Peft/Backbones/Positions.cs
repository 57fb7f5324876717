// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// Positions and types of a sequence into which tokens may have been inserted (<see cref="Layout"/>) and in front of which
/// keys may be worn (<see cref="PatchTable.PositionShift"/>). To be asked for after the word sequence.
/// </summary>
internal static class Positions
{
    /// <summary>Refuses rows that the position table cannot hold.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="config">Geometry.</param>
    /// <param name="pass">The running forward pass.</param>
    public static void Check(TokenBatch batch, BackboneConfig config, Pass pass)
    {
        long own = batch.Ids.shape[1], inserted = pass.Layout.Inserted, shift = pass.Patches.PositionShift + pass.Layout.PastTokens;
        if (own + inserted + shift <= config.MaxTokens) return;
        string prompts = inserted + shift == 0 ? "" : $" and {inserted + shift} of a prompt{(pass.Layout.Past is null ? "" : " or a cache")}";
        throw new ArgumentException(
            $"A row has {own} tokens{prompts}, but this {config.ModelType} backbone takes at most {config.MaxTokens}; truncate the text (maxTokens)"
            + (prompts.Length == 0 ? "." : " or shorten the prompt."));
    }

    /// <summary>Positions 0, 1, 2 ... <c>[1, tokens]</c>, moved by what is worn in front, or those that the batch gives.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="pass">The running forward pass.</param>
    public static Tensor Counted(TokenBatch batch, Pass pass)
    {
        int shift = pass.Patches.PositionShift;
        if (batch.PositionIds is { } given) return Given(given, 0, shift, pass.Layout);
        long first = shift + pass.Layout.PastTokens;
        return arange(first, first + pass.Layout.Tokens, ScalarType.Int64, batch.Ids.device).unsqueeze(0);
    }

    /// <summary>Positions counted over the tokens that are not padding, from pad + 1; padding has pad.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="pad">Id of the padding token.</param>
    /// <param name="pass">The running forward pass.</param>
    public static Tensor ById(TokenBatch batch, int pad, Pass pass)
    {
        int shift = pass.Patches.PositionShift;
        if (batch.PositionIds is { } given) return Given(given, pad + 1, shift, pass.Layout);
        Tensor real = Fill(batch.Ids.ne(pad).to_type(ScalarType.Int64), 1, pass.Layout);
        return (shift == 0 ? real.cumsum(1) : real.cumsum(1) + shift) * real + pad;
    }

    /// <summary>Token types of the batch, zeros where it has none and for inserted tokens.</summary>
    /// <param name="batch">Tokens.</param>
    /// <param name="pass">The running forward pass.</param>
    public static Tensor Types(TokenBatch batch, Pass pass) => Fill(batch.TypeIds ?? zeros_like(batch.Ids), 0, pass.Layout);

    // Inserted tokens take the positions of those behind them, which move on.
    private static Tensor Given(Tensor positions, int start, int shift, Layout layout)
    {
        if (shift > 0) positions = positions + shift;
        if (layout.Inserted == 0) return positions;
        int at = layout.InsertedAt;
        Tensor prompt = arange(start + shift + at, start + shift + at + layout.Inserted, ScalarType.Int64, positions.device)
            .unsqueeze(0).expand(positions.shape[0], -1);
        return cat([positions.narrow(1, 0, at), prompt, positions.narrow(1, at, positions.shape[1] - at) + layout.Inserted], 1);
    }

    private static Tensor Fill(Tensor own, long value, Layout layout)
    {
        if (layout.Inserted == 0) return own;
        int at = layout.InsertedAt;
        Tensor prompt = full([own.shape[0], layout.Inserted], value, dtype: own.dtype, device: own.device);
        return cat([own.narrow(1, 0, at), prompt, own.narrow(1, at, own.shape[1] - at)], 1);
    }
}
