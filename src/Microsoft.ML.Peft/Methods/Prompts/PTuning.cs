// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>What makes the prompts of P-tuning out of its table.</summary>
public enum PromptEncoderKind
{
    /// <summary>Three linear maps with ReLU between.</summary>
    Mlp,
    /// <summary>A bidirectional LSTM over the rows, then two linear maps with ReLU between.</summary>
    Lstm,
}

/// <summary>
/// P-tuning (Liu et al. 2021, arXiv 2103.10385) with all P prompts in front: a table <c>[P, d]</c> goes through an MLP
/// <c>d → h → h → d</c> or a bidirectional LSTM with h units a direction and <c>2h → 2h → d</c>, so that prompts depend on
/// each other. After training the encoder is folded into a table <c>[P, d]</c>, which is what exchanged files hold.
/// </summary>
public sealed class PTuningOptions : InsertedPromptMethod
{
    /// <summary>What makes the prompts.</summary>
    public PromptEncoderKind Encoder { get; set; }

    /// <summary>h: hidden width of the encoder; 0 for the width of the words.</summary>
    public int HiddenSize { get; set; }

    /// <summary>Layers of the LSTM.</summary>
    public int EncoderLayers { get; set; } = 2;

    /// <summary>Share of entries, in [0, 1), that is dropped between the layers of the LSTM while training.</summary>
    public double EncoderDropout { get; set; }

    /// <summary>True where the encoder has been folded into its table, which is then trained by itself.</summary>
    public bool Folded { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "p-tuning";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => Folded ? "P e" : Encoder == PromptEncoderKind.Mlp ? "P e + 2 h e + h² + 2 h + e" : "P e and the LSTM";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-4;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "P_TUNING";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (!Enum.IsDefined(Encoder)) throw Invalid(nameof(Encoder), Encoder, string.Join(", ", Enum.GetNames<PromptEncoderKind>()));
        if (HiddenSize < 0) throw Invalid(nameof(HiddenSize), HiddenSize, "0 for the width of the words, or more");
        if (EncoderLayers < 1) throw Invalid(nameof(EncoderLayers), EncoderLayers, "1 or more");
        CheckShare(nameof(EncoderDropout), EncoderDropout);
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone)
    {
        long d = Width(backbone), h = Hidden(d), table = Rows(backbone) * d;
        if (Folded) return table;
        if (Encoder == PromptEncoderKind.Mlp) return table + (h * d + h) + (h * h + h) + (d * h + d);
        // A direction of a layer: four gates of input, state and two biases.
        long lstm = Enumerable.Range(0, EncoderLayers).Sum(layer => 2 * 4 * h * ((layer == 0 ? d : 2 * h) + h + 2));
        return table + lstm + (2 * h * 2 * h + 2 * h) + (d * 2 * h + d);
    }

    private long Hidden(long width) => HiddenSize == 0 ? width : HiddenSize;

