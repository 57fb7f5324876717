// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>What a component writes at the head of its model: who it is, and which versions can read it.</summary>
internal readonly struct VersionInfo
{
    public readonly ulong ModelSignature;
    public readonly uint VerWrittenCur;
    public readonly uint VerReadableCur;
    public readonly uint VerWeCanReadBack;
    public readonly string LoaderAssemblyName;
    public readonly string LoaderSignature;
    public readonly string LoaderSignatureAlt;

    public VersionInfo(string modelSignature, uint verWrittenCur, uint verReadableCur, uint verWeCanReadBack, string loaderAssemblyName,
        string loaderSignature = null, string loaderSignatureAlt = null)
    {
        Contracts.Check(modelSignature?.Length == 8, "Model signature must be eight characters");
        // Blanks are left out: their bytes stay 0.
        ModelSignature = ModelHeader.Pack(modelSignature.Replace(' ', '\0'))[0];
        VerWrittenCur = verWrittenCur;
        VerReadableCur = verReadableCur;
        VerWeCanReadBack = verWeCanReadBack;
        LoaderAssemblyName = loaderAssemblyName;
        LoaderSignature = loaderSignature;
        LoaderSignatureAlt = loaderSignatureAlt;
    }
}

/// <summary>
/// The names of the real assemblies whose components live in this one. Models name the assembly of each
/// component's loader, so ours carry these: the real library then finds its own loaders in them.
/// </summary>
internal static class RealAssembly
{
    private const string Identity = ", Version=1.0.0.0, Culture=neutral, PublicKeyToken=cc7b13ffcd2ddd51";

    internal const string Core = "Microsoft.ML.Core" + Identity;
    internal const string Data = "Microsoft.ML.Data" + Identity;
    internal const string Transforms = "Microsoft.ML.Transforms" + Identity;

    private static readonly HashSet<string> _here = ["Microsoft.ML", "Microsoft.ML.Core", "Microsoft.ML.Data", "Microsoft.ML.Transforms", "Microsoft.ML.DataView"];

    internal static bool IsHere(string simpleName) => _here.Contains(simpleName);
}
