//! `jrs_session`: threads, limits and callbacks; one call at a time.

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libjrs::engine::{Compute, Device, Precision};
use libjrs::estimate::Pace;

use crate::status::{Failure, JRS_E_ARGUMENT, JRS_E_BUSY, adopt_thread, guard};
use crate::structs::{AbiStruct, copy_text, init_struct, read_struct};

/// The CPU.
pub const JRS_DEVICE_CPU: u32 = 0;
/// A CUDA GPU; JRS_E_DEVICE where the build or the machine has none.
pub const JRS_DEVICE_CUDA: u32 = 1;
/// Single precision, on any processor.
pub const JRS_PRECISION_F32: u32 = 0;
/// The network in bfloat16 with sums in single precision: two to three times faster, displacements differ by up to some
/// tenths of a millimetre. JRS_E_UNSUPPORTED where the processor has no matrix unit (AMX) or the GPU no tensor cores for it.
pub const JRS_PRECISION_BF16: u32 = 1;
/// The network in TF32 with sums in single precision, on GPUs with tensor cores for it; JRS_E_UNSUPPORTED elsewhere.
pub const JRS_PRECISION_TF32: u32 = 2;
/// Log level: something failed.
pub const JRS_LOG_ERROR: i32 = 1;
/// Log level: a result needs a look.
pub const JRS_LOG_WARNING: i32 = 2;
/// Log level: what is being done.
pub const JRS_LOG_INFO: i32 = 3;

/// Called on the thread that made the call, after every tile, step and stage; other than 0 cancels. stage is only
/// valid during the call.
#[allow(non_camel_case_types)] // the C name
pub type jrs_progress_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, stage: *const c_char, done: u64, total: u64) -> i32>;

/// Called on the thread that made the call. message is only valid during the call and names no patient.
#[allow(non_camel_case_types)] // the C name
pub type jrs_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, level: i32, message: *const c_char)>;

/// How a session works. Initialise with jrs_session_options_init.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)] // the C name
pub struct jrs_session_options {
    /// sizeof(jrs_session_options).
    pub struct_size: usize,
    /// Threads of the session's own pool; 0 for one per core that the process may use.
    pub threads: u32,
    /// JRS_DEVICE_*.
    pub device: u32,
    /// JRS_PRECISION_*.
    pub precision: u32,
    /// 1 (default): the same input gives the same bytes on the same build and kind of CPU, for any number of threads, or
    /// the session is refused. 0 leaves it open.
    pub deterministic: u32,
    /// Most memory a call may use at one time, bytes; 0 for no limit. A call that needs more is cut into tiles, and
    /// refused with JRS_E_MEMORY before it begins where that is not enough. Results count, what the caller lends does not.
    pub max_host_bytes: u64,
    /// The same on the device, for the network; not used by the CPU.
    pub max_device_bytes: u64,
    /// Progress, or NULL.
    pub progress: jrs_progress_fn,
    /// First argument of progress.
    pub progress_user: *mut c_void,
    /// Log lines, or NULL for silence.
    pub log: jrs_log_fn,
    /// First argument of log.
    pub log_user: *mut c_void,
    /// Which of the machine's GPUs, as the driver counts them; 0 for the CPU.
    pub device_number: u32,
    /// Must be 0.
    pub reserved: u32,
}

// SAFETY: repr(C), the size first, numbers, pointers and nullable function pointers, u32 in pairs and so no padding.
// A function pointer with any non-zero value is what the caller promises to be callable.
unsafe impl AbiStruct for jrs_session_options {
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        threads: 0,
        device: JRS_DEVICE_CPU,
        precision: JRS_PRECISION_F32,
        deterministic: 1,
        max_host_bytes: 0,
        max_device_bytes: 0,
        progress: None,
        progress_user: std::ptr::null_mut(),
        log: None,
        log_user: std::ptr::null_mut(),
        device_number: 0,
        reserved: 0,
    };
}

/// Registers: owns a pool of threads and serves one call at a time (JRS_E_BUSY otherwise). Several sessions may run
/// side by side, also with one model.
#[allow(non_camel_case_types)] // the C name
pub struct jrs_session {
    pub(crate) options: jrs_session_options,
    pub(crate) means: Means,
    is_busy: AtomicBool,
    last_error: Mutex<String>,
}

/// What a session computes with.
pub(crate) struct Means {
    pub pool: Arc<rayon::ThreadPool>,
    /// `usize::MAX` for no limit.
    pub max_host_bytes: usize,
    /// The same on a device of its own.
    pub max_device_bytes: usize,
    /// What runs the network.
    pub compute: Compute,
    /// How fast calls of this session were.
    pub pace: Mutex<Pace>,
}

/// Fills the options with their defaults.
///
/// # Safety
/// `options` is NULL or valid for writing `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_session_options_init(
    options: *mut jrs_session_options,
    struct_size: usize,
) -> i32 {
    // SAFETY: passed on under the same contract.
    guard(|| unsafe { init_struct(options, struct_size, "jrs_session_options") })
}

