// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Training;

/// <summary>
/// Folders <c>checkpoint-N</c>, each whole or absent: files are written into a temporary folder, flushed, and the folder
/// is renamed. <c>trainer_state.json</c> holds the SHA-256 of the other files, so that a damaged folder is seen and
/// passed over.
/// </summary>
internal sealed class CheckpointStore
{
    private const string StateFile = "trainer_state.json", Weights = "adapter.safetensors", Moments = "optimizer.safetensors", Best = "best.safetensors";
    private const string Prefix = "checkpoint-";

    private static readonly JsonSerializerOptions _json = new()
    {
        WriteIndented = true,
        NumberHandling = JsonNumberHandling.AllowNamedFloatingPointLiterals,
        Converters = { new JsonStringEnumConverter() },
    };

    private readonly string _folder;
    private readonly TrainingOptions _options;
    private readonly Action<string> _warn;

    public CheckpointStore(string folder, TrainingOptions options, Action<string> warn)
    {
        (_folder, _options, _warn) = (Path.GetFullPath(folder), options, warn);
        Directory.CreateDirectory(_folder);
    }

    /// <summary>Step of the newest folder that this store wrote or read.</summary>
    public long? Newest { get; private set; }

    // Everything of trainer_state.json; Identity says which run it is.
    private sealed record Saved(
        int Format, SortedDictionary<string, string> Files, SortedDictionary<string, string> Identity, RunState State);

    public void Save(AdaptedModel model, IReadOnlyList<Example> rows, Optimizer optimizer, RunState state, WeightSnapshot? best)
    {
        string target = PathOf(state.Step), temporary = $"{target}.{Path.GetRandomFileName()}.tmp";
        Directory.CreateDirectory(temporary);
        try
        {
            using var scope = NewDisposeScope();
            TensorFile.Save(Path.Combine(temporary, Weights), model.Parameters.Where(p => p.Saved).Select(p => KeyValuePair.Create(p.Name, p.Value)));
            TensorFile.Save(Path.Combine(temporary, Moments), optimizer.SaveState());
            if (best is not null) TensorFile.Save(Path.Combine(temporary, Best), best.Tensors);
            var files = new SortedDictionary<string, string>(StringComparer.Ordinal);
            foreach (string file in Directory.GetFiles(temporary)) files[Path.GetFileName(file)] = HashOf(file);
            var saved = new Saved(1, files, Identity(model, rows), state);
            AtomicFile.Write(Path.Combine(temporary, StateFile), stream => JsonSerializer.Serialize(stream, saved, _json));
            if (Directory.Exists(target)) Directory.Delete(target, recursive: true);
            Directory.Move(temporary, target);
        }
        catch
        {
            Directory.Delete(temporary, recursive: true);
            throw;
        }
        Newest = state.Step;
        Prune(state.BestStep);
    }

    // The newest ones and the best one stay. Temporary folders of killed runs go.
    private void Prune(long? best)
    {
        long[] steps = [.. Steps()];
        foreach (long step in steps.Skip(_options.KeepCheckpoints))
            if (step != best) Directory.Delete(PathOf(step), recursive: true);
        foreach (string left in Directory.GetDirectories(_folder, Prefix + "*.tmp")) Directory.Delete(left, recursive: true);
    }

    /// <summary>Loads the newest complete checkpoint into model and optimizer; null where there is none.</summary>
    /// <exception cref="InvalidOperationException">It belongs to other options, another method or other data.</exception>
    public (RunState State, WeightSnapshot? Best)? Load(AdaptedModel model, IReadOnlyList<Example> rows, Optimizer optimizer)
    {
        foreach (long step in Steps())
        {
            Saved saved;
            try
            {
                saved = Read(PathOf(step));
            }
            catch (Exception e) when (e is CheckpointFormatException or JsonException or IOException)
            {
                _warn($"Checkpoint {PathOf(step)} is damaged and was passed over: {e.Message}");
                continue;
            }
            Compare(saved.Identity, Identity(model, rows), PathOf(step));
            WeightSnapshot? best = Take(saved, PathOf(step), model, optimizer);
            Newest = step;
            return (saved.State, best);
        }
        return null;
    }

