// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;

namespace Microsoft.ML.Data;

/// <summary>A real number as it was written: digits and a power of ten, or a special value.</summary>
internal readonly struct RealText
{
    // Digits beyond this many count for the power of ten only.
    private const ulong LargestDigits = (ulong.MaxValue - 9) / 10;
    private const long LargestPower = long.MaxValue / 100;
    private const char Infinity = '\u221E';

    private static readonly double[] _powers = Enumerable.Range(1, 39).Select(power => Ten(power)).ToArray();
    private static readonly double[] _inversePowers = Enumerable.Range(1, 65).Select(power => Ten(-power)).ToArray();

    private readonly bool _negative;
    private readonly ulong _digits;
    private readonly long _power;
    private readonly double? _special;

    private RealText(bool negative, ulong digits, long power)
        => (_negative, _digits, _power) = (negative, digits, power);

    private RealText(double special) => _special = special;

    private RealText(bool isEmpty) => IsEmpty = isEmpty;

    /// <summary>Nothing but blanks was written.</summary>
    public bool IsEmpty { get; }

    /// <summary>Reads the whole text, less blanks around it.</summary>
    public static bool TryParse(ReadOnlySpan<char> text, out RealText number, char decimalMark)
    {
        text = text.Trim();
        number = text switch
        {
            "" => new RealText(isEmpty: true),
            "?" or "NaN" => new RealText(double.NaN),
            "Infinity" or [Infinity] => new RealText(double.PositiveInfinity),
            "-Infinity" or ['-', Infinity] => new RealText(double.NegativeInfinity),
            _ => default,
        };
        return number.IsEmpty || number._special != null || TryParseDigits(text, out number, decimalMark);
    }

    // One product of two doubles, then rounded: the real package does so, and the last bit depends on it.
    public float ToSingle()
    {
        if (_special is { } special)
            return (float)special;
        float size = _digits == 0 ? 0
            : _power == 0 ? (float)(double)_digits
            : _power > _powers.Length ? float.PositiveInfinity
            : -_power > _inversePowers.Length ? 0
            : (float)((_power > 0 ? _powers[_power - 1] : _inversePowers[-_power - 1]) * _digits);
        return _negative ? -size : size;
    }

    public double ToDouble()
    {
        if (_special is { } special)
            return special;
        double size = _digits == 0 ? 0 : double.Parse($"{_digits}e{_power}", NumberStyles.Float, CultureInfo.InvariantCulture);
        return _negative ? -size : size;
    }

    private static double Ten(int power) => double.Parse($"1e{power}", NumberStyles.Float, CultureInfo.InvariantCulture);

    private static bool TryParseDigits(ReadOnlySpan<char> text, out RealText number, char decimalMark)
    {
        number = default;
        int at = text[0] is '-' or '+' ? 1 : 0;
        ulong digits = 0;
        long power = 0;
        bool any = false;
        bool fraction = false;
        for (; at < text.Length; at++)
        {
            if (text[at] == decimalMark && !fraction)
            {
                fraction = true;
            }
            else if (char.IsAsciiDigit(text[at]))
            {
                any = true;
                bool counts = digits < LargestDigits;
                if (counts)
                    digits = (10 * digits) + (uint)(text[at] - '0');
                power += fraction ? (counts ? -1 : 0) : (counts ? 0 : 1);
            }
            else
            {
                break;
            }
        }

        if (!any || !TryParsePower(text[at..], out long written))
            return false;
        number = new RealText(text[0] == '-', digits, power + written);
        return true;
    }

    // An exponent without digits ends the number before its letter, which is then text that does not belong.
    private static bool TryParsePower(ReadOnlySpan<char> text, out long power)
    {
        power = 0;
        if (text.IsEmpty)
            return true;
        if (text[0] is not ('e' or 'E'))
            return false;
        text = text[1..];
        bool negative = !text.IsEmpty && text[0] == '-';
        if (!text.IsEmpty && text[0] is '-' or '+')
            text = text[1..];
        if (text.IsEmpty)
            return false;
        foreach (char c in text)
        {
            if (!char.IsAsciiDigit(c))
                return false;
            if (power < LargestPower)
                power = (10 * power) + (c - '0');
        }

        if (negative)
            power = -power;
        return true;
    }
}
