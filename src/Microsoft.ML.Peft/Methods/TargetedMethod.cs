// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Base of the methods that adapt modules chosen by name: the options that say which, their check against a backbone, and
/// the fields of adapter_config.json that hold them.
/// </summary>
public abstract class TargetedMethod : PeftMethod
{
    /// <summary>The name that stands for every linear map of the backbone.</summary>
    public const string AllLinear = "all-linear";

    /// <summary>
    /// Which modules are adapted: ends of Hugging Face names (<c>query</c>, <c>attention.output.dense</c>), roles
    /// (<see cref="SiteRole"/>: <c>Query</c>, <c>FeedForwardUp</c>), or <c>all-linear</c>. Empty for the method's default.
    /// </summary>
    public string[] Targets { get; set; } = [];

    /// <summary>A regular expression that must match a module's whole path, in place of <see cref="Targets"/>; null for none.</summary>
    public string? TargetPattern { get; set; }

    /// <summary>Ends of module names, or roles, that are left out; they win over targets.</summary>
    public string[] ExcludeTargets { get; set; } = [];

    /// <summary>A regular expression of whole module paths that are left out; null for none.</summary>
    public string? ExcludePattern { get; set; }

    /// <summary>Layers that are adapted, numbered from 0; empty for all.</summary>
    public int[] Layers { get; set; } = [];

    /// <summary>Names of the list of layers inside module paths (<c>layer</c>, <c>h</c>), where the layer number is not at the usual place.</summary>
    public string[] LayersPattern { get; set; } = [];

    /// <summary>Modules of the backbone that are trained and saved whole, such as <c>pooler</c>. The task's head always is.</summary>
    public string[] ModulesToSave { get; set; } = [];

    /// <summary>True where the options come from a file, whose lists may name modules of other architectures.</summary>
    [JsonIgnore]
    protected bool FromFile { get; private set; }

    /// <summary>The roles that are adapted where no target is given; those that a backbone lacks are skipped.</summary>
    [JsonIgnore]
    protected virtual IReadOnlyList<SiteRole> DefaultRoles => [SiteRole.Query, SiteRole.Value, SiteRole.QueryKeyValue];

    /// <inheritdoc/>
    public override void Validate()
    {
        if (TargetPattern is not null && Targets.Length > 0)
            throw Invalid(nameof(TargetPattern), TargetPattern, "null where Targets names modules: give one of the two");
        if (ExcludePattern is not null && ExcludeTargets.Length > 0)
            throw Invalid(nameof(ExcludePattern), ExcludePattern, "null where ExcludeTargets names modules: give one of the two");
        if (TargetPattern is not null && (Layers.Length > 0 || LayersPattern.Length > 0))
            throw Invalid(nameof(Layers), string.Join(",", Layers), "empty with TargetPattern; write the layer numbers into the expression");
        if (LayersPattern.Length > 0 && Layers.Length == 0)
            throw Invalid(nameof(LayersPattern), string.Join(",", LayersPattern), "empty where Layers is empty");
        foreach (int layer in Layers)
            if (layer < 0) throw Invalid(nameof(Layers), layer, "0 or more");
        foreach (string name in Targets.Concat(ExcludeTargets).Concat(ModulesToSave))
            if (string.IsNullOrWhiteSpace(name)) throw Invalid(nameof(Targets), "''", "names of modules, without empty ones");
    }

    /// <summary>False where the options choose what is adapted in another way, and no module by its name.</summary>
    [JsonIgnore]
    protected virtual bool SelectsModules => true;

    /// <summary>The sites that the options name, in the order of the network.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <exception cref="ArgumentException">Nothing is named, or something that the method cannot adapt.</exception>
    protected IReadOnlyList<WeightSite> SelectSites(Backbone backbone)
    {
        if (!SelectsModules) return [];
        WeightSite[] all = [.. backbone.Sites.OfType<WeightSite>()];
        TakeDefaultsOfFiles(backbone, all);
        var matcher = new TargetMatcher(Rule(all.Select(site => (site, backbone.PathOf(site)))));
        List<WeightSite> chosen = [.. all.Where(site => Match(matcher, backbone, site))];
        if (chosen.Count == 0) throw NothingMatched(backbone, all);
        if (!FromFile) CheckEach(backbone, all);
        foreach (WeightSite site in chosen)
            if (!Adapts(site))
                throw new ArgumentException(
                    $"{GetType().Name} cannot adapt {site}: it is {(site is Norm ? "a norm" : site is Embedding ? "a table" : site is Convolution ? "a convolution" : site is Constant ? "a bare tensor" : "a linear map")}. Remove it from Targets or add it to ExcludeTargets.");
        return chosen;
    }

