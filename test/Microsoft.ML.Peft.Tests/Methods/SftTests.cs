// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tests.Training;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>Sparse fine-tuning: what moves when, what stays, and the optimizer that goes with it.</summary>
[TestClass]
public class SftTests
{
    private static AdaptedModel Model(PeftMethod method)
    {
        var backbone = new TinyBackbone();
        return new AdaptedModel(backbone, method.Attach(backbone, 1), new TinyHead(backbone, 3), ownsBackbone: true);
    }

    private static long[] Places(SftSite site) => site.Places.Value.data<long>().ToArray();

    private static float[] Values(SftSite site) => site.Values.Value.detach().data<float>().ToArray();

    private static float[] State(AdaptedModel model, SftSite site, string name) =>
        model.Adaptation!.Find(site.Values.Name.Replace("sft_values", name, StringComparison.Ordinal))!.Value.data<float>().ToArray();

    [TestMethod]
    [DataRow(SftGrowth.Gradients)]
    [DataRow(SftGrowth.Accumulators)]
    public void PlacesMoveAsThePolicySays(SftGrowth growth)
    {
        var method = new SftOptions { Budget = 300, SelectionEvery = 5, AccumulationSteps = 2, ReplacedShare = 0.4, Growth = growth };
        using AdaptedModel model = Model(method);
        var adaptation = (SftAdaptation)model.Adaptation!;
        Assert.AreEqual(300, adaptation.TrainableCount, 3);
        Assert.AreEqual(method.CountTrainable(model.Backbone), adaptation.TrainableCount);
        long[][] places = [.. adaptation.Entries.Select(Places)];
        var moves = new List<(long Step, double Share)>();
        TrainingOptions options = Tiny.Options(3);
        long total = 0;
        options.Progress = progress => total = progress.TotalSteps;
        var trainer = new Trainer(options)
        {
            AfterStep = step =>
            {
                for (int i = 0; i < places.Length; i++)
                {
                    long[] now = Places(adaptation.Entries[i]);
                    Assert.AreEqual(now.Length, now.Distinct().Count(), "a place is there twice");
                    Assert.IsTrue(now.SequenceEqual(now.Order()) && now[0] >= 0 && now[^1] < adaptation.Entries[i].Patch.Site.Weight.numel());
                    double moved = now.Except(places[i]).Count() / (double)now.Length;
                    if (moved > 0 && i == 0) moves.Add((step, moved));
                    if (step % 5 == 2)
                    {
                        float[] values = Values(adaptation.Entries[i]);
                        foreach (long place in now.Except(places[i])) Assert.AreEqual(0f, values[Array.IndexOf(now, place)]);
                    }
                    places[i] = now;
                }
            },
        };
        trainer.Fit(model, Tiny.Rows(45), null, new CrossEntropyObjective(3));
        Assert.IsTrue(moves.All(m => m.Step % 5 == 2), string.Join(", ", moves));
        Assert.AreEqual(2, moves[0].Step);
        Assert.IsGreaterThan(0.5, moves[0].Share, "the first selection chooses anew");
        foreach ((long step, double share) in moves.Skip(1))
            Assert.IsLessThanOrEqualTo(method.ShareAt(step, total) + 1e-9, share, $"step {step} of {total}");
        Assert.AreEqual(0.4 * 0.5, method.ShareAt(50, 100), 1e-12);
        Assert.AreEqual(0, method.ShareAt(100, 100), 1e-12);
        Assert.AreEqual(0.2, new SftOptions { Policy = SftPolicy.Cosine }.ShareAt(5, null), 1e-12);
    }

    [TestMethod]
    public void WhatSurvivesASelectionKeepsItsValueAndState()
    {
        using AdaptedModel model = Model(new SftOptions { Budget = 200, SelectionEvery = 3, AccumulationSteps = 1, ReplacedShare = 0.5, Policy = SftPolicy.Cosine });
        var adaptation = (SftAdaptation)model.Adaptation!;
        SftSite site = adaptation.Entries[0];
        var optimizer = new PlainAdamW(1e-2, 0);
        for (int step = 0; step < 7; step++)
        {
            using var scope = NewDisposeScope();
            Tensor logits = model.Forward(new TokenBatch(arange(1, 25, dtype: ScalarType.Int64).reshape(4, 6), ones(4, 6, dtype: ScalarType.Int64)), new Pass(model.Patches));
            PlainAdamW.ZeroGradients(adaptation.Parameters);
            nn.functional.cross_entropy(logits, tensor(new long[] { 0, 1, 2, 0 })).backward();
            optimizer.Step(adaptation.Parameters);
            (long[] places, float[] values, float[] first, float[] age) = (Places(site), Values(site), State(model, site, "sft_exp_avg"), State(model, site, "sft_age"));
            adaptation.AfterStep(step);
            if (step % 3 != 0)
            {
                CollectionAssert.AreEqual(places, Places(site));
                continue;
            }
            (long[] later, float[] laterValues) = (Places(site), Values(site));
            (float[] laterFirst, float[] laterAge) = (State(model, site, "sft_exp_avg"), State(model, site, "sft_age"));
            long[] gone = [.. places.Except(later)];
            Assert.IsGreaterThan(0, gone.Length);
            Assert.IsLessThanOrEqualTo(places.Length / 2, gone.Length);
            float largestGone = gone.Max(p => Math.Abs(values[Array.IndexOf(places, p)])), median = values.Select(Math.Abs).Order().ElementAt(values.Length / 2);
            Assert.IsLessThanOrEqualTo(median, largestGone, "what changed least is dropped");
            for (int i = 0; i < later.Length; i++)
            {
                int before = Array.IndexOf(places, later[i]);
                if (before < 0) Assert.AreEqual((0f, 1f), (laterValues[i], laterAge[i]));
                else Assert.AreEqual((values[before], first[before], age[before]), (laterValues[i], laterFirst[i], laterAge[i]));
            }
        }
        optimizer.Dispose();
    }

