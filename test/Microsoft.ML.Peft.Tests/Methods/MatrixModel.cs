// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Methods;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>A tiny random network made in memory (BERT unless said otherwise), with a head and a small set of rows: what the method matrix runs on.</summary>
internal sealed class MatrixModel : IDisposable
{
    private readonly TokenBatch _batch;
    private readonly Tensor _labels;

    public MatrixModel(PeftMethod? method, long seed = 1, Device? device = null, ScalarType dtype = ScalarType.Float32, MatrixBackbone? kind = null, WeightFormat? quantised = null)
    {
        Device where = device ?? CPU;
        Backbone = kind is null ? Make(where, dtype) : kind.Make(where, dtype);
        if (quantised is { } format) Backbone.Quantise(format);
        try
        {
            Adaptation = method?.Attach(Backbone, seed);
        }
        catch
        {
            Backbone.Dispose();
            throw;
        }
        Model = new AdaptedModel(Backbone, Adaptation, new Tasks.SequenceClassificationHead(Backbone, 3, kind?.Pooling ?? Tasks.Pooling.Family, seed: 5), ownsBackbone: true);
        var draws = new Draws(11, "rows");
        var ids = new long[12 * 9];
        var mask = new long[12 * 9];
        for (int row = 0; row < 12; row++)
            for (int at = 0; at < 9; at++)
                if (at < 4 + (row * 7 % 6)) (ids[(row * 9) + at], mask[(row * 9) + at]) = (1 + (long)(draws.Next() * 99), 1);
        using var scope = NewDisposeScope();
        var tokens = new TokenBatch(tensor(ids, [12, 9]).to(where), tensor(mask, [12, 9]).to(where));
        _batch = kind?.Batch(tokens) ?? tokens;
        foreach (Tensor kept in Tensors(_batch)) Keep(kept);
        _labels = Keep(tensor(Enumerable.Range(0, 12).Select(i => (long)(i * i % 3)).ToArray()).to(where));
    }

    private static Tensor Keep(Tensor tensor) => tensor.DetachFromDisposeScope();

    public Backbone Backbone { get; }

    public PeftAdaptation? Adaptation { get; }

    public AdaptedModel Model { get; }

    /// <summary>Scores of all rows; with the adaptation, or of the bare backbone.</summary>
    public float[] Score(bool bare = false, Backbone? other = null) => Score(bare ? PatchTable.Empty : Model.Patches, other);

