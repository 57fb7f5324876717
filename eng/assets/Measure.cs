// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using TorchSharp;

namespace Microsoft.ML.Peft.AssetTool;

/// <summary>Compares the sentence embeddings of two checkpoints: mean over the tokens of the last layer, normalised.</summary>
internal static class Measure
{
    private const int MaxTokens = 256;
    private const int BatchSize = 32;

    /// <summary>
    /// Prints the cosine distances on the sentences of a file: JSON with a list <c>sentences</c> of objects with <c>text</c>, or TSV with a column
    /// <c>sentence</c>; TSV with <c>sentence1</c>, <c>sentence2</c> and <c>score</c> gives rank correlations too.
    /// </summary>
    public static void Run(string original, string made, string file)
    {
        (string[] sentences, double[]? scores) = Read(file);
        float[][] expected = Embed(original, sentences), found = Embed(made, sentences);
        double[] distances = [.. expected.Zip(found, (a, b) => 1 - Dot(a, b))];
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{Path.GetFileName(file)}: {sentences.Length} sentences, cosine distance mean {distances.Average():0.000000}, "
            + $"max {distances.Max():0.000000}"));
        if (scores is null)
            return;
        double[] before = Similarities(expected), after = Similarities(found);
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"  {scores.Length} pairs: Spearman {Correlation(Ranks(before), Ranks(scores)):0.0000} -> "
            + $"{Correlation(Ranks(after), Ranks(scores)):0.0000}, similarity differs by at most "
            + $"{before.Zip(after, (a, b) => Math.Abs(a - b)).Max():0.0000}"));
    }

    private static (string[] Sentences, double[]? Scores) Read(string file)
    {
        if (file.EndsWith(".json", StringComparison.Ordinal))
        {
            using JsonDocument json = JsonDocument.Parse(File.ReadAllBytes(file));
            return ([.. json.RootElement.GetProperty("sentences").EnumerateArray().Select(s => s.GetProperty("text").GetString()!)], null);
        }

        string[][] rows = [.. File.ReadLines(file).Select(line => line.Split('\t'))];
        int first = Array.IndexOf(rows[0], "sentence1"), second = Array.IndexOf(rows[0], "sentence2");
        if (first < 0)
        {
            int column = Math.Max(0, Array.IndexOf(rows[0], "sentence"));
            return ([.. rows.Skip(1).Select(row => row[column])], null);
        }

        int score = Array.IndexOf(rows[0], "score");
        return ([.. rows.Skip(1).SelectMany(row => new[] { row[first], row[second] })],
            [.. rows.Skip(1).Select(row => double.Parse(row[score], CultureInfo.InvariantCulture))]);
    }

    private static float[][] Embed(string folder, string[] sentences)
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(folder);
        TextTokenizer tokenizer = TextTokenizer.Load(folder);
        using Backbone backbone = BackboneLoader.Load(checkpoint);
        int[][] ids = [.. sentences.Select(s => tokenizer.Encode(s, maxTokens: MaxTokens).Ids)];
        float[][] embeddings = new float[sentences.Length][];
        foreach (int[] rows in Enumerable.Range(0, ids.Length).OrderBy(i => ids[i].Length).Chunk(BatchSize))
            Embed(backbone, tokenizer, ids, rows, embeddings);
        return embeddings;
    }

    private static void Embed(Backbone backbone, TextTokenizer tokenizer, int[][] ids, int[] rows, float[][] embeddings)
    {
        using DisposeScope scope = torch.NewDisposeScope();
        using IDisposable inference = torch.inference_mode();
        int width = rows.Max(r => ids[r].Length);
        long[] tokens = new long[rows.Length * width], mask = new long[rows.Length * width];
        Array.Fill(tokens, tokenizer.PadId);
        for (int i = 0; i < rows.Length; i++)
        {
            for (int t = 0; t < ids[rows[i]].Length; t++)
                (tokens[(i * width) + t], mask[(i * width) + t]) = (ids[rows[i]][t], 1);
        }

        torch.Tensor real = torch.tensor(mask, [rows.Length, width]);
        var batch = new TokenBatch(torch.tensor(tokens, [rows.Length, width]), real);
        torch.Tensor last = backbone.Forward(batch, new Pass()).Last;
        torch.Tensor weights = real.to_type(torch.ScalarType.Float32).unsqueeze(2);
        float[] sums = (last * weights).sum(1).contiguous().data<float>().ToArray();
        int hidden = sums.Length / rows.Length;
        for (int i = 0; i < rows.Length; i++)
        {
            float[] sum = sums[(i * hidden)..((i + 1) * hidden)];
            double norm = Math.Sqrt(Dot(sum, sum));
            embeddings[rows[i]] = [.. sum.Select(v => (float)(v / norm))];
        }
    }

    private static double[] Similarities(float[][] pairs) =>
        [.. Enumerable.Range(0, pairs.Length / 2).Select(i => Dot(pairs[2 * i], pairs[(2 * i) + 1]))];

    private static double Dot(float[] a, float[] b)
    {
        double sum = 0;
        for (int i = 0; i < a.Length; i++)
            sum += (double)a[i] * b[i];
        return sum;
    }

    // Equal values share the mean of their ranks.
    private static double[] Ranks(double[] values)
    {
        double[] ranks = new double[values.Length];
        int[] order = [.. Enumerable.Range(0, values.Length).OrderBy(i => values[i])];
        for (int from = 0; from < order.Length;)
        {
            int to = from;
            while (to < order.Length && values[order[to]] == values[order[from]])
                to++;
            for (int i = from; i < to; i++)
                ranks[order[i]] = (from + to - 1) / 2.0;
            from = to;
        }

        return ranks;
    }

    private static double Correlation(double[] a, double[] b)
    {
        double meanA = a.Average(), meanB = b.Average(), ab = 0, aa = 0, bb = 0;
        for (int i = 0; i < a.Length; i++)
        {
            ab += (a[i] - meanA) * (b[i] - meanB);
            aa += (a[i] - meanA) * (a[i] - meanA);
            bb += (b[i] - meanB) * (b[i] - meanB);
        }

        return ab / Math.Sqrt(aa * bb);
    }
}