/// A new session; options may be NULL.
///
/// # Safety
/// `options` is NULL or an initialised struct, whose callbacks can be called until the session is freed; `session` is
/// NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_session_create(
    options: *const jrs_session_options,
    session: *mut *mut jrs_session,
) -> i32 {
    guard(|| {
        if session.is_null() {
            return Err(Failure::null("session"));
        }
        // SAFETY: by the contract.
        let options = unsafe { read_struct(options, "jrs_session_options") }?;
        let compute = check(&options)?;
        let limit = |bytes: u64| match bytes {
            0 => usize::MAX,
            bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
        };
        let means = Means {
            pool: Arc::new(pool(options.threads)?),
            max_host_bytes: limit(options.max_host_bytes),
            max_device_bytes: limit(options.max_device_bytes),
            compute,
            pace: Mutex::default(),
        };
        let new =
            jrs_session { options, means, is_busy: AtomicBool::new(false), last_error: Mutex::default() };
        // SAFETY: not NULL, so by the contract valid for a write.
        unsafe { session.write(Box::into_raw(Box::new(new))) };
        Ok(())
    })
}

/// Ends a session and its threads; NULL does nothing. Its results stay valid.
///
/// # Safety
/// `session` is NULL or a handle that has not been freed and that no call uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_session_free(session: *mut jrs_session) {
    guard(|| {
        if !session.is_null() {
            // SAFETY: by the contract a live handle, which jrs_session_create made from a box.
            drop(unsafe { Box::from_raw(session) });
        }
        Ok(())
    });
}

/// Why the last failing call of this session failed, from whatever thread. As jrs_model_card_json.
///
/// # Safety
/// `session` is NULL or a live handle; `buffer` is NULL or writable for `capacity` bytes; `needed` is NULL or valid for
/// a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_session_last_error(
    session: *const jrs_session,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: NULL or a live handle by the contract.
        let session = unsafe { session.as_ref() }.ok_or_else(|| Failure::null("session"))?;
        let message = session.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // SAFETY: passed on under the same contract.
        unsafe { copy_text(&message, buffer, capacity, needed) }
    })
}

impl jrs_session {
    /// Takes the session for one call.
    pub(crate) fn enter(&self) -> Result<Occupied<'_>, Failure> {
        if self.is_busy.swap(true, Ordering::Acquire) {
            let message = "the session is in a call. Wait for it, or use a session per thread";
            return Err(Failure::new(JRS_E_BUSY, message));
        }
        Ok(Occupied(self))
    }

    pub(crate) fn remember(&self, failure: &Failure) {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&failure.message);
    }
}

/// A session during a call.
pub(crate) struct Occupied<'a>(&'a jrs_session);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.0.is_busy.store(false, Ordering::Release);
    }
}

/// Refuses what cannot be honoured.
fn check(options: &jrs_session_options) -> Result<Compute, Failure> {
    let device = match options.device {
        JRS_DEVICE_CPU if options.device_number != 0 => {
            let message = format!("device_number is {}, and there is one CPU", options.device_number);
            return Err(Failure::new(JRS_E_ARGUMENT, message));
        }
        JRS_DEVICE_CPU => Device::Cpu,
        JRS_DEVICE_CUDA => Device::Cuda(options.device_number as usize),
        other => return Err(Failure::new(JRS_E_ARGUMENT, format!("device {other} is none of JRS_DEVICE_*"))),
    };
    let precision = match options.precision {
        JRS_PRECISION_F32 => Precision::F32,
        JRS_PRECISION_BF16 => Precision::Bf16,
        JRS_PRECISION_TF32 => Precision::Tf32,
        other => {
            return Err(Failure::new(
                JRS_E_ARGUMENT,
                format!("precision {other} is none of JRS_PRECISION_*"),
            ));
        }
    };
    let compute = Compute { device, precision };
    compute.check()?;
    if options.reserved != 0 {
        return Err(Failure::new(JRS_E_ARGUMENT, format!("reserved is {} and not 0", options.reserved)));
    }
    if options.deterministic > 1 {
        return Err(Failure::new(
            JRS_E_ARGUMENT,
            format!("deterministic is {}, not 0 or 1", options.deterministic),
        ));
    }
    if options.threads > 1024 {
        return Err(Failure::new(
            JRS_E_ARGUMENT,
            format!("{} threads. At most 1024 are possible", options.threads),
        ));
    }
    Ok(compute)
}

/// The session's own threads. Number and stack size are given here, because otherwise the pool would read them from
/// the environment.
fn pool(threads: u32) -> Result<rayon::ThreadPool, Failure> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n as usize,
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(4 << 20)
        .thread_name(|n| format!("jrs-{n}"))
        .start_handler(|_| adopt_thread())
        .build()
        .map_err(|e| {
            Failure::new(crate::status::JRS_E_MEMORY, format!("{threads} threads cannot be started ({e})"))
        })
}
