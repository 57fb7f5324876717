// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Folders with an (IA)³ adapter as AdapterHub's <c>adapters</c> package writes them. That package scales outputs only: of keys and
/// values, and of the first (or also the last) feed-forward map, before the activation.
/// </summary>
public static class Ia3AdapterHub
{
    /// <summary>True where a folder's configuration is one of (IA)³.</summary>
    /// <param name="config">The table <c>config</c> of adapter_config.json.</param>
    public static bool Describes(JsonObject config) =>
        (string?)config["architecture"] == "lora" && (string?)config["composition_mode"] == "scale" && (string?)config["init_weights"] == "ia3";

    /// <summary>Makes the adaptation and fills it from a folder.</summary>
    /// <param name="folder">Path of the folder.</param>
    /// <param name="backbone">The base model that the adapter was trained on.</param>
    /// <returns>The adaptation; the caller owns it.</returns>
    /// <exception cref="CheckpointFormatException">A file is missing or damaged, or holds another method.</exception>
    public static PeftAdaptation Attach(string folder, Backbone backbone)
    {
        var files = new FolderFileSet(folder);
        JsonObject root = AdapterFolder.ReadConfig(files, AdapterFolder.ConfigFile);
        if (root["config"] is not JsonObject config || !Describes(config))
            throw new CheckpointFormatException($"{files.Description}/{AdapterFolder.ConfigFile} does not describe an (IA)³ adapter of AdapterHub.");
        if (AdapterConfig.Get(config, "r", 1) != 1 || AdapterConfig.Get(config, "use_gating", false) || AdapterConfig.Get(config, "use_dora", false) || AdapterConfig.Get(config, "dropout", 0.0) != 0)
            throw new CheckpointFormatException($"{files.Description}/{AdapterFolder.ConfigFile}: (IA)³ is read with r 1, without gates, DoRA and dropout.");
        PeftAdaptation adaptation = Options(config, backbone).Attach(backbone, seed: 0);
        try
        {
            Fill(adaptation, files, AdapterConfig.Get(root, "name", "default"));
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    private static Ia3Options Options(JsonObject config, Backbone backbone)
    {
        var roles = new List<SiteRole>();
        if (AdapterConfig.Get(config, "selfattn_lora", true))
        {
            IReadOnlyList<string> matrices = AdapterConfig.List<string>(config, "attn_matrices");
            if (matrices.Contains("q")) roles.Add(SiteRole.Query);
            if (matrices.Contains("k")) roles.Add(SiteRole.Key);
            if (matrices.Contains("v")) roles.Add(SiteRole.Value);
            bool fused = backbone.Sites.Any(s => s.Role == SiteRole.QueryKeyValue);
            if (fused && !(matrices.Contains("k") && matrices.Contains("v"))) throw new CheckpointFormatException("(IA)³ at a fused projection is read for keys and values, and queries beside them.");
            if (fused) roles.Add(SiteRole.QueryKeyValue);
        }
        if (AdapterConfig.Get(config, "intermediate_lora", false)) roles.AddRange([SiteRole.FeedForwardUp]);
        if (AdapterConfig.Get(config, "output_lora", false)) roles.Add(SiteRole.FeedForwardDown);
        HashSet<SiteRole> there = [.. backbone.Sites.Select(s => s.Role)];
        IReadOnlyList<int> leaveOut = AdapterConfig.List<int>(config, "leave_out");
        return new Ia3Options
        {
            Targets = [.. roles.Where(there.Contains).Select(r => r.ToString())],
            FeedForwardTargets = [],
            ScaleFusedQuery = AdapterConfig.List<string>(config, "attn_matrices").Contains("q"),
            Layers = leaveOut.Count == 0 ? [] : [.. Enumerable.Range(0, backbone.Config.LayerCount).Except(leaveOut)],
        };
    }

    private static string Key(string prefix, string parameter, string adapter) =>
        $"{prefix}{parameter[..^".ia3_l".Length]}.loras.{adapter}.lora_B";

    // A bare model of the package writes no prefix; T5's model writes GPT-2's.
    private static string Prefix(IEnumerable<string> keys, PeftAdaptation adaptation, string adapter)
    {
        string[] all = [.. keys];
        string first = adaptation.Parameters[0].Name, own = adaptation.Backbone.Prefix.Length == 0 ? "" : adaptation.Backbone.Prefix + ".";
        string bare = first.StartsWith(own, StringComparison.Ordinal) ? first[own.Length..] : first;
        string? key = all.FirstOrDefault(k => k.EndsWith(Key("", bare, adapter), StringComparison.Ordinal));
        return key is null ? own : key[..^Key("", bare, adapter).Length];
    }

    private static string Bare(PeftAdaptation adaptation, string name) =>
        adaptation.Backbone.Prefix.Length > 0 && name.StartsWith(adaptation.Backbone.Prefix + ".", StringComparison.Ordinal) ? name[(adaptation.Backbone.Prefix.Length + 1)..] : name;

    private static void Fill(PeftAdaptation adaptation, FolderFileSet files, string adapter)
    {
        if (!files.Exists(AdapterHubFolder.WeightsFile))
            throw new CheckpointFormatException($"{files.Description} has no {AdapterHubFolder.WeightsFile}; it holds: {NearNames.List(files.Names)}. Pickled adapters (.bin) are not read.");
        using SafetensorsFile file = SafetensorsFile.Open(files, AdapterHubFolder.WeightsFile);
        string prefix = Prefix(file.Names, adaptation, adapter);
        HashSet<string> rest = [.. file.Names];
        foreach (NamedParameter parameter in adaptation.Parameters)
        {
            string key = Key(prefix, Bare(adaptation, parameter.Name), adapter);
            if (!rest.Remove(key)) throw new CheckpointFormatException($"{file.Description}: the tensor {NearNames.Quote(key)} is missing.{NearNames.Hint(key, rest)}");
            using Tensor value = AdapterTensors.Read(file, key);
            try
            {
                parameter.Load(value);
            }
            catch (ArgumentException e)
            {
                throw new CheckpointFormatException($"{file.Description}: {e.Message}", e);
            }
        }
        if (rest.Count > 0) throw new CheckpointFormatException($"{file.Description}: unexpected tensors: {NearNames.List(rest)}.");
    }

    /// <summary>Writes an (IA)³ adapter for AdapterHub's package.</summary>
    /// <param name="folder">Path of the folder; made where it is missing.</param>
    /// <param name="adaptation">An adaptation of <c>ia3</c> that scales outputs alone.</param>
    /// <param name="name">Name of the adapter.</param>
    /// <param name="loadedFrom">The configuration of the folder that it was loaded from, whose other fields are carried on; null for none.</param>
    /// <param name="keyPrefix">What stands before the names in the file; null for the backbone's own prefix.</param>
    /// <exception cref="NotSupportedException">The adaptation is of another method, or scales inputs.</exception>
    public static void Save(string folder, PeftAdaptation adaptation, string name = "default", JsonObject? loadedFrom = null, string? keyPrefix = null)
    {
        if (adaptation.Method is not Ia3Options options)
            throw new NotSupportedException($"Method {adaptation.Method.Id} is no (IA)³ of AdapterHub.");
        if (adaptation.Patches.Keys.Any(site => site.Role == SiteRole.FeedForwardDown) && options.FeedForwardTargets is not { Length: 0 })
            throw new NotSupportedException("AdapterHub's (IA)³ scales outputs alone; set FeedForwardTargets to an empty list and train again.");
        BackboneConfig config = adaptation.Backbone.Config;
        bool Has(SiteRole role) => adaptation.Patches.Keys.Any(site => site.Role == role || (role is SiteRole.Key or SiteRole.Value && site.Role == SiteRole.QueryKeyValue));
        var fields = loadedFrom?["config"]?.DeepClone().AsObject() ?? new JsonObject
        {
            ["alpha"] = 1,
            ["architecture"] = "lora",
            ["composition_mode"] = "scale",
            ["dropout"] = 0.0,
            ["dtype"] = null,
            ["init_weights"] = "ia3",
            ["init_weights_seed"] = null,
            ["r"] = 1,
            ["use_dora"] = false,
            ["use_gating"] = false,
            ["vera_b"] = null,
            ["vera_d"] = null,
        };
        fields["attn_matrices"] = AdapterConfig.Array(new[] { (SiteRole.Query, "q"), (SiteRole.Key, "k"), (SiteRole.Value, "v") }.Where(p => Has(p.Item1)).Select(p => p.Item2));
        fields["selfattn_lora"] = Has(SiteRole.Query) || Has(SiteRole.Key) || Has(SiteRole.Value);
        (fields["intermediate_lora"], fields["output_lora"]) = (Has(SiteRole.FeedForwardUp), Has(SiteRole.FeedForwardDown));
        fields["leave_out"] = AdapterConfig.Array(options.Layers.Length == 0 ? [] : Enumerable.Range(0, config.LayerCount).Except(options.Layers));
        var root = new JsonObject
        {
            ["config"] = fields,
            ["hidden_size"] = config.HiddenSize,
            ["model_class"] = loadedFrom?["model_class"]?.DeepClone() ?? $"{char.ToUpperInvariant(config.ModelType[0])}{config.ModelType[1..]}AdapterModel",
            ["model_name"] = loadedFrom?["model_name"]?.DeepClone(),
            ["model_type"] = config.ModelType,
            ["name"] = name,
            ["version"] = "adapters.1.3.0",
        };
        Directory.CreateDirectory(folder);
        var writer = new SafetensorsWriter();
        string prefix = keyPrefix ?? (adaptation.Backbone.Prefix.Length == 0 ? "" : adaptation.Backbone.Prefix + ".");
        foreach (NamedParameter parameter in adaptation.Parameters) AdapterTensors.Add(writer, Key(prefix, Bare(adaptation, parameter.Name), name), parameter.Value);
        writer.Save(Path.Combine(folder, AdapterHubFolder.WeightsFile));
        byte[] text = Encoding.ASCII.GetBytes(AdapterConfig.ToText(root));
        AtomicFile.Write(Path.Combine(folder, AdapterFolder.ConfigFile), stream => stream.Write(text));
    }
}
