// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// A folder with a bottleneck adapter as AdapterHub's <c>adapters</c> package writes it: <c>adapter_config.json</c> with all
/// switches, and <c>adapter.safetensors</c>. The package's own heads are not read.
/// </summary>
public static class AdapterHubFolder
{
    /// <summary>Name of the file of tensors.</summary>
    public const string WeightsFile = "adapter.safetensors";

    // Fields that change what is computed, and the value that this library computes.
    private static readonly (string Field, string Supported)[] _fixed =
    [
        ("cross_adapter", "false"), ("phm_layer", "false"), ("inv_adapter", "null"), ("stochastic_depth", "0"),
    ];

    /// <summary>Reads the switches of a bottleneck adapter.</summary>
    /// <param name="folder">Path of the folder.</param>
    /// <exception cref="CheckpointFormatException">The folder holds something else, or a switch is not supported.</exception>
    public static BottleneckOptions ReadOptions(string folder)
    {
        var files = new FolderFileSet(folder);
        JsonObject root = AdapterFolder.ReadConfig(files, AdapterFolder.ConfigFile);
        if (root["config"] is not JsonObject config)
            throw new CheckpointFormatException(
                $"{files.Description}/{AdapterFolder.ConfigFile}: the table 'config' is missing"
                + (root.ContainsKey("peft_type") ? "; this is an adapter of Hugging Face PEFT: open it with AdapterFolder." : "."));
        try
        {
            BottleneckOptions options = Parse(config);
            options.Name = AdapterConfig.Get(root, "name", "default");
            options.Validate();
            return options;
        }
        catch (ArgumentException e)
        {
            throw new CheckpointFormatException($"{files.Description}/{AdapterFolder.ConfigFile}: {e.Message}", e);
        }
    }

    internal static BottleneckOptions Parse(JsonObject config)
    {
        if (!config.ContainsKey("reduction_factor") || !config.ContainsKey("non_linearity"))
            throw new ArgumentException("the fields 'reduction_factor' and 'non_linearity' are missing: this is no bottleneck adapter.");
        foreach ((string field, string supported) in _fixed)
            if (!AdapterConfig.IsEmpty(config, field) && config[field] is JsonNode node && !(node.GetValueKind() == System.Text.Json.JsonValueKind.Number && (double)node == 0))
                throw new ArgumentException($"the field '{field}' is {node.ToJsonString()}; supported is {supported}.", field);
        var options = new BottleneckOptions
        {
            AfterAttention = AdapterConfig.Get(config, "mh_adapter", false),
            AfterFeedForward = AdapterConfig.Get(config, "output_adapter", true),
            NonLinearity = AdapterConfig.Get(config, "non_linearity", "relu"),
            OriginalNormBefore = AdapterConfig.Get(config, "original_ln_before", false),
            OriginalNormAfter = AdapterConfig.Get(config, "original_ln_after", true),
            OwnNormBefore = AdapterConfig.Get(config, "ln_before", false),
            OwnNormAfter = AdapterConfig.Get(config, "ln_after", false),
            ResidualInsideOwnNorm = AdapterConfig.Get(config, "adapter_residual_before_ln", false),
            Parallel = AdapterConfig.Get(config, "is_parallel", false),
            Gate = AdapterConfig.Get(config, "use_gating", false),
            Dropout = AdapterConfig.Get(config, "dropout", 0.0),
            Init = AdapterConfig.Get(config, "init_weights", "bert"),
            LeaveOut = [.. AdapterConfig.List<int>(config, "leave_out")],
            Scaling = config["scaling"] is JsonValue v && v.TryGetValue(out string? word) ? word
                : AdapterConfig.Get(config, "scaling", 1.0).ToString("R", CultureInfo.InvariantCulture),
            Residual = config["residual_before_ln"] is JsonValue r && r.TryGetValue(out string? post)
                ? post == "post_add" ? BottleneckResidual.PostAdd : throw new ArgumentException($"the field 'residual_before_ln' is '{post}'; expected is true, false or 'post_add'.")
                : AdapterConfig.Get(config, "residual_before_ln", true) ? BottleneckResidual.BeforeNorm : BottleneckResidual.AfterNorm,
        };
        if (config["reduction_factor"] is not JsonObject)
        {
            options.ReductionFactor = AdapterConfig.Get(config, "reduction_factor", 16.0);
            return options;
        }
        OrderedDictionary<string, double> map = AdapterConfig.Table(config, "reduction_factor");
        options.ReductionFactor = map.TryGetValue("default", out double rest) ? rest
            : throw new ArgumentException("the field 'reduction_factor' has no entry 'default' for the layers that it does not name.", "reduction_factor");
        map.Remove("default");
        options.ReductionFactors = map;
        return options;
    }

