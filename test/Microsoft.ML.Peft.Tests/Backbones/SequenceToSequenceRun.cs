// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <summary>One case of a network of two stacks: states, attention, scores, loss, gradients, caches, greedy writing.</summary>
internal sealed class SequenceToSequenceRun(FixtureCase c, Backbone backbone, Worst worst)
{
    /// <summary>Runs the case with each config.json that it has: the same model in the keys of newer and older files.</summary>
    public static void Run(FixtureCase c, string model, TestContext context)
    {
        var worst = new Worst();
        byte[] weights = File.ReadAllBytes(Path.Combine(model, "model.safetensors"));
        foreach (string config in Directory.GetFiles(model, "config*.json"))
        {
            using CheckpointFolder folder = CheckpointFolder.Open(new MemoryFileSet(config).Add("config.json", File.ReadAllBytes(config)).Add("model.safetensors", weights));
            using Backbone backbone = BackboneLoader.Load(folder, languageHead: true);
            CollectionAssert.AreEqual(Array.Empty<string>(), backbone.UnusedTensors.ToArray());
            new SequenceToSequenceRun(c, backbone, worst).All();
        }
        worst.Done(context);
    }

    private readonly double _tolerance = c.Json.GetProperty("tolerance").GetDouble();
    private readonly TokenBatch _batch = new(c["input_ids"], c["attention_mask"]) { DecoderIds = c["decoder_input_ids"] };
    private readonly Tensor _real = c["labels"].ne(-100).to_type(ScalarType.Int64);

    private Worst Worst { get; } = worst;

    private void All()
    {
        using var head = new SequenceToSequenceHead(backbone);
        using (no_grad())
        {
            Forward(head);
            Cached(head);
            Greedy(head);
        }
        Gradients(head);
    }

    private void Compare(string name, Tensor found, Tensor? mask = null) => Worst.Compare($"{c.Name} {name}", found, c[name], _tolerance, mask);

    private void Forward(Head head)
    {
        Worst.Compare($"{c.Name} decoder_input_ids", SequenceToSequenceHead.DecoderIds(c["labels"], backbone.Config), c["decoder_input_ids"], 0.5);
        var looks = backbone.Sites.OfType<AttentionCore>().ToDictionary(core => core, core => new Look(core.Scale));
        var pass = new Pass(new PatchTable(looks.Select(p => KeyValuePair.Create<Site, Patch>(p.Key, p.Value)))) { KeepHiddenStates = true };
        BackboneOutput output = backbone.Forward(_batch, pass);
        States("encoder", output.Encoder!, _batch.Mask);
        States("decoder", output, _real);
        Attentions("encoder_attentions", _batch.Mask, looks, SiteRole.AttentionCore, 0);
        Attentions("decoder_attentions", _real, looks, SiteRole.AttentionCore, backbone.Config.DecoderStart!.Value);
        Attentions("cross_attentions", _real, looks, SiteRole.CrossAttentionCore, backbone.Config.DecoderStart!.Value);
        Tensor logits = head.Forward(backbone, output, pass);
        Compare("logits", logits, _real);
        Compare("loss", SequenceToSequenceHead.Loss(logits, c["labels"]));
        foreach (Look look in looks.Values) look.Shares!.Dispose();
    }

    private void States(string stack, BackboneOutput output, Tensor mask)
    {
        for (int i = 0; c.Has($"{stack}_hidden_states.{i}"); i++)
            Compare($"{stack}_hidden_states.{i}", c.Has($"{stack}_hidden_states.{i + 1}") ? output.HiddenStates![i] : output.Last, mask);
    }

    private void Attentions(string prefix, Tensor mask, Dictionary<AttentionCore, Look> looks, SiteRole role, int first)
    {
        foreach (string name in c.Names.Where(n => n.StartsWith(prefix + ".", StringComparison.Ordinal)))
        {
            int layer = first + int.Parse(name.Split('.')[1]);
            Compare(name, looks.Single(p => p.Key.Role == role && p.Key.Layer == layer).Value.Shares!, mask.unsqueeze(1));
        }
    }

    // The last tokens one at a time, on the keys and values of those before.
    private void Cached(Head head)
    {
        if (!c.Has("cached_logits")) return;
        long steps = c["cached_logits"].shape[1], tokens = _batch.DecoderIds!.shape[1];
        using var cache = new KeyValueCache();
        BackboneOutput encoded = backbone.Encode(_batch, new Pass());
        var scores = new List<Tensor>();
        for (long at = 0; at < tokens; at += at == 0 ? tokens - steps : 1)
        {
            long count = at == 0 ? tokens - steps : 1;
            Tensor logits = Step(head, encoded, _batch.DecoderIds.narrow(1, at, count), cache);
            if (at > 0) scores.Add(logits);
        }
        Compare("cached_logits", cat(scores, 1), _real.narrow(1, tokens - steps, steps));
        foreach (string name in c.Names.Where(n => n.StartsWith("cross_cache.", StringComparison.Ordinal)))
        {
            int layer = backbone.Config.DecoderStart!.Value + int.Parse(name.Split('.')[1]);
            AttentionCore core = backbone.Sites.OfType<AttentionCore>().Single(s => s.Role == SiteRole.CrossAttentionCore && s.Layer == layer);
            Compare(name, name.EndsWith("key", StringComparison.Ordinal) ? cache[core].Key : cache[core].Value, _batch.Mask.unsqueeze(1));
        }
    }

