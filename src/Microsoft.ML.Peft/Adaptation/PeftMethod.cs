// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// A method with its options: the base of <c>LoraOptions</c> and its kin. One file a method; nothing else knows it.
/// Options are public properties with defaults, so that they read from JSON and the command line by name.
/// </summary>
public abstract class PeftMethod
{
    /// <summary>Short lower-case name, e.g. <c>lora</c>: on the command line, in files, in tables.</summary>
    public abstract string Id { get; }

    /// <summary>The family that the method belongs to, e.g. <c>low rank</c>.</summary>
    public abstract string Family { get; }

    /// <summary>True where <see cref="Merging"/> can fold it into the weights.</summary>
    public abstract bool Mergeable { get; }

    /// <summary>True where a fresh adaptation leaves the output as it was.</summary>
    public virtual bool ExactAtStart => true;

    /// <summary>False where a row's output depends on the other rows of its batch; rows must then be scored in the batches that are wanted.</summary>
    public virtual bool RowsAreIndependent => true;

    /// <summary>Learning rate that suits the method in runs of a thousand steps and more, of networks 768 and more wide.</summary>
    public virtual double DefaultLearningRate => 5e-4;

    /// <summary>Learning rate that suits a fresh head beside the method, where the user names no rate.</summary>
    [System.Text.Json.Serialization.JsonIgnore]
    public virtual double DefaultHeadLearningRate => 1e-2;

    /// <summary>
    /// Learning rate of a run where the user names none: <see cref="DefaultLearningRate"/>, times <c>√(1000/steps)</c> for shorter
    /// runs (of 125 steps and less alike) and times <c>768/width</c> for narrower networks (192 and less alike), but not
    /// raised above <see cref="HighestLearningRate"/>. Adam moves each weight by about the rate at a step: fewer steps go less far, and fewer inputs add
    /// up to less.
    /// </summary>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="steps">Optimizer steps of the run.</param>
    public virtual double LearningRateFor(Backbone backbone, long steps)
    {
        double shortness = Math.Sqrt(Math.Clamp(1000.0 / Math.Max(1, steps), 1, 8)), narrowness = Math.Clamp(768.0 / backbone.Config.HiddenSize, 1, 4);
        return Math.Min(HighestLearningRate, DefaultLearningRate * shortness * narrowness);
    }

    /// <summary>What <see cref="LearningRateFor"/> does not go above: 0.02, or the default where that is more.</summary>
    protected virtual double HighestLearningRate => Math.Max(DefaultLearningRate, 2e-2);

    /// <summary>
    /// What must be set before the method can be tried at all, <c>name=value</c>, as an example that fits BERT's vocabularies; empty
    /// where the defaults do.
    /// </summary>
    [System.Text.Json.Serialization.JsonIgnore]
    public virtual IReadOnlyList<string> ExampleSettings => [];

    /// <summary>Checks the options alone.</summary>
    /// <exception cref="ArgumentException">An option is out of range; the message names it, the value and what is allowed.</exception>
    public virtual void Validate()
    {
    }

    /// <summary>Makes the adaptation: parameters with their initial values, and patches on the sites.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <param name="seed">Seed of the initial values.</param>
    /// <exception cref="ArgumentException">The options do not fit the backbone; the message lists what would.</exception>
    public abstract PeftAdaptation Attach(Backbone backbone, long seed);

    /// <summary>
    /// The network that the method is made for, where it is another stack of the given one's layers; the caller owns it, and
    /// attaches to it. Null where the method takes the given one.
    /// </summary>
    /// <param name="backbone">The frozen network.</param>
    /// <exception cref="ArgumentException">The options do not fit the backbone.</exception>
    public virtual Backbone? Restack(Backbone backbone) => null;

    /// <summary>The count of trained numbers in the paper's letters, e.g. <c>r (in + out) a site</c>: for tables.</summary>
    [System.Text.Json.Serialization.JsonIgnore]
    public virtual string Formula => "";

