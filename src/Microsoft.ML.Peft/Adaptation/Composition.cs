// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.Json.Nodes;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>How the children of a composition work together.</summary>
public enum CompositionKind
{
    /// <summary>One adapter.</summary>
    Single,
    /// <summary>One after the other: the output of each is the input of the next.</summary>
    Stack,
    /// <summary>Side by side on the same input, mixed by trained attention (AdapterFusion, Pfeiffer et al. 2021, arXiv 2005.00247).</summary>
    Fuse,
    /// <summary>The batch is repeated, each copy goes through one child.</summary>
    Parallel,
    /// <summary>The weighted mean of the children's outputs.</summary>
    Average,
    /// <summary>Each child has a span of tokens.</summary>
    Split,
    /// <summary>Each child has a number of rows.</summary>
    BatchSplit,
}

/// <summary>
/// How several adapters of one backbone work together, as a value: <c>Composition.Stack("language", Composition.Fuse("a", "b"))</c>.
/// A name converts to a composition by itself. <see cref="AdapterSet.Compose"/> makes it run.
/// </summary>
public sealed class Composition
{
    private static readonly Dictionary<CompositionKind, CompositionKind[]> _children = new()
    {
        [CompositionKind.Stack] = [CompositionKind.Single, CompositionKind.Fuse, CompositionKind.Parallel, CompositionKind.Average, CompositionKind.Split, CompositionKind.BatchSplit],
        [CompositionKind.Fuse] = [CompositionKind.Single, CompositionKind.Stack],
        [CompositionKind.Parallel] = [CompositionKind.Single, CompositionKind.Stack, CompositionKind.BatchSplit, CompositionKind.Average],
        [CompositionKind.Average] = [CompositionKind.Single, CompositionKind.Stack, CompositionKind.Split, CompositionKind.BatchSplit],
        [CompositionKind.Split] = [CompositionKind.Single, CompositionKind.Split, CompositionKind.Stack, CompositionKind.BatchSplit, CompositionKind.Average],
        [CompositionKind.BatchSplit] = [CompositionKind.Single, CompositionKind.Stack, CompositionKind.Split, CompositionKind.BatchSplit, CompositionKind.Average],
    };

    private Composition(CompositionKind kind, string? name, IReadOnlyList<Composition> children, double[]? weights = null, long[]? sizes = null)
    {
        (Kind, Name, Children, Weights, Sizes) = (kind, name, children, weights, sizes);
        if (kind != CompositionKind.Single && children.Count == 0)
            throw new ArgumentException($"{kind} has no children; expected is one or more.", nameof(children));
        foreach (Composition child in children)
            if (!_children[kind].Contains(child.Kind))
                throw new ArgumentException($"{child} cannot stand inside of {this}: {kind} takes {string.Join(", ", _children[kind].Select(k => k == CompositionKind.Single ? "names" : k.ToString()))}.", nameof(children));
        CheckDepth(0);
    }

    /// <summary>How the children work together.</summary>
    public CompositionKind Kind { get; }

    /// <summary>Name of the adapter, where it is one.</summary>
    public string? Name { get; }

    /// <summary>The parts, in order.</summary>
    public IReadOnlyList<Composition> Children { get; }

    /// <summary>Weights of an average, one a child.</summary>
    public IReadOnlyList<double>? Weights { get; }

    /// <summary>Tokens of the parts of a Split, or rows of the parts of a BatchSplit; a single number stands for all.</summary>
    public IReadOnlyList<long>? Sizes { get; }

    /// <summary>One adapter.</summary>
    /// <param name="name">Its name in the set.</param>
    public static implicit operator Composition(string name) => new(CompositionKind.Single, name, []);

    /// <summary>One after the other; adapters without a place at a site are left out there.</summary>
    /// <param name="children">The first to the last.</param>
    /// <exception cref="ArgumentException">A child that cannot stand here.</exception>
    public static Composition Stack(params Composition[] children) => new(CompositionKind.Stack, null, children);

    /// <summary>Mixed by a fusion that the set holds for the children's last names.</summary>
    /// <param name="children">Two or more names or stacks.</param>
    /// <exception cref="ArgumentException">Fewer than two, or a child that cannot stand here.</exception>
    public static Composition Fuse(params Composition[] children) => children.Length < 2
        ? throw new ArgumentException($"Fuse has {children.Length} children; expected are two or more.", nameof(children))
        : new(CompositionKind.Fuse, null, children);

    /// <summary>Each child reads a copy of the batch; the outputs have as many rows a child, child by child.</summary>
    /// <param name="children">One child a copy.</param>
    /// <exception cref="ArgumentException">A child that cannot stand here.</exception>
    public static Composition Parallel(params Composition[] children) => new(CompositionKind.Parallel, null, children);

    /// <summary>The mean of the children's outputs.</summary>
    /// <param name="children">What is averaged.</param>
    /// <exception cref="ArgumentException">A child that cannot stand here.</exception>
    public static Composition Average(params Composition[] children) => Average([.. children.Select(_ => 1.0)], true, children);

    /// <summary>The weighted mean of the children's outputs.</summary>
    /// <param name="weights">One a child.</param>
    /// <param name="normalize">True to divide the weights by their sum; false to take them as they are.</param>
    /// <param name="children">What is averaged.</param>
    /// <exception cref="ArgumentException">Not one weight a child, a sum of 0, or a child that cannot stand here.</exception>
    public static Composition Average(double[] weights, bool normalize, params Composition[] children)
    {
        if (weights.Length != children.Length) throw new ArgumentException($"There are {weights.Length} weights for {children.Length} children; expected is one a child.", nameof(weights));
        double sum = weights.Sum();
        if (!weights.All(double.IsFinite) || (normalize && sum == 0)) throw new ArgumentException($"The weights [{string.Join(", ", weights)}] sum to {sum}; expected are finite numbers with another sum than 0.", nameof(weights));
        return new(CompositionKind.Average, null, children, normalize ? [.. weights.Select(w => w / sum)] : weights);
    }

