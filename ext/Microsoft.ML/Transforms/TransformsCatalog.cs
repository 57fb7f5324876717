// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>Holds the transforms; they are extension methods on this class and on the classes in it.</summary>
public sealed class TransformsCatalog : IInternalCatalog
{
    internal TransformsCatalog(IHostEnvironment env)
    {
        Contracts.CheckValue(env, nameof(env));
        Environment = env;
        Conversion = new ConversionTransforms(this);
        Text = new TextTransforms(this);
    }

    IHostEnvironment IInternalCatalog.Environment => Environment;

    public ConversionTransforms Conversion { get; }

    public TextTransforms Text { get; }

    private IHostEnvironment Environment { get; }

    /// <summary>Transforms between types.</summary>
    public sealed class ConversionTransforms : IInternalCatalog
    {
        private readonly TransformsCatalog _owner;

        internal ConversionTransforms(TransformsCatalog owner) => _owner = owner;

        IHostEnvironment IInternalCatalog.Environment => _owner.Environment;
    }

    /// <summary>Transforms of text; none here, libraries add theirs.</summary>
    public sealed class TextTransforms : IInternalCatalog
    {
        private readonly TransformsCatalog _owner;

        internal TextTransforms(TransformsCatalog owner) => _owner = owner;

        IHostEnvironment IInternalCatalog.Environment => _owner.Environment;
    }
}
