// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// A folder with an adapter as AdapterHub's <c>adapters</c> package writes it: <c>adapter_config.json</c> with all fields of
/// the method and <c>adapter.safetensors</c>; with a head of that package also <c>head_config.json</c> and
/// <c>model_head.safetensors</c>.
/// </summary>
public static partial class AdapterHubFolder
{
    /// <summary>Name of the file of tensors.</summary>
    public const string WeightsFile = "adapter.safetensors";

    /// <summary>Name of the head's configuration.</summary>
    public const string HeadConfigFile = "head_config.json";

    /// <summary>Name of the head's tensors.</summary>
    public const string HeadWeightsFile = "model_head.safetensors";

    private const string Version = "adapters.1.3.0";

    /// <summary>Reads the method of an adapter with its options.</summary>
    /// <param name="folder">Path of the folder.</param>
    /// <exception cref="CheckpointFormatException">The folder holds something else, or an option is not supported.</exception>
    public static PeftMethod ReadMethod(string folder)
    {
        var files = new FolderFileSet(folder);
        return ReadMethod(files, AdapterFolder.ReadConfig(files, AdapterFolder.ConfigFile));
    }

    private static PeftMethod ReadMethod(FolderFileSet files, JsonObject root)
    {
        if (root["config"] is not JsonObject config)
            throw new CheckpointFormatException(
                $"{files.Description}/{AdapterFolder.ConfigFile}: the table 'config' is missing"
                + (root.ContainsKey("peft_type") ? "; this is an adapter of Hugging Face PEFT: open it with AdapterFolder." : "."));
        try
        {
            PeftMethod method = Parse(config, AdapterConfig.Get(root, "name", "default"));
            method.Validate();
            return method;
        }
        catch (ArgumentException e)
        {
            throw new CheckpointFormatException($"{files.Description}/{AdapterFolder.ConfigFile}: {e.Message}", e);
        }
    }

    /// <summary>The method of a table <c>config</c>.</summary>
    /// <param name="config">The table.</param>
    /// <param name="name">Name of the adapter.</param>
    /// <exception cref="ArgumentException">No method here has this architecture, or a field is not supported.</exception>
    internal static PeftMethod Parse(JsonObject config, string name)
    {
        string? architecture = AdapterConfig.Get<string?>(config, "architecture", null);
        List<string> known = [];
        foreach (string id in PeftMethods.Ids)
        {
            // Presets derive from the method whose files they share; the method itself reads them all.
            Type type = PeftMethods.TypeOf(id);
            if (!typeof(IAdapterHubMethod).IsAssignableFrom(type) || typeof(IAdapterHubMethod).IsAssignableFrom(type.BaseType)) continue;
            PeftMethod method = PeftMethods.Create(id);
            var hub = (IAdapterHubMethod)method;
            known.Add(hub.Architecture ?? "none (bottleneck)");
            if (hub.Architecture != architecture) continue;
            hub.Name = name;
            hub.ReadAdapterHub(config);
            return method;
        }
        throw new ArgumentException($"the field 'architecture' is '{architecture}'; known: {string.Join(", ", known)}.{NearNames.Hint(architecture ?? "", known)}", "architecture");
    }