    private WeightSnapshot? Take(Saved saved, string folder, AdaptedModel model, Optimizer optimizer)
    {
        using var off = no_grad();
        using var scope = NewDisposeScope();
        using (WeightSnapshot weights = WeightSnapshot.Of(model.Parameters, TensorFile.Load(Path.Combine(folder, Weights)))) weights.Restore();
        optimizer.Refresh(model.Parameters);
        optimizer.LoadState(TensorFile.Load(Path.Combine(folder, Moments)));
        if (saved.State.BestStep is null) return null;
        return saved.Files.ContainsKey(Best)
            ? WeightSnapshot.Of(model.Parameters, TensorFile.Load(Path.Combine(folder, Best)))
            : WeightSnapshot.Of(model.Parameters);
    }

    private static Saved Read(string folder)
    {
        string path = Path.Combine(folder, StateFile);
        if (!File.Exists(path)) throw new CheckpointFormatException($"{StateFile} is missing.");
        Saved? saved;
        using (FileStream stream = File.OpenRead(path)) saved = JsonSerializer.Deserialize<Saved>(stream, _json);
        if (saved?.Files is null || saved.State is null || saved.Identity is null) throw new CheckpointFormatException($"{StateFile} is incomplete.");
        if (saved.Format != 1)
            throw new CheckpointFormatException($"{StateFile} has format {saved.Format}; this version reads format 1.");
        foreach ((string file, string hash) in saved.Files)
        {
            string full = Path.Combine(folder, Path.GetFileName(file));
            if (!File.Exists(full)) throw new CheckpointFormatException($"{file} is missing.");
            if (HashOf(full) != hash) throw new CheckpointFormatException($"{file} differs from what was written (SHA-256).");
        }
        return saved;
    }

    private void Compare(SortedDictionary<string, string> then, SortedDictionary<string, string> now, string folder)
    {
        string[] differences =
        [
            .. now.Keys.Union(then.Keys).Where(k => now.GetValueOrDefault(k) != then.GetValueOrDefault(k))
                .Select(k => $"{k}: {then.GetValueOrDefault(k) ?? "absent"} there, {now.GetValueOrDefault(k) ?? "absent"} here"),
        ];
        if (differences.Length == 0) return;
        string text = $"Checkpoint {folder} belongs to another run: {string.Join("; ", differences)}.";
        if (!_options.ForceResume)
            throw new InvalidOperationException(text + " Use the same options and data, another CheckpointFolder, or ForceResume to go on all the same.");
        _warn(text + " Going on, as ForceResume says.");
    }

    private SortedDictionary<string, string> Identity(AdaptedModel model, IReadOnlyList<Example> rows)
    {
        SortedDictionary<string, string> identity = _options.Fingerprint();
        identity["method"] = model.Adaptation is null ? "none" : PeftMethods.ToJson(model.Adaptation.Method);
        identity["parameters"] = Hex(SHA256.HashData(Encoding.UTF8.GetBytes(string.Join('\n', model.Parameters.Where(p => p.Saved).Select(p => p.Name)))));
        identity["rows"] = rows.Count.ToString(CultureInfo.InvariantCulture);
        identity["data"] = DataHash(rows);
        if (rows[0].Input?.Settings is { Length: > 0 } settings) identity["input"] = settings;
        return identity;
    }

    private static string DataHash(IReadOnlyList<Example> rows)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        Span<float> numbers = stackalloc float[3];
        foreach (Example row in rows)
        {
            hash.AppendData(MemoryMarshal.AsBytes(row.Ids.AsSpan()));
            hash.AppendData(MemoryMarshal.AsBytes(row.TypeIds.AsSpan()));
            if (row.Input is { } input) hash.AppendData(input.Fingerprint.Span);
            (numbers[0], numbers[1], numbers[2]) = (row.Label, row.Target, row.Weight);
            hash.AppendData(MemoryMarshal.AsBytes(numbers));
        }
        return Hex(hash.GetHashAndReset());
    }

    private static string HashOf(string file)
    {
        using FileStream stream = File.OpenRead(file);
        return Hex(SHA256.HashData(stream));
    }

    private static string Hex(byte[] hash) => Convert.ToHexStringLower(hash);

    private string PathOf(long step) => Path.Combine(_folder, Prefix + step.ToString(CultureInfo.InvariantCulture));

    // Newest first.
    private IEnumerable<long> Steps() => Directory.GetDirectories(_folder, Prefix + "*")
        .Select(f => long.TryParse(Path.GetFileName(f).AsSpan(Prefix.Length), NumberStyles.None, CultureInfo.InvariantCulture, out long step) ? step : -1)
        .Where(s => s >= 0)
        .OrderDescending();
}
