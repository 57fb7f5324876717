// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// What a method made for one backbone: named parameters, patches that borrow them, and hooks into training. It owns its
/// parameters and nothing of the backbone: detaching is simply not wearing it.
/// </summary>
public class PeftAdaptation : IDisposable
{
    private readonly List<NamedParameter> _parameters = [];
    private readonly Dictionary<string, NamedParameter> _byName = [];
    private readonly Dictionary<Site, Patch> _patches = [];

    private readonly bool _owns;

    /// <summary>Makes an empty adaptation.</summary>
    /// <param name="method">The method with its options.</param>
    /// <param name="backbone">The backbone that it fits.</param>
    public PeftAdaptation(PeftMethod method, Backbone backbone) : this(method, backbone, owns: true)
    {
    }

    /// <summary>Makes an empty adaptation, perhaps over parameters of others.</summary>
    /// <param name="method">The method with its options.</param>
    /// <param name="backbone">The backbone that it fits.</param>
    /// <param name="owns">False where parameters are borrowed: they are not disposed here.</param>
    private protected PeftAdaptation(PeftMethod method, Backbone backbone, bool owns)
    {
        Method = method;
        Backbone = backbone;
        _owns = owns;
    }

    /// <summary>The method with its options.</summary>
    public PeftMethod Method { get; protected set; }

    /// <summary>The backbone that it fits.</summary>
    public Backbone Backbone { get; }

    /// <summary>All parameters and buffers, in the order of their creation.</summary>
    public IReadOnlyList<NamedParameter> Parameters => _parameters;

    /// <summary>One patch a site.</summary>
    public IReadOnlyDictionary<Site, Patch> Patches => _patches;

    /// <summary>Number of trainable numbers.</summary>
    public long TrainableCount => _parameters.Where(p => p.Trainable).Sum(p => p.Value.numel());

    /// <summary>Takes ownership of a parameter.</summary>
    /// <param name="parameter">A parameter with a name of its own.</param>
    /// <exception cref="ArgumentException">The name is taken.</exception>
    public NamedParameter Add(NamedParameter parameter)
    {
        if (!_byName.TryAdd(parameter.Name, parameter))
            throw new ArgumentException($"Parameter {parameter.Name} exists already in this adaptation.");
        foreach (string copy in parameter.Copies.Concat(parameter.TurnedCopies))
            if (!_byName.TryAdd(copy, parameter)) throw new ArgumentException($"Parameter {copy} exists already in this adaptation.");
        _parameters.Add(parameter);
        return parameter;
    }

    /// <summary>Makes and owns a parameter, on the backbone's device, in float32.</summary>
    /// <param name="name">Name inside the task model.</param>
    /// <param name="value">The numbers.</param>
    /// <param name="trainable">False for a buffer.</param>
    public NamedParameter Add(string name, Tensor value, bool trainable = true) =>
        Add(new NamedParameter(name, value, trainable));

    /// <summary>The parameter of a name, or null.</summary>
    /// <param name="name">Name inside the task model, or one of its <see cref="NamedParameter.Copies"/>, turned ones included.</param>
    public NamedParameter? Find(string name) => _byName.GetValueOrDefault(name);

    /// <summary>Puts a patch on a site; a second one at the same site nests around the first.</summary>
    /// <param name="site">A site of the backbone.</param>
    /// <param name="patch">A patch of the kind that the site takes.</param>
    public void Attach(Site site, Patch patch) =>
        _patches[site] = _patches.TryGetValue(site, out Patch? inner) ? PatchStack.Of(site, inner, patch) : patch;

    /// <summary>What a pass wears to run with this adaptation.</summary>
    public PatchTable Table() => new(_patches, Backbone.Device.type);

    /// <summary>
    /// Called when an exchanged file has filled the parameters: what the file lacks and follows from them is made again here.
    /// </summary>
    public virtual void Filled()
    {
    }

    /// <summary>Number of training batches that <see cref="Calibrate"/> wants to see before training begins; 0 where it needs none, or has seen them.</summary>
    public virtual int CalibrationBatches => 0;

