// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Transforms;

/// <summary>Learns the distinct values of columns, and numbers them.</summary>
public sealed class ValueToKeyMappingEstimator : IEstimator<ValueToKeyMappingTransformer>
{
    internal const int DefaultMaximumNumberOfKeys = 1000000;

    private readonly IHost _host;
    private readonly (string Output, string Input)[] _columns;
    private readonly int _maximum;
    private readonly KeyOrdinality _order;
    private readonly bool _asText;
    private readonly IDataView _keyData;

    internal ValueToKeyMappingEstimator(IHostEnvironment env, (string Output, string Input)[] columns, int maximumNumberOfKeys,
        KeyOrdinality keyOrdinality, bool addKeyValueAnnotationsAsText, IDataView keyData)
    {
        Contracts.CheckValue(env, nameof(env));
        _host = env.Register(nameof(ValueToKeyMappingEstimator));
        _host.CheckNonEmpty(columns, nameof(columns));
        if (keyData != null && keyData.Schema.Count != 1)
        {
            throw _host.ExceptParam(nameof(keyData),
                $"If specified, this data view should contain only a single column containing the terms to map, but this had {keyData.Schema.Count} columns.");
        }

        _columns = columns;
        _maximum = maximumNumberOfKeys;
        _order = keyOrdinality;
        _asText = addKeyValueAnnotationsAsText;
        _keyData = keyData;
    }

    /// <summary>How keys are numbered.</summary>
    public enum KeyOrdinality : byte
    {
        /// <summary>In the order in which the values are met.</summary>
        ByOccurrence = 0,

        /// <summary>Sorted by value; text by its UTF-16 units.</summary>
        ByValue = 1,
    }

    public ValueToKeyMappingTransformer Fit(IDataView input)
    {
        _host.CheckValue(input, nameof(input));
        IHost host = _host.Register("Term");
        using IChannel channel = host.Start("Training");
        foreach (var (_, name) in _columns)
            ValueToKeyMappingTransformer.CheckInput(host, input.Schema, name);

        KeyTerms[] terms = _keyData != null ? TermsOfKeyData(channel, input.Schema) : TermsOfData(host, input);
        if (_keyData != null && terms[0].Count == 0)
            channel.Warning(MessageSensitivity.UserData, "Map from the term data resulted in an empty map.");
        for (int i = 0; i < terms.Length && _keyData == null; i++)
        {
            if (terms[i].Count == 0)
                channel.Warning(MessageSensitivity.Schema, "Term map for output column '{0}' contains no entries.", _columns[i].Output);
        }

        return new ValueToKeyMappingTransformer(host, _columns, terms, Enumerable.Repeat(_asText, terms.Length).ToArray());
    }

    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        _host.CheckValue(inputSchema, nameof(inputSchema));
        var columns = inputSchema.ToDictionary(column => column.Name);
        foreach (var (output, input) in _columns)
        {
            if (!inputSchema.TryFindColumn(input, out SchemaShape.Column source) || !source.ItemType.IsStandardScalar())
                throw _host.ExceptSchemaMismatch(nameof(inputSchema), "input", input);

            // Keys of keys keep the values that the inner keys stand for.
            if (!source.IsKey || !source.Annotations.TryFindColumn(AnnotationUtils.Kinds.KeyValues, out SchemaShape.Column values)
                || values.Kind != SchemaShape.Column.VectorKind.Vector)
            {
                values = new SchemaShape.Column(AnnotationUtils.Kinds.KeyValues, SchemaShape.Column.VectorKind.Vector,
                    _asText ? TextDataViewType.Instance : source.ItemType, source.IsKey);
            }

            SchemaShape annotations = source.Annotations.TryFindColumn(AnnotationUtils.Kinds.SlotNames, out SchemaShape.Column names)
                ? new SchemaShape([names, values])
                : new SchemaShape([values]);
            columns[output] = new SchemaShape.Column(output, source.Kind, NumberDataViewType.UInt32, true, annotations);
        }

        return new SchemaShape(columns.Values);
    }

    private KeyTerms[] TermsOfKeyData(IChannel channel, DataViewSchema schema)
    {
        DataViewSchema.Column column = _keyData.Schema[0];
        DataViewType item = schema[_columns[0].Input].Type.GetItemType();
        if (!column.Type.Equals(item))
            throw channel.ExceptUserArg("keyData", $"Input data's column must be of type '{item}' but was '{column.Type}'");

        KeyTerms.Builder builder = KeyTerms.Builder.Create(item, _order, int.MaxValue);
        using (DataViewRowCursor cursor = _keyData.GetRowCursor([column]))
        {
            Func<bool> read = builder.Reader(cursor, column);
            while (cursor.MoveNext() && read())
                _host.CheckAlive();
        }

        // One list serves all columns, which must then be of one type.
        KeyTerms terms = builder.Finish();
        foreach (var (output, input) in _columns)
        {
            DataViewType type = schema[input].Type.GetItemType();
            if (!type.Equals(item))
                throw channel.ExceptParam("keyData", $"Terms from input data type '{item}' but mismatches column '{output}' item type '{type}'");
        }

        return Enumerable.Repeat(terms, _columns.Length).ToArray();
    }

    private KeyTerms[] TermsOfData(IHost host, IDataView input)
    {
        host.CheckUserArg(_maximum > 0, "MaxNumTerms", "Must be positive");
        DataViewSchema.Column[] sources = _columns.Select(pair => input.Schema[pair.Input]).ToArray();
        KeyTerms.Builder[] builders = sources.Select(source => KeyTerms.Builder.Create(source.Type.GetItemType(), _order, _maximum)).ToArray();
        using (DataViewRowCursor cursor = input.GetRowCursor(sources.DistinctBy(source => source.Index)))
        {
            List<Func<bool>> readers = builders.Select((builder, i) => builder.Reader(cursor, sources[i])).ToList();
            while (readers.Count > 0 && cursor.MoveNext())
            {
                host.CheckAlive();
                readers.RemoveAll(read => !read());
            }
        }

        return builders.Select(builder => builder.Finish()).ToArray();
    }
}