    // A file without target_modules means what its writer's defaults are for this family; from here on they are named.
    private void TakeDefaultsOfFiles(Backbone backbone, WeightSite[] all)
    {
        if (!FromFile || Targets.Length > 0 || TargetPattern is not null || HuggingFaceType is not { } type || DefaultTargets.Models(type) is not { Count: > 0 } models) return;
        Targets = DefaultTargets.Of(type, backbone.Config.ModelType) is { } names ? [.. names]
            : throw new ArgumentException(
                $"The field 'target_modules' is null, and {type} has default modules for {string.Join(", ", models.Order(StringComparer.Ordinal))}, not for {backbone.Config.ModelType}; name the modules. "
                + $"Candidates: {string.Join(", ", Candidates(backbone, all))}.", "target_modules");
    }

    /// <summary>True where files keep the weight of the last adapted map turned: the field <c>fan_in_fan_out</c>, which each map sets anew.</summary>
    /// <param name="backbone">The frozen network.</param>
    protected bool StoresTransposed(Backbone backbone) => SelectSites(backbone).OfType<Projection>().LastOrDefault()?.StoredTransposed == true;

    /// <summary>True where the method can adapt a site of this kind.</summary>
    /// <param name="site">A site that a target names.</param>
    protected virtual bool Adapts(WeightSite site) => site is Projection;

    /// <summary>The weight sites of <see cref="ModulesToSave"/>.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <returns>Sites in the order of the network; names that are no module of the backbone belong to the head.</returns>
    protected IReadOnlyList<WeightSite> SavedWhole(Backbone backbone)
    {
        if (ModulesToSave.Length == 0) return [];
        var matcher = new TargetMatcher(new TargetRule { SavedWhole = ModulesToSave });
        return [.. backbone.Sites.OfType<WeightSite>().Where(site => Match(matcher, backbone, site, TargetMatch.Excluded))];
    }

    // Files of both ages of a family's names are read; a bare model's paths lack the prefix.
    private static bool Match(TargetMatcher matcher, Backbone backbone, WeightSite site, TargetMatch wanted = TargetMatch.Matched)
    {
        string path = backbone.PathOf(site);
        if (matcher.Match(path) is var match and not TargetMatch.None) return match == wanted;
        if (site.PartOf is { } whole && matcher.Match(path[..^site.Name.Length] + whole) is var third and not TargetMatch.None) return third == wanted;
        string other = ModuleNames.ToMemory(backbone.Config.ModelType, path);
        if (other != path && matcher.Match(other) is var second and not TargetMatch.None) return second == wanted;
        return site.Name != path && matcher.Match(site.Name) == wanted;
    }

    private TargetRule Rule(IEnumerable<(WeightSite Site, string Path)> all)
    {
        var list = all.ToList();
        IReadOnlyList<string> targets = Targets.Length > 0 || TargetPattern is not null
            ? Targets
            : [.. DefaultRoles.Select(role => role.ToString())];
        return new TargetRule
        {
            Targets = [.. targets.Where(name => !StandsForRole(name))],
            OfRoles = Expand(targets.Where(StandsForRole), list),
            Pattern = TargetPattern,
            Excluded = Expand(ExcludeTargets, list),
            ExcludedPattern = ExcludePattern,
            SavedWhole = ModulesToSave,
            Layers = Layers,
            LayersPattern = LayersPattern,
        };
    }

    // Roles stand for the names of the sites that have them.
    private static List<string> Expand(IEnumerable<string> names, List<(WeightSite Site, string Path)> all)
    {
        var expanded = new List<string>();
        foreach (string name in names)
        {
            if (StandsForRole(name)) expanded.AddRange(all.Where(s => IsRole(s.Site, name)).Select(s => s.Site.Name));
            else expanded.Add(name);
        }
        return expanded;
    }

    private static bool StandsForRole(string name) => name == AllLinear || Role(name) is not null;

    private static bool IsRole(WeightSite site, string name) =>
        name == AllLinear ? site is Projection and not { Role: SiteRole.LanguageHead } : Role(name) is { } role && site.Role == role;

    private static SiteRole? Role(string name) =>
        char.IsAsciiLetterUpper(name[0]) && Enum.TryParse(name, out SiteRole role) && Enum.IsDefined(role) ? role : null;

