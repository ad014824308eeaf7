// libjrs for C#: SafeHandles over jrs.h. Runs on mono and .NET (Linux); libjrs.so.0 must be where the loader looks.
using System;
using System.Runtime.InteropServices;
using System.Text;

namespace Jrs
{
    /// A failed call: Code is one of JRS_E_*.
    public sealed class JrsException : Exception
    {
        public readonly int Code;
        public JrsException(int code) : base(Native.Utf8(Native.jrs_last_error())) { Code = code; }
        internal static void Check(int code) { if (code != 0) throw new JrsException(code); }
    }

    public sealed class Model : SafeHandle
    {
        private Model() : base(IntPtr.Zero, true) { }
        public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
        protected override bool ReleaseHandle() { Native.jrs_model_free(handle); return true; }

        /// publicKey: 32 bytes, or null to accept unsigned models.
        public static Model Load(string path, byte[] publicKey = null)
        {
            Model model;
            JrsException.Check(Native.jrs_model_load(Native.Utf8(path), publicKey, out model));
            return model;
        }
        public string Card() { return Native.Text(Native.jrs_model_card_json, this); }
    }

    public sealed class Cancel : SafeHandle
    {
        private Cancel() : base(IntPtr.Zero, true) { }
        public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
        protected override bool ReleaseHandle() { Native.jrs_cancel_free(handle); return true; }

        public static Cancel Create()
        {
            Cancel cancel;
            JrsException.Check(Native.jrs_cancel_create(out cancel));
            return cancel;
        }
        public void Request() { Native.jrs_cancel_request(this); }
    }

    /// Stage, units done, units in all; true cancels.
    public delegate bool Progress(string stage, ulong done, ulong total);

    public sealed class Session : SafeHandle
    {
        private Native.ProgressCallback callback; // the library calls it as long as the session lives
        private Session() : base(IntPtr.Zero, true) { }
        public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
        protected override bool ReleaseHandle()
        {
            Native.jrs_session_free(handle);
            GC.KeepAlive(callback);
            return true;
        }

        public static Session Create(uint threads = 0, ulong maxHostBytes = 0, Progress progress = null)
        {
            var options = new Native.SessionOptions();
            JrsException.Check(Native.jrs_session_options_init(ref options, Native.Size<Native.SessionOptions>()));
            options.Threads = threads;
            options.MaxHostBytes = maxHostBytes;
            Native.ProgressCallback callback = null;
            if (progress != null)
            {
                // An exception must not cross into the library: it cancels.
                callback = (user, stage, done, total) =>
                {
                    try { return progress(Native.Utf8(stage), done, total) ? 1 : 0; }
                    catch (Exception) { return 1; }
                };
                options.Progress = Marshal.GetFunctionPointerForDelegate(callback);
            }
            Session session;
            JrsException.Check(Native.jrs_session_create(ref options, out session));
            session.callback = callback;
            return session;
        }

        /// labels and cancel may be null. Arrays are pinned during the call and not copied.
        public Result Register(Model model, Volume fixedScan, Volume movingScan, Volume labels = null,
                               PrealignMode prealign = PrealignMode.Given, Cancel cancel = null)
        {
            var input = new Native.RegisterInput();
            JrsException.Check(Native.jrs_register_input_init(ref input, Native.Size<Native.RegisterInput>()));
            input.PrealignMode = (uint)prealign;
            using (var f = new Pinned(fixedScan))
            using (var m = new Pinned(movingScan))
            using (var l = new Pinned(labels))
            {
                input.Fixed = f.Address;
                input.Moving = m.Address;
                input.Labels = l.Address;
                Result result;
                int code = cancel == null
                    ? Native.jrs_register(this, model, ref input, IntPtr.Zero, out result)
                    : Native.jrs_register_cancellable(this, model, ref input, cancel, out result);
                JrsException.Check(code);
                return result;
            }
        }
    }