    [TestMethod]
    public void WithoutSelectionTheMomentsAreAdams()
    {
        using AdaptedModel model = Model(new SftOptions { Budget = 100, SelectionEvery = 1000, AccumulationSteps = 999 });
        var adaptation = (SftAdaptation)model.Adaptation!;
        NamedParameter ours = adaptation.Entries[0].Values;
        using var scope = NewDisposeScope();
        using var theirs = new NamedParameter("plain", zeros(ours.Value.shape)) { Decay = false };
        var plain = new PlainAdamW(0.01, 0, 1e-6) { FaForm = true };            // epsilon before the corrections
        for (int step = 0; step < 6; step++)
        {
            Tensor gradient = new Draws(step, "g").Normal(1, ours.Value.shape);
            ours.OwnUpdate!(ours.Value.detach(), gradient, 0.01, 0);
            theirs.Value.grad = gradient;
            plain.Step([theirs]);
        }
        Assert.AreEqual(0f, (ours.Value - theirs.Value).abs().max().item<float>(), 1e-5f);
        // The decay pulls the update towards zero, that is to the base model.
        float before = ours.Value.abs().sum().item<float>();
        ours.OwnUpdate!(ours.Value.detach(), zeros_like(ours.Value), 0, 5);
        Assert.AreEqual(before, ours.Value.abs().sum().item<float>(), 1e-5f);
        plain.Dispose();
    }

    [TestMethod]
    public void OnAllPlacesTheAccumulatorsAreThoseOfDenseSm3()
    {
        using var scope = NewDisposeScope();
        using AdaptedModel model = Model(new SftOptions { Density = 1, Budget = 4 * 16 * 32, Growth = SftGrowth.Accumulators });
        SftSite site = ((SftAdaptation)model.Adaptation!).Entries[0];
        Projection map = site.Patch.Site;
        Assert.AreEqual(map.Weight.numel(), site.Values.Value.numel());
        Tensor dense = zeros(map.Weight.shape), rows = zeros(map.Out, 1), columns = zeros(1, map.In);
        for (int step = 0; step < 4; step++)
        {
            Tensor gradient = new Draws(step, "g").Normal(1, map.Weight.shape);
            Tensor moment = rows.minimum(columns) + gradient.square();
            rows = rows.maximum(moment.amax([1], true));
            columns = columns.maximum(moment.amax([0], true));
            dense = (dense - gradient / (moment.sqrt() + 1e-8) * 0.1) * (1 - 0.1 * 0.3);
            site.Values.OwnUpdate!(site.Values.Value.detach(), gradient.reshape(-1), 0.1, 0.3);
        }
        Assert.AreEqual(0f, (site.Values.Value.reshape(map.Weight.shape) - dense).abs().max().item<float>(), 1e-6f);
    }

    [TestMethod]
    [DataRow(SftGrowth.Gradients)]
    [DataRow(SftGrowth.Accumulators)]
    public void AResumedRunHasTheBitsOfTheWholeRun(SftGrowth growth)
    {
        byte[] whole = Run(null, int.MaxValue, resume: false);
        foreach (int stop in (int[])[1, 3, 6])
        {
            string folder = HfBases.Temporary();
            Run(folder, stop, resume: false);
            CollectionAssert.AreEqual(whole, Run(folder, int.MaxValue, resume: true), $"stopped after step {stop}");
        }

        byte[] Run(string? folder, int stopAfter, bool resume)
        {
            using AdaptedModel model = Model(new SftOptions { Budget = 200, SelectionEvery = 4, AccumulationSteps = 2, Growth = growth });
            using var cancel = new CancellationTokenSource();
            TrainingOptions options = Tiny.Options(3);
            (options.CheckpointFolder, options.Resume, options.CancellationToken) = (folder, resume, cancel.Token);
            new Trainer(options) { AfterStep = step => { if (step == stopAfter) cancel.Cancel(); } }.Fit(model, Tiny.Rows(45), null, new CrossEntropyObjective(3));
            return Tiny.Bits(model);
        }
    }

    [TestMethod]
    public void OptionsOutOfRangeAreRefused()
    {
        using Backbone backbone = MatrixModel.Make(CPU);
        void Refused(SftOptions options, string part) =>
            StringAssert.Contains(Assert.ThrowsExactly<ArgumentException>(() => options.Attach(backbone, 1).Dispose()).Message, part);
        Refused(new SftOptions { Density = 0 }, "above 0");
        Refused(new SftOptions { Density = 1 }, "the targets have no more");
        Refused(new SftOptions { Budget = 1_000_000 }, "the targets have no more");
        Refused(new SftOptions { Density = 1e-6 }, "large enough");
        Refused(new SftOptions { AccumulationSteps = 20 }, "more than AccumulationSteps");
        Refused(new SftOptions { ReplacedShare = 2 }, "0 to 1");
        Refused(new SftOptions { Targets = ["LayerNorm"] }, "cannot adapt");
    }
}