    private ArgumentException NothingMatched(Backbone backbone, WeightSite[] all)
    {
        string given = TargetPattern is not null ? $"the pattern '{TargetPattern}'"
            : Targets.Length > 0 ? $"[{string.Join(", ", Targets)}]" : "the default";
        string[] near = [.. Targets.Take(5).SelectMany(t => NearNames.Find(t, Candidates(backbone, all))).Distinct()];
        return new ArgumentException(
            $"No module of this {backbone.Config.ModelType} backbone matches {given} (layers: {(Layers.Length == 0 ? "all" : string.Join(", ", Layers))}"
            + $"{(ExcludeTargets.Length > 0 || ExcludePattern is not null ? ", exclusions applied" : "")}). Candidates: {string.Join(", ", Candidates(backbone, all))}.{(near.Length > 0 ? $" Near names: {NearNames.List(near)}." : "")}");
    }

    /// <inheritdoc/>
    internal override bool NamesOfMemory(Backbone backbone)
    {
        // As the targets are spelled, so is the file; where they are roles, as it is done today.
        string[] names = [.. Targets.Where(name => !StandsForRole(name))];
        if (names.Length == 0 && TargetPattern is null) return true;
        var matcher = new TargetMatcher(new TargetRule { Targets = names, Pattern = TargetPattern });
        string[] paths = [.. backbone.Sites.OfType<WeightSite>().Select(backbone.PathOf)];
        bool Any(Func<string, string> spelled) => paths.Any(path => spelled(path) != path && matcher.Match(spelled(path)) == TargetMatch.Matched);
        string Memory(string path) => ModuleNames.ToMemory(backbone.Config.ModelType, path);
        return Any(Memory) || !paths.Any(path => Memory(path) != path && matcher.Match(path) == TargetMatch.Matched);
    }

    // A name that a user wrote and that names nothing is a typing error, even where other names match.
    private void CheckEach(Backbone backbone, WeightSite[] all)
    {
        foreach (string name in Targets.Concat(ExcludeTargets))
        {
            if (name == AllLinear || all.Any(site => IsRole(site, name) || TargetMatcher.Names(name, backbone.PathOf(site)))) continue;
            throw new ArgumentException(
                $"The target '{name}' names no module of this {backbone.Config.ModelType} backbone.{(NearNames.Find(name, Candidates(backbone, all)) is { Count: > 0 } near ? $" Near names: {NearNames.List(near)}." : "")} Candidates: {string.Join(", ", Candidates(backbone, all))}.");
        }
    }

    // Linear maps; convolutions where there is none.
    private static IReadOnlyList<string> Candidates(Backbone backbone, WeightSite[] all)
    {
        WeightSite[] sites = all.OfType<Projection>().Any() ? [.. all.OfType<Projection>()] : [.. all.OfType<Convolution>()];
        return TargetMatcher.Shorten(sites.Select(backbone.PathOf).Reverse(), []) is { Count: < 40 } few
            ? [.. few.Order(StringComparer.Ordinal)]
            : [.. sites.Select(site => site.Name)];
    }

    /// <summary>
    /// Which of the fields <c>exclude_modules</c> and <c>layers_to_transform</c> (with <c>layers_pattern</c>) the type's
    /// configuration has beside <c>target_modules</c>; what the missing ones would say is written as names of modules.
    /// </summary>
    [JsonIgnore]
    protected virtual (bool Exclude, bool Layers) TargetFields => (true, true);

    /// <summary>Reads the fields that say which modules.</summary>
    /// <param name="config">The whole adapter_config.json.</param>
    protected void ReadTargets(JsonObject config)
    {
        FromFile = true;
        (Targets, TargetPattern) = NamesOrPattern(config, "target_modules");
        if (TargetPattern == AllLinear) (Targets, TargetPattern) = ([AllLinear], null);
        if (TargetFields.Exclude) (ExcludeTargets, ExcludePattern) = NamesOrPattern(config, "exclude_modules");
        if (TargetFields.Layers)
        {
            Layers = [.. AdapterConfig.List<int>(config, "layers_to_transform")];
            LayersPattern = [.. AdapterConfig.List<string>(config, "layers_pattern")];
        }
        ModulesToSave = [.. AdapterConfig.List<string>(config, "modules_to_save")];
    }

