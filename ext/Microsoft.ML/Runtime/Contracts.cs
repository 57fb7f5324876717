// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Runtime;

/// <summary>Argument checks that throw what the real library throws, marked by the component that throws.</summary>
internal static class Contracts
{
    internal const string IsMarkedKey = "ML_IsMarked";

    private static TException Process<TException>(TException ex, IExceptionContext ctx = null) where TException : Exception
    {
        Mark(ex);
        return ctx == null ? ex : ctx.Process(ex);
    }

    internal static void Mark(Exception ex) => ex.Data[IsMarkedKey] = 1;

    internal static bool IsMarked(this Exception ex) => ex.Data.Contains(IsMarkedKey);

    internal static Exception Except(string msg) => Process(new InvalidOperationException(msg));
    internal static Exception Except(this IExceptionContext ctx, string msg) => Process(new InvalidOperationException(msg), ctx);
    internal static Exception Except(Exception inner, string msg) => Process(new InvalidOperationException(msg, inner));
    internal static Exception Except(this IExceptionContext ctx, Exception inner, string msg) => Process(new InvalidOperationException(msg, inner), ctx);
    internal static Exception ExceptUserArg(string name, string msg) => Process(new ArgumentOutOfRangeException(name, msg));
    internal static Exception ExceptUserArg(this IExceptionContext ctx, string name, string msg) => Process(new ArgumentOutOfRangeException(name, msg), ctx);
    internal static Exception ExceptParam(string paramName) => Process(new ArgumentOutOfRangeException(paramName));
    internal static Exception ExceptParam(string paramName, string msg) => Process(new ArgumentOutOfRangeException(paramName, msg));
    internal static Exception ExceptParam(this IExceptionContext ctx, string paramName, string msg) => Process(new ArgumentOutOfRangeException(paramName, msg), ctx);
    internal static Exception ExceptValue(string paramName) => Process(new ArgumentNullException(paramName));
    internal static Exception ExceptValue(this IExceptionContext ctx, string paramName) => Process(new ArgumentNullException(paramName), ctx);
    internal static Exception ExceptDecode(string msg) => Process(new FormatException(msg));
    internal static Exception ExceptDecode(this IExceptionContext ctx, string msg) => Process(new FormatException(msg), ctx);
    internal static Exception ExceptDecode(this IExceptionContext ctx, Exception inner, string msg) => Process(new FormatException(msg, inner), ctx);
    internal static Exception ExceptIO(this IExceptionContext ctx, string msg) => Process(new IOException(msg), ctx);
    internal static Exception ExceptNotSupp(string msg) => Process(new NotSupportedException(msg));
    internal static Exception ExceptNotSupp(this IExceptionContext ctx, string msg) => Process(new NotSupportedException(msg), ctx);

    /// <summary>A column that a component needs is not there.</summary>
    internal static Exception ExceptSchemaMismatch(string paramName, string columnRole, string columnName)
        => Process(new ArgumentOutOfRangeException(paramName, Mismatch(columnRole, columnName, null, null)));

    internal static Exception ExceptSchemaMismatch(this IExceptionContext ctx, string paramName, string columnRole, string columnName)
        => Process(new ArgumentOutOfRangeException(paramName, Mismatch(columnRole, columnName, null, null)), ctx);

    /// <summary>A column has another type than a component needs.</summary>
    internal static Exception ExceptSchemaMismatch(string paramName, string columnRole, string columnName, string expectedType, string actualType)
        => Process(new ArgumentOutOfRangeException(paramName, Mismatch(columnRole, columnName, expectedType, actualType)));

    internal static Exception ExceptSchemaMismatch(this IExceptionContext ctx, string paramName, string columnRole, string columnName, string expectedType, string actualType)
        => Process(new ArgumentOutOfRangeException(paramName, Mismatch(columnRole, columnName, expectedType, actualType)), ctx);

    private static string Mismatch(string role, string name, string expected, string actual)
        => actual == null ? $"Could not find {role} column '{name}'" : $"Schema mismatch for {role} column '{name}': expected {expected}, got {actual}";

