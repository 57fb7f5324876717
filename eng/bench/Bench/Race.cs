// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Bench;

/// <summary>One who is measured: this library in a precision, PyTorch in one of its ways, ONNX Runtime on one of its files.</summary>
/// <param name="name">Name in the tables.</param>
/// <param name="ours">True for this library.</param>
/// <param name="measure">Runs a process.</param>
internal sealed class Contender(string name, bool ours, Func<Measured> measure)
{
    public string Name => name;

    public bool Ours => ours;

    public List<Measured> Rounds { get; } = [];

    public Report First => Rounds[0].Report;

    public void Measure() => Rounds.Add(measure());

    public double Median(Func<Measured, double> value) => Figures.Median(Rounds.Select(value));
}

/// <summary>A ratio that is to be reached; above 1 is in this library's favour.</summary>
/// <param name="Ours">A contender of ours.</param>
/// <param name="Theirs">Whom it is compared with.</param>
/// <param name="Ratio">The least ratio.</param>
internal sealed record Goal(string Ours, string Theirs, double Ratio);

/// <summary>A goal with what came out.</summary>
/// <param name="What">What was to be reached.</param>
/// <param name="Found">The ratio; null where one of the two was not measured.</param>
/// <param name="Wanted">The goal.</param>
/// <param name="AtMost">True where the goal is not to be exceeded.</param>
internal sealed record Verdict(string What, double? Found, double Wanted, bool AtMost = false)
{
    public string Row() => Found is not { } found
        ? FormattableString.Invariant($"| {What} | | {Limit} | not measured |")
        : FormattableString.Invariant($"| {What} | **{found:0.00}** | {Limit} | {((AtMost ? found <= Wanted : found >= Wanted) ? "reached" : "**missed**")} |");

    private string Limit => FormattableString.Invariant($"{(AtMost ? "at most " : "")}{Wanted:0.##}");
}

/// <summary>One discipline: all who take part, measured in turns.</summary>
internal sealed class Race(string what, string unit, IReadOnlyList<Contender> contenders)
{
    private bool _backwards;

    public string What => what;

    public IReadOnlyList<Contender> Contenders => contenders;

    public IEnumerable<Contender> Ours => contenders.Where(c => c.Ours);

    public IEnumerable<Contender> Theirs => contenders.Where(c => !c.Ours);

    public Contender this[string name] => contenders.First(c => c.Name == name);

    public bool Has(string name) => contenders.Any(c => c.Name == name);

    /// <summary>Measures each once; every other round in the opposite order, so that no one always follows the same neighbour.</summary>
    public void Round()
    {
        foreach (Contender contender in _backwards ? contenders.Reverse() : contenders) contender.Measure();
        _backwards = !_backwards;
    }

    /// <summary>One line for the progress of a run.</summary>
    public string Last(Func<Measured, double> value) =>
        $"{what}: {string.Join(", ", contenders.Select(c => FormattableString.Invariant($"{c.Name} {Figures.Short(value(c.Rounds[^1]))}")))}";

    /// <summary>Ratio of medians, above 1 in our favour.</summary>
    public double Ratio(string ours, string theirs, Func<Measured, double> value, bool higher)
    {
        double a = this[ours].Median(value), b = this[theirs].Median(value);
        return higher ? a / b : b / a;
    }

    /// <summary>What came out of the goals.</summary>
    public IEnumerable<Verdict> Verdicts(IEnumerable<Goal> goals, Func<Measured, double> value, bool higher = true) => goals.Select(g => new Verdict(
        $"{what}: {g.Ours} over {g.Theirs}", Has(g.Ours) && Has(g.Theirs) ? Ratio(g.Ours, g.Theirs, value, higher) : null, g.Ratio));

    /// <summary>A row for each who took part: its median, and our ratio to each of the others.</summary>
    public string Table(Func<Measured, double> value, bool higher = true)
    {
        Contender[] others = [.. Theirs];
        IEnumerable<string> rows = contenders.Select(c =>
            $"| {(c.Ours ? "this library, " : "")}{c.Name} | {Figures.Short(c.Median(value))} | " + string.Concat(others.Select(o =>
                c.Ours ? FormattableString.Invariant($"**{Ratio(c.Name, o.Name, value, higher):0.00}** | ") : " | ")) +
            $"{string.Join(", ", c.Rounds.Select(r => Figures.Short(value(r))))} |");
        return $"""
            | {what} | {unit} | {string.Concat(others.Select(o => $"over {o.Name} | "))}rounds |
            |---|---:|{string.Concat(others.Select(_ => "---:|"))}---|
            {string.Join('\n', rows)}
            """;
    }
}

/// <summary>Numbers as they are shown.</summary>
internal static class Figures
{
    public static double Median(IEnumerable<double> values) => Share(values, 0.5);

    /// <summary>The value below which a share of all lies, between neighbours where it falls between them.</summary>
    public static double Share(IEnumerable<double> values, double share)
    {
        double[] sorted = [.. values.Order()];
        double place = share * (sorted.Length - 1);
        int below = (int)place;
        return sorted[below] + (place - below) * (sorted[Math.Min(below + 1, sorted.Length - 1)] - sorted[below]);
    }

    /// <summary>Three or four digits, as large as the number is.</summary>
    public static string Short(double value) => Math.Abs(value) switch
    {
        >= 100 => FormattableString.Invariant($"{value:0}"),
        >= 10 => FormattableString.Invariant($"{value:0.0}"),
        _ => FormattableString.Invariant($"{value:0.00}"),
    };
}
