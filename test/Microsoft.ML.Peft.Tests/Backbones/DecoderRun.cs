// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>
/// One decoder case: the same rows padded on either side, scores, loss, gradients, and what the key/value cache gives. Each
/// config.json beside the case is run.
/// </summary>
internal sealed class DecoderRun(FixtureCase c, string weights)
{
    private readonly double _tolerance = c.Json.GetProperty("tolerance").GetDouble();
    private readonly Worst _worst = new();

    public void Run(TestContext context)
    {
        foreach (MemoryFileSet files in Folders())
        {
            using CheckpointFolder folder = CheckpointFolder.Open(files);
            using Backbone backbone = BackboneLoader.Load(folder, languageHead: c.Text("head") == "clm");
            using Head? head = c.Text("head") switch
            {
                "base" => null,
                "clm" => new CausalLanguageHead(backbone),
                "seqcls" => new SequenceClassificationHead(backbone, (int)c["logits"].shape[^1]),
                var other => throw new AssertFailedException($"{c.Name}: unknown head '{other}' of a decoder"),
            };
            if (head is not null) CollectionAssert.AreEqual(Array.Empty<string>(), HeadWeights.Load(head, folder).ToArray());
            CollectionAssert.AreEqual(head?.Parameters.Select(p => p.Name).ToArray() ?? [], backbone.UnusedTensors.ToArray());
            using (no_grad())
            {
                Sides(backbone, head, files.Description);
                if (head is null) continue;
                if (c.Has("left.cached_logits")) Cached(backbone, head);
                if (c.Has("greedy.sequences")) Greedy(backbone, head);
            }
            Gradients(backbone, head!);
        }
        _worst.Done(context);
    }

    // The case's own settings over the weights of its base; the same model in the keys of older files as well.
    private IEnumerable<MemoryFileSet> Folders()
    {
        string own = Path.Combine(c.Folder, "model");
        string settings = File.Exists(Path.Combine(own, "config.json")) ? own : weights;
        foreach (string name in (string[])["config.json", "config.v4.json"])
        {
            string path = Path.Combine(settings, name);
            if (File.Exists(path))
                yield return new MemoryFileSet($"{c.Name} {name}").Add("config.json", File.ReadAllBytes(path))
                    .Add("model.safetensors", File.ReadAllBytes(Path.Combine(weights, "model.safetensors")));
        }
    }

    private TokenBatch Batch(string side, bool positions = true) =>
        new(c[side + ".input_ids"], c[side + ".attention_mask"], PositionIds: positions ? c[side + ".position_ids"] : null);

    private void Sides(Backbone backbone, Head? head, string where)
    {
        foreach (string side in (string[])["right", "left"])
        {
            TokenBatch batch = Batch(side);
            var watch = new TextBackboneFixtureTests.Watch(backbone);
            var pass = new Pass(watch.Table) { KeepHiddenStates = true };
            BackboneOutput output = backbone.Forward(batch, pass);
            for (int i = 0; c.Has($"{side}.hidden_states.{i}"); i++)
                _worst.Compare($"{where} {side}.hidden_states.{i}", i == backbone.Config.LayerCount ? output.Last : output.HiddenStates![i], c[$"{side}.hidden_states.{i}"], _tolerance, batch.Mask);
            string prefix = side + ".attentions.";
            foreach (string name in c.Names.Where(n => n.StartsWith(prefix, StringComparison.Ordinal)))
                _worst.Compare($"{where} {name}", watch.Probabilities[int.Parse(name[prefix.Length..])], c[name], _tolerance, batch.Mask.unsqueeze(1));
            watch.Probabilities.ForEach(p => p.Dispose());
            if (head is not null) Scores(head.Forward(backbone, output, pass), side, batch, where);
        }
        if (head is null) return;
        // Right padding needs no positions, and the plain pass is the one that keeps hidden states.
        TokenBatch plain = Batch("right", positions: false);
        var bare = new Pass();
        Scores(head.Forward(backbone, backbone.Forward(plain, bare), bare), "right", plain, where + " without positions");
    }

    private void Scores(Tensor scores, string side, TokenBatch batch, string where)
    {
        bool rows = c.Has("logits");
        _worst.Compare($"{where} {side} logits", scores, c[rows ? "logits" : side + ".logits"], _tolerance, rows ? null : batch.Mask);
        if (rows) _worst.Compare($"{where} {side} loss", Loss(scores), c["loss"], _tolerance);
        else if (side == "right") _worst.Compare($"{where} right.loss", Loss(scores), c["right.loss"], _tolerance);
    }

    private Tensor Loss(Tensor scores) => c.Has("logits")
        ? nn.functional.cross_entropy(scores, c["labels"])
        : CausalLanguageHead.Loss(scores, c["right.labels"]);

