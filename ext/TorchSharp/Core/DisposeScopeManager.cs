// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
namespace TorchSharp;

/// <summary>The stack of dispose scopes of one thread.</summary>
public class DisposeScopeManager
{
    [ThreadStatic] private static DisposeScopeManager? t_singleton;

    internal static DisposeScopeManager ThreadSingleton => t_singleton ??= new DisposeScopeManager();

    internal ThreadDisposeScopeStatistics StatisticsInstance { get; } = new();
    internal DisposeScope? CurrentDisposeScope { get; private set; }

    public static ThreadDisposeScopeStatistics Statistics => ThreadSingleton.StatisticsInstance;

    internal DisposeScope? Register(torch.Tensor tensor)
    {
        var scope = CurrentDisposeScope;
        if (scope is null)
        {
            StatisticsInstance.CreatedOutside++;
            return null;
        }
        StatisticsInstance.CreatedIn++;
        scope.Disposables.Add(tensor);
        return scope;
    }

    internal void Disposing(torch.Tensor tensor)
    {
        if (tensor.OwningDisposeScope is null)
            StatisticsInstance.DisposedOutside++;
        else
            StatisticsInstance.DisposedIn++;
    }

    internal DisposeScope NewDisposeScope() => CurrentDisposeScope = new DisposeScope(this);

    /// <summary>Takes a scope out of the stack, wherever it stands in it.</summary>
    internal void RemoveDisposeScope(DisposeScope scope)
    {
        if (ReferenceEquals(CurrentDisposeScope, scope))
        {
            CurrentDisposeScope = scope.OuterScope;
            return;
        }
        for (var at = CurrentDisposeScope; at is not null; at = at.OuterScope)
        {
            if (!ReferenceEquals(at.OuterScope, scope))
                continue;
            at.OuterScope = scope.OuterScope;
            return;
        }
    }
}

public class ThreadDisposeScopeStatistics
{
    internal long CreatedOutside, DisposedOutside, CreatedIn, DisposedIn, Attached, Detached;

    public long CreatedOutsideScopeCount => CreatedOutside;
    internal long DisposedOutsideScopeCount => DisposedOutside;
    public long CreatedInScopeCount => CreatedIn;
    public long DisposedInScopeCount => DisposedIn;
    internal long AttachedToScopeCount => Attached;
    public long DetachedFromScopeCount => Detached;
    public long ThreadTotalLiveCount => CreatedIn - DisposedIn + (CreatedOutside - DisposedOutside);

    public void Reset() => CreatedOutside = DisposedOutside = CreatedIn = DisposedIn = Attached = Detached = 0;
}
