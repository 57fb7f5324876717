// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;

namespace Microsoft.ML.Data;

/// <summary>
/// Splits a line into fields. Empty fields are left out: a column that misses its field keeps its default value.
/// A sparse line's tail is a count of fields, then "index:value" pairs.
/// </summary>
internal sealed class FieldScanner(TextFormat format, int lastNeeded, Action<int, int, string> reportBadFormat)
{
    private readonly List<int> _indices = [];
    private readonly List<ReadOnlyMemory<char>> _texts = [];
    private readonly bool _separatesBySpace = format.Separators.Contains(' ');
    private readonly StringBuilder _unquoted = new();

    // Where the scan is: the field just read, and the next one's start.
    private ReadOnlyMemory<char> _field;
    private int _sparseIndex;
    private int _fieldStart;
    private int _fieldEnd;
    private int _next;

    internal int Count => _indices.Count;

    internal int Index(int i) => _indices[i];

    internal ReadOnlyMemory<char> Text(int i) => _texts[i];

    internal int FirstAtOrAfter(int source)
    {
        int at = _indices.BinarySearch(source);
        return at < 0 ? ~at : at;
    }

    /// <summary>Reads the fields up to the last needed one; returns how many the line has, as far as it was read.</summary>
    internal int Scan(ReadOnlyMemory<char> line)
    {
        _indices.Clear();
        _texts.Clear();
        _next = 0;
        return format.AllowSparse ? ScanSparse(line) : ScanDense(line);
    }

    private void Add(int index)
    {
        _indices.Add(index);
        _texts.Add(_field);
    }

    private void Bad(string what) => reportBadFormat?.Invoke(_fieldStart, _fieldEnd, what);

    private int ScanDense(ReadOnlyMemory<char> line)
    {
        int source = 0;
        bool more;
        do
        {
            more = Fetch(line);
            if (!_field.IsEmpty || format.MissingRealsAsNaNs)
                Add(source);
        }
        while (++source <= lastNeeded && more);
        return source;
    }

    private int ScanSparse(ReadOnlyMemory<char> line)
    {
        int source = 0, needed = lastNeeded, inputSize = format.InputSize;
        int fixedFields = -1, sparseFields = -1, previous = -1;
        for (bool more = true; more;)
        {
            more = Fetch(line);
            if (_sparseIndex < 0)
            {
                if (fixedFields >= 0)
                {
                    Bad("Non-sparse formatted value follows sparse formatted value");
                    break;
                }
                if (!_field.IsEmpty)
                    Add(source);
                if (source++ > needed)
                    break;
                continue;
            }
            if (fixedFields < 0)
            {
                if (!BeginSparse(source, ref inputSize, out fixedFields, out sparseFields))
                    break;
                if (format.InputSize == 0)
                    needed = Math.Min(needed, inputSize - 1);
            }
            if (_sparseIndex > needed - fixedFields)
            {
                if (_sparseIndex >= sparseFields)
                {
                    Bad("Sparse item index larger than expected. Is the specified size incorrect?");
                    break;
                }
                if (_sparseIndex > needed - fixedFields + 1)
                    break;
            }
            if (previous >= _sparseIndex)
            {
                Bad("Sparse indices out of order");
                break;
            }
            previous = _sparseIndex;
            if (!_field.IsEmpty)
                Add(fixedFields + _sparseIndex);
        }
        return fixedFields < 0 ? Math.Max(source, inputSize) : inputSize;
    }

    // The field before the first pair is the number of sparse fields, unless the size of lines is known.
    private bool BeginSparse(int source, ref int inputSize, out int fixedFields, out int sparseFields)
    {
        sparseFields = -1;
        if (inputSize > 0)
        {
            fixedFields = Count;
            sparseFields = inputSize - fixedFields;
            return true;
        }
        fixedFields = -1;
        if (Count == 0 || _indices[^1] != source - 1)
        {
            Bad("Missing dimensionality or ambiguous sparse item. Use sparse=- for non-sparse file, and/or quote the value.");
            return false;
        }
        if (!TextValues.TryParseUnsigned(_texts[^1].Span, out ulong size) || size == 0 || size > int.MaxValue)
        {
            Bad("Bad dimensionality or ambiguous sparse item. Use sparse=- for non-sparse file, and/or quote the value.");
            return false;
        }
        fixedFields = _indices[^1];
        _indices.RemoveAt(_indices.Count - 1);
        _texts.RemoveAt(_texts.Count - 1);
        sparseFields = Math.Min((int)size, TextFormat.MaxFields - fixedFields - 1);
        inputSize = fixedFields + sparseFields;
        return true;
    }

    // Reads one field; returns whether a separator follows it.
    private bool Fetch(ReadOnlyMemory<char> line)
    {
        var span = line.Span;
        _sparseIndex = -1;
        _field = default;
        int at = SkipSpaces(span, _next);
        _fieldStart = at;
        if (format.AllowSparse && at < span.Length && char.IsAsciiDigit(span[at]))
        {
            int colon = at + 1;
            while (colon < Math.Min(span.Length, at + 9) && char.IsAsciiDigit(span[colon]))
                colon++;
            if (colon < span.Length && span[colon] == ':')
            {
                _sparseIndex = int.Parse(span[at..colon]);
                at = SkipSpaces(span, colon + 1);
            }
        }
        bool good = true;
        if (at < span.Length)
        {
            if (format.AllowQuoting && span[at] == '"')
                at = FetchQuoted(span, at + 1, out good);
            else
            {
                int length = span[at..].IndexOfAny(format.Separators);
                int end = length < 0 ? span.Length : at + length;
                _field = line[at..end];
                at = end;
            }
        }
        _fieldEnd = at;
        _next = at < span.Length ? at + 1 : at;
        if (!good)
            Bad("Illegal quoting");
        return at < span.Length;
    }

    private int SkipSpaces(ReadOnlySpan<char> span, int at)
    {
        if (!_separatesBySpace)
            while (at < span.Length && span[at] == ' ')
                at++;
        return at;
    }

    // From behind the opening quote; returns where the separator is. What is badly quoted counts as empty.
    private int FetchQuoted(ReadOnlySpan<char> span, int at, out bool good)
    {
        _unquoted.Clear();
        bool closed = false;
        for (; at < span.Length && !closed; at++)
        {
            char ch = span[at];
            bool escapes = ch == format.Escape && at + 1 < span.Length && span[at + 1] == '"';
            if (escapes)
                _unquoted.Append(span[++at]);
            else if (ch == '"')
                closed = true;
            else
            {
                _unquoted.Append(ch);
                // Behind an escape character any other character stands for itself.
                if (ch == format.Escape && at + 1 < span.Length)
                    _unquoted.Append(span[++at]);
            }
        }
        good = closed;
        for (; at < span.Length && !format.Separators.Contains(span[at]); at++)
            good &= span[at] == ' ';
        if (good)
            _field = _unquoted.ToString().AsMemory();
        return at;
    }
}
