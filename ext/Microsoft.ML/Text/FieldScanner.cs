// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;

namespace Microsoft.ML.Data;

/// <summary>Splits a line of text into fields: those that say something, with the number of the field.</summary>
internal sealed class FieldScanner
{
    private readonly TextFormat _format;
    private readonly int _needed;
    private readonly Action<string> _warn;
    private readonly List<int> _indices = [];
    private readonly List<ReadOnlyMemory<char>> _texts = [];
    private readonly StringBuilder _unquoted = new();

    /// <param name="format">How lines are written.</param>
    /// <param name="needed">The last field that is asked for; a line is not read further.</param>
    /// <param name="warn">Called with what is wrong with a line.</param>
    public FieldScanner(TextFormat format, int needed, Action<string> warn)
    {
        _format = format;
        _needed = needed;
        _warn = warn;
    }

    /// <summary>The numbers of the fields that say something, rising.</summary>
    public IReadOnlyList<int> Indices => _indices;

    public IReadOnlyList<ReadOnlyMemory<char>> Texts => _texts;

    /// <summary>Reads a line; the result is the number of its fields, as far as it was read.</summary>
    public int Scan(string line)
    {
        _indices.Clear();
        _texts.Clear();
        var text = new Field(_format.TrimWhitespace ? line.AsMemory().TrimEnd() : line.AsMemory());
        return _format.AllowSparse ? ScanSparse(text) : ScanDense(text);
    }

    /// <summary>The place of the first field from this number on.</summary>
    public int Find(int index)
    {
        int at = _indices.BinarySearch(index);
        return at < 0 ? ~at : at;
    }

    private int ScanDense(Field text)
    {
        int source = 0;
        bool more;
        do
        {
            more = Next(ref text);

            // Where empty fields are missing numbers, they say something too.
            if (!text.Value.IsEmpty || _format.MissingRealsAsNaNs)
                Add(source, text.Value);
        }
        while (++source <= _needed && more);
        return source;
    }

    // Fields "index:value" follow fields without an index; the number of indices is given, or written as the last of those.
    private int ScanSparse(Field text)
    {
        int source = 0;
        int offset = -1;
        int size = _format.InputSize;
        int needed = _needed;
        int last = -1;
        bool more = true;
        while (more)
        {
            more = Next(ref text);
            if (text.Index < 0)
            {
                if (offset >= 0)
                {
                    _warn("Non-sparse formatted value follows sparse formatted value");
                    break;
                }

                if (!text.Value.IsEmpty)
                    Add(source, text.Value);
                if (source++ > needed)
                    break;
                continue;
            }

            if (offset < 0 && !BeginSparse(source, ref offset, ref size, ref needed))
                break;
            if (text.Index > needed - offset)
            {
                if (text.Index >= size - offset)
                    _warn("Sparse item index larger than expected. Is the specified size incorrect?");
                if (text.Index >= size - offset || text.Index > needed - offset + 1)
                    break;
            }

            if (last >= text.Index)
            {
                _warn("Sparse indices out of order");
                break;
            }

            last = text.Index;
            if (!text.Value.IsEmpty)
                Add(offset + text.Index, text.Value);
        }

        return offset < 0 ? Math.Max(source, size) : size;
    }

    private bool BeginSparse(int source, ref int offset, ref int size, ref int needed)
    {
        if (size > 0)
        {
            offset = _texts.Count;
            return true;
        }

        const string advice = " or ambiguous sparse item. Use sparse=- for non-sparse file, and/or quote the value.";
        if (_indices.Count == 0 || _indices[^1] != source - 1)
        {
            _warn("Missing dimensionality" + advice);
            return false;
        }

        if (!TextValues.TryParseSigned(_texts[^1].Span, int.MaxValue, out long count) || count <= 0)
        {
            _warn("Bad dimensionality" + advice);
            return false;
        }

        offset = _indices[^1];
        _indices.RemoveAt(_indices.Count - 1);
        _texts.RemoveAt(_texts.Count - 1);
        size = offset + (int)Math.Min(count, int.MaxValue - offset - 1);
        needed = Math.Min(needed, size - 1);
        return true;
    }

    private void Add(int index, ReadOnlyMemory<char> value)
    {
        _indices.Add(index);
        _texts.Add(value);
    }

    /// <summary>Reads the next field; false after the last of the line.</summary>
    private bool Next(ref Field field)
    {
        ReadOnlySpan<char> text = field.Line.Span;
        int at = SkipBlanks(text, field.Next);
        field.Index = -1;
        field.Value = default;
        if (_format.AllowSparse && at < text.Length && char.IsAsciiDigit(text[at]))
            at = ReadIndex(text, at, ref field);
        if (at < text.Length)
        {
            if (text[at] == '"' && _format.AllowQuoting)
            {
                at = ReadQuoted(text, at + 1, out bool wrong);
                if (wrong)
                    _warn("Illegal quoting");
                field.Value = wrong ? default : _unquoted.ToString().AsMemory();
            }
            else
            {
                int end = text[at..].IndexOfAny(_format.Separators);
                end = end < 0 ? text.Length : at + end;
                field.Value = field.Line[at..end];
                at = end;
            }
        }

        field.Next = at + 1;
        return at < text.Length;
    }

    private int SkipBlanks(ReadOnlySpan<char> text, int at)
    {
        if (!_format.SeparatesAtSpace)
        {
            while (at < text.Length && text[at] == ' ')
                at++;
        }

        return Math.Min(at, text.Length);
    }

    private int ReadIndex(ReadOnlySpan<char> text, int start, ref Field field)
    {
        // At most nine digits, which an integer holds.
        int end = start;
        while (end < text.Length && end < start + 9 && char.IsAsciiDigit(text[end]))
            end++;
        if (end >= text.Length || text[end] != ':')
            return start;
        field.Index = int.Parse(text[start..end]);
        return SkipBlanks(text, end + 1);
    }

    /// <summary>Reads from after the opening quote up to the separator or the line's end.</summary>
    private int ReadQuoted(ReadOnlySpan<char> text, int at, out bool wrong)
    {
        _unquoted.Clear();
        wrong = true;
        for (; at < text.Length; at++)
        {
            bool quoteNext = at + 1 < text.Length && text[at + 1] == '"';
            if (text[at] == _format.EscapeChar && (quoteNext || _format.EscapeChar != '"'))
            {
                // Only a quote loses its escape; another escaped character keeps it.
                if (!quoteNext)
                    _unquoted.Append(text[at]);
                if (++at < text.Length)
                    _unquoted.Append(text[at]);
            }
            else if (text[at] == '"')
            {
                wrong = false;
                at++;
                break;
            }
            else
            {
                _unquoted.Append(text[at]);
            }
        }

        // Between the closing quote and the separator only blanks are right.
        while (at < text.Length && !_format.Separators.Contains(text[at]))
            wrong |= text[at++] != ' ';
        return at;
    }

    private struct Field(ReadOnlyMemory<char> line)
    {
        public readonly ReadOnlyMemory<char> Line = line;
        public int Next;
        public int Index;
        public ReadOnlyMemory<char> Value;
    }
}
