// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Security;
using System.Text;

namespace Microsoft.ML.Peft.Cli;

/// <summary>Accuracy against the share of trained numbers (logarithmic), one dot a method, as SVG.</summary>
internal static class ScatterChart
{
    private const double Wide = 900, High = 560, Left = 70, Right = 30, Top = 30, Bottom = 60;

    public static string Make(IReadOnlyList<CompareCommand.Entry> entries)
    {
        CompareCommand.Entry[] dots = [.. entries.Where(e => e.Failure is null && e.Share > 0)];
        if (dots.Length == 0) return "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"10\" height=\"10\"/>\n";
        double low = Math.Floor(Math.Log10(dots.Min(d => d.Share))), high = Math.Max(low + 1, Math.Ceiling(Math.Log10(dots.Max(d => d.Share))));
        double bottom = Math.Floor(20 * dots.Min(d => d.Accuracy)) / 20, top = Math.Max(bottom + 0.05, Math.Ceiling(20 * dots.Max(d => d.Accuracy)) / 20);
        double X(double share) => Left + ((Math.Log10(share) - low) / (high - low) * (Wide - Left - Right));
        double Y(double accuracy) => High - Bottom - ((accuracy - bottom) / (top - bottom) * (High - Top - Bottom));

        var svg = new StringBuilder();
        void Add(FormattableString line) => svg.Append(FormattableString.Invariant(line)).Append('\n');
        Add($"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{Wide}\" height=\"{High}\" font-family=\"sans-serif\" font-size=\"12\">");
        Add($"<rect width=\"{Wide}\" height=\"{High}\" fill=\"white\"/>");
        for (double power = low; power <= high; power++)
        {
            double x = X(Math.Pow(10, power));
            Add($"<line x1=\"{x:0.0}\" y1=\"{Top}\" x2=\"{x:0.0}\" y2=\"{High - Bottom}\" stroke=\"#ddd\"/>");
            Add($"<text x=\"{x:0.0}\" y=\"{High - Bottom + 18}\" text-anchor=\"middle\">{(100 * Math.Pow(10, power)).ToString("0.######", CultureInfo.InvariantCulture)} %</text>");
        }
        for (double accuracy = bottom; accuracy <= top + 1e-9; accuracy += 0.05)
        {
            Add($"<line x1=\"{Left}\" y1=\"{Y(accuracy):0.0}\" x2=\"{Wide - Right}\" y2=\"{Y(accuracy):0.0}\" stroke=\"#ddd\"/>");
            Add($"<text x=\"{Left - 8}\" y=\"{Y(accuracy) + 4:0.0}\" text-anchor=\"end\">{accuracy:0.00}</text>");
        }
        Add($"<text x=\"{(Left + Wide - Right) / 2}\" y=\"{High - 15}\" text-anchor=\"middle\">trained share of all numbers, head included</text>");
        Add($"<text x=\"18\" y=\"{(Top + High - Bottom) / 2}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {(Top + High - Bottom) / 2})\">accuracy</text>");
        foreach (CompareCommand.Entry dot in dots)
        {
            Add($"<circle cx=\"{X(dot.Share):0.0}\" cy=\"{Y(dot.Accuracy):0.0}\" r=\"4\" fill=\"#2a6fb0\"><title>{SecurityElement.Escape(dot.Name)}: {dot.Accuracy:0.000}</title></circle>");
            Add($"<text x=\"{X(dot.Share) + 6:0.0}\" y=\"{Y(dot.Accuracy) - 5:0.0}\" font-size=\"10\">{SecurityElement.Escape(dot.Name)}</text>");
        }
        svg.Append("</svg>\n");
        return svg.ToString();
    }
}
