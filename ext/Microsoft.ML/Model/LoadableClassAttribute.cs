// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>Tells the component catalog that a class can be made from a model: by which signature, under which names.</summary>
internal abstract class LoadableClassAttributeBase : Attribute
{
    protected LoadableClassAttributeBase(string summary, Type instType, Type loaderType, Type argType, Type[] sigTypes, string userName, params string[] loadNames)
    {
        InstanceType = Contracts.CheckRef(instType, nameof(instType));
        LoaderType = Contracts.CheckRef(loaderType, nameof(loaderType));
        SigTypes = Contracts.CheckNonEmpty(sigTypes, nameof(sigTypes));
        ArgType = argType;
        Summary = summary;
        UserName = userName;
        LoadNames = loadNames is { Length: > 0 } ? loadNames : [userName];
        Contracts.CheckParam(!LoadNames.Any(string.IsNullOrWhiteSpace), nameof(loadNames), "LoadableClass loadName parameter can't be empty");
        var parameters = sigTypes[0].GetMethod("Invoke")?.GetParameters() ?? throw Contracts.ExceptParam(nameof(sigTypes), "LoadableClass signature type must be a delegate type");
        CtorTypes = [.. argType == null ? Type.EmptyTypes : [argType], .. parameters.Select(parameter => parameter.ParameterType)];
    }

    public Type InstanceType { get; }
    public Type LoaderType { get; }
    public Type ArgType { get; }
    public Type[] SigTypes { get; }
    public Type[] CtorTypes { get; }
    public string Summary { get; }
    public string UserName { get; }
    public string[] LoadNames { get; }
    public string DocName { get; set; }
}

[AttributeUsage(AttributeTargets.Assembly, AllowMultiple = true)]
internal sealed class LoadableClassAttribute : LoadableClassAttributeBase
{
    public LoadableClassAttribute(Type instType, Type argType, Type sigType, string userName, params string[] loadNames)
        : base(null, instType, instType, argType, [sigType], userName, loadNames) { }

    public LoadableClassAttribute(Type instType, Type loaderType, Type argType, Type sigType, string userName, params string[] loadNames)
        : base(null, instType, loaderType, argType, [sigType], userName, loadNames) { }

    public LoadableClassAttribute(Type instType, Type argType, Type[] sigTypes, string userName, params string[] loadNames)
        : base(null, instType, instType, argType, sigTypes, userName, loadNames) { }

    public LoadableClassAttribute(Type instType, Type loaderType, Type argType, Type[] sigTypes, string userName, params string[] loadNames)
        : base(null, instType, loaderType, argType, sigTypes, userName, loadNames) { }

    public LoadableClassAttribute(string summary, Type instType, Type argType, Type sigType, string userName, params string[] loadNames)
        : base(summary, instType, instType, argType, [sigType], userName, loadNames) { }

    public LoadableClassAttribute(string summary, Type instType, Type loaderType, Type argType, Type sigType, string userName, params string[] loadNames)
        : base(summary, instType, loaderType, argType, [sigType], userName, loadNames) { }

    public LoadableClassAttribute(string summary, Type instType, Type argType, Type[] sigTypes, string userName, params string[] loadNames)
        : base(summary, instType, instType, argType, sigTypes, userName, loadNames) { }

    public LoadableClassAttribute(string summary, Type instType, Type loaderType, Type argType, Type[] sigTypes, string userName, params string[] loadNames)
        : base(summary, instType, loaderType, argType, sigTypes, userName, loadNames) { }
}