    // All but five columns at once, then 2, 1, 1, 1.
    private void Cached(Backbone backbone, Head head)
    {
        TokenBatch batch = Batch("left");
        long tokens = batch.Ids.shape[1], at = 0;
        using var cache = new KeyValueCache();
        var parts = new List<Tensor>();
        foreach (long count in (long[])[tokens - 5, 2, 1, 1, 1])
        {
            Tensor Part(Tensor whole) => whole.narrow(1, at, count);
            var pass = new Pass { Cache = cache };
            var part = new TokenBatch(Part(batch.Ids), Part(batch.Mask), PositionIds: Part(batch.PositionIds!));
            Tensor scores = head.Forward(backbone, backbone.Forward(part, pass), pass);
            if (at > 0) parts.Add(scores);
            at += count;
        }
        _worst.Compare($"{c.Name} left.cached_logits", cat(parts, 1), c["left.cached_logits"], _tolerance, batch.Mask.narrow(1, tokens - 5, 5));
        using var whole = new KeyValueCache();
        backbone.Forward(batch, new Pass { Cache = whole });
        Assert.AreEqual(tokens, whole.Tokens);
        AttentionCore[] cores = [.. backbone.Sites.OfType<AttentionCore>()];
        foreach (string name in c.Names.Where(n => n.StartsWith("left.cache.", StringComparison.Ordinal)))
        {
            string[] words = name.Split('.');
            (Tensor key, Tensor value) = whole[cores[int.Parse(words[2])]];
            _worst.Compare($"{c.Name} {name}", words[3] == "key" ? key : value, c[name], _tolerance, batch.Mask.unsqueeze(1));
        }
    }

    private void Greedy(Backbone backbone, Head head)
    {
        JsonElement settings = c.Json.GetProperty("generation");
        long end = settings.GetProperty("eos_token_id").GetInt64(), pad = settings.GetProperty("pad_token_id").GetInt64();
        int most = settings.GetProperty("max_new_tokens").GetInt32();
        (Tensor free, Tensor chances) = Continue(backbone, head, most, null, pad);
        SameIds("greedy_free.sequences", free);
        _worst.Compare($"{c.Name} greedy_free.logprobs", chances, c["greedy_free.logprobs"], _tolerance);
        SameIds("greedy.sequences", Continue(backbone, head, most, end, pad).Ids);
    }

    private void SameIds(string name, Tensor found)
    {
        if (!found.shape.SequenceEqual(c[name].shape) || !found.eq(c[name]).all().item<bool>()) _worst.Fail($"{c.Name}: {name} differs");
    }

    private (Tensor Ids, Tensor Chances) Continue(Backbone backbone, Head head, int most, long? end, long pad)
    {
        TokenBatch batch = Batch("left");
        using var cache = new KeyValueCache();
        Tensor ids = batch.Ids, mask = batch.Mask, positions = batch.PositionIds!, chances = zeros([ids.shape[0], 0]), done = zeros_like(ids.select(1, 0));
        var next = batch;
        for (int step = 0; step < most; step++)
        {
            var pass = new Pass { Cache = cache };
            Tensor last = head.Forward(backbone, backbone.Forward(next, pass), pass).select(1, -1).log_softmax(-1);
            Tensor chosen = last.argmax(-1);
            chances = cat([chances, last.gather(1, chosen.unsqueeze(1))], 1);
            if (end is { } stop)
            {
                chosen = chosen * (1 - done) + done * pad;
                done = (done + chosen.eq(stop).to_type(ScalarType.Int64)).clamp(0, 1);
            }
            ids = cat([ids, chosen.unsqueeze(1)], 1);
            if (end is not null && done.all().item<bool>()) break;
            positions = (step == 0 ? positions.select(1, -1).unsqueeze(1) : positions) + 1;
            next = new TokenBatch(chosen.unsqueeze(1), ones_like(positions), PositionIds: positions);
        }
        return (ids, chances);
    }

    private void Gradients(Backbone backbone, Head head)
    {
        string[] wanted = [.. c.Names.Where(n => n.StartsWith("grad.", StringComparison.Ordinal))];
        if (wanted.Length == 0) return;
        var copies = new Dictionary<string, (Tensor Value, bool Transposed)>();
        var patches = new Dictionary<Site, Patch>();
        foreach (WeightSite site in backbone.Sites.OfType<WeightSite>())
        {
            if (site is Projection { TiedTo: { } table })
            {
                patches[site] = patches[table];
                continue;
            }
            var copy = new TextBackboneFixtureTests.Copy(site);
            patches[site] = copy;
            copies[backbone.PathOf(site) + ".weight"] = (copy.Weight, site is Projection { StoredTransposed: true });
            if (copy.Bias is not null) copies[backbone.PathOf(site) + ".bias"] = (copy.Bias, false);
        }
        foreach (NamedParameter parameter in head.Parameters)
        {
            parameter.Value.grad = null;
            copies[parameter.Name] = (parameter.Value, false);
        }
        var pass = new Pass(new PatchTable(patches));
        Loss(head.Forward(backbone, backbone.Forward(Batch("right"), pass), pass)).backward();
        foreach (string name in wanted)
        {
            (Tensor value, bool transposed) = copies[name["grad.".Length..]];
            _worst.Compare($"{c.Name} {name}", transposed ? value.grad!.t() : value.grad!, c[name], _tolerance);
        }
    }
}
