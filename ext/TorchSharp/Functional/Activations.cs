// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    public static partial class nn
    {
        public static partial class functional
        {
            public static Tensor relu(Tensor x, bool inplace = false) => inplace ? x.relu_().alias() : x.relu();
            public static Tensor relu6(Tensor x, bool inplace = false) => inplace ? x.relu6_().alias() : x.relu6();
            public static Tensor gelu(Tensor x) => Ops.gelu.Call(x);
            public static Tensor silu(Tensor x, bool inplace = false) => inplace ? x.silu_().alias() : x.silu();
            public static Tensor SiLU(Tensor x, bool inplace = false) => silu(x, inplace);
            public static Tensor tanh(Tensor x, bool inplace = false) => inplace ? x.tanh_().alias() : x.tanh();
            public static Tensor sigmoid(Tensor x) => x.sigmoid();
            public static Tensor selu(Tensor x, bool inplace = false) => inplace ? x.selu_().alias() : x.selu();
            public static Tensor elu(Tensor x, double alpha, bool inplace = false) => inplace ? Ops.elu_.Self(x, alpha).alias() : Ops.elu.Call(x, alpha);
            public static Tensor celu(Tensor x, double alpha, bool inplace = false) => inplace ? Ops.celu_.Self(x, alpha).alias() : Ops.celu.Call(x, alpha);
            public static Tensor leaky_relu(Tensor input, double negative_slope = 0.01, bool inplace = false) => inplace ? input.leaky_relu_(negative_slope).alias() : input.leaky_relu(negative_slope);
            public static Tensor prelu(Tensor input, Tensor weight) => Ops.prelu.Call(input, weight);
            public static Tensor hardswish(Tensor input, bool inplace = false) => inplace ? input.hardswish_().alias() : input.hardswish();
            public static Tensor hardsigmoid(Tensor input, bool inplace = false) => inplace ? input.hardsigmoid_().alias() : input.hardsigmoid();
            public static Tensor softplus(Tensor x, double beta = 1, double threshold = 20) => Ops.softplus.Call(x, beta, threshold);
            public static Tensor logsigmoid(Tensor x) => Ops.log_sigmoid.Call(x);
            public static Tensor glu(Tensor input, long dim = -1) => Ops.glu.Call(input, dim);
            public static Tensor Softsign(Tensor x) => x / (x.abs() + 1);
            public static Tensor Hardshrink(Tensor x, double lambda = 0.5) => Ops.hardshrink.Call(x, lambda);
            public static Tensor Softshrink(Tensor x, double lambda = 0.5) => Ops.softshrink.Call(x, lambda);
            public static Tensor softmax(Tensor input, long dim, ScalarType? dtype = null) => input.softmax(dim, dtype);
            public static Tensor log_softmax(Tensor x, long dim) => x.log_softmax(dim);
            public static Tensor softmin(Tensor x, long dim) => x.neg().softmax(dim);

            public static Tensor dropout(Tensor input, double p = 0.5, bool training = true, bool inplace = false) =>
                inplace ? Ops.dropout_.Self(input, p, training).alias() : Ops.dropout.Call(input, p, training);

            public static Tensor alpha_dropout(Tensor input, double p = 0.5, bool training = false, bool inplace = false) =>
                inplace ? Ops.alpha_dropout_.Self(input, p, training).alias() : Ops.alpha_dropout.Call(input, p, training);

            public static Tensor dropout1d(Tensor input, double p = 0.5, bool training = true, bool inplace = false) =>
                input.ndim == 2 ? FeatureDropout(input.unsqueeze(0), p, training, inplace).squeeze(0) : FeatureDropout(input, p, training, inplace);

            private static Tensor FeatureDropout(Tensor input, double p, bool training, bool inplace) =>
                inplace ? Ops.feature_dropout_.Self(input, p, training).alias() : Ops.feature_dropout.Call(input, p, training);
        }
    }
}
