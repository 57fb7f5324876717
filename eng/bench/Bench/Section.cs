// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Bench;

/// <summary>A part of the benchmark that can be left out.</summary>
internal abstract class Section
{
    /// <summary>What is measured once, before the rounds.</summary>
    public virtual void Begin()
    {
    }

    /// <summary>Rounds at most, where each takes long.</summary>
    public virtual int Rounds => int.MaxValue;

    /// <summary>One round: every side once, in turns.</summary>
    public abstract void Round();

    /// <summary>What was to be reached, and what came out.</summary>
    public abstract IEnumerable<Verdict> Verdicts { get; }

    /// <summary>The tables, as Markdown.</summary>
    public abstract string Write();

    /// <summary>A report of each side that says which libraries it used; null where the section knows none.</summary>
    public virtual (Report Ours, Report Theirs)? Libraries => null;
}
