// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Attention by libtorch's own operator, which has one kernel for it on GPUs and keeps no scores there (Dao et al. 2022,
/// arXiv 2205.14135). Dropped entries come of the device's generator, which the pass has seeded for the layer.
/// </summary>
internal static class DeviceAttention
{
    /// <summary>True where the operator takes the place of two products and a softmax.</summary>
    public static bool Fits(AttentionInput a, Pass pass) => a.Query.device_type == DeviceType.CUDA && a.Query.dtype == a.Value.dtype && !pass.DropsByHand;

    /// <summary>Contexts <c>[batch, heads, tokens, head width]</c>.</summary>
    /// <param name="a">Queries, keys, values and what is added to the scores.</param>
    /// <param name="scale">Factor of the products.</param>
    /// <param name="dropout">Dropout of the shares while training.</param>
    /// <param name="pass">The running forward pass.</param>
    public static Tensor Apply(AttentionInput a, double scale, double dropout, Pass pass)
    {
        long shared = a.Query.shape[1] / a.Key.shape[1];
        Tensor key = shared == 1 ? a.Key : a.Key.repeat_interleave(shared, 1), value = shared == 1 ? a.Value : a.Value.repeat_interleave(shared, 1);
        // The operator divides by the root of the width.
        double factor = scale * Math.Sqrt(a.Query.shape[^1]);
        Tensor query = Math.Abs(factor - 1) < 1e-12 ? a.Query : a.Query * factor;
        Tensor? bias = a.Bias?.to_type(query.dtype).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2]);
        return nn.functional.scaled_dot_product_attention(query, key, value, bias!, pass.Training ? dropout : 0);
    }
}
