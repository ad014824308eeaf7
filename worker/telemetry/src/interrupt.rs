//! Ctrl-C and SIGTERM as a flag: the training loop finishes its step, saves and leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libjrs::error::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Whether the user or the scheduler asked this process to stop. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    /// The last signal's number, or 0.
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// From now on the first Ctrl-C or SIGTERM only sets the flag. A second one ends the process at once, with exit
    /// code 130 or 143 (128 and the signal's number, as shells report it).
    ///
    /// # Errors
    /// If the system refuses the signal handlers.
    pub fn install() -> Result<Self> {
        let interrupt = Self::default();
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Actions run in the order of their registration: the first signal finds `asked` unset and sets it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked)).map_err(refused)?;
        }
        for signal in [SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&asked)).map_err(refused)?;
            flag::register_usize(signal, Arc::clone(&interrupt.signal), signal as usize).map_err(refused)?;
        }
        Ok(interrupt)
    }

    /// A flag that no signal sets, for tests and for runs inside other programs.
    pub fn never() -> Self {
        Self::default()
    }

    /// Whether to stop at the next safe point.
    pub fn requested(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }

    /// Asks to stop as Ctrl-C would.
    pub fn request(&self) {
        self.signal.store(SIGINT as usize, Ordering::Relaxed);
    }

    /// The exit code for a process that was asked to stop, saved and leaves: 130 after Ctrl-C, 143 after SIGTERM;
    /// `None` if nobody asked.
    pub fn exit_code(&self) -> Option<u8> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(128 + signal as u8),
        }
    }
}

fn refused(source: std::io::Error) -> Error {
    Error::input(
        format!("the system refuses to let this process handle Ctrl-C and SIGTERM: {source}"),
        "Start it without a sandbox that forbids signal handlers",
    )
}
