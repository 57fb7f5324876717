// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using System.Text.Json;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests.Training;

/// <summary>A folder of reference values with its JSON and tensors.</summary>
internal sealed class TrainingCase : IDisposable
{
    private readonly JsonDocument _document;
    private readonly SafetensorsFile? _file;
    private readonly Dictionary<string, Tensor> _tensors = [];

    public TrainingCase(string folder)
    {
        Folder = folder;
        Name = Path.GetFileName(folder);
        _document = JsonDocument.Parse(File.ReadAllText(Path.Combine(folder, "case.json")));
        string file = Path.Combine(folder, "tensors.safetensors");
        _file = File.Exists(file) ? SafetensorsFile.Open(file) : null;
    }

    public string Folder { get; }

    public string Name { get; }

    public JsonElement Root => _document.RootElement;

    public JsonElement Config => Root.TryGetProperty("config", out JsonElement config) ? config : default;

    public JsonElement Values => Root.TryGetProperty("values", out JsonElement values) ? values : default;

    public double Tolerance => Root.GetProperty("tolerance").GetDouble();

    /// <summary>Largest deviation seen, in tolerances; and where.</summary>
    public double Worst { get; private set; }

    public string WorstAt { get; private set; } = "";

    /// <summary>Parts of the case that a later version will answer.</summary>
    public List<string> Later { get; } = [];

    public Tensor this[string name]
    {
        get
        {
            if (_tensors.TryGetValue(name, out Tensor? tensor)) return tensor;
            if (!Has(name)) Assert.Fail($"{Name}: no tensor {name}; there are {string.Join(", ", Names.Take(20))}.");
            return _tensors[name] = _file!.Load(name).DetachFromDisposeScope();
        }
    }

    public bool Has(string name) => _file?.Contains(name) == true;

    public IEnumerable<string> Names => _file?.Names ?? [];

    public IEnumerable<string> Under(string prefix) =>
        Names.Where(n => n.StartsWith(prefix, StringComparison.Ordinal)).Select(n => n[prefix.Length..]);

    /// <summary>The base folder of the case.</summary>
    public string Base => Path.Combine(Path.GetDirectoryName(Folder)!, Root.GetProperty("base").GetString()!);

    /// <summary>Compares with a tolerance relative to the largest entry where that is above one.</summary>
    public void Near(string what, Tensor expected, Tensor actual, double factor = 1, bool relative = false)
    {
        using var off = no_grad();
        using var scope = NewDisposeScope();
        CollectionAssert.AreEqual(expected.shape, actual.shape, $"{Name}: shape of {what}");
        if (expected.numel() == 0) return;
        Tensor a = expected.to_type(ScalarType.Float64).cpu(), b = actual.detach().to_type(ScalarType.Float64).cpu();
        double largest = a.abs().max().item<double>();
        double deviation = (a - b).abs().max().item<double>();
        if (double.IsNaN(deviation)) Assert.Fail($"{Name}: {what} is not a number where a number is expected.");
        Judge(what, deviation, relative ? Math.Max(largest, 1e-30) : Math.Max(1, largest), factor);
    }

    public void Near(string what, double expected, double actual, double factor = 1) =>
        Judge(what, Math.Abs(expected - actual), Math.Max(1, Math.Abs(expected)), factor);

    private void Judge(string what, double deviation, double scale, double factor)
    {
        double limit = Tolerance * factor * scale;
        double share = limit > 0 ? deviation / limit : deviation == 0 ? 0 : double.PositiveInfinity;
        if (!(share <= Worst)) (Worst, WorstAt) = (share, FormattableString.Invariant($"{what}: {deviation:0.0e+0} of {limit:0.0e+0} allowed"));
        if (!(share <= 1))
            Assert.Fail(FormattableString.Invariant($"{Name}: {what} deviates by {deviation:0.00e+0}, allowed {limit:0.00e+0}."));
    }

    /// <summary>A keyword argument out of a Python call.</summary>
    public static double? Argument(string call, string name)
    {
        Match match = Regex.Match(call, $@"\b{name}\s*=\s*(-?[0-9][0-9.e+-]*|inf)");
        if (!match.Success) return null;
        return match.Groups[1].Value == "inf" ? double.PositiveInfinity : double.Parse(match.Groups[1].Value, System.Globalization.CultureInfo.InvariantCulture);
    }

    public static bool Flag(string call, string name) => Regex.IsMatch(call, $@"\b{name}\s*=\s*True");

    public void Dispose()
    {
        foreach (Tensor tensor in _tensors.Values) tensor.Dispose();
        _file?.Dispose();
        _document.Dispose();
    }
}