    /// <summary>Makes the adaptation and fills it from the file.</summary>
    /// <param name="folder">Path of the folder.</param>
    /// <param name="backbone">The base model that the adapter was trained on.</param>
    /// <returns>The adaptation; the caller owns it.</returns>
    /// <exception cref="CheckpointFormatException">A file is missing or damaged, or does not fit the backbone.</exception>
    public static PeftAdaptation Attach(string folder, Backbone backbone)
    {
        BottleneckOptions options = ReadOptions(folder);
        var files = new FolderFileSet(folder);
        JsonObject root = AdapterFolder.ReadConfig(files, AdapterFolder.ConfigFile);
        int hidden = AdapterConfig.Get(root, "hidden_size", backbone.Config.HiddenSize);
        if (hidden != backbone.Config.HiddenSize)
            throw new CheckpointFormatException($"{files.Description}: the adapter is made for hidden size {hidden}, the backbone has {backbone.Config.HiddenSize}.");
        if (!files.Exists(WeightsFile))
            throw new CheckpointFormatException($"{files.Description} has no {WeightsFile}; it holds: {NearNames.List(files.Names)}. Pickled adapters (.bin) are not read.");
        using SafetensorsFile file = SafetensorsFile.Open(files, WeightsFile);
        PeftAdaptation adaptation = options.Attach(backbone, seed: 0);
        try
        {
            Fill(adaptation, file, options);
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    private static void Fill(PeftAdaptation adaptation, SafetensorsFile file, BottleneckOptions options)
    {
        string prefix = adaptation.Backbone.Prefix + ".";
        HashSet<string> rest = [.. file.Names];
        if (options.OwnNormBefore) rest.RemoveWhere(name => name.Contains(".adapter_down.0.", StringComparison.Ordinal));   // the norm again
        List<string> missing = [];
        foreach (NamedParameter parameter in adaptation.Parameters)
        {
            string bare = parameter.Name.StartsWith(prefix, StringComparison.Ordinal) ? parameter.Name[prefix.Length..] : parameter.Name;
            string key = file.Contains(parameter.Name) ? parameter.Name : bare;
            if (!file.Contains(key))
            {
                missing.Add(parameter.Name);
                continue;
            }
            rest.Remove(key);
            using TorchSharp.torch.Tensor value = AdapterTensors.Read(file, key);
            try
            {
                parameter.Load(value);
            }
            catch (ArgumentException e)
            {
                throw new CheckpointFormatException($"{file.Description}: {e.Message}", e);
            }
        }
        if (missing.Count > 0) throw new CheckpointFormatException($"{file.Description}: missing tensors: {NearNames.List(missing)}.{NearNames.Hint(missing[0], rest)}");
        if (rest.Count > 0) throw new CheckpointFormatException($"{file.Description}: unexpected tensors: {NearNames.List(rest)}.");
    }

    /// <summary>Writes a bottleneck adapter for AdapterHub's package.</summary>
    /// <param name="folder">Path of the folder; made where it is missing.</param>
    /// <param name="adaptation">An adaptation of a bottleneck method.</param>
    /// <param name="modelClass">The package's model class, e.g. <c>BertAdapterModel</c>; null for the family's.</param>
    /// <param name="modelName">Name of the base model, or null.</param>
    /// <exception cref="NotSupportedException">The method is no bottleneck.</exception>
    public static void Save(string folder, PeftAdaptation adaptation, string? modelClass = null, string? modelName = null)
    {
        if (adaptation.Method is not BottleneckOptions options)
            throw new NotSupportedException($"Method {adaptation.Method.Id} is not written for AdapterHub; only bottleneck adapters are. Use AdapterFolder.");
        BackboneConfig backbone = adaptation.Backbone.Config;
        var root = new JsonObject
        {
            ["config"] = Config(options),
            ["hidden_size"] = backbone.HiddenSize,
            ["model_class"] = modelClass ?? $"{char.ToUpperInvariant(backbone.ModelType[0])}{backbone.ModelType[1..]}AdapterModel",
            ["model_name"] = modelName,
            ["model_type"] = backbone.ModelType,
            ["name"] = options.Name,
            ["version"] = "adapters.1.3.0",
        };
        Directory.CreateDirectory(folder);
        var writer = new SafetensorsWriter();
        foreach (NamedParameter parameter in adaptation.Parameters) AdapterTensors.Add(writer, parameter.Name, parameter.Value);
        writer.Save(Path.Combine(folder, WeightsFile));
        byte[] text = Encoding.ASCII.GetBytes(AdapterConfig.ToText(root));
        AtomicFile.Write(Path.Combine(folder, AdapterFolder.ConfigFile), stream => stream.Write(text));
    }

    private static JsonObject Config(BottleneckOptions o)
    {
        JsonNode reduction = AdapterConfig.Number(o.ReductionFactor);
        if (o.ReductionFactors.Count > 0)
        {
            var map = new JsonObject(o.ReductionFactors.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)AdapterConfig.Number(p.Value)))) { ["default"] = reduction };
            reduction = map;
        }
        return new JsonObject
        {
            ["adapter_residual_before_ln"] = o.ResidualInsideOwnNorm,
            ["cross_adapter"] = false,
            ["dropout"] = o.Dropout,
            ["factorized_phm_W"] = true,
            ["factorized_phm_rule"] = false,
            ["hypercomplex_nonlinearity"] = "glorot-uniform",
            ["init_weights"] = o.Init,
            ["init_weights_seed"] = null,
            ["inv_adapter"] = null,
            ["inv_adapter_reduction_factor"] = null,
            ["is_parallel"] = o.Parallel,
            ["learn_phm"] = true,
            ["leave_out"] = AdapterConfig.Array(o.LeaveOut),
            ["ln_after"] = o.OwnNormAfter,
            ["ln_before"] = o.OwnNormBefore,
            ["mh_adapter"] = o.AfterAttention,
            ["non_linearity"] = o.NonLinearity,
            ["original_ln_after"] = o.OriginalNormAfter,
            ["original_ln_before"] = o.OriginalNormBefore,
            ["output_adapter"] = o.AfterFeedForward,
            ["phm_bias"] = true,
            ["phm_c_init"] = "normal",
            ["phm_dim"] = 4,
            ["phm_init_range"] = 0.0001,
            ["phm_layer"] = false,
            ["phm_rank"] = 1,
            ["reduction_factor"] = reduction,
            ["residual_before_ln"] = o.Residual switch
            {
                BottleneckResidual.BeforeNorm => true,
                BottleneckResidual.AfterNorm => false,
                _ => "post_add",
            },
            ["scaling"] = o.Constant is { } s ? s : o.Scaling,
            ["shared_W_phm"] = false,
            ["shared_phm_rule"] = true,
            ["stochastic_depth"] = 0.0,
            ["use_gating"] = o.Gate,
        };
    }
}
