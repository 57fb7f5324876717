// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Diagnostics;

namespace Microsoft.ML.Runtime;

/// <summary>
/// The environment behind an <see cref="MLContext"/> and every host registered with it: one class for both,
/// the root having no parent. Children draw their randomness from their parent, so a seed fixes everything.
/// </summary>
internal sealed class Host : IHost, IHostEnvironmentInternal, ICancelable
{
    private readonly Host _root;
    private readonly Host _parent;
    private readonly Lock _lock = new();
    private readonly List<WeakReference<Host>> _children = [];
    private readonly Dictionary<string, object> _options = [];
    private Action<string, ChannelMessage> _listener;

    internal Host(int? seed)
    {
        _root = this;
        Seed = seed;
        Rand = TauswortheHybrid.Create(seed);
        ComponentCatalog = new ComponentCatalog();
        TempFilePath = Path.GetTempPath();
    }

    private Host(Host parent, string name, Random rand)
    {
        _root = parent._root;
        Name = name;
        // A host is named after its grandparent, not its parent: log sources read so in the real library.
        ParentFullName = parent._parent?.FullName;
        FullName = ParentFullName == null ? name : $"{ParentFullName}; {name}";
        _parent = parent;
        Seed = parent.Seed;
        Rand = rand;
        ComponentCatalog = parent.ComponentCatalog;
        GpuDeviceId = parent.GpuDeviceId;
        FallbackToCpu = parent.FallbackToCpu;
        TempFilePath = parent.TempFilePath;
        IsCanceled = parent.IsCanceled;
    }

    internal string Name { get; }

    internal string FullName { get; }

    internal string ParentFullName { get; }

    public Random Rand { get; }

    public int? Seed { get; }

    public ComponentCatalog ComponentCatalog { get; }

    public string TempFilePath { get; set; }

    public int? GpuDeviceId { get; set; }

    public bool FallbackToCpu { get; set; }

    public bool IsCanceled { get; private set; }

    public string ContextDescription => "HostEnvironment";

    public IHost Register(string name, int? seed = null, bool? verbose = null)
    {
        Contracts.CheckNonEmpty(name, nameof(name));
        lock (_lock)
        {
            _children.RemoveAll(child => !child.TryGetTarget(out _));
            var host = new Host(this, name, seed is { } s ? new TauswortheHybrid((uint)s) : new TauswortheHybrid(Rand));
            _children.Add(new WeakReference<Host>(host));
            return host;
        }
    }

    public void CancelExecution()
    {
        lock (_lock)
        {
            foreach (var child in _children)
                if (child.TryGetTarget(out var host))
                    host.CancelExecution();
            _children.Clear();
            IsCanceled = true;
        }
    }

    public IChannel Start(string name) => new Channel(this, name);

    public IPipe<TMessage> StartPipe<TMessage>(string name) => new Pipe<TMessage>(this, name);

    public IProgressChannel StartProgressChannel(string name) => new ProgressChannel(this, Contracts.CheckNonEmpty(name, nameof(name)));

    public TException Process<TException>(TException ex) where TException : Exception
    {
        if (ex != null)
        {
            // Every host says so, whatever its name.
            ex.Data["Throwing component"] = "Environment";
            Contracts.Mark(ex);
        }
        return ex;
    }

    /// <summary>Hands each message with its source's full name to one listener, the context's log.</summary>
    internal void Listen(Action<string, ChannelMessage> listener) => _root._listener = listener;

    public bool TryAddOption<T>(string name, T value) => _options.TryAdd(NotBlank(name), value);

    public void SetOption<T>(string name, T value) => _options[NotBlank(name)] = value;

    public bool TryGetOption<T>(string name, out T value)
    {
        bool found = _options.TryGetValue(NotBlank(name), out var stored) && stored is T;
        value = found ? (T)stored : default;
        return found;
    }

    public T GetOptionOrDefault<T>(string name)
    {
        if (_options.TryGetValue(NotBlank(name), out var stored))
            return (T)stored;
        _options[name] = default(T);
        return default;
    }

    public bool RemoveOption(string name) => _options.Remove(NotBlank(name));

    private static string NotBlank(string name) => string.IsNullOrWhiteSpace(name) ? throw new ArgumentNullException(nameof(name)) : name;

    private class Pipe<TMessage>(Host host, string name) : IPipe<TMessage>
    {
        private readonly string _fullName = host.FullName == null ? name : $"{host.FullName}; {name}";

        public string ContextDescription => _fullName;

        public void Send(TMessage msg)
        {
            // Only messages for people have a listener here.
            if (msg is ChannelMessage message)
                host._root._listener?.Invoke(_fullName, message);
        }

        public TException Process<TException>(TException ex) where TException : Exception
        {
            if (ex != null)
            {
                ex.Data["Throwing component"] = host.Name;
                ex.Data["Parent component"] = host.ParentFullName;
                ex.Data["Phase"] = name;
                Contracts.Mark(ex);
            }
            return ex;
        }

        public virtual void Dispose() { }
    }

    private sealed class Channel : Pipe<ChannelMessage>, IChannel
    {
        private readonly long _start = Stopwatch.GetTimestamp();
        private bool _disposed;

        internal Channel(Host host, string name) : base(host, Contracts.CheckNonEmpty(name, nameof(name)))
            => Trace(MessageSensitivity.None, "Channel started");

        public void Trace(MessageSensitivity sensitivity, string fmt) => Say(ChannelMessageKind.Trace, sensitivity, fmt);
        public void Trace(MessageSensitivity sensitivity, string fmt, params object[] args) => Say(ChannelMessageKind.Trace, sensitivity, fmt, args);
        public void Info(MessageSensitivity sensitivity, string fmt) => Say(ChannelMessageKind.Info, sensitivity, fmt);
        public void Info(MessageSensitivity sensitivity, string fmt, params object[] args) => Say(ChannelMessageKind.Info, sensitivity, fmt, args);
        public void Warning(MessageSensitivity sensitivity, string fmt) => Say(ChannelMessageKind.Warning, sensitivity, fmt);
        public void Warning(MessageSensitivity sensitivity, string fmt, params object[] args) => Say(ChannelMessageKind.Warning, sensitivity, fmt, args);
        public void Error(MessageSensitivity sensitivity, string fmt) => Say(ChannelMessageKind.Error, sensitivity, fmt);
        public void Error(MessageSensitivity sensitivity, string fmt, params object[] args) => Say(ChannelMessageKind.Error, sensitivity, fmt, args);

        private void Say(ChannelMessageKind kind, MessageSensitivity sensitivity, string format, params object[] args)
            => Send(new ChannelMessage(kind, sensitivity, format, args));

        public override void Dispose()
        {
            if (_disposed)
                return;
            _disposed = true;
            Trace(MessageSensitivity.None, "Channel finished. Elapsed {0:c}.", Stopwatch.GetElapsedTime(_start));
            Trace(MessageSensitivity.None, "Channel disposed");
        }
    }
}