    /// <summary>Number of trainable numbers by the formula of the paper, without building anything.</summary>
    /// <param name="backbone">The frozen network.</param>
    public abstract long CountTrainable(Backbone backbone);

    /// <summary>The <c>peft_type</c> of Hugging Face PEFT, or null where the method does not exist there.</summary>
    public virtual string? HuggingFaceType => null;

    /// <summary>
    /// True where exchanged files name the modules of renamed families (ViT) as Transformers 5 has them in memory, false for
    /// the names of their checkpoints, which Transformers 4 has.
    /// </summary>
    internal virtual bool NamesOfMemory(Backbone backbone) => true;

    /// <summary>False where exchanged files hold no copy of the word tables that are adapted, whatever the targets are called.</summary>
    internal virtual bool StoresTables => true;

    /// <summary>What stands before the names of the task model in exchanged files.</summary>
    internal virtual string FilePrefix => "base_model.model.";

    /// <summary>
    /// True where a configuration of Hugging Face PEFT can say what these options say; else the adapter is kept in the
    /// library's own form.
    /// </summary>
    /// <param name="backbone">The frozen network.</param>
    public virtual bool FitsHuggingFace(Backbone backbone) => HuggingFaceType is not null;

    /// <summary>Writes the fields of <c>adapter_config.json</c> that are the method's own.</summary>
    /// <param name="config">The object to fill.</param>
    /// <param name="backbone">The frozen network.</param>
    public virtual void WriteHuggingFace(JsonObject config, Backbone backbone) =>
        throw new NotSupportedException($"Method {Id} does not exist in Hugging Face PEFT, so there is no adapter_config.json for it.");

    /// <summary>
    /// The adaptation in the form that exchanged files hold on the unchanged base model; itself where it has that form
    /// already, else a new one that the caller disposes.
    /// </summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    public virtual PeftAdaptation ToExchange(PeftAdaptation adaptation) => adaptation;

    /// <summary>Reads the fields of <c>adapter_config.json</c> that are the method's own into this instance.</summary>
    /// <param name="config">The whole configuration.</param>
    /// <exception cref="ArgumentException">A field changes the maths and is not supported; the message names it.</exception>
    public virtual void ReadHuggingFace(JsonObject config) =>
        throw new NotSupportedException($"Method {Id} does not exist in Hugging Face PEFT, so it reads no adapter_config.json.");

    /// <summary>
    /// Called after <see cref="ReadHuggingFace"/> with what the file of tensors holds, for methods whose file has more than
    /// one form (folded tables, projections that were not saved).
    /// </summary>
    /// <param name="shapes">Key in the file to shape.</param>
    public virtual void ReadTensors(IReadOnlyDictionary<string, long[]> shapes)
    {
    }

    /// <summary>Refuses a share outside of [0, 1).</summary>
    /// <param name="option">Name of the option.</param>
    /// <param name="value">What was given.</param>
    protected void CheckShare(string option, double value)
    {
        if (!(value >= 0 && value < 1)) throw Invalid(option, value, "0 up to, not including, 1");
    }

    /// <summary>An option out of range.</summary>
    /// <param name="option">Name of the option.</param>
    /// <param name="value">What was given.</param>
    /// <param name="allowed">What is allowed.</param>
    protected ArgumentException Invalid(string option, object? value, string allowed) =>
        new($"{GetType().Name}.{option} is {value ?? "null"}; allowed is {allowed}.", option);

    /// <summary>Refuses networks of stages, for methods that need one width and the same tokens in all layers.</summary>
    /// <param name="backbone">The frozen network.</param>
    /// <exception cref="ArgumentException">The hidden states of its layers differ in width.</exception>
    protected void NeedsOneWidth(Backbone backbone)
    {
        if (!backbone.HasOneWidth)
            throw new ArgumentException(
                $"{Id} needs layers of one width over the same tokens, and the stages of a {backbone.Config.ModelType} backbone differ in both; use a method that works layer by layer, such as lora, bottleneck or ssf.");
    }
}