    /// <summary>Each child has a span of tokens.</summary>
    /// <param name="lengths">Tokens a child; together as many as the padded rows have.</param>
    /// <param name="children">One child a span.</param>
    /// <exception cref="ArgumentException">Not one length a child, or a child that cannot stand here.</exception>
    public static Composition Split(long[] lengths, params Composition[] children) => new(CompositionKind.Split, null, children, sizes: Checked(lengths, children));

    /// <summary>Each child has a number of rows.</summary>
    /// <param name="rows">Rows a child; together as many as the batch has.</param>
    /// <param name="children">One child a span of rows.</param>
    /// <exception cref="ArgumentException">Not one size a child, or a child that cannot stand here.</exception>
    public static Composition BatchSplit(long[] rows, params Composition[] children) => new(CompositionKind.BatchSplit, null, children, sizes: Checked(rows, children));

    private static long[] Checked(long[] sizes, Composition[] children) => sizes.Length == 1 ? [.. children.Select(_ => sizes[0])]
        : sizes.Length == children.Length && sizes.All(s => s > 0) ? sizes
        : throw new ArgumentException($"The sizes [{string.Join(", ", sizes)}] do not fit {children.Length} children; expected is one positive number a child, or one for all.", nameof(sizes));

    private void CheckDepth(int level)
    {
        foreach (Composition child in Children)
        {
            if (child.Kind == CompositionKind.Single) continue;
            // Below the second level only stacks keep a meaning that every site can follow.
            if (level > 1 || (level == 1 && child.Kind != CompositionKind.Stack))
                throw new ArgumentException($"{this} is too deep: {child} stands at level {level + 1}. At level 2 only Stack may stand, deeper nothing but names.");
            child.CheckDepth(level + 1);
        }
    }

    /// <summary>The composition as JSON: a name, or an object with <c>kind</c>, <c>children</c> and settings.</summary>
    public JsonNode ToJson()
    {
        if (Kind == CompositionKind.Single) return JsonValue.Create(Name)!;
        var json = new JsonObject { ["kind"] = Kind.ToString(), ["children"] = new JsonArray([.. Children.Select(c => c.ToJson())]) };
        if (Weights is not null) json["weights"] = new JsonArray([.. Weights.Select(w => (JsonNode)w)]);
        if (Sizes is not null) json["sizes"] = new JsonArray([.. Sizes.Select(n => (JsonNode)n)]);
        return json;
    }

    /// <summary>Reads what <see cref="ToJson"/> wrote.</summary>
    /// <param name="json">A name or an object.</param>
    /// <exception cref="ArgumentException">No composition, or one that cannot be.</exception>
    public static Composition FromJson(JsonNode json)
    {
        if (json is JsonValue name) return (string)name!;
        if (!Enum.TryParse((string?)json["kind"], out CompositionKind kind) || kind == CompositionKind.Single || json["children"] is not JsonArray children)
            throw new ArgumentException($"{json.ToJsonString()} is no composition; expected is a name, or an object with 'kind' ({string.Join(", ", _children.Keys)}) and 'children'.", nameof(json));
        Composition[] parts = [.. children.Select(c => FromJson(c!))];
        return kind switch
        {
            CompositionKind.Average => Average([.. json["weights"]!.AsArray().Select(w => (double)w!)], false, parts),
            CompositionKind.Split => Split([.. json["sizes"]!.AsArray().Select(n => (long)n!)], parts),
            CompositionKind.BatchSplit => BatchSplit([.. json["sizes"]!.AsArray().Select(n => (long)n!)], parts),
            CompositionKind.Fuse => Fuse(parts),
            _ => new Composition(kind, null, parts),
        };
    }

    /// <summary>All names, in order.</summary>
    public IEnumerable<string> Names => Kind == CompositionKind.Single ? [Name!] : Children.SelectMany(c => c.Names);

    /// <summary>The first name.</summary>
    public string First => Names.First();

    /// <summary>The last name.</summary>
    public string Last => Names.Last();

    /// <summary>Copies of the batch that come out: as many as the children of a Parallel, else 1.</summary>
    /// <exception cref="ArgumentException">Several Parallels of different widths.</exception>
    public int Copies
    {
        get
        {
            int[] own = [.. All().Where(c => c.Kind == CompositionKind.Parallel).Select(c => c.Children.Count).Distinct()];
            return own.Length < 2 ? own.FirstOrDefault(1)
                : throw new ArgumentException($"{this} holds Parallels of {string.Join(" and ", own)} children; they repeat the batch differently.");
        }
    }

    private IEnumerable<Composition> All() => Children.SelectMany(c => c.All()).Prepend(this);

    /// <summary>The fusions that it holds, by the last names of their children: <c>a,b</c>.</summary>
    internal IEnumerable<string> Fusions => All().Where(c => c.Kind == CompositionKind.Fuse).Select(c => c.FusionName).Distinct();

    internal string FusionName => string.Join(',', Children.Select(c => c.Last));

    /// <inheritdoc/>
    public override string ToString()
    {
        if (Kind == CompositionKind.Single) return Name!;
        string settings = Weights is not null ? $", weights [{string.Join(", ", Weights.Select(w => w.ToString("0.###", CultureInfo.InvariantCulture)))}]"
            : Sizes is not null ? $", sizes [{string.Join(", ", Sizes)}]" : "";
        return $"{Kind}[{string.Join(", ", Children)}{settings}]";
    }
}
