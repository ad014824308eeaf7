//! NCCL itself, found and loaded at run time.
//!
//! cudarc's own loader asks for `libnccl.so`, which only development packages have, and panics without it; so the library
//! is opened here under the name that it has everywhere, `libnccl.so.2`, and only the types are cudarc's. What the library
//! returns is taken as a number: a newer one may return what the binding's enumeration does not have.
//!
//! Order of work, the simple one: CubeCL's streams are not public, so lending waits until the client's work is done, and the
//! caller waits until this stream is idle before anything else touches the memory. To be tried on a GPU: an event of the
//! primary context recorded on CubeCL's stream and waited for on this one, which would let both go on.

mod api;

use crate::{Communicator, Fault, FaultKind, Library, Reduction, UniqueId};
use api::{Api, Config, SUCCESS};
use cudarc::driver::result as cuda;
use cudarc::driver::sys as driver;
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use std::ffi::{c_int, c_void};
use std::time::Duration;

/// Names a file that is taken instead of the system's library.
pub const VARIABLE: &str = "JRS_NCCL";

/// The library with the device that this process works on.
#[derive(Clone, Copy)]
pub struct Loaded {
    api: &'static Api,
    device: Device,
}

impl Loaded {
    /// Loads the library, once for the process, for ranks on device number `ordinal`.
    ///
    /// # Errors
    /// [`FaultKind::Missing`] if the library, one of its calls or the driver is not there, [`FaultKind::Device`] if the
    /// device cannot be used.
    pub fn open(ordinal: usize) -> Result<Self, Fault> {
        let device = Device::open(ordinal)?;
        Ok(Self { api: Api::get()?, device })
    }
}

impl Library for Loaded {
    type Communicator = Rank;

    fn version(&self) -> Result<i32, Fault> {
        let mut version = 0;
        // SAFETY: the call writes one int.
        let code = unsafe { (self.api.get_version)(&mut version) };
        self.api.check("ncclGetVersion", code).map(|_| version)
    }

    fn unique_id(&self) -> Result<UniqueId, Fault> {
        let mut id = ncclUniqueId { internal: [0; UniqueId::BYTES] };
        // SAFETY: the call writes one identity.
        let code = unsafe { (self.api.get_unique_id)(&mut id) };
        self.api.check("ncclGetUniqueId", code)?;
        Ok(UniqueId(id.internal.map(|byte| byte as u8)))
    }

    fn join(&self, id: &UniqueId, size: usize, rank: usize) -> Result<Rank, Fault> {
        self.device.make_current()?;
        let stream = cuda::stream::create(cuda::stream::StreamKind::NonBlocking)
            .map_err(|error| device_fault("cuStreamCreate", error))?;
        let id = ncclUniqueId { internal: id.0.map(|byte| byte as _) };
        let mut config = Config::non_blocking();
        let mut comm: ncclComm_t = std::ptr::null_mut();
        let (size, rank) = (size as c_int, rank as c_int);
        // SAFETY: `comm` and `config` live longer than the call; the configuration is as the header's initialiser makes it.
        let code = unsafe { (self.api.init_rank_config)(&mut comm, size, id, rank, &mut config) };
        let joined = Rank { api: self.api, device: self.device, comm, stream };
        match self.api.check("ncclCommInitRankConfig", code) {
            Ok(_) if !comm.is_null() => Ok(joined),
            Ok(_) => Err(Fault::new(FaultKind::Internal, "ncclCommInitRankConfig gave no communicator")),
            Err(fault) => {
                joined.abort();
                Err(fault)
            }
        }
    }
}

/// A device with its primary context, which is the one that CubeCL works in.
#[derive(Clone, Copy)]
struct Device {
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "compared with that of lent buffers"))]
    ordinal: c_int,
    context: driver::CUcontext,
}

// SAFETY: a context is an address that the driver looks up; any thread may make it current. Primary contexts are retained
// here for the process's life.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    fn open(ordinal: usize) -> Result<Self, Fault> {
        // SAFETY: loading the driver runs its initialisers and nothing of ours. Without this question cudarc panics.
        if !unsafe { driver::is_culib_present() } {
            return Err(Fault::new(
                FaultKind::Missing,
                "there is no NVIDIA driver on this machine (libcuda.so.1)",
            ));
        }
        let ordinal = ordinal as c_int;
        cuda::init().map_err(|error| device_fault("cuInit", error))?;
        let device = cuda::device::get(ordinal).map_err(|error| device_fault("cuDeviceGet", error))?;
        // SAFETY: the device is one that the driver just named. It is never released: CubeCL holds it for ever as well.
        let context = unsafe { cuda::primary_ctx::retain(device) }
            .map_err(|error| device_fault("cuDevicePrimaryCtxRetain", error))?;
        Ok(Self { ordinal, context })
    }

    fn make_current(self) -> Result<(), Fault> {
        // SAFETY: the context is retained for ever.
        unsafe { cuda::ctx::set_current(self.context) }
            .map_err(|error| device_fault("cuCtxSetCurrent", error))
    }
}

