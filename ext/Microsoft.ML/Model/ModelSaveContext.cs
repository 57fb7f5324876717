// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Internal.Utilities;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>What a component saves itself with: its own stream, the strings in it, and further entries beside it.</summary>
public sealed class ModelSaveContext : IDisposable
{
    internal readonly RepositoryWriter Repository;
    internal readonly string Directory;
    internal readonly BinaryWriter Writer;
    internal readonly NormStr.Pool Strings = new();
    internal readonly long FpMin;
    internal ModelHeader Header;

    private readonly Repository.Entry _entry;
    private readonly IExceptionContext _context;
    private string _loaderAssemblyName;

    internal ModelSaveContext(RepositoryWriter rep, string dir, string name)
    {
        Repository = Contracts.CheckRef(rep, nameof(rep));
        _context = rep.ExceptionContext;
        Contracts.CheckNonEmpty(name, nameof(name));
        Directory = dir;
        _entry = rep.CreateEntry(dir, name);
        Writer = new BinaryWriter(_entry.Stream, Encoding.UTF8, leaveOpen: true);
        ModelHeader.BeginWrite(Writer, out FpMin, out Header);
    }

    internal ModelSaveContext(BinaryWriter writer, IExceptionContext ectx = null)
    {
        _context = ectx;
        Writer = Contracts.CheckRef(writer, nameof(writer));
        ModelHeader.BeginWrite(Writer, out FpMin, out Header);
    }

    internal bool InRepository => Repository != null;

    internal void CheckAtModel()
    {
        Writer.Flush();
        _context.Check(Writer.BaseStream.Position == FpMin + Header.FpModel, "Something was written before the version");
    }

    internal void SetVersionInfo(VersionInfo ver)
    {
        ModelHeader.SetVersionInfo(ref Header, ver);
        _loaderAssemblyName = ver.LoaderAssemblyName;
    }

    internal void SaveString(string str) => Writer.Write(Strings.Add(Contracts.CheckRef(_context, str, nameof(str))).Id);

    internal void SaveString(ReadOnlyMemory<char> str) => Writer.Write(Strings.Add(str).Id);

    internal void SaveStringOrNull(string str) => Writer.Write(str == null ? -1 : Strings.Add(str).Id);

    internal void SaveNonEmptyString(string str)
    {
        _context.CheckParam(!string.IsNullOrEmpty(str), nameof(str));
        Writer.Write(Strings.Add(str).Id);
    }

    internal void SaveNonEmptyString(ReadOnlyMemory<char> str) => Writer.Write(Strings.Add(str).Id);

    internal void SaveBinaryStream(string name, Action<BinaryWriter> action)
    {
        using var entry = NewEntry(name);
        using var writer = new BinaryWriter(entry.Stream, Encoding.UTF8, leaveOpen: true);
        Contracts.CheckRef(_context, action, nameof(action))(writer);
    }

    internal void SaveTextStream(string name, Action<TextWriter> action)
    {
        using var entry = NewEntry(name);
        using var writer = new StreamWriter(entry.Stream, new UTF8Encoding(encoderShouldEmitUTF8Identifier: false), 1 << 12, leaveOpen: true);
        Contracts.CheckRef(_context, action, nameof(action))(writer);
    }

    private Repository.Entry NewEntry(string name)
    {
        _context.Check(InRepository, "Can't save another stream when writing to a single stream");
        return Repository.CreateEntry(Directory, _context.CheckNonEmpty(name, nameof(name)));
    }

    internal void SaveModel<T>(T value, string name) where T : class
    {
        _context.Check(InRepository, "Can't save a sub-model when writing to a single stream");
        SaveModel(Repository, value, Below(name));
    }

    internal static void SaveModel<T>(RepositoryWriter rep, T value, string path) where T : class
    {
        if (value is not ICanSaveModel model)
            return;
        using var context = new ModelSaveContext(rep, path, ModelLoadContext.ModelStreamName);
        model.Save(context);
        context.Done();
    }

    internal void SaveSubModel(string dir, Action<ModelSaveContext> fn)
    {
        _context.Check(InRepository, "Can't save a sub-model when writing to a single stream");
        using var context = new ModelSaveContext(Repository, Below(_context.CheckNonEmpty(dir, nameof(dir))), ModelLoadContext.ModelStreamName);
        Contracts.CheckRef(_context, fn, nameof(fn))(context);
        context.Done();
    }

    internal static void Save(BinaryWriter writer, Action<ModelSaveContext> fn)
    {
        using var context = new ModelSaveContext(writer);
        Contracts.CheckRef(fn, nameof(fn))(context);
        context.Done();
    }

    private string Below(string name) => string.IsNullOrEmpty(Directory) ? name : Directory + "/" + name;

    internal void Done()
    {
        _context.Check(Header.ModelSignature != 0, "ModelSignature not specified!");
        ModelHeader.EndWrite(Writer, FpMin, ref Header, Strings, _loaderAssemblyName);
        Dispose();
    }

    public void Dispose()
    {
        if (!InRepository)
            return;
        Writer.Dispose();
        _entry.Dispose();
    }
}
