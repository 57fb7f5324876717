// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Immutable;
using System.Runtime.InteropServices;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.AssetTool;

/// <summary>Makes the embedded default backbone from the published folder; the same bytes on every run.</summary>
internal static class MiniLmAsset
{
    // What the backbone and its tokenizer need; the rest of the folder serves other libraries.
    private static readonly string[] Copied =
        ["config.json", "sentence_bert_config.json", "tokenizer_config.json", "vocab.txt", "LICENSE"];

    // The table of two token types is part of every token and costs three kilobytes: it stays as it is.
    private const long FewElements = 4096;

    public static void Make(string source, string target)
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(source);
        Directory.CreateDirectory(target);
        foreach (string name in Copied)
            Copy(checkpoint.Files, name, target);
        var texts = new ResourceFileSet(typeof(MiniLmAsset).Assembly, "minilm/");
        foreach (string name in texts.Names)
            Copy(texts, name, target);

        var writer = new SafetensorsWriter();
        writer.Metadata["format"] = "pt";
        writer.Metadata["storage"] = "int8 rows: a tensor X is X * X.scale, one scale a row";
        foreach (CheckpointTensor tensor in checkpoint.Tensors.Where(t => !t.Name.EndsWith("position_ids", StringComparison.Ordinal)))
            Add(writer, tensor);
        string path = Path.Combine(target, "model.safetensors");
        writer.Save(path);
        using CheckpointFolder made = CheckpointFolder.Open(target);
        Console.WriteLine($"{path}: {new FileInfo(path).Length} bytes, {made.Tensors.Count} tensors, SHA-256 {made.Sha256()}");
    }

    private static void Add(SafetensorsWriter writer, CheckpointTensor tensor)
    {
        SafetensorsInfo stored = tensor.Stored;
        if (stored.Dtype != SafetensorsDtype.F32)
            throw new CheckpointFormatException($"{tensor.File.Description}: {tensor} should be F32, as the published file has it.");
        if (stored.Shape.Length != 2 || stored.Elements < FewElements)
        {
            writer.Add(tensor.Name, tensor.File, stored.Name);
            return;
        }

        (sbyte[] integers, float[] scales, double error) = Round(tensor);
        writer.Add(tensor.Name, SafetensorsDtype.I8, stored.Shape.AsSpan(), MemoryMarshal.AsBytes(integers.AsSpan()).ToArray());
        writer.Add(tensor.Name + ".scale", SafetensorsDtype.F32, [scales.Length],
            MemoryMarshal.AsBytes(scales.AsSpan()).ToArray());
        Console.WriteLine($"{tensor.Name} {SafetensorsInfo.ShapeText(stored.Shape.AsSpan())}: relative error {error:0.00000}");
    }

    private static (sbyte[] Integers, float[] Scales, double Error) Round(CheckpointTensor tensor)
    {
        ImmutableArray<long> shape = tensor.Shape;
        int width = (int)shape[1];
        float[] scales = new float[shape[0]];
        sbyte[] integers = new sbyte[shape[0] * width];
        float[] row = new float[width];
        double lost = 0, whole = 0;
        for (int r = 0; r < scales.Length; r++)
        {
            tensor.File.Bytes(tensor.Stored.Name, (long)r * width * 4, width * 4).CopyTo(MemoryMarshal.AsBytes(row.AsSpan()));
            Span<sbyte> rounded = integers.AsSpan(r * width, width);
            scales[r] = Int8Rows.Store(row, rounded);
            for (int i = 0; i < width; i++)
            {
                double error = row[i] - ((double)rounded[i] * scales[r]);
                lost += error * error;
                whole += (double)row[i] * row[i];
            }
        }

        return (integers, scales, Math.Sqrt(lost / whole));
    }

    private static void Copy(IFileSet files, string name, string target)
    {
        using Stream stream = files.Open(name);
        AtomicFile.Write(Path.Combine(target, name), stream.CopyTo);
    }
}
