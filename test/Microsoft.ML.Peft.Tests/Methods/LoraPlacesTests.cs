// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>LoRA on bare tensors, and on a table together with the output layer that shares it.</summary>
[TestClass]
public class LoraPlacesTests
{
    private static void Fill(PeftAdaptation adaptation)
    {
        using var off = no_grad();
        foreach (NamedParameter parameter in adaptation.Parameters.Where(p => p.Trainable)) parameter.Value.copy_(parameter.Value + new Draws(5, parameter.Name).Normal(0.1, parameter.Value.shape));
    }

    [TestMethod]
    public void AMatrixIsAdaptedAsItsModuleIs()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        using var model = new MatrixModel(null);
        using PeftAdaptation byName = new LoraOptions { Dropout = 0, Targets = ["query"], RankPattern = { ["layer.1.attention.self.query"] = 3 } }.Attach(model.Backbone, 1);
        using PeftAdaptation byTensor = new LoraOptions { Dropout = 0, TargetParameters = ["query.weight"], RankPattern = { [@"layer\.1\.attention\.self\.query\.weight"] = 3 } }.Attach(model.Backbone, 1);
        CollectionAssert.AreEqual(byName.Parameters.Select(p => p.ToString()).ToArray(), byTensor.Parameters.Select(p => p.ToString()).ToArray());
        Assert.AreEqual(byName.Method.CountTrainable(model.Backbone), byTensor.Method.CountTrainable(model.Backbone));
        foreach (NamedParameter parameter in byName.Parameters) Assert.AreEqual(0, Deviations.Distance(parameter.Value, byTensor.Find(parameter.Name)!.Value), parameter.Name);
        Fill(byName);
        Fill(byTensor);
        float[] bare = model.Score(bare: true), one = model.Score(byName.Table()), other = model.Score(byTensor.Table());
        Assert.IsTrue(one.Zip(other).All(p => Math.Abs(p.First - p.Second) < 1e-5f));
        Assert.IsFalse(one.Zip(bare).All(p => Math.Abs(p.First - p.Second) < 1e-3f));
    }

    [TestMethod]
    public void WhatABareTensorCannotBeIsRefused()
    {
        using var model = new MatrixModel(null);
        void Refused(LoraOptions options, params string[] parts)
        {
            string message = Assert.ThrowsExactly<ArgumentException>(() => options.Attach(model.Backbone, 0).Dispose()).Message;
            foreach (string part in parts) StringAssert.Contains(message, part);
        }
        Refused(new LoraOptions { TargetParameters = ["query.weight"] }, "Dropout is 0.05", "0 with TargetParameters");
        Refused(new LoraOptions { Dropout = 0, TargetParameters = ["query.weigth"] }, "'query.weigth' names no tensor", "query.weight");
        Refused(new LoraOptions { Dropout = 0, TargetParameters = ["LayerNorm.weight"] }, "adapted are tensors of two axes");
        Refused(new LoraOptions { Dropout = 0, TargetParameters = ["query.weight"], UseDora = true }, "UseDora");
        Refused(new LoraOptions { Dropout = 0, TargetParameters = ["query.weight"], Init = "pissa" }, "Init is pissa");
        Refused(new LoraOptions { Dropout = 0, TargetParameters = ["query.weight"], Targets = ["query"] }, "exists already");
    }

    [TestMethod]
    [TestCategory("Fixtures")]
    [DataRow("gpt2", "lm_head", false)]
    [DataRow("gpt2", "WordEmbedding", false)]
    [DataRow("gpt2", "transformer.wte", false)]
    [DataRow("t5", "lm_head", false)]
    [DataRow("gpt2", "lm_head", true)]
    [DataRow("gpt2", "wte", true)]
    public void ATableAndItsOutputLayerAreOne(string network, string target, bool whole)
    {
        string folder = Path.Combine(Shared.Fixtures, "hf-peft", "_base-" + network);
        if (!Directory.Exists(folder)) Assert.Inconclusive("the fixtures are not there");
        using var scope = NewDisposeScope();
        using var tiny = new TinyBase(folder);
        string other = network == "t5" ? "q" : "c_attn";
        LoraOptions options = new() { Dropout = 0, Rank = 2, EnsureWeightTying = true, Targets = whole ? [other] : [other, target], ModulesToSave = whole ? [target] : [] };
        using PeftAdaptation adaptation = options.Attach(tiny.Backbone, 1);
        Assert.AreEqual(options.CountTrainable(tiny.Backbone), adaptation.TrainableCount);
        Fill(adaptation);
        var tokens = new TokenBatch(tensor(new long[] { 3, 4, 5, 6, 7, 8 }, [2, 3]), ones([2, 3], dtype: ScalarType.Int64));
        if (tiny.Backbone.Config.DecoderStart is not null) tokens = tokens with { DecoderIds = tensor(new long[] { 0, 4, 0, 5 }, [2, 2]) };
        Tensor Scores(Backbone backbone, Pass pass) => tiny.Head!.Forward(backbone, backbone.Forward(tokens, pass), pass);
        using var off = no_grad();
        Tensor worn = Scores(tiny.Backbone, new Pass(adaptation.Table()));
        Assert.IsGreaterThan(0.01, Deviations.Distance(worn, Scores(tiny.Backbone, new Pass())));
        using (Backbone merged = Merging.Merge(adaptation))
        {
            Assert.IsLessThan(1e-4, Deviations.Distance(worn, Scores(merged, new Pass())));
            Assert.IsNotNull(merged.Sites.OfType<Projection>().Single(s => s.Role == SiteRole.LanguageHead).TiedTo, "one table comes out");
        }
        string once = HfBases.Temporary(), twice = HfBases.Temporary();
        AdapterFolder.Save(once, adaptation, null, new AdapterSaveOptions { TaskType = "CAUSAL_LM" });
        using AdapterFolder file = AdapterFolder.Open(once);
        foreach (string end in whole ? (string[])["lm_head.weight"] : ["lm_head.lora_A.weight", "lm_head.lora_B.weight", "lora_embedding_A", "lora_embedding_B"])
            Assert.IsTrue(file.Names.Any(name => name.EndsWith(end, StringComparison.Ordinal)), end);
        using PeftAdaptation again = file.Attach(tiny.Backbone);
        Assert.AreEqual(0, Deviations.Distance(worn, Scores(tiny.Backbone, new Pass(again.Table()))));
        AdapterFolder.Save(twice, again, null, new AdapterSaveOptions { TaskType = "CAUSAL_LM" });
        foreach (string name in (string[])[AdapterFolder.ConfigFile, AdapterFolder.WeightsFile])
            CollectionAssert.AreEqual(File.ReadAllBytes(Path.Combine(once, name)), File.ReadAllBytes(Path.Combine(twice, name)), name);
    }
}