/// A rank's communicator with its stream.
pub struct Rank {
    api: &'static Api,
    device: Device,
    comm: ncclComm_t,
    stream: driver::CUstream,
}

// SAFETY: NCCL allows one thread at a time to use a communicator, whichever it is; `&mut self` and ownership see to that. The
// stream belongs to it.
unsafe impl Send for Rank {}

impl Rank {
    fn synchronize(&self) -> Result<(), Fault> {
        // SAFETY: the stream is this communicator's own.
        unsafe { cuda::stream::synchronize(self.stream) }
            .map_err(|error| device_fault("cuStreamSynchronize", error))
    }

    /// Frees the stream once nothing runs on it.
    fn free_stream(&self) {
        while let Ok(false) = self.query() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: nothing uses the stream from here on. A device that failed frees it with the process.
        let _ = unsafe { cuda::stream::destroy(self.stream) };
    }

    fn query(&self) -> Result<bool, Fault> {
        // SAFETY: the stream is this communicator's own.
        let result = unsafe { driver::cuStreamQuery(self.stream) };
        match result {
            driver::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => result.result().map(|()| true).map_err(|error| device_fault("cuStreamQuery", error)),
        }
    }
}

impl Communicator for Rank {
    type Memory = Memory;

    fn poll(&mut self) -> Result<bool, Fault> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive; the call writes one state.
        let code = unsafe { (self.api.get_async_error)(self.comm, &mut state) };
        self.api.check("ncclCommGetAsyncError", code)?;
        self.api.check("the communicator", state)
    }

    fn idle(&mut self) -> Result<bool, Fault> {
        self.device.make_current()?;
        self.query()
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory, Fault> {
        self.device.make_current()?;
        // SAFETY: what is allocated is freed by `Memory`. Its content is written before NCCL reads it.
        let address = unsafe { cuda::malloc_sync(bytes.max(1)) }
            .map_err(|error| device_fault(&format!("{bytes} bytes of device memory"), error))?;
        Ok(Memory { device: self.device, address, bytes, owner: Owner::This })
    }

    fn upload(&mut self, memory: &mut Memory, bytes: &[u8]) -> Result<(), Fault> {
        memory.holds(bytes.len())?;
        self.device.make_current()?;
        if !bytes.is_empty() {
            // SAFETY: the memory is long enough, and the host's bytes live until the stream is idle.
            unsafe { cuda::memcpy_htod_async(memory.address, bytes, self.stream) }
                .map_err(|error| device_fault("cuMemcpyHtoDAsync", error))?;
        }
        self.synchronize()
    }

    fn download(&mut self, memory: &Memory, bytes: &mut [u8]) -> Result<(), Fault> {
        memory.holds(bytes.len())?;
        self.device.make_current()?;
        if !bytes.is_empty() {
            // SAFETY: the memory is long enough, and the host's bytes live until the stream is idle.
            unsafe { cuda::memcpy_dtoh_async(bytes, memory.address, self.stream) }
                .map_err(|error| device_fault("cuMemcpyDtoHAsync", error))?;
        }
        self.synchronize()
    }

    #[cfg(feature = "cuda")]
    fn lend(
        &mut self,
        client: &cubecl::client::Client,
        handle: &cubecl::server::Handle,
    ) -> Result<Memory, Fault> {
        use cubecl_runtime::runtime::Runtime;
        let failed = |problem: String| Fault::new(FaultKind::Device, problem);
        cubecl::future::block_on(client.sync()).map_err(|error| failed(error.to_string()))?;
        let resource = client
            .get_resource::<<cubecl::cuda::CudaRuntime as Runtime>::Server>(handle.clone())
            .map_err(|error| failed(error.to_string()))?;
        let (address, bytes) = (resource.resource().ptr, resource.resource().size as usize);
        self.device.make_current()?;
        let mut ordinal: c_int = -1;
        let attribute = driver::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
        // SAFETY: the attribute is an int, and `ordinal` is one.
        unsafe { driver::cuPointerGetAttribute((&raw mut ordinal).cast(), attribute, address) }
            .result()
            .map_err(|error| device_fault("cuPointerGetAttribute", error))?;
        if ordinal != self.device.ordinal {
            return Err(failed(format!(
                "the buffer lies on device {ordinal}, and the communicator is on device {}",
                self.device.ordinal
            )));
        }
        Ok(Memory { device: self.device, address, bytes, owner: Owner::Cube(Box::new(resource)) })
    }

    #[cfg(all(feature = "cube", not(feature = "cuda")))]
    fn lend(&mut self, _: &cubecl::client::Client, _: &cubecl::server::Handle) -> Result<Memory, Fault> {
        Err(Fault::new(FaultKind::Missing, "this program was built without CUDA"))
    }

    fn reduce(
        &mut self,
        reduction: Reduction,
        memory: &mut Memory,
        first: usize,
        count: usize,
    ) -> Result<(), Fault> {
        let (kind, operation) = match reduction {
            Reduction::MaxI32 => (ncclDataType_t::ncclInt32, ncclRedOp_t::ncclMax),
            Reduction::SumI64 => (ncclDataType_t::ncclInt64, ncclRedOp_t::ncclSum),
        };
        memory.holds((first + count) * reduction.bytes())?;
        self.device.make_current()?;
        let at = (memory.address + (first * reduction.bytes()) as u64) as *mut c_void;
        // SAFETY: `count` numbers lie at `at`, and the caller keeps them until the stream is idle.
        let code = unsafe {
            (self.api.all_reduce)(at, at, count, kind as u32, operation as u32, self.comm, self.stream.cast())
        };
        self.api.check("ncclAllReduce", code).map(|_| ())
    }

    fn gather(&mut self, own: &Memory, all: &mut Memory, bytes: usize) -> Result<(), Fault> {
        let mut ranks: c_int = 0;
        // SAFETY: the call writes one int.
        let code = unsafe { (self.api.count)(self.comm, &mut ranks) };
        self.api.check("ncclCommCount", code)?;
        own.holds(bytes)?;
        all.holds(bytes * ranks as usize)?;
        self.device.make_current()?;
        let (from, to) = (own.address as *const c_void, all.address as *mut c_void);
        let kind = ncclDataType_t::ncclUint8 as u32;
        // SAFETY: `from` holds `bytes`, `to` as many for every rank; the caller keeps both until the stream is idle.
        let code = unsafe { (self.api.all_gather)(from, to, bytes, kind, self.comm, self.stream.cast()) };
        self.api.check("ncclAllGather", code).map(|_| ())
    }

    fn broadcast(&mut self, root: usize, memory: &mut Memory, bytes: usize) -> Result<(), Fault> {
        memory.holds(bytes)?;
        self.device.make_current()?;
        let at = memory.address as *mut c_void;
        let (kind, root) = (ncclDataType_t::ncclUint8 as u32, root as c_int);
        // SAFETY: `at` holds `bytes`; the caller keeps them until the stream is idle.
        let code = unsafe { (self.api.broadcast)(at, at, bytes, kind, root, self.comm, self.stream.cast()) };
        self.api.check("ncclBroadcast", code).map(|_| ())
    }

    fn finalize(&mut self) -> Result<(), Fault> {
        self.device.make_current()?;
        // SAFETY: the communicator is alive.
        let code = unsafe { (self.api.finalize)(self.comm) };
        self.api.check("ncclCommFinalize", code).map(|_| ())
    }

    fn destroy(self) {
        if self.device.make_current().is_ok() {
            // SAFETY: the group is finalized, and nothing uses the communicator from here on.
            unsafe { (self.api.destroy)(self.comm) };
            self.free_stream();
        }
    }

    fn abort(self) {
        if self.device.make_current().is_ok() {
            if !self.comm.is_null() {
                // SAFETY: nothing uses the communicator from here on.
                unsafe { (self.api.abort)(self.comm) };
            }
            self.free_stream();
        }
    }
}

/// Memory on the device: our own, or a buffer that CubeCL lent.
pub struct Memory {
    device: Device,
    address: driver::CUdeviceptr,
    bytes: usize,
    owner: Owner,
}

enum Owner {
    This,
    /// Whatever keeps the buffer where it is.
    #[cfg(feature = "cuda")]
    Cube(#[expect(dead_code, reason = "only held")] Box<dyn std::any::Any + Send>),
}

impl Memory {
    fn holds(&self, bytes: usize) -> Result<(), Fault> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let message = format!("{bytes} bytes asked of device memory that has {}", self.bytes);
        Err(Fault::new(FaultKind::Usage, message))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::This) && self.device.make_current().is_ok() {
            // SAFETY: it was allocated here, and whoever drops it knows that nothing works on it any more.
            let _ = unsafe { cuda::free_sync(self.address) }; // a device that failed frees it with the process
        }
    }
}

fn device_fault(call: &str, error: cuda::DriverError) -> Fault {
    let words =
        error.error_string().map_or_else(|_| format!("{:?}", error.0), |s| s.to_string_lossy().into_owned());
    Fault::new(FaultKind::Device, format!("{call}: {words}"))
}
