// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Tasks;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Backbones;

/// <content>Networks that hear.</content>
public sealed partial class VisionBackboneFixtureTests
{
    private const string WhisperTiny =
        """
        {"model_type": "whisper", "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 6,
        "decoder_attention_heads": 6, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536}
        """;

    private const string WhisperBase =
        """
        {"model_type": "whisper", "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}
        """;

    private static readonly Dictionary<string, Action<VisionCase>> _soundRuns = new()
    {
        ["audio-spectrogram-transformer"] = Ast,
        ["wav2vec2"] = Wav2Vec2,
        ["whisper"] = Whisper,
    };

    // One number a tap of the positional kernel is stored beside it, and not kept.
    private static readonly Dictionary<string, Func<long>> _soundGeometries = new()
    {
        ["ast-finetuned-audioset-10-10-0.4593"] = () => Numbers("""{"model_type": "audio-spectrogram-transformer"}""", 527),
        ["wav2vec2-base"] = () => 128 + Numbers("""{"model_type": "wav2vec2"}""", 0),
        ["wav2vec2-base (2 classes)"] = () => 128 + Numbers("""{"model_type": "wav2vec2"}""", 2),
        ["whisper-tiny"] = () => Written(WhisperTiny),
        ["whisper-base"] = () => Written(WhisperBase),
    };

    private static long Written(string config)
    {
        using Backbone backbone = BackboneLoader.Build(JsonNode.Parse(config)!.AsObject(), new Shapes(), languageHead: true);
        return backbone.ParameterCount;
    }

    private static void Ast(VisionCase c)
    {
        if (!c.Has("position_embeddings"))
        {
            Classifies(c);
            return;
        }
        using Backbone backbone = BackboneLoader.Load(c.Model);
        using var off = no_grad();
        var ast = (AstBackbone)backbone;
        long own = c.Config["max_length"]!.GetValue<long>(), stride = c.Config["time_stride"]!.GetValue<long>(), patch = c.Config["patch_size"]!.GetValue<long>();
        c.Compare("position_embeddings", backbone.Sites.Single(s => s.Role == SiteRole.PositionEmbedding) is Constant table ? table.Weight : throw new AssertFailedException("no table"));
        foreach (string length in c.Named("bilinear.")) c.Compare($"bilinear.{length}", ast.Positions(long.Parse(length), false, new Pass()));
        foreach (string length in c.Named("cut.")) c.Compare($"cut.{length}", ast.Positions(long.Parse(length), true, new Pass()));
        // What a batch asks for reaches the embeddings; without asking, another length is refused.
        foreach (string length in c.Named("bilinear."))
        {
            long frames = (long.Parse(length) - 1) * stride + patch;
            Tensor sound = zeros([1, frames, c.Config["num_mel_bins"]!.GetValue<long>()]);
            if ((own - patch) / stride + 1 != long.Parse(length)) Assert.ThrowsExactly<ArgumentException>(() => backbone.Forward(TokenBatch.OfSound(sound), new Pass()));
            var keeps = new Pass { KeepHiddenStates = true };
            backbone.Forward(TokenBatch.OfSound(sound) with { InterpolatePositions = true }, keeps);
            c.Compare($"bilinear.{length}", Positions(backbone, TokenBatch.OfSound(sound) with { InterpolatePositions = true }), " in a batch");
            if (c.Has($"cut.{length}")) c.Compare($"cut.{length}", Positions(backbone, TokenBatch.OfSound(sound) with { CutPositions = true }), " in a batch");
        }
    }

    // Embeddings of silence, less what tokens and patches of silence are.
    private static Tensor Positions(Backbone backbone, TokenBatch silence)
    {
        Tensor states = backbone.Forward(silence, new Pass { KeepHiddenStates = true }).HiddenStates![0];
        Tensor[] leading = [.. backbone.Sites.OfType<Constant>().Where(s => s.Role is SiteRole.ClassToken or SiteRole.DistillationToken).Select(s => s.Weight)];
        Tensor patches = backbone.Sites.OfType<Convolution>().Single().Bias!.view(1, 1, -1).expand(1, states.shape[1] - leading.Length, -1);
        return states - cat([.. leading, patches], 1);
    }