    public enum PrealignMode : uint { Given = 0, Rigid = 1, Affine = 2 }
    public enum FileKind : uint { DvfMha = 1, DvfNrrd, DvfNifti, DvfNiftiAnts, WarpedNifti, LabelsNifti }

    /// Voxels (short, float or byte; i fastest) and their place in LPS mm.
    public sealed class Volume
    {
        public Array Voxels;
        public ulong[] Dims;
        public double[] Spacing, Origin;
        public double[] Direction = { 1, 0, 0, 0, 1, 0, 0, 0, 1 };
    }

    public sealed class Result : SafeHandle
    {
        private Result() : base(IntPtr.Zero, true) { }
        public override bool IsInvalid { get { return handle == IntPtr.Zero; } }
        protected override bool ReleaseHandle() { Native.jrs_result_free(handle); return true; }

        /// Interleaved x, y, z of every voxel of the fixed scan, mm.
        public float[] Dvf()
        {
            UIntPtr needed;
            JrsException.Check(Native.jrs_result_dvf(this, null, UIntPtr.Zero, out needed));
            var u = new float[(long)needed];
            JrsException.Check(Native.jrs_result_dvf(this, u, needed, out needed));
            return u;
        }
        public string QaJson() { return Native.Text(Native.jrs_result_qa_json, this); }
        public string ProvenanceJson() { return Native.Text(Native.jrs_result_provenance_json, this); }
        public void Write(FileKind kind, string path)
        {
            JrsException.Check(Native.jrs_result_write(this, (uint)kind, Native.Utf8(path)));
        }
    }

    /// A jrs_volume whose voxels do not move.
    internal sealed class Pinned : IDisposable
    {
        internal readonly IntPtr Address;
        private GCHandle voxels;

        internal Pinned(Volume volume)
        {
            if (volume == null) return;
            var native = new Native.Volume();
            JrsException.Check(Native.jrs_volume_init(ref native, Native.Size<Native.Volume>()));
            voxels = GCHandle.Alloc(volume.Voxels, GCHandleType.Pinned);
            native.Data = voxels.AddrOfPinnedObject();
            native.DataBytes = (ulong)Buffer.ByteLength(volume.Voxels);
            native.Dtype = volume.Voxels is short[] ? 1u : volume.Voxels is float[] ? 2u : 3u;
            native.Dims = volume.Dims;
            native.Spacing = volume.Spacing;
            native.Origin = volume.Origin;
            native.Direction = volume.Direction;
            Address = Marshal.AllocHGlobal(Marshal.SizeOf(native));
            Marshal.StructureToPtr(native, Address, false);
        }
        public void Dispose()
        {
            if (Address == IntPtr.Zero) return;
            Marshal.FreeHGlobal(Address);
            voxels.Free();
        }
    }

    internal static class Native
    {
        private const string Library = "libjrs.so.0";

        [StructLayout(LayoutKind.Sequential)]
        internal struct Volume
        {
            public UIntPtr StructSize;
            public IntPtr Data;
            public ulong DataBytes;
            public uint Dtype, Reserved;
            [MarshalAs(UnmanagedType.ByValArray, SizeConst = 3)] public ulong[] Dims;
            [MarshalAs(UnmanagedType.ByValArray, SizeConst = 3)] public long[] Strides;
            [MarshalAs(UnmanagedType.ByValArray, SizeConst = 3)] public double[] Spacing;
            [MarshalAs(UnmanagedType.ByValArray, SizeConst = 3)] public double[] Origin;
            [MarshalAs(UnmanagedType.ByValArray, SizeConst = 9)] public double[] Direction;
            public double Slope, Intercept;
        }

        [StructLayout(LayoutKind.Sequential)]
        internal struct SessionOptions
        {
            public UIntPtr StructSize;
            public uint Threads, Device, Precision, Deterministic;
            public ulong MaxHostBytes, MaxDeviceBytes;
            public IntPtr Progress, ProgressUser, Log, LogUser;
        }

