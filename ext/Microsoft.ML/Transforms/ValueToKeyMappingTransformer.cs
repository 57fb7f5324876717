// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms;

[assembly: LoadableClass("Converts input values (words, numbers, etc.) to index in a dictionary.", typeof(ValueToKeyMappingTransformer), null,
    typeof(SignatureLoadModel), "Term Transform", ValueToKeyMappingTransformer.LoaderSignature)]

namespace Microsoft.ML.Transforms;

/// <summary>Maps values to keys; values that were not learned map to the missing key.</summary>
public sealed class ValueToKeyMappingTransformer : OneToOneTransformerBase
{
    internal const string LoaderSignature = "TermTransform";
    private const string Vocabulary = "Vocabulary";

    private readonly KeyTerms[] _terms;
    private readonly bool[] _asText;

    internal ValueToKeyMappingTransformer(IHost host, (string outputColumnName, string inputColumnName)[] columns, KeyTerms[] terms, bool[] asText)
        : base(host, columns)
    {
        _terms = terms;
        _asText = asText;
    }

    private ValueToKeyMappingTransformer(IHost host, ModelLoadContext ctx)
        : base(host, ctx)
    {
        _asText = new bool[ColumnPairs.Length];
        for (int i = 0; i < _asText.Length; i++)
            _asText[i] = ctx.Reader.ReadByte() != 0;
        _terms = new KeyTerms[ColumnPairs.Length];
        bool found = ctx.TryProcessSubModel(Vocabulary, part =>
        {
            part.CheckAtModel(GetVocabularyVersionInfo());
            host.CheckDecode(part.Reader.ReadInt32() == _terms.Length);
            for (int i = 0; i < _terms.Length; i++)
                _terms[i] = KeyTerms.Load(part);
        });
        host.CheckDecode(found, $"Missing {Vocabulary} model");
    }

    internal static ValueToKeyMappingTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        ctx.CheckAtModel(GetVersionInfo());
        if (ctx.Header.ModelVerWritten < 0x00010003)
            throw Contracts.ExceptNotSupp("This model was saved by an old ML.NET: load it with the package Microsoft.ML.");
        return new ValueToKeyMappingTransformer(env.Register("Term"), ctx);
    }

    internal static DataViewSchema.Column CheckInput(IHost host, DataViewSchema inputSchema, string name)
    {
        DataViewSchema.Column column = inputSchema.GetColumnOrNull(name) ?? throw host.ExceptSchemaMismatch(nameof(inputSchema), "input", name);
        DataViewType item = column.Type.GetItemType();
        if (item is not KeyDataViewType && !item.IsStandardScalar())
            throw host.ExceptSchemaMismatch(nameof(inputSchema), "input", name, "standard type or a vector of standard type", column.Type.ToString());
        return column;
    }

    // The columns, a flag for each (key values as text), and beside it the lists of terms: for the loader and for people.
    private protected override void SaveModel(ModelSaveContext ctx)
    {
        ctx.CheckAtModel();
        ctx.SetVersionInfo(GetVersionInfo());
        SaveColumns(ctx);
        foreach (bool flag in _asText)
            ctx.Writer.Write((byte)(flag ? 1 : 0));
        ctx.SaveSubModel(Vocabulary, part =>
        {
            part.CheckAtModel();
            part.SetVersionInfo(GetVocabularyVersionInfo());
            part.Writer.Write(_terms.Length);
            foreach (KeyTerms terms in _terms)
                terms.Save(part);
            part.SaveTextStream("Terms.txt", writer =>
            {
                foreach (KeyTerms terms in _terms)
                    terms.WriteText(writer);
            });
        });
    }

    private protected override IRowMapper MakeRowMapper(DataViewSchema schema) => new Mapper(this, schema);

    private static VersionInfo GetVersionInfo()
        => new("TERMTRNF", 0x00010003, 0x00010003, 0x00010001, RealAssembly.Data, LoaderSignature);

    private static VersionInfo GetVocabularyVersionInfo()
        => new("TERM MAN", 0x00010002, 0x00010002, 0x00010001, RealAssembly.Data, "TermManager");

    private sealed class Mapper : OneToOneMapperBase
    {
        private readonly ValueToKeyMappingTransformer _parent;

        public Mapper(ValueToKeyMappingTransformer parent, DataViewSchema inputSchema)
            : base(parent.Host.Register(nameof(Mapper)), parent, inputSchema)
        {
            _parent = parent;
            for (int i = 0; i < Inputs.Length; i++)
            {
                CheckInput(Host, inputSchema, Inputs[i].Name);
                DataViewType item = Inputs[i].Type.GetItemType();
                if (!item.Equals(parent._terms[i].ItemType))
                {
                    throw Host.Except($"Could not apply a map over type '{parent._terms[i].ItemType}' to column "
                        + $"'{parent.ColumnPairs[i].outputColumnName}' since it has type '{item}'");
                }
            }
        }

        protected override DataViewSchema.DetachedColumn[] GetOutputColumnsCore()
            => Inputs.Select((input, i) =>
            {
                KeyTerms terms = _parent._terms[i];
                var annotations = new DataViewSchema.Annotations.Builder();
                terms.AddKeyValues(annotations, input, _parent._asText[i]);
                annotations.Add(input.Annotations, name => name == AnnotationUtils.Kinds.SlotNames);
                DataViewType type = input.Type is VectorDataViewType vector ? new VectorDataViewType(terms.KeyType, vector.Dimensions) : terms.KeyType;
                return new DataViewSchema.DetachedColumn(_parent.ColumnPairs[i].outputColumnName, type, annotations.ToAnnotations());
            }).ToArray();

        protected override Delegate MakeGetter(DataViewRow input, int iinfo, Func<int, bool> activeOutput, out Action disposer)
        {
            disposer = null;
            return _parent._terms[iinfo].MakeGetter(input, Input(input, iinfo));
        }
    }
}
