//! The library's calls, as `nccl.h` declares them since version 2.18.

use super::VARIABLE;
use crate::{Fault, FaultKind};
use cudarc::nccl::sys::{ncclComm_t, ncclUniqueId};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// `ncclResult_t`, of which newer versions have more values.
type Code = u32;
/// `cudaStream_t`, which is the driver's CUstream.
type Stream = *mut c_void;

pub(super) const SUCCESS: Code = 0;
const IN_PROGRESS: Code = 7;

/// Calls of the library, which stays loaded for the process's life: its threads may outlast any communicator.
pub(super) struct Api {
    pub get_version: unsafe extern "C" fn(*mut c_int) -> Code,
    pub get_unique_id: unsafe extern "C" fn(*mut ncclUniqueId) -> Code,
    pub init_rank_config:
        unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut Config) -> Code,
    pub get_async_error: unsafe extern "C" fn(ncclComm_t, *mut Code) -> Code,
    pub count: unsafe extern "C" fn(ncclComm_t, *mut c_int) -> Code,
    pub all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, u32, u32, ncclComm_t, Stream) -> Code,
    pub all_gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, u32, ncclComm_t, Stream) -> Code,
    pub broadcast:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, u32, c_int, ncclComm_t, Stream) -> Code,
    pub finalize: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub destroy: unsafe extern "C" fn(ncclComm_t) -> Code,
    pub abort: unsafe extern "C" fn(ncclComm_t) -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
}

impl Api {
    /// The library, loaded at the first call.
    pub fn get() -> Result<&'static Self, Fault> {
        static API: OnceLock<Result<Api, Fault>> = OnceLock::new();
        API.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, Fault> {
        let chosen = std::env::var_os(VARIABLE);
        let names: Vec<_> =
            chosen.map_or_else(|| vec!["libnccl.so.2".into(), "libnccl.so".into()], |path| vec![path]);
        let missing = |problem: String| Fault::new(FaultKind::Missing, problem);
        // SAFETY: opening the library runs its initialisers, which set up no more than its own state.
        let mut tried = names.iter().map(|name| unsafe { Library::new(name) });
        let library = tried.find_map(Result::ok).ok_or_else(|| {
            missing(format!(
                "NCCL was not found: neither {names:?} can be loaded. Install NCCL 2.18 or newer, or name its file in {VARIABLE}"
            ))
        })?;
        // For ever: see above.
        let library: &'static Library = Box::leak(Box::new(library));
        macro_rules! call {
            ($name:literal) => {
                // SAFETY: the type of the field is that of the call in the library's header.
                *unsafe { library.get($name) }.map_err(|_| {
                    missing(format!("NCCL has no call {}: it is too old or not NCCL", stringify!($name)))
                })?
            };
        }
        Ok(Self {
            get_version: call!("ncclGetVersion"),
            get_unique_id: call!("ncclGetUniqueId"),
            init_rank_config: call!("ncclCommInitRankConfig"),
            get_async_error: call!("ncclCommGetAsyncError"),
            count: call!("ncclCommCount"),
            all_reduce: call!("ncclAllReduce"),
            all_gather: call!("ncclAllGather"),
            broadcast: call!("ncclBroadcast"),
            finalize: call!("ncclCommFinalize"),
            destroy: call!("ncclCommDestroy"),
            abort: call!("ncclCommAbort"),
            error_string: call!("ncclGetErrorString"),
            last_error: call!("ncclGetLastError"),
        })
    }

    /// What `call` returned: true for done, false for begun.
    pub fn check(&self, call: &str, code: Code) -> Result<bool, Fault> {
        let kind = match code {
            SUCCESS => return Ok(true),
            IN_PROGRESS => return Ok(false),
            1 => FaultKind::Device,
            2 => FaultKind::System,
            3 => FaultKind::Internal,
            4 | 5 => FaultKind::Usage,
            6 => FaultKind::Remote,
            _ => FaultKind::Unknown,
        };
        // SAFETY: both return texts of the library that live as long as it or until this thread's next call. The last error
        // is kept for the process; the library does not look at the communicator.
        let (meaning, last) =
            unsafe { (text((self.error_string)(code)), text((self.last_error)(std::ptr::null_mut()))) };
        let last = if last.is_empty() { String::new() } else { format!(" ({last})") };
        Err(Fault::new(kind, format!("{call}: {meaning}{last}")))
    }
}

/// # Safety
/// `text` is null or a C string.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller says so.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// `ncclConfig_t` of version 2.18. Newer libraries take it for what it says it is, and fill in what was added since.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

const CONFIG_VERSION: u32 = 2_18_00;

impl Config {
    /// As `NCCL_CONFIG_INITIALIZER` has it, but no call waits.
    pub fn non_blocking() -> Self {
        const UNDEFINED: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: CONFIG_VERSION,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Config;
    use cudarc::nccl::sys::ncclConfig_t as Newer;
    use std::mem::offset_of;

    /// The binding is generated from a newer header, of which ours is the beginning.
    #[test]
    fn the_configuration_is_the_beginning_of_newer_ones() {
        macro_rules! same {
            ($($ours:ident $theirs:ident),*) => {$(
                assert_eq!(offset_of!(Config, $ours), offset_of!(Newer, $theirs), stringify!($theirs));
            )*};
        }
        same!(size size, magic magic, version version, blocking blocking, cga_cluster_size cgaClusterSize);
        same!(min_ctas minCTAs, max_ctas maxCTAs, net_name netName, split_share splitShare);
        assert!(size_of::<Config>() <= size_of::<Newer>());
    }
}
