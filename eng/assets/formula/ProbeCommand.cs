// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>Prints what a linear classifier reaches on a backbone's features.</summary>
internal static class ProbeCommand
{
    private const int TrainRows = 4000, TestRows = 2000;

    public static void Run(string folder, string set)
    {
        using Backbone backbone = Open(folder);
        int side = (int)backbone.Config.Raw["image_size"]!;
        bool zipped = File.Exists(Path.Combine(set, "train.zip"));
        ImageSet Read(bool seen)
        {
            int most = seen ? TrainRows : TestRows;
            string part = seen ? "train" : zipped ? "test" : "t10k";
            return zipped
                ? ImageSet.Pictures(Path.Combine(set, part + ".zip"), side, most)
                : ImageSet.Idx(Path.Combine(set, $"{part}-images-idx3-ubyte.gz"), Path.Combine(set, $"{part}-labels-idx1-ubyte.gz"), side, most);
        }
        ImageSet train = Read(true), test = Read(false);
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{Path.GetFileName(set)}: class token {LinearProbe.Accuracy(backbone, train, test, mean: false):0.000}, mean of patches {LinearProbe.Accuracy(backbone, train, test, mean: true):0.000} ({folder}, {train.Labels.Length} rows)"));
    }

    private static Backbone Open(string folder)
    {
        if (folder == "fresh")
        {
            var plan = new PretrainingPlan();
            return BackboneLoader.Build(plan.Config(), new FreshWeights(plan.Seed, plan.Grid));
        }
        using CheckpointFolder checkpoint = CheckpointFolder.Open(folder);
        return BackboneLoader.Load(checkpoint);
    }
}
