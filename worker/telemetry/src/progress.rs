//! Progress for people: bars with the remaining time on a terminal, and elsewhere a log line now and then.

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a phase without a bar is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Where progress is shown. Phases may run beside and inside each other: each has its line, in order of opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Bars on standard error.
    Bars,
    /// Log lines at level info, every half minute and at the end.
    Lines,
    /// Nothing.
    Silent,
}

/// One piece of work with a known number of parts. Dropping it ends it.
#[derive(Debug)]
pub struct Phase {
    bar: ProgressBar,
    name: String,
    shown: Progress,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    began: Instant,
    last: Instant,
    interval: Duration,
}

impl Progress {
    /// Bars if standard error is a terminal, log lines otherwise.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Bars } else { Self::Lines }
    }

    /// Begins a phase of `total` parts; `name` is a word or two, as in `train`.
    pub fn phase(self, name: &str, total: u64) -> Phase {
        let bar = match self {
            Self::Bars => bars().add(ProgressBar::new(total)),
            Self::Lines | Self::Silent => {
                ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden())
            }
        };
        bar.set_style(style());
        bar.set_prefix(name.to_owned());
        if self == Self::Bars {
            // Keeps the elapsed time moving during long parts.
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        let now = Instant::now();
        let log = Mutex::new(Log { began: now, last: now, interval: LOG_INTERVAL });
        Phase { bar, name: name.to_owned(), shown: self, log }
    }
}

impl Phase {
    /// `parts` more are done.
    pub fn advance(&self, parts: u64) {
        self.bar.inc(parts);
        self.log_if_due();
    }

    /// `done` parts are done, for instance because the run resumed there. The remaining time is reckoned from here.
    pub fn resume_at(&self, done: u64) {
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    /// A few figures behind the bar, as in `loss 0.31`.
    pub fn message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Parts done so far.
    pub fn done(&self) -> u64 {
        self.bar.position()
    }

    /// Ends the phase and takes its bar away; elsewhere logs how long it took.
    pub fn finish(self) {
        drop(self);
    }

    fn log_if_due(&self) {
        if self.shown != Progress::Lines {
            return;
        }
        let mut log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if log.last.elapsed() < log.interval {
            return;
        }
        log.last = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let percent = (100 * done).checked_div(total).unwrap_or(0);
        let remaining = seconds(self.bar.eta());
        let status = self.bar.message();
        tracing::info!("{}: {done} of {total} ({percent} %), {remaining} left {status}", self.name);
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if self.shown == Progress::Lines {
            let log = self.log.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
            tracing::info!("{}: {done} of {total} done in {}", self.name, seconds(log.began.elapsed()));
        }
    }
}

/// Runs `write` while no bar is on the screen, so that what it prints stays whole.
pub fn without_bars<T>(write: impl FnOnce() -> T) -> T {
    match BARS.get() {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

static BARS: OnceLock<MultiProgress> = OnceLock::new();

fn bars() -> &'static MultiProgress {
    BARS.get_or_init(MultiProgress::new)
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:<12} {bar:30} {pos}/{len} {elapsed} (left {eta}) {msg}")
        .expect("the template is a constant that the tests draw")
}

/// `12 s`, `3 min 20 s` or `2 h 05 min`.
fn seconds(duration: Duration) -> String {
    let total = duration.as_secs();
    match total {
        0..60 => format!("{total} s"),
        60..3600 => format!("{} min {:02} s", total / 60, total % 60),
        _ => format!("{} h {:02} min", total / 3600, total % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(work: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, work);
        String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn without_a_terminal_a_phase_is_logged_at_intervals() {
        let log = logged(|| {
            let phase = Progress::Lines.phase("train", 8);
            phase.log.lock().unwrap().interval = Duration::ZERO;
            phase.resume_at(2);
            phase.message("loss 0.5");
            phase.advance(4);
            phase.log.lock().unwrap().interval = Duration::from_secs(3600);
            phase.advance(2);
            assert_eq!(phase.done(), 8);
            phase.finish();
        });
        assert_eq!(log.lines().count(), 2, "{log}");
        assert!(log.contains("train: 6 of 8 (75 %)") && log.contains("loss 0.5"), "{log}");
        assert!(log.contains("train: 8 of 8 done in 0 s"), "{log}");
    }

    #[test]
    fn silent_phases_say_nothing() {
        let log = logged(|| {
            let phase = Progress::Silent.phase("warp", 1);
            phase.log.lock().unwrap().interval = Duration::ZERO;
            phase.advance(1);
        });
        assert_eq!(log, "");
    }

    #[test]
    fn nested_phases_share_the_screen() {
        let demo = Progress::Bars.phase("demo", 3);
        for _ in 0..3 {
            let inner = Progress::Bars.phase("prepare", 10);
            (0..10).for_each(|_| inner.advance(1));
            without_bars(|| assert_eq!(inner.done(), 10));
            demo.advance(1);
        }
        assert_eq!(demo.done(), 3);
    }

    #[test]
    fn times_read_well() {
        let cases = [(0, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")];
        for (time, text) in cases {
            assert_eq!(seconds(Duration::from_secs(time)), text);
        }
    }
}
