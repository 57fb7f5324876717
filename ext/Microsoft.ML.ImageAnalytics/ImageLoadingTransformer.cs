// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;
using Microsoft.ML.Transforms.Image;

[assembly: LoadableClass("Load images from files.", typeof(ImageLoadingTransformer), null, typeof(SignatureLoadModel),
    "Image Loader Transform", ImageLoadingTransformer.LoaderSignature)]

namespace Microsoft.ML.Data;

/// <summary>Loads the pictures that a text column names: decoded, or as the bytes of their files.</summary>
public sealed class ImageLoadingTransformer : OneToOneTransformerBase
{
    internal const string LoaderSignature = "ImageLoaderTransform";

    /// <summary>Where names start from; null where they stand alone.</summary>
    public readonly string ImageFolder;

    internal ImageLoadingTransformer(IHostEnvironment env, string imageFolder, bool asImages, (string outputColumnName, string inputColumnName)[] columns)
        : base(Contracts.CheckRef(env, nameof(env)).Register(nameof(ImageLoadingTransformer)), columns)
    {
        if (!string.IsNullOrEmpty(imageFolder))
        {
            if (!Directory.Exists(imageFolder))
                throw new ArgumentException($"Directory \"{imageFolder}\" does not exist.");
            ImageFolder = Path.GetFullPath(imageFolder);
        }

        AsImages = asImages;
    }

    private ImageLoadingTransformer(IHost host, ModelLoadContext ctx)
        : base(host, ctx)
    {
        ImageFolder = ctx.LoadStringOrNull();
        AsImages = ctx.Reader.ReadBoolean();
    }

    internal bool AsImages { get; }

    internal static ImageLoadingTransformer Create(IHostEnvironment env, ModelLoadContext ctx)
    {
        ctx.CheckAtModel(GetVersionInfo());
        return new ImageLoadingTransformer(env.Register(nameof(ImageLoadingTransformer)), ctx);
    }

    private protected override void SaveModel(ModelSaveContext ctx)
    {
        ctx.CheckAtModel();
        ctx.SetVersionInfo(GetVersionInfo());
        SaveColumns(ctx);
        ctx.SaveStringOrNull(ImageFolder);
        ctx.Writer.Write(AsImages);
    }

    private protected override IRowMapper MakeRowMapper(DataViewSchema schema) => new Mapper(this, schema);

    private static VersionInfo GetVersionInfo() => new("IMGLOADR", 0x00010003, 0x00010003, 0x00010003,
        "Microsoft.ML.ImageAnalytics, Version=1.0.0.0, Culture=neutral, PublicKeyToken=cc7b13ffcd2ddd51", LoaderSignature);

    private sealed class Mapper : OneToOneMapperBase
    {
        private readonly ImageLoadingTransformer _parent;

        internal Mapper(ImageLoadingTransformer parent, DataViewSchema inputSchema)
            : base(parent.Host.Register(nameof(Mapper)), parent, inputSchema)
        {
            _parent = parent;
            foreach (DataViewSchema.Column input in Inputs)
                if (input.Type is not TextDataViewType)
                    throw Host.ExceptSchemaMismatch(nameof(inputSchema), "input", input.Name, TextDataViewType.Instance.ToString(), input.Type.ToString());
        }

        protected override DataViewSchema.DetachedColumn[] GetOutputColumnsCore()
        {
            DataViewType type = _parent.AsImages ? new ImageDataViewType() : new VectorDataViewType(NumberDataViewType.Byte);
            return _parent.ColumnPairs.Select(pair => new DataViewSchema.DetachedColumn(pair.outputColumnName, type, null)).ToArray();
        }

        protected override Delegate MakeGetter(DataViewRow input, int iinfo, Func<int, bool> activeOutput, out Action disposer)
        {
            var name = input.GetGetter<ReadOnlyMemory<char>>(Input(input, iinfo));
            disposer = null;
            return _parent.AsImages ? Images(name, out disposer) : Bytes(name);
        }

        // As in the real one, a row's picture is disposed when the getter fills the same variable again.
        private ValueGetter<MLImage> Images(ValueGetter<ReadOnlyMemory<char>> name, out Action disposer)
        {
            ReadOnlyMemory<char> text = default;
            MLImage last = null;
            disposer = () => last?.Dispose();
            return (ref MLImage image) =>
            {
                image?.Dispose();
                image = null;
                name(ref text);
                if (text.Length > 0)
                {
                    string path = FullPath(text);
                    image = MLImage.CreateFromStream(new MemoryStream(File.ReadAllBytes(path)));
                    image.Tag = path;
                }

                last = image;
            };
        }

        private ValueGetter<VBuffer<byte>> Bytes(ValueGetter<ReadOnlyMemory<char>> name)
        {
            ReadOnlyMemory<char> text = default;
            return (ref VBuffer<byte> content) =>
            {
                name(ref text);
                byte[] bytes = text.Length > 0 ? File.ReadAllBytes(FullPath(text)) : [];
                content = new VBuffer<byte>(bytes.Length, bytes);
            };
        }

        private string FullPath(ReadOnlyMemory<char> name) =>
            string.IsNullOrWhiteSpace(_parent.ImageFolder) ? name.ToString() : Path.Combine(_parent.ImageFolder, name.ToString());
    }
}