        [StructLayout(LayoutKind.Sequential)]
        internal struct RegisterInput
        {
            public UIntPtr StructSize;
            public IntPtr Fixed, Moving, Labels, ReferenceLabels, Contours, Prealign, Limits;
            public uint PrealignMode, BothDirections, RefineSteps, Reserved;
            public double RefineSpacingMm;
            public ulong MaxTileBytes;
        }

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        internal delegate int ProgressCallback(IntPtr user, IntPtr stage, ulong done, ulong total);
        internal delegate int GetText<T>(T handle, byte[] buffer, UIntPtr capacity, out UIntPtr needed);

        [DllImport(Library)] internal static extern uint jrs_abi_version();
        [DllImport(Library)] internal static extern IntPtr jrs_last_error();
        [DllImport(Library)] internal static extern int jrs_volume_init(ref Volume volume, UIntPtr size);
        [DllImport(Library)] internal static extern int jrs_session_options_init(ref SessionOptions o, UIntPtr size);
        [DllImport(Library)] internal static extern int jrs_register_input_init(ref RegisterInput i, UIntPtr size);
        [DllImport(Library)] internal static extern int jrs_model_load(byte[] path, byte[] key, out Jrs.Model model);
        [DllImport(Library)] internal static extern void jrs_model_free(IntPtr model);
        [DllImport(Library)]
        internal static extern int jrs_model_card_json(Jrs.Model m, byte[] buffer, UIntPtr capacity, out UIntPtr needed);
        [DllImport(Library)] internal static extern int jrs_session_create(ref SessionOptions o, out Session session);
        [DllImport(Library)] internal static extern void jrs_session_free(IntPtr session);
        [DllImport(Library)] internal static extern int jrs_cancel_create(out Cancel cancel);
        [DllImport(Library)] internal static extern void jrs_cancel_request(Cancel cancel);
        [DllImport(Library)] internal static extern void jrs_cancel_free(IntPtr cancel);
        [DllImport(Library)]
        internal static extern int jrs_register(Session s, Jrs.Model m, ref RegisterInput i, IntPtr none, out Result r);
        [DllImport(Library, EntryPoint = "jrs_register")]
        internal static extern int jrs_register_cancellable(Session s, Jrs.Model m, ref RegisterInput i, Cancel c, out Result r);
        [DllImport(Library)] internal static extern void jrs_result_free(IntPtr result);
        [DllImport(Library)]
        internal static extern int jrs_result_dvf(Result r, [Out] float[] buffer, UIntPtr capacity, out UIntPtr needed);
        [DllImport(Library)]
        internal static extern int jrs_result_qa_json(Result r, byte[] buffer, UIntPtr capacity, out UIntPtr needed);
        [DllImport(Library)]
        internal static extern int jrs_result_provenance_json(Result r, byte[] b, UIntPtr capacity, out UIntPtr needed);
        [DllImport(Library)] internal static extern int jrs_result_write(Result r, uint kind, byte[] path);

        internal static UIntPtr Size<T>() { return (UIntPtr)Marshal.SizeOf(typeof(T)); }
        internal static byte[] Utf8(string text) { return Encoding.UTF8.GetBytes(text + "\0"); }

        internal static string Utf8(IntPtr text)
        {
            int length = 0;
            while (Marshal.ReadByte(text, length) != 0) length++;
            var bytes = new byte[length];
            Marshal.Copy(text, bytes, 0, length);
            return Encoding.UTF8.GetString(bytes);
        }

        internal static string Text<T>(GetText<T> get, T handle)
        {
            UIntPtr needed;
            JrsException.Check(get(handle, null, UIntPtr.Zero, out needed));
            var buffer = new byte[(int)needed];
            JrsException.Check(get(handle, buffer, needed, out needed));
            return Encoding.UTF8.GetString(buffer, 0, buffer.Length - 1);
        }
    }
}
