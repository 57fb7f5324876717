// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
namespace TorchSharp;

public static partial class torch
{
    public static partial class nn
    {
        /// <summary>Fills weights in place, outside the graph.</summary>
        public static class init
        {
            public static Tensor constant_(Tensor tensor, Scalar val) => Quietly(() => tensor.fill_(val));
            public static Tensor zeros_(Tensor tensor) => Quietly(() => tensor.zero_());
            public static Tensor ones_(Tensor tensor) => Quietly(() => tensor.fill_(1));
            public static Tensor uniform_(Tensor tensor, double low = 0, double high = 1, Generator? generator = null) => Quietly(() => tensor.uniform_(low, high, generator));
            public static Tensor normal_(Tensor tensor, double mean = 0, double std = 1, Generator? generator = null) => Quietly(() => tensor.normal_(mean, std, generator));

            public static Tensor xavier_uniform_(Tensor tensor, double gain = 1)
            {
                var (fanIn, fanOut) = CalculateFanInAndFanOut(tensor);
                double bound = Math.Sqrt(3.0) * gain * Math.Sqrt(2.0 / (fanIn + fanOut));
                return uniform_(tensor, -bound, bound);
            }

            /// <summary>How many inputs and outputs one element of a weight meets.</summary>
            public static (long fanIn, long fanOut) CalculateFanInAndFanOut(Tensor tensor)
            {
                long[] shape = tensor.shape;
                if (shape.Length < 2)
                    throw new ArgumentException("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions");
                long field = shape.Skip(2).Aggregate(1L, (product, size) => product * size);
                return (shape[1] * field, shape[0] * field);
            }

            private static Tensor Quietly(Func<Tensor> fill)
            {
                using (no_grad())
                    return fill();
            }
        }
    }
}
