// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;
using System.Text;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>The signature of a component that is loaded from its own part of a model.</summary>
internal delegate void SignatureLoadModel(ModelLoadContext ctx);

/// <summary>What a component loads itself from; the counterpart of <see cref="ModelSaveContext"/>.</summary>
internal sealed class ModelLoadContext : IDisposable
{
    public const string ModelStreamName = "Model.key";
    internal const string NameBinary = "Model.bin";

    public readonly RepositoryReader Repository;
    public readonly string Directory;
    public readonly BinaryReader Reader;
    public readonly string[] Strings;
    public readonly string LoaderAssemblyName;
    public readonly long FpMin;
    internal ModelHeader Header;

    private readonly IExceptionContext _context;

    internal ModelLoadContext(RepositoryReader rep, Repository.Entry ent, string dir)
    {
        Repository = Contracts.CheckRef(rep, nameof(rep));
        _context = rep.ExceptionContext;
        Directory = dir;
        Reader = new BinaryReader(Contracts.CheckRef(ent, nameof(ent)).Stream, Encoding.UTF8, leaveOpen: true);
        ModelHeader.BeginRead(out FpMin, out Header, out Strings, out LoaderAssemblyName, Reader);
    }

    internal ModelLoadContext(BinaryReader reader, IExceptionContext ectx = null)
    {
        _context = ectx;
        Reader = Contracts.CheckRef(reader, nameof(reader));
        ModelHeader.BeginRead(out FpMin, out Header, out Strings, out LoaderAssemblyName, Reader);
    }

    public bool InRepository => Repository != null;

    public void CheckAtModel() => _context.Check(Reader.BaseStream.Position == FpMin + Header.FpModel, "Something was read before the version");

    public void CheckAtModel(VersionInfo ver)
    {
        CheckAtModel();
        CheckVersionInfo(ver);
    }

    public void CheckVersionInfo(VersionInfo ver) => ModelHeader.CheckVersionInfo(ref Header, ver);

    public string LoadString() => LoadStringOrNull() ?? throw _context.ExceptDecode("A string of the model is missing");

    public string LoadNonEmptyString() => LoadString() is { Length: > 0 } text ? text : throw _context.ExceptDecode("A string of the model is empty");

    public string LoadStringOrNull()
    {
        int id = Reader.ReadInt32();
        _context.CheckDecode(-1 <= id && id < (Strings?.Length ?? 0), "A string of the model is missing");
        return id < 0 ? null : Strings[id];
    }

    public bool TryLoadBinaryStream(string name, Action<BinaryReader> action)
    {
        using var entry = OtherEntry(name);
        if (entry == null)
            return false;
        using var reader = new BinaryReader(entry.Stream, Encoding.UTF8, leaveOpen: true);
        Contracts.CheckRef(_context, action, nameof(action))(reader);
        return true;
    }

    public bool TryLoadTextStream(string name, Action<TextReader> action)
    {
        using var entry = OtherEntry(name);
        if (entry == null)
            return false;
        using var reader = new StreamReader(entry.Stream);
        Contracts.CheckRef(_context, action, nameof(action))(reader);
        return true;
    }

    private Repository.Entry OtherEntry(string name)
    {
        _context.Check(InRepository, "Can't load another stream when reading from a single stream");
        return Repository.OpenEntryOrNull(Directory, _context.CheckNonEmpty(name, nameof(name)));
    }

    public bool ContainsModel(string name)
    {
        if (!InRepository || string.IsNullOrEmpty(name))
            return false;
        using var entry = Repository.OpenEntryOrNull(Below(name), ModelStreamName) ?? Repository.OpenEntryOrNull(Below(name), NameBinary);
        return entry != null;
    }

    public bool TryProcessSubModel(string dir, Action<ModelLoadContext> action)
    {
        _context.Check(InRepository, "Can't load a sub-model when reading from a single stream");
        string path = Below(_context.CheckNonEmpty(dir, nameof(dir)));
        using var entry = Repository.OpenEntryOrNull(path, ModelStreamName);
        if (entry == null)
            return false;
        using var context = new ModelLoadContext(Repository, entry, path);
        Contracts.CheckRef(_context, action, nameof(action))(context);
        return true;
    }

    public void LoadModel<TRes, TSig>(IHostEnvironment env, out TRes result, string name, params object[] extra) where TRes : class
    {
        if (!LoadModelOrNull<TRes, TSig>(env, out result, name, extra))
            throw _context.ExceptDecode("Corrupt model file");
    }

    public bool LoadModelOrNull<TRes, TSig>(IHostEnvironment env, out TRes result, string name, params object[] extra) where TRes : class
    {
        _context.Check(InRepository, "Can't load a sub-model when reading from a single stream");
        return LoadModelOrNull<TRes, TSig>(env, out result, Repository, Below(name), extra);
    }

