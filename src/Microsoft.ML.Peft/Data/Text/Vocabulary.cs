// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>Tokens and their ids.</summary>
internal sealed class Vocabulary
{
    /// <summary>No vocabulary has ids beyond this; a larger one comes from a damaged file.</summary>
    public const int HighestId = 100_000_000;

    private readonly Dictionary<string, int> ids;
    private readonly Dictionary<string, int>.AlternateLookup<ReadOnlySpan<char>> spans;
    private readonly Dictionary<int, string> tokens;

    public Vocabulary(int capacity)
    {
        ids = new Dictionary<string, int>(capacity, StringComparer.Ordinal);
        spans = ids.GetAlternateLookup<ReadOnlySpan<char>>();
        tokens = new Dictionary<int, string>(capacity);
    }

    public int Count => ids.Count;

    public int MaxId { get; private set; } = -1;

    /// <summary>Length of the longest token, in UTF-16 code units.</summary>
    public int LongestToken { get; private set; }

    /// <summary>Whether some id has several tokens.</summary>
    public bool HasSharedIds => tokens.Count != ids.Count;

    public IEnumerable<KeyValuePair<string, int>> Pairs => ids;

    public static Vocabulary Read(JsonAt node)
    {
        if (!node.IsObject)
            throw node.Bad("an object that maps tokens to ids");
        var vocabulary = new Vocabulary(1024);
        foreach (var (token, id) in node.Members())
        {
            int number = id.Count();
            if (number > HighestId)
                throw id.Bad($"an id of at most {HighestId}");
            vocabulary.Set(token, number);
        }
        return vocabulary.Count > 0 ? vocabulary : throw node.Bad("at least one token");
    }

    public void Set(string token, int id)
    {
        ids[token] = id;
        tokens[id] = token;
        MaxId = Math.Max(MaxId, id);
        LongestToken = Math.Max(LongestToken, token.Length);
    }

    public int? Find(string token) => ids.TryGetValue(token, out int id) ? id : null;

    public bool TryFind(ReadOnlySpan<char> token, out int id) => spans.TryGetValue(token, out id);

    public string? Token(int id) => tokens.GetValueOrDefault(id);
}