    /// <summary>
    /// Called once by the trainer, before the optimizer is made, where <see cref="CalibrationBatches"/> is not 0: makes the
    /// start from data. Parameters may change their shapes, patches may go.
    /// </summary>
    /// <param name="calibration">The batches, through the model.</param>
    public virtual void Calibrate(Calibration calibration)
    {
    }

    // Forgets parameters and patches, which live on elsewhere.
    private protected void Clear()
    {
        _parameters.Clear();
        _byName.Clear();
        _patches.Clear();
    }

    /// <summary>True where files of exchange lack a part of the start, so that the folder of the untrained adapter is needed beside the trained one.</summary>
    public virtual bool NeedsInitial => false;

    /// <summary>Takes patch and parameters of a site away.</summary>
    /// <param name="site">A site with a patch.</param>
    /// <param name="parameters">Parameters of this site alone; they are disposed.</param>
    protected void Detach(Site site, IEnumerable<NamedParameter> parameters)
    {
        _patches.Remove(site);
        foreach (NamedParameter parameter in parameters)
        {
            _parameters.Remove(parameter);
            foreach (string name in parameter.Copies.Concat(parameter.TurnedCopies).Prepend(parameter.Name)) _byName.Remove(name);
            parameter.Dispose();
        }
    }

    /// <summary>Called when a model joins this adaptation with a head; may set rates and decay of the head's parameters.</summary>
    /// <param name="head">The head that is trained beside it.</param>
    public virtual void Attached(Head head)
    {
    }

    /// <summary>Called when a training run begins or goes on, before its first step.</summary>
    /// <param name="totalSteps">Number of optimizer steps that the whole run will have.</param>
    public virtual void Planned(long totalSteps)
    {
    }

    /// <summary>
    /// Called before each forward of a model, in training and in scoring; may run the bare backbone, and may leave what
    /// patches read with <see cref="Pass.Once{T}"/>.
    /// </summary>
    /// <param name="pass">The pass that is about to run.</param>
    /// <param name="batch">What it will run over.</param>
    public virtual void BeforePass(Pass pass, TokenBatch batch)
    {
    }

    /// <summary>
    /// Called while training, between forward and backward: gradients of other losses over the same graph may be asked for
    /// here (<c>autograd.grad</c> with <c>retain_graph</c>), and the bare model may run beside.
    /// </summary>
    /// <param name="model">The model that ran.</param>
    /// <param name="pass">The pass that has just run.</param>
    /// <param name="batch">What it ran over.</param>
    /// <param name="scores">What the head gave.</param>
    public virtual void Scored(AdaptedModel model, Pass pass, TokenBatch batch, Tensor scores)
    {
    }

    /// <summary>A loss term of the method's own (a scalar), or null.</summary>
    /// <param name="pass">The pass that has just run.</param>
    public virtual Tensor? ExtraLoss(Pass pass) => null;

    /// <summary>A loss in place of a language task's own (a scalar), for methods that learn from more than its labels; null for the task's.</summary>
    /// <param name="scores">Scores <c>[batch, tokens, vocabulary]</c>, prompts included.</param>
    /// <param name="labels">Labels of the row's own tokens, int64 <c>[batch, own tokens]</c>.</param>
    /// <param name="loss">The task's own loss of scores.</param>
    /// <param name="pass">The pass that has just run.</param>
    public virtual Tensor? TaskLoss(Tensor scores, Tensor labels, Func<Tensor, Tensor> loss, Pass pass) => null;

    /// <summary>Called with all gradients there, before clipping and the optimizer step.</summary>
    /// <param name="step">Number of the optimizer step, from 0.</param>
    public virtual void BeforeStep(long step)
    {
    }

    /// <summary>Called after the optimizer step, with the gradients still there; may freeze, thaw, grow or shrink parameters.</summary>
    /// <param name="step">Number of the optimizer step, from 0.</param>
    public virtual void AfterStep(long step)
    {
    }

    /// <summary>Called once when training is over.</summary>
    public virtual void Finished()
    {
    }

    /// <inheritdoc/>
    public virtual void Dispose()
    {
        if (_owns)
            foreach (NamedParameter parameter in _parameters) parameter.Dispose();
        GC.SuppressFinalize(this);
    }
}
