// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>One case folder: case.json and its tensors.</summary>
internal sealed class Fixture : IDisposable
{
    private readonly SafetensorsFile? _file;

    public Fixture(string folder, string description = "case.json", string tensorFile = "tensors.safetensors")
    {
        Folder = folder;
        Name = Path.GetFileName(folder);
        Json = JsonNode.Parse(File.ReadAllText(Path.Combine(folder, description)))!.AsObject();
        string tensors = Path.Combine(folder, tensorFile);
        if (File.Exists(tensors)) _file = SafetensorsFile.Open(tensors);
    }

    public string Folder { get; }

    public string Name { get; }

    public JsonObject Json { get; }

    public IEnumerable<string> Names => _file?.Names ?? [];

    public string? Text(string field) => (string?)Json[field];

    public string PathOf(params string[] parts) => Path.Combine([Folder, .. parts]);

    public bool Has(string name) => _file is not null && _file.Contains(name);

    public Tensor this[string name] => Read(_file!, name);

    /// <summary>Tensors whose names begin with a prefix, by the rest of their names.</summary>
    public IEnumerable<(string Name, Tensor Value)> Under(string prefix) =>
        Names.Where(n => n.StartsWith(prefix, StringComparison.Ordinal)).Select(n => (n[prefix.Length..], this[n]));

    public static Tensor Read(SafetensorsFile file, string name)
    {
        SafetensorsInfo info = file.Info(name);
        return info.Dtype switch
        {
            SafetensorsDtype.U8 => tensor(file.Bytes(name).ToArray().Select(b => (float)b).ToArray(), info.Shape.AsSpan()),
            _ => AdapterTensors.Read(file, name),
        };
    }

    public void Dispose() => _file?.Dispose();
}

/// <summary>The largest deviation of a kind of number, against its tolerance; kept over all cases.</summary>
internal sealed class Deviations
{
    private readonly SortedDictionary<string, (double Share, double Deviation, string Where)> _worst = [];

    public List<string> Failures { get; } = [];

    public void Add(string kind, string where, double deviation, double tolerance)
    {
        double share = deviation / tolerance;
        if (!(share <= 1)) Failures.Add($"{where}: {kind} is off by {deviation:g3}, allowed is {tolerance:g3}");
        if (!_worst.TryGetValue(kind, out var worst) || !(share <= worst.Share)) _worst[kind] = (share, deviation, where);
    }

    public void Add(string kind, string where, Tensor found, Tensor expected, double tolerance)
    {
        if (!found.shape.SequenceEqual(expected.shape))
        {
            Failures.Add($"{where}: {kind} has shape [{string.Join(", ", found.shape)}], expected [{string.Join(", ", expected.shape)}]");
            return;
        }
        Add(kind, where, Distance(found, expected), tolerance);
    }

    public static double Distance(Tensor a, Tensor b) =>
        a.numel() == 0 ? 0 : (a.detach().to_type(ScalarType.Float64) - b.detach().to_type(ScalarType.Float64)).abs().max().item<double>();

    public void Fail(string message) => Failures.Add(message);

    public void Report()
    {
        foreach ((string kind, var worst) in _worst)
            Console.WriteLine($"worst {kind}: {worst.Deviation:g3} ({worst.Share:p0} of the tolerance) in {worst.Where}");
        if (Failures.Count > 0) Assert.Fail($"{Failures.Count} deviations:\n" + string.Join("\n", Failures.Take(60)));
    }
}

/// <summary>A tiny base model with its head, and its batch.</summary>
internal sealed class TinyBase : IDisposable
{
    private readonly Dictionary<string, Tensor> _start = [];

    public TinyBase(string folder)
    {
        if (PlainBase.Describes(folder))
        {
            Backbone = PlainBase.Load(folder);
            Head = new PlainBase.LastSite();
            return;
        }
        using CheckpointFolder checkpoint = CheckpointFolder.Open(folder);
        string architecture = Architecture(folder);
        bool causal = WritesOn(architecture), translates = architecture.EndsWith("ForConditionalGeneration", StringComparison.Ordinal);
        Backbone = BackboneLoader.Load(checkpoint, languageHead: causal || translates);
        if (causal || translates)
        {
            Head = causal ? new Tasks.CausalLanguageHead(Backbone) : new Tasks.SequenceToSequenceHead(Backbone);
            return;
        }
        using SafetensorsFile weights = SafetensorsFile.Open(Path.Combine(folder, "model.safetensors"));
        string? last = new[] { "classifier", "qa_outputs" }.FirstOrDefault(n => weights.Contains(n + ".weight"));
        if (last is null) return;
        using Tensor weight = Fixture.Read(weights, last + ".weight");
        Head = architecture.EndsWith("ForSequenceClassification", StringComparison.Ordinal) || architecture.EndsWith("ForImageClassification", StringComparison.Ordinal)
            ? new Tasks.SequenceClassificationHead(Backbone, (int)weight.shape[0])
            : new EveryTokenHead(last, weight.shape[0], weight.shape[1]);
        foreach (NamedParameter parameter in Head.Parameters)
        {
            using Tensor value = Fixture.Read(weights, parameter.Name);
            parameter.Load(value);
            _start[parameter.Name] = value.clone().DetachFromDisposeScope();
        }
    }

