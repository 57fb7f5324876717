// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

public sealed class TextLoader
{
    public sealed class Range
    {
        public int Min;
        public int? Max;
        public Range(int index) { Min = index; Max = index; }
        public Range(int min, int? max) { Min = min; Max = max; }
    }
}
