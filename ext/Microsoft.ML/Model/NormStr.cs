// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections;

namespace Microsoft.ML.Internal.Utilities;

/// <summary>A string with its number in a <see cref="Pool"/>.</summary>
internal sealed class NormStr
{
    private NormStr(int id, string value)
    {
        Id = id;
        Value = value.AsMemory();
    }

    internal int Id { get; }

    internal ReadOnlyMemory<char> Value { get; }

    /// <summary>Numbers distinct strings in the order in which they come: a model stores each once.</summary>
    internal sealed class Pool : IEnumerable<NormStr>
    {
        private readonly Dictionary<string, NormStr> _byText = new(StringComparer.Ordinal);
        private readonly List<NormStr> _inOrder = [];

        internal int Count => _inOrder.Count;

        internal NormStr Add(string str)
        {
            if (!_byText.TryGetValue(str, out var known))
            {
                _byText.Add(str, known = new NormStr(_inOrder.Count, str));
                _inOrder.Add(known);
            }
            return known;
        }

        internal NormStr Add(ReadOnlyMemory<char> str) => Add(str.ToString());

        internal NormStr Get(string str) => _byText.GetValueOrDefault(str);

        internal NormStr GetNormStrById(int id) => _inOrder[id];

        public IEnumerator<NormStr> GetEnumerator() => _inOrder.GetEnumerator();

        IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();
    }
}
