// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>What a method turned out to be on a backbone.</summary>
/// <param name="Method">The method, with the options that were probed.</param>
/// <param name="Sites">How many sites it patches, by role, e.g. <c>6 Query, 6 Value</c>.</param>
/// <param name="Trainable">Trained numbers, without the task's head.</param>
/// <param name="Share">Trained numbers over all of the backbone's.</param>
/// <param name="Mergeable">True where merging worked.</param>
/// <param name="ExactAtStart">True where a fresh adaptation left the output as it was.</param>
/// <param name="Refusal">Why the method does not fit the backbone, or null; the other figures are empty then.</param>
public sealed record MethodCard(
    PeftMethod Method, string Sites, long Trainable, double Share, bool Mergeable, bool ExactAtStart, string? Refusal);

/// <summary>Finds out what methods do on a backbone by attaching them: no table of this library is written by hand.</summary>
public static class MethodProbe
{
    private const double Exact = 1e-4;

    /// <summary>Probes one method.</summary>
    /// <param name="method">The method with its options.</param>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="probe">Tokens to run over.</param>
    public static MethodCard Run(PeftMethod method, Backbone backbone, TokenBatch probe)
    {
        using var off = no_grad();
        using var scope = NewDisposeScope();
        PeftAdaptation adaptation;
        try
        {
            adaptation = method.Attach(backbone, 0);
        }
        catch (Exception e) when (e is ArgumentException or NotSupportedException)
        {
            return new MethodCard(method, "", 0, 0, false, false, e.Message);
        }
        using (adaptation)
        {
            string sites = string.Join(", ", adaptation.Patches.Keys.GroupBy(s => s.Role).OrderBy(g => g.Key).Select(g => $"{g.Count()} {g.Key}"));
            var pass = new Pass(adaptation.Table());
            adaptation.BeforePass(pass, probe);
            Tensor bare = backbone.Forward(probe, new Pass()).Last, worn = backbone.Forward(probe, pass).Last;
            bool exact = bare.shape.AsSpan().SequenceEqual(worn.shape) && (bare - worn).abs().max().item<float>() < Exact;
            return new MethodCard(method, sites, adaptation.TrainableCount, (double)adaptation.TrainableCount / backbone.ParameterCount,
                CanMerge(adaptation), exact, null);
        }
    }

    private static bool CanMerge(PeftAdaptation adaptation)
    {
        try
        {
            Merging.Merge(adaptation).Dispose();
            return true;
        }
        catch (NotSupportedException)
        {
            return false;
        }
    }

    /// <summary>A small batch of any tokens that a backbone takes.</summary>
    /// <param name="backbone">The frozen network.</param>
    public static TokenBatch AnyTokens(Backbone backbone)
    {
        long rows = 2, tokens = Math.Min(12, backbone.Config.MaxTokens / 2);
        Tensor ids = (arange(rows * tokens, ScalarType.Int64) * 7 + 5).remainder(backbone.Config.VocabularySize).view(rows, tokens).to(backbone.Device);
        return new TokenBatch(ids, ones_like(ids), Padded: false);
    }
}
