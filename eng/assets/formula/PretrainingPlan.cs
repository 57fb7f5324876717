// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Reflection;
using System.Text.Json.Nodes;

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>All that decides what is learned; the same plan and number of threads give the same bytes.</summary>
internal sealed record PretrainingPlan
{
    /// <summary>Folder of a finished run to begin with: its weights and moments; empty for fresh weights.</summary>
    public string From { get; init; } = "";

    /// <summary>Number of generated classes.</summary>
    public int Categories { get; init; } = 1000;

    /// <summary>Width and height of the images.</summary>
    public int Side { get; init; } = 32;

    /// <summary>Width and height of a patch.</summary>
    public int Patch { get; init; } = 4;

    /// <summary>Width of the hidden states.</summary>
    public int Width { get; init; } = 192;

    /// <summary>Layers.</summary>
    public int Depth { get; init; } = 6;

    /// <summary>Attention heads.</summary>
    public int Heads { get; init; } = 3;

    /// <summary>Images in a step.</summary>
    public int Batch { get; init; } = 64;

    /// <summary>Steps of the whole plan; the rates fall to nothing over them.</summary>
    public long Steps { get; init; } = 10_000;

    /// <summary>Steps in which the rate rises.</summary>
    public long Warmup { get; init; } = 500;

    /// <summary>Highest learning rate.</summary>
    public double Rate { get; init; } = 1e-3;

    /// <summary>Weight decay.</summary>
    public double Decay { get; init; } = 0.05;

    /// <summary>Share of the batches that are mixed.</summary>
    public double Mix { get; init; } = 0.5;

    /// <summary>Label smoothing.</summary>
    public double Smoothing { get; init; } = 0.1;

    /// <summary>Seed of images, weights and order.</summary>
    public ulong Seed { get; init; } = 1;

    /// <summary>True to multiply in bfloat16; weights are kept and updated in float32.</summary>
    public bool Half { get; init; }

    /// <summary>Threads of the network; 0 for all cores.</summary>
    public int Threads { get; init; }

    /// <summary>Threads that draw images.</summary>
    public int Workers { get; init; } = 1;

    /// <summary>Steps between two lines of the report.</summary>
    public int Report { get; init; } = 100;

    /// <summary>Steps between two checkpoints.</summary>
    public int Keep { get; init; } = 500;

    /// <summary>Patches in a row of the image.</summary>
    public int Grid => Side / Patch;

    /// <summary>A plan out of <c>NAME=VALUE</c> settings.</summary>
    /// <exception cref="ArgumentException">A setting is not known, or its value is no number.</exception>
    public static PretrainingPlan Parse(IEnumerable<string> settings)
    {
        var plan = new PretrainingPlan();
        foreach (string setting in settings)
        {
            string[] parts = setting.Split('=', 2);
            PropertyInfo property = typeof(PretrainingPlan).GetProperties().FirstOrDefault(p => p.CanWrite && p.Name.Equals(parts[0], StringComparison.OrdinalIgnoreCase))
                ?? throw new ArgumentException($"There is no setting '{parts[0]}'; there are {string.Join(", ", typeof(PretrainingPlan).GetProperties().Where(p => p.CanWrite).Select(p => p.Name))}.");
            property.SetValue(plan, Convert.ChangeType(parts.Length == 2 ? parts[1] : "", property.PropertyType, CultureInfo.InvariantCulture));
        }
        return plan;
    }

    /// <summary>Half a cosine after a linear rise.</summary>
    public double Factor(long step) => step < Warmup
        ? (step + 1.0) / Warmup
        : 0.5 * (1 + Math.Cos(Math.PI * (step - Warmup) / Math.Max(1, Steps - Warmup)));

    /// <summary>The config.json of the network, in Hugging Face's form.</summary>
    public JsonObject Config() => new()
    {
        ["architectures"] = new JsonArray("ViTModel"),
        ["model_type"] = "vit",
        ["image_size"] = Side,
        ["patch_size"] = Patch,
        ["num_channels"] = 3,
        ["hidden_size"] = Width,
        ["num_hidden_layers"] = Depth,
        ["num_attention_heads"] = Heads,
        ["intermediate_size"] = 4 * Width,
        ["hidden_act"] = "gelu",
        ["hidden_dropout_prob"] = 0.0,
        ["attention_probs_dropout_prob"] = 0.0,
        ["initializer_range"] = 0.02,
        ["layer_norm_eps"] = 1e-6,
        ["qkv_bias"] = true,
    };

    /// <summary>The preprocessor_config.json: the whole image in the network's size, from -1 to 1.</summary>
    public JsonObject Processor() => new()
    {
        ["image_processor_type"] = "ViTImageProcessor",
        ["do_convert_rgb"] = true,
        ["do_resize"] = true,
        ["size"] = new JsonObject { ["height"] = Side, ["width"] = Side },
        ["resample"] = 2,
        ["do_rescale"] = true,
        ["rescale_factor"] = 1 / 255.0,
        ["do_normalize"] = true,
        ["image_mean"] = new JsonArray(0.5, 0.5, 0.5),
        ["image_std"] = new JsonArray(0.5, 0.5, 0.5),
    };
}
