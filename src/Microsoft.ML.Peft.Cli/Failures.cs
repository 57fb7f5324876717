// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Cli;

/// <summary>A call that makes no sense: exit code 2.</summary>
internal sealed class UsageException(string message) : Exception(message);

/// <summary>Turns exceptions into one clear line and an exit code.</summary>
internal static class Failures
{
    public static int Guard(Func<int> run)
    {
        try
        {
            return run();
        }
        catch (UsageException e)
        {
            Console.Error.WriteLine(e.Message);
            return 2;
        }
        catch (Exception e)
        {
            // ML.NET wraps what a component threw; the innermost message is the one that helps.
            Exception cause = e is System.Reflection.TargetInvocationException or AggregateException or TypeInitializationException
                ? e.GetBaseException() : e;
            Console.Error.WriteLine($"peft: {OneLine(cause.Message)}");
            if (Environment.GetEnvironmentVariable("PEFT_TRACE") == "1") Console.Error.WriteLine(e);
            return 1;
        }
    }

    private static string OneLine(string message) => string.Join(' ', message.Split(['\r', '\n'], StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries));
}
