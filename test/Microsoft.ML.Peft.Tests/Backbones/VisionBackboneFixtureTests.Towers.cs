// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <content>Pairs of an image and a text tower, and queries to an image's states.</content>
public sealed partial class VisionBackboneFixtureTests
{
    private static readonly Dictionary<string, Action<VisionCase>> _towerRuns = new()
    {
        ["clip"] = Pair,
        ["siglip"] = Pair,
        ["clip_text_model"] = TextTower,
        ["siglip_text_model"] = TextTower,
        ["blip_2_qformer"] = Queries,
        ["blip-2"] = Queries,
    };

    private static readonly Dictionary<string, Func<long>> _towerGeometries = new()
    {
        ["clip-vit-base-patch32"] = () => PairNumbers("""{"model_type": "clip", "text_config": {}, "vision_config": {}}"""),
        ["clip-vit-base-patch16"] = () => PairNumbers("""{"model_type": "clip", "vision_config": {"patch_size": 16}}"""),
        ["clip-vit-large-patch14"] = () => PairNumbers(
            """
            {"model_type": "clip", "projection_dim": 768,
            "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}}
            """),
        ["siglip-base-patch16-224"] = () => PairNumbers("""{"model_type": "siglip"}"""),
        ["blip2-qformer (32 queries not counted)"] = () => Numbers("""{"model_type": "blip_2_qformer"}""", 0) - 32 * 768,
    };

    private static long PairNumbers(string config)
    {
        using DualEncoder pair = DualEncoder.Build(JsonNode.Parse(config)!.AsObject(), new Shapes());
        return pair.ParameterCount;
    }

    private static TokenBatch Texts(VisionCase c) => new(
        c["input_ids"], c.Has("attention_mask") ? c["attention_mask"] : ones_like(c["input_ids"]), Padded: c.Has("attention_mask"));

    private static void Pair(VisionCase c)
    {
        using DualEncoder pair = DualEncoder.Load(c.Model);
        using (no_grad())
        {
            Tensor? images = c.Has("pixel_values") ? Tower(c, pair.Images, c.Batch(), "vision.", "image_features") : null;
            Tensor? texts = c.Has("input_ids") ? Tower(c, pair.Texts, Texts(c), "text.", "text_features") : null;
            c.CompareIfThere("image_embeds", () => DualEncoder.Embeddings(images!));
            c.CompareIfThere("text_embeds", () => DualEncoder.Embeddings(texts!));
            c.CompareIfThere("text.pooled_position", () => ((ClipTextBackbone)pair.Texts).EndOf(c["input_ids"]));
            c.CompareIfThere("positions", () => ((ImageEncoder)pair.Images).PositionsFor(c["pixel_values"].shape[2], c["pixel_values"].shape[3], new Pass())!);
            c.CompareIfThere("logits_per_text", () => pair.Logits(texts!, images!));
            c.CompareIfThere("logits_per_image", () => pair.Logits(texts!, images!).t());
            c.CompareIfThere("loss", () => pair.Loss(pair.Logits(texts!, images!)));
        }
        if (!c.Named("grad.").Any()) return;
        NamedParameter[] own = [.. new[] { pair.LogitScale, pair.LogitBias }.OfType<NamedParameter>()];
        foreach (NamedParameter parameter in own) parameter.SetTrainable(true);
        c.CompareGradients([pair.Images, pair.Texts], own, passes => pair.Loss(pair.Logits(pair.TextFeatures(Texts(c), passes[1]), pair.ImageFeatures(c.Batch(), passes[0]))));
    }

    // States, and what stands for the row in the common space: kept with all states, and without, where less may be computed.
    private static Tensor Tower(VisionCase c, Backbone tower, TokenBatch batch, string beginning, string features)
    {
        var watches = c.Named(beginning + "attentions.").ToDictionary(layer => layer, _ => new ShareWatch());
        var pass = new Pass(new PatchTable(watches.Select(w =>
            KeyValuePair.Create<Site, Patch>(tower.Sites.OfType<AttentionCore>().Single(s => s.Layer == int.Parse(w.Key)), w.Value))))
        {
            KeepHiddenStates = true,
        };
        BackboneOutput output = tower.Forward(batch, pass);
        c.CompareStates(output.HiddenStates!, beginning);
        c.CompareIfThere(beginning + "last_hidden_state", () => output.Last);
        Tensor pooled = tower.Pool(output, pass);
        c.CompareIfThere(beginning + "pooler_output", () => pooled);
        foreach ((string layer, ShareWatch watch) in watches)
        {
            // The first image, or the last text.
            long rows = c[$"{beginning}attentions.{layer}"].shape[0], from = beginning == "text." ? watch.Shares!.shape[0] - rows : 0;
            c.Compare($"{beginning}attentions.{layer}", watch.Shares!.narrow(0, from, rows));
            watch.Shares!.Dispose();
        }
        Tensor found = DualEncoder.Projected(tower, pooled, pass);
        c.CompareIfThere(features, () => found);
        var bare = new Pass { FirstTokenOnly = tower is ClipVisionBackbone };
        c.Worst.Compare($"{c.Name} {features} by themselves", DualEncoder.Projected(tower, tower.Pool(tower.Forward(batch, bare), bare), bare), found, c.Tolerance);
        return found;
    }

    // A tower in a file of its own.
    private static void TextTower(VisionCase c)
    {
        using Backbone backbone = BackboneLoader.Load(c.Model);
        using var off = no_grad();
        var pass = new Pass { KeepHiddenStates = true };
        BackboneOutput output = backbone.Forward(Texts(c), pass);
        c.CompareStates(output.HiddenStates!);
        c.CompareIfThere("last_hidden_state", () => output.Last);
        c.CompareIfThere("pooler_output", () => backbone.Pool(output, pass));
        c.CompareIfThere("pooled_position", () => ((ClipTextBackbone)backbone).EndOf(c["input_ids"]));
    }

    private static void Queries(VisionCase c)
    {
        using Backbone backbone = BackboneLoader.Load(c.Model);
        Tensor states = c["encoder_hidden_states"];
        Tensor? mask = c.Has("encoder_attention_mask") ? c["encoder_attention_mask"] : null, queries = c.Has("query_tokens") ? c["query_tokens"].requires_grad_() : null;
        using (no_grad())
        {
            var pass = new Pass { KeepHiddenStates = true };
            BackboneOutput output = backbone.Forward(TokenBatch.OfStates(states, mask, queries?.detach()), pass);
            c.CompareStates(output.HiddenStates!);
            c.CompareIfThere("last_hidden_state", () => output.Last);
            c.CompareIfThere("pooler_output", () => backbone.Pool(output, pass));
            c.CompareIfThere("last_hidden_state.no_mask", () => backbone.Forward(TokenBatch.OfStates(states, queries: queries?.detach()), new Pass()).Last);
        }
        if (!c.Has("loss_weight")) return;
        c.CompareGradients([backbone], [], passes =>
        {
            queries?.grad?.fill_(0);
            return 100 * (backbone.Forward(TokenBatch.OfStates(states, mask, queries), passes[0]).Last * c["loss_weight"]).mean();
        }, (name, _) => name == "query_tokens" ? queries?.grad : null);
        if (queries is null) return;
        // What comes in gets its gradient through a network that wears nothing.
        queries.grad!.fill_(0);
        (100 * (backbone.Forward(TokenBatch.OfStates(states, mask, queries), new Pass()).Last * c["loss_weight"]).mean()).backward();
        c.Compare("grad.query_tokens", queries.grad!, " through a frozen network");
    }
}