    public static void LoadModel<TRes, TSig>(IHostEnvironment env, out TRes result, RepositoryReader rep, string dir, params object[] extra) where TRes : class
    {
        if (!LoadModelOrNull<TRes, TSig>(env, out result, rep, dir, extra))
            throw env.ExceptDecode("Corrupt model file");
    }

    public static bool LoadModelOrNull<TRes, TSig>(IHostEnvironment env, out TRes result, RepositoryReader rep, string dir, params object[] extra) where TRes : class
    {
        Contracts.CheckValue(env, nameof(env));
        using (var entry = rep.OpenEntryOrNull(dir, ModelStreamName))
            if (entry != null)
            {
                LoadModel<TRes, TSig>(env, out result, rep, entry, dir, extra);
                return true;
            }
        using (var entry = rep.OpenEntryOrNull(dir, NameBinary))
            if (entry != null)
            {
                LoadModel<TRes, TSig>(env, out result, entry.Stream, extra);
                return true;
            }
        result = null;
        return false;
    }

    public static void LoadModel<TRes, TSig>(IHostEnvironment env, out TRes result, RepositoryReader rep, Repository.Entry ent, string dir, params object[] extra) where TRes : class
    {
        using var context = new ModelLoadContext(rep, ent, dir);
        if (!context.TryLoadCore<TRes, TSig>(env, out result, extra))
            throw env.ExceptDecode($"Couldn't load model: '{dir}'");
    }

    public static void LoadModel<TRes, TSig>(IHostEnvironment env, out TRes result, Stream stream, params object[] extra) where TRes : class
    {
        using var reader = new BinaryReader(stream, Encoding.UTF8, leaveOpen: true);
        LoadModel<TRes, TSig>(env, out result, reader, extra);
    }

    public static void LoadModel<TRes, TSig>(IHostEnvironment env, out TRes result, BinaryReader reader, params object[] extra) where TRes : class
    {
        if (!TryLoadModel<TRes, TSig>(env, out result, reader, extra))
            throw Contracts.ExceptDecode("Couldn't load model");
    }

    public static bool TryLoadModel<TRes, TSig>(IHostEnvironment env, out TRes result, BinaryReader reader, params object[] extra) where TRes : class
    {
        using var context = new ModelLoadContext(reader, env);
        return context.TryLoadCore<TRes, TSig>(env, out result, extra);
    }

    private bool TryLoadCore<TRes, TSig>(IHostEnvironment env, out TRes result, object[] extra) where TRes : class
    {
        Contracts.CheckValue(env, nameof(env));
        string signature = ModelHeader.GetLoaderSig(ref Header);
        bool real = RegisterLoaderAssembly(env, signature);
        object[] args = [this, .. extra];
        foreach (string name in new[] { signature, ModelHeader.GetLoaderSigAlt(ref Header) })
            if (!string.IsNullOrWhiteSpace(name) && ComponentCatalog.TryCreateInstance<object, TSig>(env, out object made, name, args)
                && made is TRes typed)
            {
                result = typed;
                Done();
                return true;
            }
        if (real)
            throw env.ExceptNotSupp($"The model holds a component '{signature}' of {LoaderAssemblyName.Split(',')[0]}, which this stand-in does not have: load it with the package Microsoft.ML.");
        Reader.BaseStream.Position = FpMin;
        result = null;
        return false;
    }

    // Whether the loader belongs to an assembly of the real library that this one stands in for.
    private bool RegisterLoaderAssembly(IHostEnvironment env, string signature)
    {
        if (string.IsNullOrEmpty(LoaderAssemblyName))
            return false;
        string simpleName = LoaderAssemblyName.Split(',')[0].Trim();
        if (RealAssembly.IsHere(simpleName))
            return true;
        try
        {
            env.ComponentCatalog.RegisterAssembly(FindAssembly(simpleName));
            return false;
        }
        catch (FileNotFoundException) when (simpleName.StartsWith("Microsoft.ML.", StringComparison.Ordinal))
        {
            throw env.ExceptNotSupp($"The model holds a component '{signature}' of {simpleName}, which is not here: load it with the packages Microsoft.ML and {simpleName}.");
        }
    }

    // Versions and strong names do not count: a model outlives both.
    private static Assembly FindAssembly(string simpleName)
        => AppDomain.CurrentDomain.GetAssemblies().FirstOrDefault(assembly => assembly.GetName().Name == simpleName)
            ?? Assembly.Load(new AssemblyName(simpleName));

    private string Below(string name) => string.IsNullOrEmpty(Directory) ? name : Directory + "/" + name;

    public void Done()
    {
        ModelHeader.EndRead(FpMin, ref Header, Reader);
        Dispose();
    }

    public void Dispose()
    {
        if (InRepository)
            Reader.Dispose();
    }
}
