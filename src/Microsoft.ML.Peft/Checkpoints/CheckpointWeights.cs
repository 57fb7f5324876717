// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>The weight files of a checkpoint folder under one set of names.</summary>
internal sealed class CheckpointWeights : IDisposable
{
    private const string Single = "model.safetensors";
    private const string Index = "model.safetensors.index.json";

    private static readonly string[] Pickles = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];
    private static readonly string[] Others = [".h5", ".msgpack", ".onnx", ".gguf", ".npz", ".tflite"];

    private readonly IFileSet _files;
    private readonly List<SafetensorsFile> _open = [];
    private readonly Dictionary<string, CheckpointTensor> _byName = new(StringComparer.Ordinal);

    private CheckpointWeights(IFileSet files) => _files = files;

    public IReadOnlyList<string> FileNames { get; private set; } = [];

    public IReadOnlyDictionary<string, CheckpointTensor> ByName => _byName;

    public IReadOnlyList<CheckpointTensor> Tensors { get; private set; } = [];

    public static CheckpointWeights Open(IFileSet files)
    {
        var weights = new CheckpointWeights(files);
        try
        {
            if (files.Exists(Single))
                weights.OpenSingle();
            else if (files.Exists(Index))
                weights.OpenShards();
            else
                throw NoWeights(files);
            weights.Finish();
            return weights;
        }
        catch
        {
            weights.Dispose();
            throw;
        }
    }

    public void Dispose()
    {
        foreach (SafetensorsFile file in _open)
            file.Dispose();
    }

    private void OpenSingle()
    {
        FileNames = [Single];
        Add(Open(Single), []);
    }

    private void OpenShards()
    {
        ShardIndex index = ShardIndex.Read(_files, Index);
        string[] absent = index.Shards.Where(shard => !_files.Exists(shard)).ToArray();
        if (absent.Length > 0)
        {
            throw new CheckpointFormatException($"{_files.Description}: {Index} names {index.Shards.Count} shards, of which "
                + $"{absent.Length} are missing: {NearNames.List(absent)}. Download the folder again.");
        }

        FileNames = [.. index.Shards.Append(Index).Order(StringComparer.Ordinal)];
        var stored = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (string shard in index.Shards)
            Add(Open(shard), stored, shard);
        foreach ((string tensor, string shard) in index.ShardOf)
        {
            if (!stored.TryGetValue(tensor, out string? found))
            {
                throw new CheckpointFormatException($"{_files.Description}: {Index} names the tensor "
                    + $"{NearNames.Quote(tensor)} in {shard}, but no shard has it.{NearNames.Hint(tensor, stored.Keys)}");
            }

            if (found != shard)
            {
                throw new CheckpointFormatException($"{_files.Description}: by {Index} the tensor "
                    + $"{NearNames.Quote(tensor)} is in {shard}, but it is in {found}.");
            }
        }
    }

    private SafetensorsFile Open(string name)
    {
        SafetensorsFile file = SafetensorsFile.Open(_files, name);
        _open.Add(file);
        return file;
    }

    private void Add(SafetensorsFile file, Dictionary<string, string> stored, string shard = Single)
    {
        foreach (string name in file.Names)
        {
            if (!stored.TryAdd(name, shard))
            {
                throw new CheckpointFormatException($"{_files.Description}: the tensor {NearNames.Quote(name)} is in two "
                    + $"shards, {stored[name]} and {shard}.");
            }

            // A file that has both spellings keeps the old one under its own name, as a tensor nobody asks for.
            string modern = Modern(name);
            if (modern != name && file.Contains(modern))
                modern = name;
            if (!_byName.TryAdd(modern, new CheckpointTensor(modern, file, file.Info(name))))
                throw new CheckpointFormatException($"{file.Description} has {NearNames.Quote(modern)} under two spellings.");
        }
    }

    // Checkpoints converted from TensorFlow name the parameters of norms gamma and beta.
    private static string Modern(string name)
    {
        if (IsNorm(name, "gamma"))
            return string.Concat(name.AsSpan(0, name.Length - 5), "weight");
        return IsNorm(name, "beta") ? string.Concat(name.AsSpan(0, name.Length - 4), "bias") : name;
    }

    private static bool IsNorm(string name, string end)
    {
        int at = name.Length - end.Length - "LayerNorm.".Length;
        return at >= 0 && (at == 0 || name[at - 1] == '.')
            && name.EndsWith(end, StringComparison.Ordinal)
            && name.AsSpan(at).StartsWith("LayerNorm.", StringComparison.Ordinal);
    }

    private void Finish()
    {
        foreach (CheckpointTensor tensor in _byName.Values.ToArray())
        {
            if (tensor.Name.EndsWith(".qweight", StringComparison.Ordinal))
            {
                throw new CheckpointFormatException($"{tensor.File.Description} holds quantised weights "
                    + $"({NearNames.Quote(tensor.Name)}, GPTQ or AWQ), which are not read. Use the original checkpoint.");
            }

            if (tensor.Stored.Dtype == SafetensorsDtype.I8 && tensor.Shape.Length > 0
                && _byName.TryGetValue(tensor.Name + ".scale", out CheckpointTensor? scale))
            {
                PairWithScale(tensor, scale);
            }
        }

        CheckpointTensor[] tensors = [.. _byName.Values];
        Array.Sort(tensors, static (a, b) => string.CompareOrdinal(a.Name, b.Name));
        Tensors = tensors;
    }

    private void PairWithScale(CheckpointTensor tensor, CheckpointTensor scale)
    {
        if (scale.Stored.Dtype != SafetensorsDtype.F32 || !scale.Shape.AsSpan().SequenceEqual([tensor.Shape[0]]))
        {
            throw new CheckpointFormatException($"{scale.File.Description}: {NearNames.Quote(scale.Stored.Name)} is "
                + $"{scale.Dtype} {SafetensorsInfo.ShapeText(scale.Shape.AsSpan())}; the scales of the int8 rows of "
                + $"{NearNames.Quote(tensor.Stored.Name)} must be F32 [{tensor.Shape[0]}].");
        }

        tensor.SetScale(scale);
        _byName.Remove(scale.Name);
    }

    private static CheckpointFormatException NoWeights(IFileSet files)
    {
        string[] pickled = files.Names.Where(n => !n.Contains('/') && Ends(n, Pickles)).ToArray();
        if (pickled.Length > 0)
        {
            return new CheckpointFormatException($"{files.Description} has its weights as {NearNames.List(pickled, 4)} only. "
                + "Such pickled files can run code when they are read, so they are refused. Convert them in Python: "
                + "model.save_pretrained(folder, safe_serialization=True) writes model.safetensors.");
        }

        string[] other = files.Names.Where(n => Ends(n, [".safetensors", .. Others])).ToArray();
        return new CheckpointFormatException($"{files.Description} has neither {Single} nor {Index}."
            + (other.Length > 0 ? $" It has {NearNames.List(other, 6)}, which is not read as a backbone." : ""));
    }

    private static bool Ends(string name, string[] endings) =>
        endings.Any(ending => name.EndsWith(ending, StringComparison.OrdinalIgnoreCase));
}
