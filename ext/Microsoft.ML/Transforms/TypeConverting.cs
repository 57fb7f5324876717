// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms;

[assembly: LoadableClass("Converts a column to a different type, using standard conversions.", typeof(TypeConvertingTransformer), null,
    typeof(SignatureLoadModel), "Convert Transform", TypeConvertingTransformer.LoaderSignature)]

namespace Microsoft.ML.Transforms;

/// <summary>Converts columns to another type.</summary>
public sealed class TypeConvertingEstimator : TrivialEstimator<TypeConvertingTransformer>
{
    internal TypeConvertingEstimator(IHostEnvironment env, (string outputColumnName, string inputColumnName)[] columns, DataKind outputKind)
        : base(Contracts.CheckRef(env, nameof(env)).Register(nameof(TypeConvertingEstimator)),
            new TypeConvertingTransformer(env, columns, Enumerable.Repeat(new TypeConvertingTransformer.Target(outputKind, 0), columns.Length).ToArray()))
    {
    }

    public override SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        var columns = ByName(inputSchema);
        for (int i = 0; i < Transformer.ColumnPairs.Length; i++)
        {
            var (output, input) = Transformer.ColumnPairs[i];
            SchemaShape.Column source = Find(inputSchema, input);
            bool known = Transformer.Targets[i].TryGetType(source.ItemType, out PrimitiveDataViewType type);
            if (!known)
                throw Host.ExceptParam(nameof(inputSchema), $"Can't convert {input} into {type}");
            if (ValueConversions.Find(source.ItemType, type) == null)
                throw Host.ExceptParam(nameof(inputSchema), $"Don't know how to convert {input} into {type}");
            columns[output] = new SchemaShape.Column(output, source.Kind, type, false, source.Annotations);
        }

        return new SchemaShape(columns.Values);
    }
}

/// <summary>Converts columns to another type.</summary>
public sealed class TypeConvertingTransformer : OneToOneTransformerBase
{
    internal const string LoaderSignature = "ConvertTransform";

    // In a saved model the high bit of the kind says that a key count follows.
    private const byte KeyFlag = 0x80;

    internal TypeConvertingTransformer(IHostEnvironment env, (string outputColumnName, string inputColumnName)[] columns, Target[] targets)
        : base(Contracts.CheckRef(env, nameof(env)).Register(nameof(TypeConvertingTransformer)), columns)
        => Targets = targets;

    private TypeConvertingTransformer(IHost host, ModelLoadContext ctx)
        : base(host, ctx)
    {
        Targets = new Target[ColumnPairs.Length];
        for (int i = 0; i < Targets.Length; i++)
        {
            byte code = ctx.Reader.ReadByte();
            var kind = (DataKind)(code & ~KeyFlag);
            host.CheckDecode(Enum.IsDefined(kind));
            Targets[i] = new Target(kind, (code & KeyFlag) == 0 ? 0 : ctx.Reader.ReadUInt64());
        }
    }

    internal Target[] Targets { get; }

