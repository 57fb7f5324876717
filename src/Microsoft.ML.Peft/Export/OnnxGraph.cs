// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Export;

/// <summary>Builds a graph operator by operator; values are known by their names.</summary>
internal sealed class OnnxGraph
{
    private readonly List<OnnxNode> _nodes = [];
    private readonly List<OnnxTensor> _tensors = [];
    private readonly List<OnnxValue> _inputs = [], _outputs = [];
    private readonly Dictionary<object, string> _known = [];
    private string _scope = "";
    private int _next;

    /// <summary>Settings that readers of the file may show.</summary>
    public List<(string Key, string Value)> Metadata { get; } = [];

    /// <summary>Names of what follows begin with this: a layer's path.</summary>
    public void Enter(string scope) => _scope = scope;

    /// <summary>Adds an input of the network.</summary>
    public string Input(string name, OnnxType type, params object[] shape)
    {
        _inputs.Add(new OnnxValue(name, type, shape));
        return name;
    }

    /// <summary>Makes a value an output of the network, under another name.</summary>
    public void Output(string name, string value, OnnxType type, params object[] shape)
    {
        _nodes.Add(new OnnxNode("Identity", [value], name, []));
        _outputs.Add(new OnnxValue(name, type, shape));
    }

    /// <summary>Adds an operator.</summary>
    public string Node(string name, IReadOnlyList<string> inputs, params (string Name, object Value)[] attributes)
    {
        string output = $"{(_scope.Length == 0 ? "" : _scope + "/")}{name}_{_next++}";
        _nodes.Add(new OnnxNode(name, inputs, output, attributes));
        return output;
    }

    public string Add(string a, string b) => Node("Add", [a, b]);

    public string Mul(string a, string b) => Node("Mul", [a, b]);

    public string MatMul(string a, string b) => Node("MatMul", [a, b]);

    /// <summary>A single number.</summary>
    public string Scalar(float number) => Known(("scalar", number), name => new OnnxTensor(name, OnnxType.Single, [], MemoryMarshal.AsBytes<float>(new[] { number }).ToArray()));

    /// <summary>A list of whole numbers, <c>[n]</c>.</summary>
    public string Numbers(params long[] numbers) =>
        Known(("numbers", string.Join(',', numbers)), name => new OnnxTensor(name, OnnxType.Int64, [numbers.Length], MemoryMarshal.AsBytes<long>(numbers).ToArray()));

    /// <summary>One whole number without axes.</summary>
    public string Number(long number) => Known(("number", number), name => new OnnxTensor(name, OnnxType.Int64, [], MemoryMarshal.AsBytes<long>(new[] { number }).ToArray()));

    /// <summary>A frozen tensor as float32, once in the file however often it is used.</summary>
    /// <param name="key">What tells it from others.</param>
    /// <param name="name">Name in the file.</param>
    /// <param name="make">Its value.</param>
    public string Tensor(object key, string name, Func<Tensor> make) => Known(key, _ =>
    {
        using var scope = NewDisposeScope();
        Tensor value = make().detach().to_type(ScalarType.Float32).cpu().contiguous();
        return new OnnxTensor(name, OnnxType.Single, value.shape, MemoryMarshal.AsBytes<float>(value.data<float>().ToArray()).ToArray());
    });

    private string Known(object key, Func<string, OnnxTensor> make)
    {
        if (_known.TryGetValue(key, out string? name)) return name;
        OnnxTensor tensor = make($"constant_{_known.Count}");
        _tensors.Add(tensor);
        return _known[key] = tensor.Name;
    }

    /// <summary><c>x Wᵀ + b</c>.</summary>
    public string Linear(string x, Projection site)
    {
        string y = MatMul(x, Tensor((site, "weight"), site.Name + ".weight", () => site.Weight.t()));
        return site.Bias is { } bias ? Add(y, Tensor((site, "bias"), site.Name + ".bias", () => bias)) : y;
    }

