// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>k-means with the spread start of Arthur and Vassilvitskii (2007), the best of several runs.</summary>
internal static class KMeans
{
    private const int Runs = 10, Rounds = 100;

    /// <summary>Parts points into clusters, none of them empty.</summary>
    /// <param name="points">Float64 on the CPU, <c>[points, axes]</c>.</param>
    /// <param name="clusters">Number of clusters, at most the number of points.</param>
    /// <param name="draws">Random numbers.</param>
    /// <returns>The points of each cluster, rising; clusters in the order of their first points.</returns>
    public static int[][] Cluster(Tensor points, int clusters, Draws draws)
    {
        int axes = (int)points.shape[1];
        double[][] rows = [.. points.data<double>().ToArray().Chunk(axes)];
        (double Spread, int[] Label) best = (double.PositiveInfinity, []);
        for (int run = 0; run < Runs; run++)
        {
            var found = Lloyd(rows, Start(rows, clusters, draws));
            if (found.Spread < best.Spread) best = found;
        }
        return [.. best.Label.Select((label, row) => (label, row)).GroupBy(p => p.label, p => p.row).Select(g => g.ToArray())];
    }

    private static double[][] Start(double[][] rows, int clusters, Draws draws)
    {
        List<double[]> centres = [rows[(int)(draws.Next() * rows.Length)]];
        double[] nearest = [.. rows.Select(row => Distance(row, centres[0]))];
        while (centres.Count < clusters)
        {
            double left = draws.Next() * nearest.Sum();
            int chosen = 0;
            while (chosen < rows.Length - 1 && (left -= nearest[chosen]) > 0) chosen++;
            centres.Add(rows[chosen]);
            for (int i = 0; i < rows.Length; i++) nearest[i] = Math.Min(nearest[i], Distance(rows[i], rows[chosen]));
        }
        return [.. centres];
    }

    private static (double Spread, int[] Label) Lloyd(double[][] rows, double[][] centres)
    {
        var label = new int[rows.Length];
        double spread = 0;
        for (int round = 0; round < Rounds; round++)
        {
            int[] before = [.. label];
            spread = 0;
            for (int i = 0; i < rows.Length; i++)
            {
                double[] distances = [.. centres.Select(centre => Distance(rows[i], centre))];
                label[i] = Array.IndexOf(distances, distances.Min());
                spread += distances[label[i]];
            }
            FillEmpty(rows, centres, label);
            if (round > 0 && label.AsSpan().SequenceEqual(before)) break;
            for (int c = 0; c < centres.Length; c++)
            {
                double[][] members = [.. rows.Where((_, i) => label[i] == c)];
                centres[c] = [.. Enumerable.Range(0, rows[0].Length).Select(axis => members.Average(m => m[axis]))];
            }
        }
        return (spread, label);
    }

    // A cluster without points takes the point that lies furthest from its centre, out of a cluster that can spare one.
    private static void FillEmpty(double[][] rows, double[][] centres, int[] label)
    {
        for (int c = 0; c < centres.Length; c++)
        {
            if (label.Contains(c)) continue;
            int furthest = Enumerable.Range(0, rows.Length).Where(i => label.Count(l => l == label[i]) > 1).MaxBy(i => Distance(rows[i], centres[label[i]]));
            label[furthest] = c;
        }
    }

    private static double Distance(double[] a, double[] b)
    {
        double sum = 0;
        for (int i = 0; i < a.Length; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
        return sum;
    }
}
