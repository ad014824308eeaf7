//! A host's volume with any geometry and strides over a small piece of memory, through the C interface.
#![no_main]

use std::ptr::{null, null_mut};

use jrs::register::{jrs_estimate, jrs_estimate_result, jrs_register, jrs_register_input};
use jrs::result::jrs_result_free;
use jrs::session::{jrs_session, jrs_session_create, jrs_session_options, jrs_session_options_init};
use jrs::volume::jrs_volume;
use libfuzzer_sys::fuzz_target;

const MEMORY: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    // The struct word by word: dtype, dims, strides, spacing, origin, direction, slope, intercept.
    const WORDS: usize = 1 + 3 + 3 + 3 + 3 + 9 + 2;
    if bytes.len() < 8 * WORDS {
        return;
    }
    let word = |n: usize| u64::from_le_bytes(bytes[8 * n..][..8].try_into().unwrap());
    let number = |n: usize| f64::from_bits(word(n));
    let memory: Vec<u8> = bytes.iter().copied().cycle().take(MEMORY).collect();
    let volume = jrs_volume {
        struct_size: size_of::<jrs_volume>(),
        data: memory.as_ptr().cast(),
        data_bytes: MEMORY as u64,
        dtype: word(0) as u32 % 5,
        reserved: 0,
        dims: std::array::from_fn(|a| word(1 + a)),
        strides: std::array::from_fn(|a| word(4 + a) as i64),
        spacing: std::array::from_fn(|a| number(7 + a)),
        origin: std::array::from_fn(|a| number(10 + a)),
        direction: std::array::from_fn(|a| number(13 + a)),
        slope: number(22),
        intercept: number(23),
    };
    // SAFETY: the struct is initialised, its memory is as long as it says, and handles are live.
    unsafe {
        let mut input: jrs_register_input = std::mem::zeroed();
        jrs::register::jrs_register_input_init(&mut input, size_of::<jrs_register_input>());
        (input.fixed, input.moving) = (&volume, &volume);
        (input.refine_steps, input.refine_spacing_mm) = (1, 8.0);
        let session = session();
        let mut found: jrs_estimate_result = std::mem::zeroed();
        found.struct_size = size_of::<jrs_estimate_result>();
        jrs_estimate(session, null(), &input, &mut found);
        let mut result = null_mut();
        jrs_register(session, null(), &input, null(), &mut result);
        jrs_result_free(result);
    }
});

/// One session for all runs; the memory limit refuses volumes that are only large.
fn session() -> *mut jrs_session {
    struct Handle(*mut jrs_session);
    // SAFETY: the fuzzer runs one input at a time.
    unsafe impl Send for Handle {}
    // SAFETY: as above.
    unsafe impl Sync for Handle {}
    static SESSION: std::sync::OnceLock<Handle> = std::sync::OnceLock::new();
    let make = || {
        let mut session = null_mut();
        // SAFETY: the options are initialised, and the handle is ours.
        unsafe {
            let mut options: jrs_session_options = std::mem::zeroed();
            jrs_session_options_init(&mut options, size_of::<jrs_session_options>());
            (options.threads, options.max_host_bytes) = (1, 1 << 20);
            jrs_session_create(&options, &mut session);
        }
        Handle(session)
    };
    SESSION.get_or_init(make).0
}
