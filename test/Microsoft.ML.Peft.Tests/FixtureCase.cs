// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using Microsoft.ML.Peft.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Tests;

/// <summary>One fixture case: its case.json and its tensors. Tensors belong to the running dispose scope.</summary>
internal sealed class FixtureCase : IDisposable
{
    private readonly SafetensorsFile? _tensors;

    public FixtureCase(string folder)
    {
        Folder = folder;
        Json = JsonDocument.Parse(File.ReadAllBytes(Path.Combine(folder, "case.json"))).RootElement;
        string file = Path.Combine(folder, "tensors.safetensors");
        if (File.Exists(file)) _tensors = SafetensorsFile.Open(file);
    }

    public string Folder { get; }

    public string Name => Path.GetFileName(Folder);

    public JsonElement Json { get; }

    public string? Text(string field) =>
        Json.TryGetProperty(field, out JsonElement value) && value.ValueKind == JsonValueKind.String ? value.GetString() : null;

    public IReadOnlyList<string> Names => _tensors?.Names ?? [];

    public bool Has(string tensor) => _tensors?.Contains(tensor) ?? false;

    public Tensor this[string tensor] => (_tensors ?? throw new AssertFailedException($"{Name} has no tensors.safetensors")).Load(tensor);

    public void Dispose() => _tensors?.Dispose();
}

/// <summary>Collects differences, so that each test prints its worst case and fails by name.</summary>
internal sealed class Worst
{
    private readonly List<string> _failures = [];
    private double _share;
    private string _where = "nothing compared";

    public int Compared { get; private set; }

    public void Compare(string where, Tensor found, Tensor expected, double tolerance, Tensor? mask = null)
    {
        using var scope = NewDisposeScope();
        if (!found.shape.AsSpan().SequenceEqual(expected.shape))
        {
            Fail($"{where}: shape [{string.Join(", ", found.shape)}], expected [{string.Join(", ", expected.shape)}]");
            return;
        }
        Tensor difference = (found.detach().to_type(ScalarType.Float64) - expected.to_type(ScalarType.Float64)).abs();
        if (mask is not null) difference = where_(mask, difference);
        double most = difference.numel() == 0 ? 0 : difference.max().item<double>();
        Compare(where, most, tolerance);
    }

    public void Compare(string where, double difference, double tolerance)
    {
        Compared++;
        if (!(difference <= tolerance)) _failures.Add(FormattableString.Invariant($"{where}: off by {difference:g3}, tolerance {tolerance:g3}"));
        double share = difference / tolerance;
        if (!(share > _share) && Compared > 1) return;
        _share = share;
        _where = FormattableString.Invariant($"{where}: {difference:g3} of {tolerance:g3}");
    }

    public void Fail(string message) => _failures.Add(message);

    public void Done(TestContext context)
    {
        context.WriteLine($"{Compared} comparisons, worst {_where}");
        Console.WriteLine($"{Compared} comparisons, worst {_where}");
        if (_failures.Count > 0) Assert.Fail(string.Join(Environment.NewLine, _failures));
        Assert.IsGreaterThan(0, Compared);
    }

    // Positions outside the mask are stored as zeros and mean nothing.
    private static Tensor where_(Tensor mask, Tensor difference)
    {
        Tensor real = mask.to_type(ScalarType.Float64);
        while (real.dim() < difference.dim()) real = real.unsqueeze(-1);
        return difference * real;
    }
}
