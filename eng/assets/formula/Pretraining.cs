// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.AssetTool.Formula;

/// <summary>
/// Formula-driven supervised pretraining (Kataoka et al. 2020, arXiv 2101.08515; Nakamura et al. 2023, arXiv 2307.14710):
/// a small ViT learns to tell generated categories apart. No picture of anybody is used.
/// </summary>
internal sealed class Pretraining(PretrainingPlan plan, string folder)
{
    private const string Weights = "weights.safetensors", Moments = "optimizer.safetensors", State = "state.json";

    /// <summary>Trains from where the folder's last checkpoint is, for as long as is allowed, and writes the checkpoint.</summary>
    /// <param name="seconds">Time that may be used; the schedule of rates is over the plan's steps.</param>
    public void Run(double seconds)
    {
        Directory.CreateDirectory(folder);
        if (plan.Threads > 0) set_num_threads(plan.Threads);
        else CpuThreads.UseCores();
        using var scope = NewDisposeScope();
        Device device = cuda.is_available() ? CUDA : CPU;
        using Backbone backbone = BackboneLoader.Build(plan.Config(), new Placed(new FreshWeights(plan.Seed, plan.Grid), device, plan.Half ? ScalarType.BFloat16 : ScalarType.Float32));
        using AdaptedModel model = Model(backbone);
        using var optimizer = new AdamW(model.Parameters, weightDecay: plan.Decay);
        long step = Continue(model, optimizer);
        var batches = new FormulaBatches(new FormulaImages(plan.Categories, plan.Side, plan.Seed), plan.Batch, plan.Seed, plan.Mix, plan.Smoothing);
        var clock = Stopwatch.StartNew();
        long start = step;
        double loss = 0, hits = 0;
        foreach (FormulaBatch batch in batches.Stream(step, plan.Steps, plan.Workers))
        {
            (double l, double h) = Step(model, optimizer, batch, plan.Rate * plan.Factor(step), device);
            step++;
            loss += l;
            hits += h;
            if (step % plan.Report == 0)
            {
                Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                    $"step {step} of {plan.Steps}: loss {loss / plan.Report:0.000}, right {hits / plan.Report:0.000}, {(step - start) * plan.Batch / clock.Elapsed.TotalSeconds:0} images/s"));
                File.AppendAllText(Path.Combine(folder, "curve.tsv"), string.Create(CultureInfo.InvariantCulture, $"{step * plan.Batch}\t{loss / plan.Report:0.0000}\t{hits / plan.Report:0.0000}\n"));
                loss = hits = 0;
            }
            bool ends = step == plan.Steps || clock.Elapsed.TotalSeconds > seconds;
            if (ends || step % plan.Keep == 0) Store(model, optimizer, step);
            if (ends) break;
        }
        Export(model, step);
    }

    private AdaptedModel Model(Backbone backbone) => new(
        backbone, new FullFineTuningOptions().Attach(backbone, (long)plan.Seed), new SequenceClassificationHead(backbone, plan.Categories, seed: (long)plan.Seed));

    private (double Loss, double Hits) Step(AdaptedModel model, AdamW optimizer, FormulaBatch batch, double rate, Device device)
    {
        using var scope = NewDisposeScope();
        Tensor pixels = tensor(batch.Pixels, [plan.Batch, 3, plan.Side, plan.Side], device: device), targets = tensor(batch.Targets, [plan.Batch, plan.Categories], device: device);
        Tensor logits = model.Forward(TokenBatch.OfImages(pixels), new Pass(model.Patches, training: true));
        Tensor loss = -(targets * logits.to_type(ScalarType.Float32).log_softmax(-1)).sum(1).mean();
        autograd.backward([loss], []);
        Tensor gradient = optimizer.GatherGradients();
        GradientClip.ByNorm(gradient, 1);
        optimizer.Apply(gradient, rate);
        optimizer.ClearGradients();
        double hits = logits.argmax(1).eq(tensor(Array.ConvertAll(batch.Labels, l => (long)l), device: device)).to_type(ScalarType.Float32).mean().item<float>();
        double value = loss.item<float>();
        return double.IsFinite(value) ? (value, hits) : throw new InvalidOperationException("The loss is not finite any more; take a lower rate.");
    }

    private long Continue(AdaptedModel model, AdamW optimizer)
    {
        string state = Path.Combine(folder, State);
        if (File.Exists(state))
        {
            JsonObject kept = JsonNode.Parse(File.ReadAllText(state))!.AsObject();
            if ((string?)kept["plan"] != plan.ToString()) throw new InvalidOperationException($"{state} is of another plan: {kept["plan"]}; this one is {plan}. Take another folder.");
            Read(folder, model, optimizer);
            return (long)kept["step"]!;
        }
        if (plan.From.Length > 0) Read(plan.From, model, optimizer);
        return 0;
    }

    private static void Read(string from, AdaptedModel model, AdamW optimizer)
    {
        using var scope = NewDisposeScope();
        using (WeightSnapshot weights = WeightSnapshot.Of(model.Parameters, TensorFile.Load(Path.Combine(from, Weights)))) weights.Restore();
        optimizer.LoadState(TensorFile.Load(Path.Combine(from, Moments)));
    }

    private void Store(AdaptedModel model, AdamW optimizer, long step)
    {
        using var scope = NewDisposeScope();
        TensorFile.Save(Path.Combine(folder, Weights), model.Parameters.Select(p => KeyValuePair.Create(p.Name, p.Value)));
        TensorFile.Save(Path.Combine(folder, Moments), optimizer.SaveState());
        byte[] state = Encoding.UTF8.GetBytes(new JsonObject { ["step"] = step, ["plan"] = plan.ToString() }.ToJsonString());
        AtomicFile.Write(Path.Combine(folder, State), stream => stream.Write(state));
    }

    private void Export(AdaptedModel model, long step)
    {
        var writer = new SafetensorsWriter();
        writer.Metadata["format"] = "pt";
        foreach (NamedParameter parameter in model.Parameters.Where(p => p.Name.StartsWith("vit.", StringComparison.Ordinal)))
            writer.Add(parameter.Name, parameter.Value.detach().cpu().to_type(ScalarType.Float16));
        writer.Save(Path.Combine(folder, "model.safetensors"));
        File.WriteAllText(Path.Combine(folder, "config.json"), plan.Config() + "\n");
        File.WriteAllText(Path.Combine(folder, "preprocessor_config.json"), plan.Processor() + "\n");
        Console.WriteLine($"{folder}: step {step}, {new FileInfo(Path.Combine(folder, "model.safetensors")).Length} bytes");
    }

    private sealed class Placed(IWeightSource source, Device device, ScalarType type) : IWeightSource
    {
        public bool Has(string name) => source.Has(name);

        public Tensor Load(string name, params long[] shape) => source.Load(name, shape).to(type, device);
    }
}
