// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>The index of a checkpoint in shards: which file holds which tensor.</summary>
internal sealed class ShardIndex
{
    private const int MaxLength = 100_000_000;
    private const int MaxShards = 10_000;

    private readonly string _source;
    private readonly Dictionary<string, string> _shardOf = new(StringComparer.Ordinal);
    private readonly HashSet<string> _shards = new(StringComparer.Ordinal);

    private ShardIndex(string source) => _source = source;

    /// <summary>The shard of each tensor.</summary>
    public IReadOnlyDictionary<string, string> ShardOf => _shardOf;

    /// <summary>Names of all shards, in ordinal order.</summary>
    public IReadOnlyList<string> Shards { get; private set; } = [];

    public static ShardIndex Read(IFileSet files, string name)
    {
        var index = new ShardIndex($"{files.Description}/{name}");
        ReadOnlyMemory<byte> json = SmallFile.WithoutMark(SmallFile.Read(files, name, MaxLength));
        try
        {
            index.Parse(json.Span);
        }
        catch (JsonException e)
        {
            throw index.Error($"is not valid JSON (line {e.LineNumber + 1}, byte {e.BytePositionInLine})", e);
        }
        catch (InvalidOperationException e)
        {
            throw index.Error("holds a string that is not valid text", e);
        }

        if (index._shardOf.Count == 0)
            throw index.Error("has no tensors in 'weight_map'");
        index.Shards = [.. index._shards.Order(StringComparer.Ordinal)];
        return index;
    }

    private void Parse(ReadOnlySpan<byte> json)
    {
        var reader = new Utf8JsonReader(json);
        if (!reader.Read() || reader.TokenType != JsonTokenType.StartObject)
            throw Error("is not a JSON object");
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            bool map = reader.ValueTextEquals("weight_map"u8);
            reader.Read();
            if (map)
                ReadMap(ref reader);
            else
                reader.Skip();
        }

        while (reader.Read())
        {
            // Anything but blanks behind the object makes the reader throw.
        }
    }

    private void ReadMap(ref Utf8JsonReader reader)
    {
        if (reader.TokenType != JsonTokenType.StartObject)
            throw Error("has a 'weight_map' that is not an object");
        if (_shardOf.Count > 0)
            throw Error("has 'weight_map' twice");
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            string tensor = reader.GetString()!;
            reader.Read();
            if (reader.TokenType != JsonTokenType.String)
                throw Error($"names no file for {NearNames.Quote(tensor)}");
            if (!_shardOf.TryAdd(tensor, Shard(reader.GetString()!)))
                throw Error($"has {NearNames.Quote(tensor)} twice");
        }
    }

    // One string object a shard, and no name that leads out of the folder.
    private string Shard(string name)
    {
        if (_shards.TryGetValue(name, out string? known))
            return known;
        if (!name.EndsWith(".safetensors", StringComparison.Ordinal) || name.AsSpan().IndexOfAny("/\\:\0") >= 0)
            throw Error($"names {NearNames.Quote(name)} as a shard; a .safetensors file of the same folder is expected");
        if (_shards.Count == MaxShards)
            throw Error($"names more than {MaxShards} shards");
        _shards.Add(name);
        return name;
    }

    private CheckpointFormatException Error(string what, Exception? inner = null) => new($"{_source} {what}.", inner);
}
