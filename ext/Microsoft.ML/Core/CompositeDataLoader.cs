// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

[assembly: LoadableClass("A data loader and a transformer chain.", typeof(CompositeDataLoader<IMultiStreamSource, ITransformer>), null, typeof(SignatureLoadModel),
    "Composite Loader", CompositeDataLoader<IMultiStreamSource, ITransformer>.LoaderSignature)]

namespace Microsoft.ML.Data;

/// <summary>A loader, and a chain that transforms what it loads.</summary>
public sealed class CompositeDataLoader<TSource, TLastTransformer> : IDataLoader<TSource>, IDisposable
    where TLastTransformer : class, ITransformer
{
    internal const string LoaderSignature = "CompositeLoader";
    internal const string TransformerDirectory = TransformerChain.LoaderSignature;
    private const string LoaderDirectory = "Loader";
    private const string LegacyLoaderDirectory = "Reader";

    public readonly IDataLoader<TSource> Loader;
    public readonly TransformerChain<TLastTransformer> Transformer;

    public CompositeDataLoader(IDataLoader<TSource> loader, TransformerChain<TLastTransformer> transformerChain = null)
    {
        Loader = Contracts.CheckRef(loader, nameof(loader));
        Transformer = transformerChain ?? new TransformerChain<TLastTransformer>();
    }

    private CompositeDataLoader(IHostEnvironment env, ModelLoadContext ctx)
    {
        var host = env.Register(LoaderSignature);
        ctx.CheckAtModel(Version);
        if (!ctx.LoadModelOrNull<IDataLoader<TSource>, SignatureLoadModel>(host, out Loader, LegacyLoaderDirectory))
            ctx.LoadModel<IDataLoader<TSource>, SignatureLoadModel>(host, out Loader, LoaderDirectory);
        ctx.LoadModel<TransformerChain<TLastTransformer>, SignatureLoadModel>(host, out Transformer, TransformerDirectory);
    }

    private static VersionInfo Version => new("CMPSTLDR", 0x00010001, 0x00010001, 0x00010001, RealAssembly.Data, LoaderSignature);

    void ICanSaveModel.Save(ModelSaveContext ctx)
    {
        ctx.CheckAtModel();
        ctx.SetVersionInfo(Version);
        ctx.SaveModel(Loader, LoaderDirectory);
        ctx.SaveModel(Transformer, TransformerDirectory);
    }

    public IDataView Load(TSource input) => Transformer.Transform(Loader.Load(input));

    public DataViewSchema GetOutputSchema() => Transformer.GetOutputSchema(Loader.GetOutputSchema());

    public CompositeDataLoader<TSource, TNewLast> AppendTransformer<TNewLast>(TNewLast transformer) where TNewLast : class, ITransformer
        => new(Loader, Transformer.Append(transformer));

    public void Dispose() => Transformer.Dispose();
}
