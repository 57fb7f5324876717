// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
using TorchSharp.Bridge;

namespace TorchSharp;

public static partial class torch
{
    /// <summary>A source of random numbers with a state of its own.</summary>
    public class Generator : IDisposable
    {
        internal Generator(nint handle, Device device) => (Handle, this.device) = (handle, device);

        public Generator(ulong seed = 0, Device? device = null)
        {
            this.device = device ?? CPU;
            Handle = Native.Check(Native.pt_generator_new(seed, (int)this.device.type, this.device.index));
        }

        ~Generator() => Dispose(false);

        public IntPtr Handle { get; private set; }
        public Device device { get; private set; }

        public static Generator Default => new(Native.Check(Native.pt_generator_default((int)DeviceType.CPU, -1)), CPU);

        public Tensor get_state() => new(Native.Check(Native.pt_generator_state(Handle)));
        public void set_state(Tensor value) => Native.Check(Native.pt_generator_set_state(Handle, value.Handle));
        public long initial_seed() => (long)Native.pt_generator_initial_seed(Handle);

        public Generator manual_seed(long seed)
        {
            Native.Check(Native.pt_generator_seed(Handle, (ulong)seed));
            return this;
        }

        public long seed()
        {
            long seed = DateTime.UtcNow.Ticks;
            manual_seed(seed);
            return seed;
        }

        protected virtual void Dispose(bool disposing)
        {
            nint handle = Handle;
            Handle = 0;
            if (handle != 0)
                Native.pt_generator_free(handle);
        }

        public void Dispose()
        {
            Dispose(true);
            GC.SuppressFinalize(this);
        }
    }

    public static class random
    {
        /// <summary>Seeds every device's default generator and gives the CPU's.</summary>
        public static Generator manual_seed(long seed)
        {
            Native.Check(Native.pt_manual_seed((ulong)seed));
            return Generator.Default;
        }

        public static long seed()
        {
            long seed = DateTime.UtcNow.Ticks;
            manual_seed(seed).Dispose();
            return seed;
        }

        public static long initial_seed()
        {
            using var generator = Generator.Default;
            return generator.initial_seed();
        }

        public static Tensor get_rng_state()
        {
            using var generator = Generator.Default;
            return generator.get_state();
        }

        public static void set_rng_state(Tensor new_state)
        {
            using var generator = Generator.Default;
            generator.set_state(new_state);
        }
    }

    public static long seed() => random.seed();
    public static Generator manual_seed(long seed) => random.manual_seed(seed);
    public static long initial_seed() => random.initial_seed();
    public static Tensor get_rng_state() => random.get_rng_state();
    public static void set_rng_state(Tensor new_state) => random.set_rng_state(new_state);
}