    /// <summary>Refuses a field whose other values change what is computed and are not supported.</summary>
    /// <typeparam name="T">A string, number or bool.</typeparam>
    /// <param name="config">The whole adapter_config.json.</param>
    /// <param name="field">Name of the field.</param>
    /// <param name="supported">The one value that is supported, null and a missing field aside.</param>
    /// <exception cref="ArgumentException">The field has another value.</exception>
    protected static void Only<T>(JsonObject config, string field, T supported)
    {
        if (!EqualityComparer<T>.Default.Equals(AdapterConfig.Get(config, field, supported), supported))
            throw new ArgumentException(
                $"adapter_config.json: the field '{field}' is {config[field]!.ToJsonString()}; it changes what is computed and is not supported. Supported is {JsonValue.Create(supported)!.ToJsonString()}.", field);
    }

    /// <summary>Writes the fields that say which modules; roles become names.</summary>
    /// <param name="config">The object to fill.</param>
    /// <param name="backbone">The frozen network.</param>
    protected void WriteTargets(JsonObject config, Backbone backbone)
    {
        bool excludes = ExcludePattern is not null || ExcludeTargets.Length > 0;
        bool byName = (excludes && !TargetFields.Exclude) || (Layers.Length > 0 && !TargetFields.Layers);
        config["target_modules"] = byName ? AdapterConfig.Array(Chosen(backbone))
            : TargetPattern is not null ? TargetPattern : AdapterConfig.Array(Exported(Targets, backbone, selected: true));
        if (TargetFields.Exclude)
            config["exclude_modules"] = ExcludePattern is not null ? ExcludePattern
                : !excludes ? null : AdapterConfig.Array(Exported(ExcludeTargets, backbone, selected: false));
        if (TargetFields.Layers)
        {
            config["layers_to_transform"] = Layers.Length == 0 ? null : AdapterConfig.Array(Layers);
            config["layers_pattern"] = LayersPattern.Length == 0 ? null
                : LayersPattern.Length == 1 ? LayersPattern[0] : AdapterConfig.Array(LayersPattern);
        }
        config["modules_to_save"] = ModulesToSave.Length == 0 ? null : AdapterConfig.Array(ModulesToSave);
    }

    private IReadOnlyList<string> Exported(string[] names, Backbone backbone, bool selected)
    {
        bool plain = names.Length > 0 && names.All(name => Role(name) is null && name != AllLinear);
        if (plain && names.Length < 20) return names;
        WeightSite[] all = [.. backbone.Sites.OfType<WeightSite>()];
        List<string> named = Expand(names.Length > 0 ? names : DefaultRoles.Select(r => r.ToString()), [.. all.Select(s => (s, backbone.PathOf(s)))]);
        Func<string, string> spelled = NamesOfMemory(backbone) ? path => ModuleNames.ToMemory(backbone.Config.ModelType, path) : path => path;
        if (!selected) return [.. named.Select(spelled)];
        // The layers are a field of their own, which does not filter whole paths: names of the role in all layers, then.
        HashSet<WeightSite> chosen = Layers.Length == 0 ? [.. SelectSites(backbone)]
            : [.. all.Where(s => named.Any(name => TargetMatcher.Names(name, backbone.PathOf(s))))];
        if (Layers.Length == 0 && names.Contains(AllLinear) && chosen.Count < 20) return [.. chosen.Select(site => spelled(backbone.PathOf(site)))];
        return Shortened(backbone, chosen, spelled);
    }

    // Names of the adapted modules and of no others, whatever the other options say.
    private IReadOnlyList<string> Chosen(Backbone backbone) => Shortened(backbone, [.. SelectSites(backbone)],
        NamesOfMemory(backbone) ? path => ModuleNames.ToMemory(backbone.Config.ModelType, path) : path => path);

    private static IReadOnlyList<string> Shortened(Backbone backbone, HashSet<WeightSite> chosen, Func<string, string> spelled)
    {
        // Names of the whole model's other linear maps, so that a shortened list names nothing there by accident.
        string[] elsewhere = ["classifier.dense", "classifier.out_proj", "lm_head.dense", "cls.predictions.transform.dense"];
        string Path(WeightSite site) => spelled(backbone.PathOf(site));
        return TargetMatcher.Shorten(chosen.Select(Path), backbone.Sites.OfType<WeightSite>().Where(s => !chosen.Contains(s)).Select(Path).Concat(elsewhere));
    }

    private static (string[] Names, string? Pattern) NamesOrPattern(JsonObject config, string field) => config[field] switch
    {
        JsonValue value when value.TryGetValue(out string? pattern) => ([], pattern),
        _ => ([.. AdapterConfig.List<string>(config, field)], null),
    };
}