    internal static void Check(bool f) { if (!f) throw Process(new InvalidOperationException()); }
    internal static void Check(this IExceptionContext ctx, bool f) { if (!f) throw Process(new InvalidOperationException(), ctx); }
    internal static void Check(bool f, string msg) { if (!f) throw Except(msg); }
    internal static void Check(this IExceptionContext ctx, bool f, string msg) { if (!f) throw Except(ctx, msg); }

    internal static void CheckUserArg(bool f, string name) { if (!f) throw ExceptParam(name); }
    internal static void CheckUserArg(this IExceptionContext ctx, bool f, string name) { if (!f) throw Process(new ArgumentOutOfRangeException(name), ctx); }
    internal static void CheckUserArg(bool f, string name, string msg) { if (!f) throw ExceptUserArg(name, msg); }
    internal static void CheckUserArg(this IExceptionContext ctx, bool f, string name, string msg) { if (!f) throw ExceptUserArg(ctx, name, msg); }

    internal static void CheckParam(bool f, string paramName) { if (!f) throw ExceptParam(paramName); }
    internal static void CheckParam(this IExceptionContext ctx, bool f, string paramName) { if (!f) throw Process(new ArgumentOutOfRangeException(paramName), ctx); }
    internal static void CheckParam(bool f, string paramName, string msg) { if (!f) throw ExceptParam(paramName, msg); }
    internal static void CheckParam(this IExceptionContext ctx, bool f, string paramName, string msg) { if (!f) throw ExceptParam(ctx, paramName, msg); }

    internal static void CheckValue<T>(T val, string paramName) where T : class { if (val == null) throw ExceptValue(paramName); }
    internal static void CheckValue<T>(this IExceptionContext ctx, T val, string paramName) where T : class { if (val == null) throw ExceptValue(ctx, paramName); }
    internal static T CheckRef<T>(T val, string paramName) where T : class => val ?? throw ExceptValue(paramName);
    internal static T CheckRef<T>(this IExceptionContext ctx, T val, string paramName) where T : class => val ?? throw ExceptValue(ctx, paramName);

    internal static string CheckNonEmpty(string s, string paramName) => string.IsNullOrEmpty(s) ? throw ExceptParam(paramName, paramName + " cannot be null or empty") : s;
    internal static string CheckNonEmpty(this IExceptionContext ctx, string s, string paramName) => string.IsNullOrEmpty(s) ? throw ExceptParam(ctx, paramName, paramName + " cannot be null or empty") : s;
    internal static T[] CheckNonEmpty<T>(T[] args, string paramName) => args is { Length: > 0 } ? args : throw ExceptParam(paramName, paramName + " cannot be null or empty");
    internal static T[] CheckNonEmpty<T>(this IExceptionContext ctx, T[] args, string paramName) => args is { Length: > 0 } ? args : throw ExceptParam(ctx, paramName, paramName + " cannot be null or empty");
    internal static string CheckNonWhiteSpace(string s, string paramName) => string.IsNullOrWhiteSpace(s) ? throw ExceptParam(paramName, paramName + " cannot be null or white space") : s;
    internal static string CheckNonWhiteSpace(this IExceptionContext ctx, string s, string paramName) => string.IsNullOrWhiteSpace(s) ? throw ExceptParam(ctx, paramName, paramName + " cannot be null or white space") : s;

    internal static void CheckDecode(bool f) { if (!f) throw Process(new FormatException()); }
    internal static void CheckDecode(this IExceptionContext ctx, bool f) { if (!f) throw Process(new FormatException(), ctx); }
    internal static void CheckDecode(bool f, string msg) { if (!f) throw ExceptDecode(msg); }
    internal static void CheckDecode(this IExceptionContext ctx, bool f, string msg) { if (!f) throw ExceptDecode(ctx, msg); }
    internal static void CheckIO(this IExceptionContext ctx, bool f, string msg) { if (!f) throw ExceptIO(ctx, msg); }

    /// <summary>Throws <see cref="OperationCanceledException"/> once the environment's execution was cancelled.</summary>
    internal static void CheckAlive(this IHostEnvironment env)
    {
        if (env is ICancelable { IsCanceled: true })
            throw Process(new OperationCanceledException("Operation was canceled."), env);
    }
}