    /// <summary><c>x Wᵀ + b</c> of a head.</summary>
    public string Linear(string x, NamedParameter weight, NamedParameter? bias)
    {
        string y = MatMul(x, Tensor(weight, weight.Name, () => weight.Value.t()));
        return bias is null ? y : Add(y, Tensor(bias, bias.Name, () => bias.Value));
    }

    /// <summary>A layer norm over the last axis.</summary>
    public string LayerNorm(string x, Norm site) => LayerNorm(
        x, Tensor((site, "weight"), site.Name + ".weight", () => site.Weight), site.Bias is { } bias ? Tensor((site, "bias"), site.Name + ".bias", () => bias) : "", site.Epsilon);

    /// <summary>A layer norm over the last axis.</summary>
    public string LayerNorm(string x, string weight, string bias, double epsilon) =>
        Node("LayerNormalization", bias.Length == 0 ? [x, weight] : [x, weight, bias], ("axis", -1L), ("epsilon", (float)epsilon));

    /// <summary>An activation by its name in config.json.</summary>
    /// <exception cref="NotSupportedException">There is no form of it here.</exception>
    public string Activation(string x, string name) => name switch
    {
        // In the order of operators that ONNX Runtime knows for one kernel.
        "gelu" or "gelu_python" => Mul(Mul(x, Add(Node("Erf", [Node("Div", [x, Scalar((float)Math.Sqrt(2))])]), Scalar(1))), Scalar(0.5f)),
        "gelu_new" or "gelu_fast" or "gelu_pytorch_tanh" or "gelu_accurate" => Mul(Mul(x, Scalar(0.5f)), Add(Node("Tanh",
            [Mul(Add(x, Mul(Mul(Mul(x, x), x), Scalar(0.044715f))), Scalar((float)Math.Sqrt(2 / Math.PI)))]), Scalar(1))),
        "quick_gelu" => Mul(x, Node("Sigmoid", [Mul(x, Scalar(1.702f))])),
        "relu" => Node("Relu", [x]),
        "silu" or "swish" => Mul(x, Node("Sigmoid", [x])),
        "tanh" => Node("Tanh", [x]),
        "sigmoid" => Node("Sigmoid", [x]),
        "linear" => x,
        _ => throw new NotSupportedException($"The activation '{name}' cannot be exported to ONNX; there are gelu, its approximations, relu, silu, tanh, sigmoid and linear."),
    };

    /// <summary>Attention of all tokens to all tokens.</summary>
    /// <param name="x">Tokens <c>[batch, tokens, hidden]</c>.</param>
    /// <param name="query">Map to queries.</param>
    /// <param name="key">Map to keys.</param>
    /// <param name="value">Map to values.</param>
    /// <param name="output">Map of the joined heads.</param>
    /// <param name="core">Heads.</param>
    /// <param name="bias">Added to the scores, or null.</param>
    public string Attention(string x, Projection query, Projection key, Projection value, Projection output, AttentionCore core, string? bias)
    {
        string Split(string y, params long[] order) =>
            Node("Transpose", [Node("Reshape", [y, Numbers(0, 0, core.Heads, core.HeadWidth)])], ("perm", order));
        string scores = MatMul(Split(Linear(x, query), 0, 2, 1, 3), Split(Linear(x, key), 0, 2, 3, 1));
        scores = Mul(scores, Scalar((float)core.Scale));
        if (bias is not null) scores = Add(scores, bias);
        string context = MatMul(Node("Softmax", [scores], ("axis", -1L)), Split(Linear(x, value), 0, 2, 1, 3));
        context = Node("Reshape", [Node("Transpose", [context], ("perm", new long[] { 0, 2, 1, 3 })), Numbers(0, 0, (long)core.Heads * core.HeadWidth)]);
        return Linear(context, output);
    }

    /// <summary>The finished file.</summary>
    public OnnxFile Finish() => new(_nodes, _tensors, _inputs, _outputs, Metadata);
}
