// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;

namespace Microsoft.ML.Data;

/// <summary>Writes a confusion matrix as a text table, laid out as the real package does.</summary>
internal static class ConfusionTable
{
    private const int CornerWidth = 9; // "PREDICTED"

    public static string Format(ConfusionMatrix matrix, bool isBinary)
    {
        int n = matrix.NumberOfClasses;
        int cell = n == 2 ? 8 : 5;
        int longest = matrix.ClassNames.Max(name => name.Length);

        // Names too long for a column's head are replaced by numbers there, and the rows then carry both.
        bool numbered = longest > cell;
        int digits = numbered ? (n - 1).ToString().Length : 0;
        int corner = Math.Max(CornerWidth, numbered ? longest + digits + 2 : longest);
        string RowHead(int i) => numbered
            ? i.ToString().PadLeft(digits) + ". " + matrix.ClassNames[i].PadLeft(corner - digits - 2)
            : matrix.ClassNames[i].PadLeft(corner);
        string rule = new('=', n * (n > 2 ? 8 : 11));

        var text = new StringBuilder();
        if (n == 2 && isBinary)
            AppendRatio(text, matrix);
        text.AppendLine();
        text.AppendLine("Confusion table");
        Head(text, "", corner).AppendLine(rule);
        Head(text, "PREDICTED", corner);
        for (int i = 0; i < n; i++)
            text.Append(' ').Append((numbered ? i.ToString() : matrix.ClassNames[i]).PadLeft(cell)).Append(" |");
        text.AppendLine(" Recall");
        Head(text, "TRUTH", corner).AppendLine(rule);
        for (int i = 0; i < n; i++)
        {
            text.Append(RowHead(i)).Append(" ||");
            for (int j = 0; j < n; j++)
                text.Append(' ').Append(matrix.Counts[i][j].ToString("N0").PadLeft(cell)).Append(" |");
            text.Append(' ').AppendLine(matrix.PerClassRecall[i].ToString("F4").PadLeft(5));
        }

        Head(text, "", corner).AppendLine(rule);
        Head(text, "Precision", corner);
        for (int i = 0; i < n; i++)
            text.Append(matrix.PerClassPrecision[i].ToString("N4").PadLeft(cell + 1)).Append(" |");
        return text.AppendLine().ToString();
    }

    private static StringBuilder Head(StringBuilder text, string word, int corner)
        => text.Append(word.PadRight(CornerWidth + 1)).Append(' ', corner - CornerWidth).Append("||");

    private static void AppendRatio(StringBuilder text, ConfusionMatrix matrix)
    {
        double positive = matrix.Counts[0][0] + matrix.Counts[0][1];
        double negative = matrix.Counts[1][0] + matrix.Counts[1][1];
        text.AppendFormat("TEST {0} RATIO:\t{1:N4} ({2:F1}/({2:F1}+{3:F1}))",
            matrix.ClassNames[0].ToUpper(), positive / (positive + negative), positive, negative);
    }
}