    internal static TypeConvertingTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        ctx.CheckAtModel(GetVersionInfo());
        if (ctx.Header.ModelVerWritten < 0x00010004)
            throw Contracts.ExceptNotSupp("This model was saved by an old ML.NET: load it with the package Microsoft.ML.");
        return new TypeConvertingTransformer(env.Register("Convert"), ctx);
    }

    // The columns, then for each its kind and, for a key, its count.
    private protected override void SaveModel(ModelSaveContext ctx)
    {
        ctx.CheckAtModel();
        ctx.SetVersionInfo(GetVersionInfo());
        SaveColumns(ctx);
        foreach (Target target in Targets)
        {
            ctx.Writer.Write((byte)((byte)target.Kind | (target.KeyCount > 0 ? KeyFlag : 0)));
            if (target.KeyCount > 0)
                ctx.Writer.Write(target.KeyCount);
        }
    }

    private protected override IRowMapper MakeRowMapper(DataViewSchema schema) => new Mapper(this, schema);

    private static VersionInfo GetVersionInfo()
        => new("CONVERTF", 0x00010004, 0x00010003, 0x00010002, RealAssembly.Data, LoaderSignature, "ConvertFunction");

    /// <summary>What a column is converted to; a key count of 0 means that only keys become keys.</summary>
    internal readonly record struct Target(DataKind Kind, ulong KeyCount)
    {
        public bool TryGetType(DataViewType source, out PrimitiveDataViewType type)
        {
            DataViewType item = source.GetItemType();
            type = ColumnTypeExtensions.PrimitiveTypeFromKind(Kind);
            if (KeyCount > 0)
            {
                type = new KeyDataViewType(type.RawType, KeyCount);
                return item is KeyDataViewType or TextDataViewType;
            }

            if (item is not KeyDataViewType key)
                return true;
            if (!KeyDataViewType.IsValidDataType(type.RawType))
                return false;
            type = new KeyDataViewType(type.RawType, Math.Min(key.Count, ValueConversions.LargestKey(type.RawType)));
            return true;
        }
    }

    private sealed class Mapper : OneToOneMapperBase
    {
        private readonly TypeConvertingTransformer _parent;
        private readonly DataViewType[] _types;
        private readonly Delegate[] _conversions;

        public Mapper(TypeConvertingTransformer parent, DataViewSchema inputSchema)
            : base(parent.Host.Register(nameof(Mapper)), parent, inputSchema)
        {
            _parent = parent;
            _types = new DataViewType[Inputs.Length];
            _conversions = new Delegate[Inputs.Length];
            for (int i = 0; i < Inputs.Length; i++)
            {
                DataViewType source = Inputs[i].Type;
                var vector = source as VectorDataViewType;
                bool known = parent.Targets[i].TryGetType(source, out PrimitiveDataViewType type);
                _conversions[i] = known ? ValueConversions.Find(source.GetItemType(), type) : null;
                if (_conversions[i] == null)
                {
                    throw Host.ExceptParam(nameof(inputSchema),
                        $"source column '{Inputs[i].Name}' with item type '{source}' is not compatible with destination type '{type}'");
                }

                _types[i] = vector == null ? type : new VectorDataViewType(type, vector.Dimensions);
            }
        }

        protected override DataViewSchema.DetachedColumn[] GetOutputColumnsCore()
            => Inputs.Select((input, i) => new DataViewSchema.DetachedColumn(_parent.ColumnPairs[i].outputColumnName, _types[i], Annotate(input, _types[i])))
                .ToArray();

        protected override Delegate MakeGetter(DataViewRow input, int iinfo, Func<int, bool> activeOutput, out Action disposer)
        {
            disposer = null;
            DataViewType from = Inputs[iinfo].Type.GetItemType();
            DataViewType to = _types[iinfo].GetItemType();
            return RowGetters.Call<Delegate>(Make<int, int>, [from.RawType, to.RawType],
                input, Input(input, iinfo), _conversions[iinfo], _types[iinfo] is VectorDataViewType);
        }

        private static Delegate Make<TFrom, TTo>(DataViewRow row, DataViewSchema.Column column, Delegate conversion, bool isVector)
            => isVector
                ? VectorGetters.Map(row, column, (Func<TFrom, TTo>)conversion)
                : VectorGetters.MapScalar(row, column, (Func<TFrom, TTo>)conversion);

        private static DataViewSchema.Annotations Annotate(DataViewSchema.Column input, DataViewType type)
        {
            DataViewType from = input.Type.GetItemType();
            DataViewType to = type.GetItemType();
            var annotations = new DataViewSchema.Annotations.Builder();
            if (type is VectorDataViewType { IsKnownSize: true })
                annotations.Add(input.Annotations, name => name == AnnotationUtils.Kinds.SlotNames);
            if (from is KeyDataViewType source && to is KeyDataViewType target && source.Count == target.Count)
                annotations.Add(input.Annotations, name => name == AnnotationUtils.Kinds.KeyValues);
            if (from is NumberDataViewType && to is NumberDataViewType)
                annotations.Add(input.Annotations, name => name == AnnotationUtils.Kinds.IsNormalized);
            if (input.Type is BooleanDataViewType && to is NumberDataViewType)
                annotations.AddPrimitiveValue(AnnotationUtils.Kinds.IsNormalized, BooleanDataViewType.Instance, true);
            return annotations.ToAnnotations();
        }
    }
}