    /// <summary>The class of the model in Hugging Face, or nothing.</summary>
    public static string Architecture(string folder)
    {
        string config = Path.Combine(folder, "config.json");
        return File.Exists(config) ? (string?)JsonNode.Parse(File.ReadAllText(config))!["architectures"]?[0] ?? "" : "";
    }

    /// <summary>True for a causal language model, whose scores are for the next token.</summary>
    public static bool WritesOn(string architecture) =>
        architecture.EndsWith("ForCausalLM", StringComparison.Ordinal) || architecture.EndsWith("LMHeadModel", StringComparison.Ordinal);

    public Backbone Backbone { get; private set; }

    /// <summary>Puts the stack of layers that a method is made for in the place of the base.</summary>
    /// <returns>True where it is another one.</returns>
    public bool Restack(PeftMethod method)
    {
        if (method.Restack(Backbone) is not { } stack) return false;
        Backbone.Dispose();
        Backbone = stack;
        return true;
    }

    public Head? Head { get; private set; }

    /// <summary>Gives the head away; the taker disposes it.</summary>
    public Head? TakeHead()
    {
        (Head? head, Head) = (Head, null);
        return head;
    }

    /// <summary>Gives the head its values of the checkpoint again.</summary>
    public void ResetHead()
    {
        foreach ((string name, Tensor value) in _start) Head!.Parameters.First(p => p.Name == name).Load(value);
    }

    public void Dispose()
    {
        foreach (Tensor value in _start.Values) value.Dispose();
        Head?.Dispose();
        Backbone.Dispose();
    }

    /// <summary>One linear map on each token: token classification, question answering.</summary>
    private sealed class EveryTokenHead : Head
    {
        private readonly NamedParameter _weight, _bias;

        public EveryTokenHead(string name, long outputs, long width)
        {
            _weight = Add(new NamedParameter(name + ".weight", zeros([outputs, width])));
            _bias = Add(new NamedParameter(name + ".bias", zeros([outputs])));
        }

        public override Tensor Features(Backbone backbone, BackboneOutput output, Pass pass) => output.Last;

        public override Tensor FromFeatures(Tensor features, Pass pass) => nn.functional.linear(features, _weight.Value, _bias.Value);
    }
}

/// <summary>The batch of a case.</summary>
internal sealed class FixtureBatch(Fixture fixture)
{
    private readonly Tensor? _labels = fixture.Has("in/labels") ? fixture["in/labels"] : null;
    private readonly Tensor? _target = fixture.Has("in/target") ? fixture["in/target"] : null;
    private readonly Tensor? _starts = fixture.Has("in/start_positions") ? fixture["in/start_positions"] : null;
    private readonly bool _causal = fixture.Text("base") is { } folder && TinyBase.WritesOn(TinyBase.Architecture(fixture.PathOf("..", folder)));
    private readonly Tensor? _ends = fixture.Has("in/end_positions") ? fixture["in/end_positions"] : null;

    // The base says which of the last layer's states its cases record.
    private readonly bool _beforeNorm = fixture.Text("base") is { } name
        && Path.Combine(Path.GetDirectoryName(fixture.Folder)!, name, "base.json") is var file && File.Exists(file)
        && ((string?)JsonNode.Parse(File.ReadAllText(file))!["tensors"]?["hidden"])?.Contains("before the final layer norm", StringComparison.Ordinal) == true;

    public TokenBatch Tokens { get; } = fixture.Has("in/input_ids")
        ? new(fixture["in/input_ids"], fixture["in/attention_mask"], fixture.Has("in/token_type_ids") ? fixture["in/token_type_ids"] : null,
            TaskIds: fixture.Has("in/task_ids") ? fixture["in/task_ids"] : null)
        : fixture.Has("in/pixel_values") ? TokenBatch.OfImages(fixture["in/pixel_values"]) : PlainBase.Batch(fixture);

