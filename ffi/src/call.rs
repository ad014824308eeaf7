//! Running work on a session's threads while callbacks come on the caller's own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

use libjrs::progress::Progress;

use crate::session::{JRS_LOG_ERROR, jrs_session};
use crate::status::{Failure, JRS_E_INTERNAL, c_text, caught, guard};

impl jrs_session {
    /// One call: takes the session, runs `body`, and keeps and logs what failed.
    pub(crate) fn call(&self, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
        guard(|| {
            let occupied = self.enter()?;
            let done = caught(body);
            drop(occupied);
            if let Err(failure) = &done {
                self.remember(failure);
                self.log(JRS_LOG_ERROR, &failure.message);
            }
            done
        })
    }

    /// A line for the caller's log.
    pub(crate) fn log(&self, level: i32, message: &str) {
        if let Some(log) = self.options.log {
            let message = c_text(message);
            // SAFETY: whoever made the session promised that its callbacks can be called until it is freed.
            unsafe { log(self.options.log_user, level, message.as_ptr()) };
        }
    }

    /// Runs `work` on the session's threads. The calling thread waits, and meanwhile reports progress and takes its
    /// answer; so callbacks never come from a thread that the host does not know.
    pub(crate) fn run<T: Send>(
        &self,
        token: Option<&AtomicBool>,
        work: impl FnOnce(Progress) -> Result<T, Failure> + Send,
    ) -> Result<T, Failure> {
        let (ask, questions) = sync_channel::<(String, usize, usize)>(0);
        let (answer, answers) = sync_channel::<bool>(1);
        let is_heard = self.options.progress.is_some();
        let outcome = Mutex::new(None);
        self.means.pool.in_place_scope(|scope| {
            let outcome = &outcome;
            scope.spawn(move |_| {
                let stop = AtomicBool::new(false);
                let line = Mutex::new((ask, answers));
                let report = |stage: &str, done: usize, total: usize| {
                    let line = line.lock().unwrap_or_else(PoisonError::into_inner);
                    let refused = is_heard
                        && line.0.send((stage.to_owned(), done, total)).is_ok()
                        && line.1.recv() != Ok(true);
                    if refused || token.is_some_and(|t| t.load(Ordering::Relaxed)) {
                        stop.store(true, Ordering::Relaxed);
                    }
                };
                let progress = Progress { report: Some(&report), cancel: Some(&stop) };
                let result = caught(|| work(progress));
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                // Here the line is closed, which ends the loop below.
            });
            for (stage, done, total) in questions {
                // The worker waits for every answer, so it is there to take it.
                let _ = answer.send(self.report(&stage, done, total));
            }
        });
        let outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome.unwrap_or_else(|| Err(Failure::new(JRS_E_INTERNAL, "the work ended without a result")))
    }

    /// True to go on.
    fn report(&self, stage: &str, done: usize, total: usize) -> bool {
        let Some(progress) = self.options.progress else { return true };
        let stage = c_text(stage);
        // SAFETY: as for the log.
        0 == unsafe { progress(self.options.progress_user, stage.as_ptr(), done as u64, total as u64) }
    }
}
