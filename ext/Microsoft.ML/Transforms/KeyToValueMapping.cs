// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms;

[assembly: LoadableClass(typeof(KeyToValueMappingTransformer), null, typeof(SignatureLoadModel),
    "Key To Value Transform", KeyToValueMappingTransformer.LoaderSignature)]

namespace Microsoft.ML.Transforms;

/// <summary>Turns keys back into the values that their column's KeyValues annotation lists.</summary>
public sealed class KeyToValueMappingEstimator : TrivialEstimator<KeyToValueMappingTransformer>
{
    internal KeyToValueMappingEstimator(IHostEnvironment env, (string outputColumnName, string inputColumnName)[] columns)
        : base(Contracts.CheckRef(env, nameof(env)).Register(nameof(KeyToValueMappingEstimator)), new KeyToValueMappingTransformer(env, columns))
    {
    }

    public override SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        var columns = ByName(inputSchema);
        foreach (var (output, input) in Transformer.ColumnPairs)
        {
            SchemaShape.Column source = Find(inputSchema, input);
            if (!source.IsKey)
                throw Host.ExceptSchemaMismatch(nameof(inputSchema), "input", input, "KeyType", source.GetTypeString());
            if (!source.Annotations.TryFindColumn(AnnotationUtils.Kinds.KeyValues, out SchemaShape.Column values))
                throw Host.ExceptParam(nameof(inputSchema), $"Input column '{input}' doesn't contain key values metadata");
            SchemaShape annotations = source.HasSlotNames() && source.Annotations.TryFindColumn(AnnotationUtils.Kinds.SlotNames, out SchemaShape.Column names)
                ? new SchemaShape([names])
                : null;
            columns[output] = new SchemaShape.Column(output, source.Kind, values.ItemType, values.IsKey, annotations);
        }

        return new SchemaShape(columns.Values);
    }
}

/// <summary>Turns keys back into the values that their column's KeyValues annotation lists; a missing key becomes a missing value.</summary>
public sealed class KeyToValueMappingTransformer : OneToOneTransformerBase
{
    internal const string LoaderSignature = "KeyToValueTransform";

    internal KeyToValueMappingTransformer(IHostEnvironment env, (string outputColumnName, string inputColumnName)[] columns)
        : base(Contracts.CheckRef(env, nameof(env)).Register(nameof(KeyToValueMappingTransformer)), columns)
    {
    }

    private KeyToValueMappingTransformer(IHost host, ModelLoadContext ctx)
        : base(host, ctx)
    {
    }

    internal static KeyToValueMappingTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        ctx.CheckAtModel(GetVersionInfo());
        return new KeyToValueMappingTransformer(env.Register(nameof(KeyToValueMappingTransformer)), ctx);
    }

    private protected override void SaveModel(ModelSaveContext ctx)
    {
        ctx.CheckAtModel();
        ctx.SetVersionInfo(GetVersionInfo());
        SaveColumns(ctx);
    }

    private protected override IRowMapper MakeRowMapper(DataViewSchema schema) => new Mapper(this, schema);

    private static VersionInfo GetVersionInfo()
        => new("KEY2VALT", 0x00010001, 0x00010001, 0x00010001, RealAssembly.Data, LoaderSignature);

    private sealed class Mapper : OneToOneMapperBase
    {
        private readonly KeyToValueMappingTransformer _parent;
        private readonly DataViewType[] _types;
        private readonly Func<DataViewRow, DataViewSchema.Column, Delegate>[] _makers;

        public Mapper(KeyToValueMappingTransformer parent, DataViewSchema inputSchema)
            : base(parent.Host.Register(nameof(Mapper)), parent, inputSchema)
        {
            _parent = parent;
            _types = new DataViewType[Inputs.Length];
            _makers = new Func<DataViewRow, DataViewSchema.Column, Delegate>[Inputs.Length];
            for (int i = 0; i < Inputs.Length; i++)
                (_types[i], _makers[i]) = Bind(Inputs[i]);
        }

        protected override DataViewSchema.DetachedColumn[] GetOutputColumnsCore()
            => Inputs.Select((input, i) =>
            {
                var annotations = new DataViewSchema.Annotations.Builder();
                annotations.Add(input.Annotations, name => name == AnnotationUtils.Kinds.SlotNames);
                return new DataViewSchema.DetachedColumn(_parent.ColumnPairs[i].outputColumnName, _types[i], annotations.ToAnnotations());
            }).ToArray();

        protected override Delegate MakeGetter(DataViewRow input, int iinfo, Func<int, bool> activeOutput, out Action disposer)
        {
            disposer = null;
            return _makers[iinfo](input, Input(input, iinfo));
        }

        private (DataViewType Type, Func<DataViewRow, DataViewSchema.Column, Delegate> Maker) Bind(DataViewSchema.Column input)
        {
            var vector = input.Type as VectorDataViewType;
            DataViewType item = input.Type.GetItemType();
            Host.Check(input.Annotations.Schema.GetColumnOrNull(AnnotationUtils.Kinds.KeyValues) is not null, "Metadata KeyValues does not exist");
            var valuesType = input.Annotations.Schema[AnnotationUtils.Kinds.KeyValues].Type as VectorDataViewType;
            var key = item as KeyDataViewType;
            Host.Check(valuesType != null && key != null && (ulong)valuesType.Size == key.Count, "KeyValues metadata size does not match column type key count");
            PrimitiveDataViewType valueType = valuesType.ItemType;
            var maker = RowGetters.Call<Func<DataViewRow, DataViewSchema.Column, Delegate>>(MakeMaker<uint, uint>,
                [key.RawType, valueType.RawType], input, valueType, vector != null);
            return (vector == null ? valueType : new VectorDataViewType(valueType, vector.Dimensions), maker);
        }

        private static Func<DataViewRow, DataViewSchema.Column, Delegate> MakeMaker<TKey, TValue>(DataViewSchema.Column input,
            PrimitiveDataViewType valueType, bool isVector)
        {
            VBuffer<TValue> listed = default;
            input.Annotations.GetValue(AnnotationUtils.Kinds.KeyValues, ref listed);
            TValue[] values = listed.DenseValues().ToArray();
            TValue missing = Missing.Of<TValue>(valueType);
            Func<TKey, ulong> number = ValueConversions.Get<TKey, ulong>();
            TValue Look(TKey key) => number(key) is var raw && raw > 0 && raw <= (ulong)values.Length ? values[raw - 1] : missing;
            return isVector
                ? (row, column) => VectorGetters.Map<TKey, TValue>(row, column, Look)
                : (row, column) => VectorGetters.MapScalar<TKey, TValue>(row, column, Look);
        }
    }
}
