// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json;
using System.Text.Json.Serialization;

namespace Microsoft.ML.Peft.Bench;

/// <summary>What a measured process says of itself, as one line of JSON; each side fills in what it knows.</summary>
internal sealed record Report
{
    public double[] Losses { get; init; } = [];

    public float[] Scores { get; init; } = [];

    /// <summary>One a call, where calls are timed.</summary>
    public double[] Milliseconds { get; init; } = [];

    /// <summary>Other figures by name.</summary>
    public Dictionary<string, double> Numbers { get; init; } = [];

    /// <summary>What else is to be said: which precision was chosen and why.</summary>
    public string Text { get; init; } = "";

    public long Tokens { get; init; }

    public double Seconds { get; init; }

    public double CpuSeconds { get; init; }

    public double PeakMemoryMiB { get; init; }

    public string Torch { get; init; } = "";

    /// <summary>The BLAS that is loaded, with the kind of processor that it works for.</summary>
    public string Blas { get; init; } = "";

    /// <summary>File of libtorch.</summary>
    public string Library { get; init; } = "";

    [JsonIgnore]
    public double TokensPerSecond => Tokens / Seconds;

    [JsonIgnore]
    public double TokensPerCpuSecond => Tokens / CpuSeconds;

    public static JsonSerializerOptions Form { get; } = new(JsonSerializerDefaults.Web);

    /// <summary>The line of a process of ours: this, its memory and its libraries.</summary>
    public string Line() => JsonSerializer.Serialize(this with
    {
        PeakMemoryMiB = Machine.PeakMemoryMiB(),
        Blas = Machine.Blas(),
        Library = Machine.Loaded("libtorch_cpu"),
    }, Form);
}

/// <summary>A report with the seconds from the start of the process to its line.</summary>
internal sealed record Measured(Report Report, double UntilFirstLine);
