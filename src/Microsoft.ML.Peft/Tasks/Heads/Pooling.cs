// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>How a row's tokens become one vector.</summary>
public enum Pooling
{
    /// <summary>The family's own head, as Hugging Face's task models have it (pooler, dense layer, ...).</summary>
    Family,
    /// <summary>Mean over the real tokens, then one linear map.</summary>
    Mean,
    /// <summary>The first token, then one linear map.</summary>
    FirstToken,
}

internal static class Pooled
{
    /// <summary>Mean over the row's own real tokens, <c>[batch, hidden]</c>.</summary>
    public static Tensor Mean(BackboneOutput output)
    {
        Tensor own = output.Layout.Own(output.Last);
        if (!output.Layout.Padded) return own.mean([1]);
        Tensor mask = output.Layout.Own(output.Layout.Mask).to_type(own.dtype).unsqueeze(-1);   // [batch, tokens, 1]
        return (own * mask).sum(1) / mask.sum(1).clamp(1);
    }
}
