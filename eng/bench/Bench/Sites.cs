// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Assets;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Bench;

/// <summary>What sites cost: a projection that may be patched against the bare product, and shared first factors against single ones.</summary>
internal static class Sites
{
    private const int Rows = 512, Rounds = 7, Calls = 60;

    public static void Run()
    {
        CpuThreads.UseCores();
        using CheckpointFolder folder = DefaultBackbone.Open();
        using Backbone backbone = BackboneLoader.Load(folder);
        using PeftAdaptation lora = new LoraOptions { Targets = ["query", "key", "value"], Dropout = 0 }.Attach(backbone, 1);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Projection[] sites = [.. backbone.Sites.OfType<Projection>().Where(s => s.Layer == 0 && s.Role is SiteRole.Query or SiteRole.Key or SiteRole.Value && s.Layer == 0)];
        Tensor x = randn(Rows, sites[0].In);
        Pass bare = new(), worn = new(lora.Table());
        Projection site = sites[0];

        Print("projection without a patch over the bare product",
            () => site.Forward(x, bare), () => nn.functional.linear(x, site.Weight, site.Bias));
        Print("q, k, v with LoRA, first factors in one product over one each",
            () =>
            {
                worn.Share(x, sites);
                foreach (Projection s in sites) s.Forward(x, worn);
            },
            () =>
            {
                worn.Share(x);
                foreach (Projection s in sites) s.Forward(x, worn);
            });
        Print("q, k, v with LoRA over q, k, v without",
            () =>
            {
                worn.Share(x, sites);
                foreach (Projection s in sites) s.Forward(x, worn);
            },
            () => { foreach (Projection s in sites) s.Forward(x, bare); });
    }

    // Both sides take turns; medians of rounds.
    private static void Print(string what, Action ours, Action other)
    {
        var times = (Ours: new List<double>(), Other: new List<double>());
        for (int round = -1; round < Rounds; round++)
        {
            double a = Time(ours), b = Time(other);
            if (round < 0) continue;
            times.Ours.Add(a);
            times.Other.Add(b);
        }
        double[] ratios = [.. times.Ours.Zip(times.Other, (a, b) => a / b).Order()];
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{what}: {times.Ours.Order().ElementAt(Rounds / 2):0.0} µs against {times.Other.Order().ElementAt(Rounds / 2):0.0} µs, ratio {ratios[Rounds / 2]:0.000} ({ratios[0]:0.000} to {ratios[^1]:0.000} in {Rounds} rounds)"));
    }

    private static double Time(Action action)
    {
        long began = Stopwatch.GetTimestamp();
        for (int i = 0; i < Calls; i++)
        {
            using var scope = NewDisposeScope();
            action();
        }
        return Stopwatch.GetElapsedTime(began).TotalMicroseconds / Calls;
    }
}
