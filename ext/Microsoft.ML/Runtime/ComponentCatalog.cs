// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;

namespace Microsoft.ML.Runtime;

/// <summary>Finds the loaders that assemblies declare, by signature and name.</summary>
public sealed class ComponentCatalog
{
    private const BindingFlags AnyVisibility = BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.DeclaredOnly;

    private readonly Lock _lock = new();
    private readonly HashSet<Assembly> _known = [];
    private readonly Dictionary<(string Name, Type Signature), Func<IHostEnvironment, object[], object>> _loaders = [];

    internal ComponentCatalog() => RegisterAssembly(typeof(ComponentCatalog).Assembly);

    public void RegisterAssembly(Assembly assembly, bool throwOnError = true)
    {
        Contracts.CheckValue(assembly, nameof(assembly));
        lock (_lock)
        {
            if (!_known.Add(assembly))
                return;
            foreach (var declared in assembly.GetCustomAttributes<LoadableClassAttributeBase>())
                Add(declared, throwOnError);
        }
    }

    private void Add(LoadableClassAttributeBase declared, bool throwOnError)
    {
        var loader = FindLoader(declared.InstanceType, declared.LoaderType, declared.CtorTypes);
        if (loader == null)
        {
            if (throwOnError)
                throw Contracts.Except($"Can't instantiate loadable class '{declared.InstanceType.Name}' with name '{declared.LoadNames[0]}'");
            return;
        }
        foreach (var signature in declared.SigTypes)
            foreach (string name in declared.LoadNames)
                if (!_loaders.TryAdd(Key(name, signature), loader) && throwOnError)
                    throw Contracts.Except($"ComponentCatalog cannot map name '{name}' and SignatureType '{signature}' to {declared.InstanceType.Name}, already mapped.");
    }

    // A static Create or a constructor, with the environment as first argument or without.
    // A class with both means the less visible one, which nobody calls by hand.
    private static Func<IHostEnvironment, object[], object> FindLoader(Type made, Type loader, Type[] types)
    {
        Type[] withEnvironment = [typeof(IHostEnvironment), .. types];
        var candidates = new List<MethodBase>();
        if (made.IsAssignableFrom(loader)
            && (Constructor(types) ?? Constructor(withEnvironment)) is { } constructor)
            candidates.Add(constructor);
        if ((Create(types) ?? Create(withEnvironment)) is { } create)
            candidates.Add(create);
        if (candidates.MinBy(Visibility) is not { } chosen)
            return null;
        bool takesEnvironment = chosen.GetParameters().Length > types.Length;
        return (env, args) =>
        {
            object[] all = takesEnvironment ? [env, .. args] : args;
            try
            {
                return chosen is ConstructorInfo ctor ? ctor.Invoke(all) : chosen.Invoke(null, all);
            }
            catch (TargetInvocationException ex) when (ex.InnerException?.IsMarked() == true)
            {
                throw Contracts.Except(ex, "Error during class instantiation");
            }
        };

        ConstructorInfo Constructor(Type[] wanted) => loader.GetConstructor(BindingFlags.Instance | AnyVisibility, null, wanted, null);

        MethodInfo Create(Type[] wanted)
            => loader.GetMethod("Create", BindingFlags.Static | AnyVisibility, null, wanted, null) is { } method && method.ReturnType == made ? method : null;
    }

    private static int Visibility(MethodBase method)
        => method.IsFamilyAndAssembly ? 0 : method.IsPrivate ? 1 : method.IsFamily ? 2 : method.IsFamilyOrAssembly ? 3 : method.IsAssembly ? 4 : 5;

    private static (string, Type) Key(string name, Type signature) => (name.Trim().ToLowerInvariant(), signature);

    internal static bool TryCreateInstance<TRes, TSig>(IHostEnvironment env, out TRes result, string name, params object[] args) where TRes : class
    {
        Func<IHostEnvironment, object[], object> loader;
        lock (env.ComponentCatalog._lock)
            env.ComponentCatalog._loaders.TryGetValue(Key(name ?? "", typeof(TSig)), out loader);
        result = loader?.Invoke(env, args) as TRes;
        return result != null;
    }
}