    private static void Wav2Vec2(VisionCase c) => Classifies(c, (backbone, output, _) =>
    {
        WeightSite norm = Site("feature_projection.layer_norm"), projection = Site("feature_projection.projection");
        WeightSite Site(string name) => (WeightSite)backbone.Sites.Single(s => s.Name == name);
        using InputWatch before = new(), after = new();
        backbone.Forward(c.Batch(), new Pass(new PatchTable([KeyValuePair.Create<Site, Patch>(norm, before), KeyValuePair.Create<Site, Patch>(projection, after)])));
        c.CompareIfThere("conv_features", () => before.Seen!.transpose(1, 2));
        c.CompareIfThere("extract_features", () => after.Seen!);
        c.CompareIfThere("frame_mask", () => output.Layout.Mask);
        c.CompareIfThere("positional_kernel", () => Site("encoder.pos_conv_embed.conv").Weight);
        Assert.IsTrue(backbone.UnusedTensors.All(name => name is "layer_weights" || name.StartsWith("projector.", StringComparison.Ordinal) || name.StartsWith("classifier.", StringComparison.Ordinal)),
            string.Join(", ", backbone.UnusedTensors));
    });

    // Keeps what a site reads.
    private sealed class InputWatch : WeightPatch, IDisposable
    {
        public Tensor? Seen { get; private set; }

        public override bool Trainable => false;

        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Seen = x.detach().clone().DetachFromDisposeScope();
            return next(x);
        }

        public void Dispose() => Seen?.Dispose();
    }

    private static void Whisper(VisionCase c)
    {
        using Backbone backbone = BackboneLoader.Load(c.Model, languageHead: true), encoder = BackboneLoader.Load(c.Model);
        Assert.IsEmpty(backbone.UnusedTensors, string.Join(", ", backbone.UnusedTensors));
        using var head = new SequenceToSequenceHead(backbone);
        if (c.Has("start_ids"))
        {
            using var off = no_grad();
            WhisperSteps(c, backbone, head);
            return;
        }
        Tensor ids = SequenceToSequenceHead.DecoderIds(c["labels"], backbone.Config);
        TokenBatch batch = c.Batch() with { DecoderIds = ids };
        using (no_grad())
        {
            c.Compare("decoder_input_ids", ids);
            var pass = new Pass { KeepHiddenStates = true };
            BackboneOutput output = backbone.Forward(batch, pass);
            c.CompareStates([.. output.Encoder!.HiddenStates!.SkipLast(1), output.Encoder.Last], "encoder.");
            c.CompareStates([.. output.HiddenStates!.SkipLast(1), output.Last], "decoder.");
            c.Compare("logits", head.Forward(backbone, output, pass));
            // Without the language head it is the encoder alone, which a classifier reads.
            Assert.IsNull(encoder.Config.DecoderStart);
            BackboneOutput heard = encoder.Forward(c.Batch(), new Pass());
            c.Compare($"encoder.hidden_states.{encoder.Config.LayerCount}", heard.Last, " by the encoder alone");
            c.Worst.Compare("classifier features", encoder.ClassifierFeatures(heard, new Pass()), backbone.ClassifierFeatures(output, pass), c.Tolerance);
        }
        c.CompareGradients([backbone], [], passes => SequenceToSequenceHead.Loss(head.Forward(backbone, backbone.Forward(batch, passes[0]), passes[0]), c["labels"]));
    }

    private static void WhisperSteps(VisionCase c, Backbone backbone, SequenceToSequenceHead head)
    {
        BackboneOutput encoded = backbone.Encode(c.Batch(), new Pass());
        c.Compare("encoder_last_hidden_state", encoded.Last);
        using var cache = new KeyValueCache();
        Tensor next = c["start_ids"], chosen = zeros([next.shape[0], 0], ScalarType.Int64);
        for (int step = 0; c.Has($"step_logits.{step}"); step++)
        {
            var pass = new Pass { Cache = cache };
            Tensor scores = head.Forward(backbone, backbone.Forward(c.Batch() with { Encoded = encoded, DecoderIds = next }, pass), pass).select(1, next.shape[1] - 1);
            c.Compare($"step_logits.{step}", scores);
            next = scores.argmax(-1, true);
            chosen = cat([chosen, next], 1);
        }
        c.Compare("tokens", chosen);
        foreach ((string name, SiteRole role) in ((string, SiteRole)[])[("cache.keys.", SiteRole.AttentionCore), ("cache.cross_keys.", SiteRole.CrossAttentionCore)])
            foreach (string layer in c.Named(name))
                c.Compare(name + layer, cache[backbone.Sites.OfType<AttentionCore>().Single(s => s.Role == role && s.Layer == backbone.Config.DecoderStart + int.Parse(layer))].Key);
        TokenBatch whole = c.Batch() with { DecoderIds = cat([c["start_ids"], c["tokens"]], 1).narrow(1, 0, c["start_ids"].shape[1] + c["tokens"].shape[1] - 1) };
        var plain = new Pass();
        c.Compare($"step_logits.{c["tokens"].shape[1] - 1}", head.Forward(backbone, backbone.Forward(whole, plain), plain).select(1, whole.DecoderIds!.shape[1] - 1), " without a cache");
    }
}