    private Tensor Step(Head head, BackboneOutput encoded, Tensor ids, KeyValueCache cache)
    {
        var pass = new Pass { Cache = cache };
        return head.Forward(backbone, backbone.Forward(_batch with { DecoderIds = ids, Encoded = encoded }, pass), pass);
    }

    private void Greedy(Head head)
    {
        if (!c.Json.TryGetProperty("generation", out JsonElement settings)) return;
        Tensor free = Written(head, null, settings, out Tensor logarithms);
        Worst.Compare($"{c.Name} greedy_free.sequences", free, c["greedy_free.sequences"], 0.5);
        Compare("greedy_free.logprobs", logarithms);
        Worst.Compare($"{c.Name} greedy.sequences", Written(head, settings.GetProperty("eos_token_id").GetInt64(), settings, out _), c["greedy.sequences"], 0.5);
    }

    private Tensor Written(Head head, long? end, JsonElement settings, out Tensor logarithms)
    {
        long rows = _batch.Ids.shape[0], pad = settings.GetProperty("pad_token_id").GetInt64();
        using var cache = new KeyValueCache();
        BackboneOutput encoded = backbone.Encode(_batch, new Pass());
        Tensor last = full([rows, 1], settings.GetProperty("decoder_start_token_id").GetInt64(), dtype: ScalarType.Int64);
        Tensor done = zeros([rows, 1], dtype: ScalarType.Bool);
        List<Tensor> written = [last], chosen = [];
        for (int step = 0; step < settings.GetProperty("max_new_tokens").GetInt32() && !done.all().item<bool>(); step++)
        {
            Tensor scores = Step(head, encoded, last, cache).select(1, 0).log_softmax(-1);       // [rows, vocabulary]
            last = scores.argmax(-1, true).masked_fill(done, pad);
            chosen.Add(scores.gather(1, last));
            written.Add(last);
            if (end is { } id) done = done.logical_or(last.eq(id));
        }
        logarithms = cat(chosen, 1);
        return cat(written, 1);
    }

    private void Gradients(Head head)
    {
        string[] wanted = [.. c.Names.Where(n => n.StartsWith("grad.", StringComparison.Ordinal))];
        if (wanted.Length == 0) return;
        var copies = new Dictionary<string, Tensor>();
        var patches = new Dictionary<Site, Patch>();
        var tied = new List<(string Table, string Head)>();
        foreach (WeightSite site in backbone.Sites.OfType<WeightSite>())
        {
            Tensor copy = copies[backbone.PathOf(site) + ".weight"] = site.Weight.detach().clone().requires_grad_();
            patches[site] = new Copy(copy);
            if (site is Projection { TiedTo: { } table }) tied.Add((backbone.PathOf(table) + ".weight", backbone.PathOf(site) + ".weight"));
        }
        foreach (bool checkpointing in (bool[])[false, true])
        {
            foreach (Tensor copy in copies.Values) copy.grad?.fill_(0);
            var pass = new Pass(new PatchTable(patches), training: checkpointing) { Checkpointing = checkpointing, DropWith = (x, _) => x };
            SequenceToSequenceHead.Loss(head.Forward(backbone, backbone.Forward(_batch, pass), pass), c["labels"]).backward();
            foreach (string name in wanted)
            {
                Tensor found = copies[name[5..]].grad!;
                foreach ((string table, string projection) in tied)
                    if (name[5..] == table) found = found + copies[projection].grad!;       // one matrix, two uses
                Worst.Compare($"{c.Name} {name}{(checkpointing ? " by checkpointing" : "")}", found, c[name], _tolerance);
            }
        }
    }

    private sealed class Copy(Tensor weight) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Weight;

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor frozen, Tensor? bias, Pass? pass) => (weight, bias);
    }

    // Looks at attention from inside and changes nothing.
    private sealed class Look(double scale) : AttentionPatch
    {
        public Tensor? Shares { get; private set; }

        public override bool Trainable => false;

        public override Tensor Around(AttentionInput input, Func<AttentionInput, Tensor> next, Pass pass)
        {
            Tensor scores = input.Query.matmul(input.Key.transpose(-1, -2)) * scale;
            Shares = (input.Bias is null ? scores : scores + input.Bias).softmax(-1).DetachFromDisposeScope();
            return next(input);
        }
    }
}
