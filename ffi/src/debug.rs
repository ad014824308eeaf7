//! Panics on demand, for the tests that show that none crosses into a host. Only in builds with
//! debug assertions: a release neither exports nor contains it.

use rayon::prelude::*;

use crate::session::jrs_session;
use crate::status::Failure;

/// Panics: 0 on the calling thread, 1 in a parallel loop on the session's threads.
///
/// # Safety
/// `session` is a live handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_debug_panic(session: *const jrs_session, place: u32) -> i32 {
    // SAFETY: by the contract.
    let session = unsafe { &*session };
    session.call(|| match place {
        0 => panic!("injected on the calling thread"),
        _ => session.run(None, |_| -> Result<(), Failure> {
            (0..100).into_par_iter().for_each(|n| assert_ne!(n, 42, "injected on a worker"));
            Ok(())
        }),
    })
}