    /// <summary>Scores of all rows with the given patches.</summary>
    public float[] Score(PatchTable worn, Backbone? other = null, PeftAdaptation? of = null)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var pass = new Pass(worn);
        of?.BeforePass(pass, _batch);
        return Values(Forward(other ?? Backbone, pass, _batch));
    }

    /// <summary>Scores of all rows as the model says, in its precision.</summary>
    public float[] Scored()
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        return Values(Model.Forward(_batch, new Pass(Model.Patches)));
    }

    /// <summary>Scores of one row by itself, cut to its length.</summary>
    public float[] ScoreAlone(int row)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Tensor mask = _batch.Mask.narrow(0, row, 1);
        long length = mask.sum().item<long>();
        var one = new TokenBatch(_batch.Ids.narrow(0, row, 1).narrow(1, 0, length), mask.narrow(1, 0, length), Padded: false);
        return Values(Forward(Backbone, new Pass(Model.Patches), one));
    }

    private static IEnumerable<Tensor> Tensors(TokenBatch batch) => new[] { batch.Ids, batch.Mask, batch.DecoderIds, batch.Pixels, batch.Sound }.OfType<Tensor>();

    /// <summary>The loss of all rows with the patches of a pass.</summary>
    public Tensor Loss(Pass pass, Backbone? other = null) => nn.functional.cross_entropy(Forward(other ?? Backbone, pass, _batch).to_type(ScalarType.Float32), _labels);

    public int Rows => 12;

    private Tensor Forward(Backbone backbone, Pass pass, TokenBatch batch)
    {
        if (ReferenceEquals(pass.Patches, Model.Patches)) Adaptation?.BeforePass(pass, batch);
        return Model.Head.Forward(backbone, backbone.Forward(batch, pass), pass);
    }

    /// <summary>Gradients of the first training step, by parameter.</summary>
    public Dictionary<string, float[]> Gradients(bool checkpointing)
    {
        using var scope = NewDisposeScope();
        PlainAdamW.ZeroGradients(Model.Parameters);
        var pass = new Pass(Model.Patches, training: true, seed: 3) { Checkpointing = checkpointing };
        Tensor loss = nn.functional.cross_entropy(Forward(Backbone, pass, _batch).to_type(ScalarType.Float32), _labels);
        if (Adaptation?.ExtraLoss(pass) is { } extra) loss = loss + extra;
        loss.backward();
        return Model.Parameters.Where(p => p.Trainable).ToDictionary(p => p.Name, p => p.Value.grad is { } gradient ? Values(gradient) : []);
    }

    /// <summary>Trains some steps on all rows; gives the losses.</summary>
    public List<float> Train(int steps, double rate = 0.01)
    {
        var losses = new List<float>();
        var optimizer = new PlainAdamW(rate, 0.01);
        NamedParameter[] parameters = [.. Model.Parameters];
        for (int step = 0; step < steps; step++)
        {
            using var scope = NewDisposeScope();
            var pass = new Pass(Model.Patches, training: true, seed: (ulong)step) { Precision = Model.Precision };
            Tensor loss = nn.functional.cross_entropy(Forward(Backbone, pass, _batch).to_type(ScalarType.Float32), _labels);
            if (Adaptation?.ExtraLoss(pass) is { } extra) loss = loss + extra;
            PlainAdamW.ZeroGradients(parameters);
            loss.backward();
            Adaptation?.BeforeStep(step);
            optimizer.Step(parameters);
            Adaptation?.AfterStep(step);
            losses.Add(loss.item<float>());
        }
        optimizer.Dispose();
        return losses;
    }

    /// <summary>Every frozen number, as bits.</summary>
    public List<byte[]> FrozenBytes() => [.. Backbone.Sites.OfType<WeightSite>()
        .SelectMany(site => new[] { site.Weight, site.Bias }).OfType<Tensor>().Select(Bytes)];

    /// <summary>Every trained number, as bits, by name.</summary>
    public Dictionary<string, byte[]> TrainedBytes() => Model.Parameters.ToDictionary(p => p.Name, p => Bytes(p.Value));

    private static byte[] Bytes(Tensor value)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        return value.detach().cpu().contiguous().bytes.ToArray();
    }

    private static float[] Values(Tensor value) => value.to_type(ScalarType.Float32).cpu().contiguous().data<float>().ToArray();

    public void Dispose()
    {
        foreach (Tensor kept in Tensors(_batch)) kept.Dispose();
        _labels.Dispose();
        Model.Dispose();
    }

    /// <summary>A random BERT: hidden 32, 2 layers.</summary>
    public static Backbone Make(Device device, ScalarType dtype = ScalarType.Float32)
    {
        using var scope = NewDisposeScope();
        return BackboneLoader.Build(Config(32, 2, 48, 101), new Random(device, dtype));
    }

    /// <summary>A BERT of a real size without its numbers, for counting.</summary>
    public static Backbone ShapesOnly(int hidden, int layers, int inner) => BackboneLoader.Build(Config(hidden, layers, inner, 30522), new Shapes());

    /// <summary>A network of any configuration without its numbers, for counting.</summary>
    public static Backbone ShapesOnly(JsonObject config) => BackboneLoader.Build(config, new Shapes());

    // Through text: a configuration comes from a file.
    private static JsonObject Config(int hidden, int layers, int inner, int vocabulary) => JsonNode.Parse(new JsonObject
    {
        ["model_type"] = "bert",
        ["hidden_size"] = hidden,
        ["num_hidden_layers"] = layers,
        ["num_attention_heads"] = hidden / 8 > 12 ? 12 : 4,
        ["intermediate_size"] = inner,
        ["vocab_size"] = vocabulary,
        ["max_position_embeddings"] = 40,
        ["type_vocab_size"] = 2,
        ["hidden_dropout_prob"] = 0.1,
        ["attention_probs_dropout_prob"] = 0.1,
    }.ToJsonString())!.AsObject();

    internal sealed class Random(Device device, ScalarType dtype, bool pooler = true) : IWeightSource
    {
        public bool Has(string name) => (pooler || !name.StartsWith("pooler.", StringComparison.Ordinal)) && name != "masked_spec_embed";

        public Tensor Load(string name, params long[] shape)
        {
            Tensor noise = new Draws(3, name).Normal(shape.Length > 1 ? 0.2 : 0.1, shape);
            bool scale = shape.Length == 1 && (name.EndsWith(".weight", StringComparison.Ordinal) || name.EndsWith(".running_var", StringComparison.Ordinal));
            return (scale ? noise + 1 : noise).to_type(dtype).to(device);
        }
    }

    private sealed class Shapes : IWeightSource
    {
        public bool Has(string name) => true;

        public Tensor Load(string name, params long[] shape) => zeros([1]).expand(shape);
    }
}