    /// <summary>Makes the adaptation and fills it from the file.</summary>
    /// <param name="folder">Path of the folder.</param>
    /// <param name="backbone">The base model that the adapter was trained on.</param>
    /// <param name="method">
    /// The method with its options, where they are known better than the file can say them (DiReFT, whose folders say NoReFT;
    /// VeRA's vectors); null to read them.
    /// </param>
    /// <returns>The adaptation; the caller owns it.</returns>
    /// <exception cref="CheckpointFormatException">A file is missing or damaged, or does not fit the backbone.</exception>
    public static PeftAdaptation Attach(string folder, Backbone backbone, PeftMethod? method = null)
    {
        var files = new FolderFileSet(folder);
        JsonObject root = AdapterFolder.ReadConfig(files, AdapterFolder.ConfigFile);
        if (method is null && root["config"] is JsonObject given && Ia3AdapterHub.Describes(given)) return Ia3AdapterHub.Attach(folder, backbone);
        method ??= ReadMethod(files, root);
        int hidden = AdapterConfig.Get(root, "hidden_size", backbone.Config.HiddenSize);
        if (hidden != backbone.Config.HiddenSize)
            throw new CheckpointFormatException($"{files.Description}: the adapter is made for hidden size {hidden}, the backbone has {backbone.Config.HiddenSize}.");
        using SafetensorsFile file = OpenTensors(files, WeightsFile);
        method.ReadTensors(file.Names.ToDictionary(name => name, name => file.Info(name).Shape.ToArray()));
        PeftAdaptation adaptation = method.Attach(backbone, seed: 0);
        try
        {
            Fill(adaptation.Parameters.Where(p => p.Exchanged), file, HubNames.Prefix(backbone), AdapterConfig.Get(root, "name", "default"));
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }

    /// <summary>Makes the head that lies in the folder and fills it; null where there is none.</summary>
    /// <param name="folder">Path of the folder.</param>
    /// <param name="backbone">The base model.</param>
    /// <returns>The head; the caller owns it.</returns>
    /// <exception cref="CheckpointFormatException">A file is missing or damaged, or the head is not known here.</exception>
    public static AdapterHubHead? AttachHead(string folder, Backbone backbone)
    {
        var files = new FolderFileSet(folder);
        if (!files.Exists(HeadConfigFile)) return null;
        JsonObject root = AdapterFolder.ReadConfig(files, HeadConfigFile);
        using SafetensorsFile file = OpenTensors(files, HeadWeightsFile);
        AdapterHubHead? head = null;
        try
        {
            head = new AdapterHubHead(backbone, AdapterConfig.Get(root, "name", "default"), root["config"] as JsonObject
                ?? throw new ArgumentException("the table 'config' is missing."));
            Fill(head.Parameters, file, HubNames.Prefix(backbone), head.Name);
            return head;
        }
        catch (Exception e)
        {
            head?.Dispose();
            if (e is not ArgumentException) throw;
            throw new CheckpointFormatException($"{files.Description}/{HeadConfigFile}: {e.Message}", e);
        }
    }

    private static SafetensorsFile OpenTensors(FolderFileSet files, string name) => files.Exists(name)
        ? SafetensorsFile.Open(files, name)
        : throw new CheckpointFormatException($"{files.Description} has no {name}; it holds: {NearNames.List(files.Names)}. Pickled adapters (.bin) are not read.");

    private static void Fill(IEnumerable<NamedParameter> parameters, SafetensorsFile file, string prefix, string name)
    {
        HashSet<string> rest = [.. file.Names];
        // A norm in front is stored twice: once by its name, once as the first part of the way down.
        rest.RemoveWhere(key => key.Contains($".{name}.adapter_down.0.", StringComparison.Ordinal)
            && file.Contains(key.Replace(".adapter_down.0.", ".adapter_norm_before.", StringComparison.Ordinal)));
        List<string> missing = [];
        foreach (NamedParameter parameter in parameters)
        {
            string bare = parameter.Name.StartsWith(prefix + ".", StringComparison.Ordinal) ? parameter.Name[(prefix.Length + 1)..] : parameter.Name;
            string key = file.Contains(parameter.Name) ? parameter.Name : bare;
            if (!file.Contains(key))
            {
                missing.Add(parameter.Name);
                continue;
            }
            rest.Remove(key);
            using Tensor value = AdapterTensors.Read(file, key);
            try
            {
                parameter.Load(FromFile(value, parameter));
            }
            catch (ArgumentException e)
            {
                throw new CheckpointFormatException($"{file.Description}: {e.Message}", e);
            }
        }
        if (missing.Count > 0) throw new CheckpointFormatException($"{file.Description}: missing tensors: {NearNames.List(missing)}.{NearNames.Hint(missing[0], rest)}");
        if (rest.Count > 0) throw new CheckpointFormatException($"{file.Description}: unexpected tensors: {NearNames.List(rest)}.");
    }

    // A vector here may be the diagonal of a matrix there.
    private static Tensor FromFile(Tensor value, NamedParameter parameter) =>
        parameter.Value.dim() == 1 && value.dim() == 2 && value.shape[0] == value.shape[1] && value.shape[0] == parameter.Value.shape[0] ? value.diag() : value;

    /// <summary>Writes an adapter for AdapterHub's package.</summary>
    /// <param name="folder">Path of the folder; made where it is missing.</param>
    /// <param name="adaptation">An adaptation of a method that the package knows.</param>
    /// <param name="modelClass">The package's model class, e.g. <c>BertAdapterModel</c>; null for the family's.</param>
    /// <param name="modelName">Name of the base model, or null.</param>
    /// <param name="head">A head of the package, or null.</param>
    /// <param name="loadedFrom">The whole configuration that the adapter was loaded with: written again as it is where it still holds.</param>
    /// <exception cref="NotSupportedException">The package does not know the method.</exception>
    public static void Save(string folder, PeftAdaptation adaptation, string? modelClass = null, string? modelName = null, AdapterHubHead? head = null, JsonObject? loadedFrom = null)
    {
        if (adaptation.Method is not IAdapterHubMethod method)
            throw new NotSupportedException($"Method {adaptation.Method.Id} does not exist in AdapterHub's package; use AdapterFolder.");
        BackboneConfig backbone = adaptation.Backbone.Config;
        JsonObject Root(string name, JsonObject config) => new()
        {
            ["config"] = config,
            ["hidden_size"] = backbone.HiddenSize,
            ["model_class"] = modelClass ?? ModelClass(backbone.ModelType),
            ["model_name"] = modelName,
            ["model_type"] = backbone.ModelType,
            ["name"] = name,
            ["version"] = Version,
        };
        Directory.CreateDirectory(folder);
        JsonObject root = loadedFrom is not null && StillHolds(loadedFrom, adaptation.Method) ? loadedFrom : Root(method.Name, method.WriteAdapterHub());
        Write(folder, AdapterFolder.ConfigFile, root, WeightsFile, adaptation.Parameters.Where(p => p.Exchanged));
        if (head is not null) Write(folder, HeadConfigFile, Root(head.Name, head.Configuration()), HeadWeightsFile, head.Parameters);
    }

    private static bool StillHolds(JsonObject loaded, PeftMethod method)
    {
        try
        {
            return loaded["config"] is JsonObject config && PeftMethods.ToJson(Parse(config, AdapterConfig.Get(loaded, "name", "default"))) == PeftMethods.ToJson(method);
        }
        catch (ArgumentException)
        {
            return false;
        }
    }

    private static void Write(string folder, string configFile, JsonObject root, string weightsFile, IEnumerable<NamedParameter> parameters)
    {
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var writer = new SafetensorsWriter();
        foreach (NamedParameter parameter in parameters)
        {
            AdapterTensors.Add(writer, parameter.Name, parameter.Value.dim() == 1 && parameter.Name.Contains(".vera_", StringComparison.Ordinal) ? parameter.Value.diag() : parameter.Value);
            // A norm in front is stored a second time, as the first part of the way down.
            if (parameter.Name.Contains(".adapter_norm_before.", StringComparison.Ordinal))
                AdapterTensors.Add(writer, parameter.Name.Replace(".adapter_norm_before.", ".adapter_down.0.", StringComparison.Ordinal), parameter.Value);
        }
        writer.Save(Path.Combine(folder, weightsFile));
        byte[] text = Encoding.ASCII.GetBytes(AdapterConfig.ToText(root));
        AtomicFile.Write(Path.Combine(folder, configFile), stream => stream.Write(text));
    }

    private static string ModelClass(string family) => family switch
    {
        "gpt2" => "GPT2AdapterModel",
        "t5" => "T5AdapterModel",
        "vit" => "ViTAdapterModel",
        "xlm-roberta" => "XLMRobertaAdapterModel",
        "distilbert" => "DistilBertAdapterModel",
        _ => $"{char.ToUpperInvariant(family[0])}{family[1..]}AdapterModel",
    };
}