    /// <summary>The batch as a backbone reads it: a decoder's tokens are the labels, shifted right.</summary>
    public TokenBatch TokensFor(Backbone backbone) => backbone.Config.DecoderStart is null
        ? Tokens
        : Tokens with { DecoderIds = Tasks.SequenceToSequenceHead.DecoderIds(_labels!, backbone.Config) };

    public (Tensor Logits, Tensor Hidden) Forward(Backbone backbone, Head? head, Pass pass, PeftAdaptation? worn = null)
    {
        worn?.BeforePass(pass, TokensFor(backbone));
        pass.KeepHiddenStates |= _beforeNorm;
        BackboneOutput output = backbone.Forward(TokensFor(backbone), pass);
        return (head is null ? output.Last : head.Forward(backbone, output, pass), _beforeNorm ? output.HiddenStates![^1] : output.Last);
    }

    /// <summary>The loss of the task, or the one that the method puts in its place.</summary>
    public Tensor Loss(Tensor logits, PeftAdaptation adaptation, Pass pass) =>
        _labels is null ? Loss(logits) : adaptation.TaskLoss(logits, _labels, Loss, pass) ?? Loss(logits);

    public Tensor Loss(Tensor logits)
    {
        if (_target is not null)
        {
            Tensor mask = Tokens.Mask.to_type(ScalarType.Float32).unsqueeze(-1);
            return nn.functional.mse_loss((logits * mask).sum(1) / mask.sum(1), _target);
        }
        if (_starts is not null)
            return (nn.functional.cross_entropy(logits.select(-1, 0), _starts) + nn.functional.cross_entropy(logits.select(-1, 1), _ends!)) / 2;
        if (_causal) return Tasks.CausalLanguageHead.Loss(logits, _labels!);
        Tensor labels = logits.dim() == 3 ? Tasks.CausalLanguageHead.BehindPrompts(_labels!, logits.shape[1]) : _labels!;
        return nn.functional.cross_entropy(logits.reshape(-1, logits.shape[^1]), labels.reshape(-1));
    }
}

/// <summary>AdamW as PyTorch has it, one tensor at a time.</summary>
internal sealed class PlainAdamW(double rate, double decay, double epsilon = 1e-8)
{
    private const double Beta1 = 0.9, Beta2 = 0.999;
    private readonly Dictionary<NamedParameter, (Tensor First, Tensor Second)> _state = [];
    private int _step;

    /// <summary>LoRA-FA's form: epsilon outside the bias correction, decay after the step.</summary>
    public bool FaForm { get; init; }

    public void Step(IEnumerable<NamedParameter> parameters)
    {
        using var off = no_grad();
        _step++;
        double c1 = 1 - Math.Pow(Beta1, _step), c2 = 1 - Math.Pow(Beta2, _step);
        foreach (NamedParameter parameter in parameters)
        {
            if (!parameter.Trainable || parameter.Value.grad is not { } gradient) continue;
            using var scope = NewDisposeScope();
            double lr = parameter.OwnRate ?? rate * parameter.RateFactor;
            double wd = parameter.Decay ? decay : 0;
            if (parameter.OwnUpdate is { } rule)
            {
                rule(parameter.Value, gradient, lr, wd);
                continue;
            }
            if (!_state.TryGetValue(parameter, out var state))
                _state[parameter] = state = (zeros_like(gradient).DetachFromDisposeScope(), zeros_like(gradient).DetachFromDisposeScope());
            if (!FaForm && wd > 0) parameter.Value.mul_(1 - lr * wd);
            state.First.mul_(Beta1).add_(gradient * (1 - Beta1));
            state.Second.mul_(Beta2).add_(gradient * gradient * (1 - Beta2));
            Tensor step = FaForm
                ? state.First / (state.Second.sqrt() + epsilon) * (lr * Math.Sqrt(c2) / c1)
                : state.First / ((state.Second / c2).sqrt() + epsilon) * (lr / c1);
            parameter.Value.sub_(step);
            if (FaForm && wd > 0) parameter.Value.mul_(1 - lr * wd);
        }
    }

    public static void ZeroGradients(IEnumerable<NamedParameter> parameters)
    {
        foreach (NamedParameter parameter in parameters) parameter.Value.grad?.fill_(0);
    }

    public void Dispose()
    {
        foreach ((Tensor first, Tensor second) in _state.Values) { first.Dispose(); second.Dispose(); }
        _state.Clear();
    }
}