    /// <inheritdoc/>
    private protected override PromptRows AddRows(PeftAdaptation adaptation, long rows, long width, long seed)
    {
        NamedParameter table = Add(adaptation, TableName, new Draws(seed, TableName).Normal(1, rows, width), key: Folded ? TableKey : TableName);
        if (Folded) return _ => table.Value;
        long h = Hidden(width);
        Func<Tensor, Tensor> Head(int number, long outputs, long inputs) => AddLinear(adaptation, $"prompt_encoder.mlp_head.{number}", outputs, inputs, seed);
        PromptRows encode;
        if (Encoder == PromptEncoderKind.Mlp)
        {
            Func<Tensor, Tensor> first = Head(0, h, width), second = Head(2, h, h), third = Head(4, width, h);
            encode = _ => third(second(first(table.Value).relu()).relu());
        }
        else
        {
            var lstm = new PromptLstm(adaptation, "prompt_encoder.lstm_head", width, h, EncoderLayers, EncoderDropout, seed);
            Func<Tensor, Tensor> first = Head(0, 2 * h, 2 * h), second = Head(2, width, 2 * h);
            encode = pass => second(first(lstm.Run(table.Value, pass)).relu());
        }
        ((Encoded)adaptation).Encode = encode;
        return encode;
    }

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone) => new Encoded(this, backbone);

    private sealed class Encoded(PTuningOptions method, Backbone backbone) : PeftAdaptation(method, backbone)
    {
        public PromptRows? Encode { get; set; }
    }

    /// <inheritdoc/>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        if (Folded) return adaptation;
        PTuningOptions folded = Copy<PTuningOptions>();
        folded.Folded = true;
        using var scope = NewDisposeScope();
        using var off = no_grad();
        return Fold(adaptation, folded, [(TableName, ((Encoded)adaptation).Encode!(null))]);
    }

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes) => Folded = shapes.ContainsKey(TableKey);

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadInserted(config);
        HiddenSize = AdapterConfig.Get(config, "encoder_hidden_size", 0);
        EncoderLayers = AdapterConfig.Get(config, "encoder_num_layers", 2);
        EncoderDropout = AdapterConfig.Get(config, "encoder_dropout", 0.0);
        Encoder = AdapterConfig.Get(config, "encoder_reparameterization_type", "MLP") switch
        {
            "MLP" => PromptEncoderKind.Mlp,
            "LSTM" => PromptEncoderKind.Lstm,
            var other => throw new ArgumentException($"adapter_config.json: the field 'encoder_reparameterization_type' is '{other}'; expected is MLP or LSTM.", "encoder_reparameterization_type"),
        };
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteInserted(config, backbone);
        config["encoder_dropout"] = EncoderDropout;
        config["encoder_hidden_size"] = Hidden(Width(backbone));
        config["encoder_num_layers"] = EncoderLayers;
        config["encoder_reparameterization_type"] = Encoder == PromptEncoderKind.Mlp ? "MLP" : "LSTM";
    }
}

/// <summary>A bidirectional LSTM over the rows of a table (Hochreiter and Schmidhuber 1997), gates in the order input, forget, cell, output.</summary>
internal sealed class PromptLstm
{
    private sealed record Direction(NamedParameter Input, NamedParameter State, NamedParameter InputBias, NamedParameter StateBias);

    private readonly List<(Direction Forward, Direction Backward)> _layers = [];
    private readonly long _hidden;
    private readonly double _dropout;

    public PromptLstm(PeftAdaptation adaptation, string name, long width, long hidden, int layers, double dropout, long seed)
    {
        (_hidden, _dropout) = (hidden, dropout);
        Direction Make(int layer, string suffix)
        {
            NamedParameter Part(string part, params long[] shape)
            {
                string full = $"{name}.{part}_l{layer}{suffix}";
                return PromptMethod.Add(adaptation, full, new Draws(seed, full).Uniform(1 / Math.Sqrt(hidden), shape));
            }
            long inputs = layer == 0 ? width : 2 * hidden;
            return new Direction(Part("weight_ih", 4 * hidden, inputs), Part("weight_hh", 4 * hidden, hidden), Part("bias_ih", 4 * hidden), Part("bias_hh", 4 * hidden));
        }
        for (int layer = 0; layer < layers; layer++) _layers.Add((Make(layer, ""), Make(layer, "_reverse")));
    }

    /// <summary>States <c>[rows, 2 hidden]</c> of inputs <c>[rows, width]</c>.</summary>
    public Tensor Run(Tensor x, Pass? pass)
    {
        for (int layer = 0; layer < _layers.Count; layer++)
        {
            if (layer > 0 && pass is not null) x = pass.Dropout(x, _dropout);
            x = cat([Run(x, _layers[layer].Forward, false), Run(x, _layers[layer].Backward, true)], 1);
        }
        return x;
    }

    private Tensor Run(Tensor x, Direction d, bool backward)
    {
        long rows = x.shape[0];
        Tensor gates = nn.functional.linear(x, d.Input.Value, d.InputBias.Value);                  // [rows, 4 hidden]
        Tensor state = zeros([1, _hidden], device: x.device), cell = state;
        var states = new Tensor[rows];
        for (long step = 0; step < rows; step++)
        {
            long row = backward ? rows - 1 - step : step;
            Tensor[] g = (gates.narrow(0, row, 1) + nn.functional.linear(state, d.State.Value, d.StateBias.Value)).split(_hidden, 1);
            cell = g[1].sigmoid() * cell + g[0].sigmoid() * g[2].tanh();
            states[row] = state = g[3].sigmoid() * cell.tanh();
        }
        return cat(states);
    }
}
