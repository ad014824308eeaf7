//! `tracing` to standard error: for people by default, as JSON lines for machines.

use sha2::{Digest, Sha256};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::sync::{LazyLock, Mutex, PoisonError};

use libjrs::error::{Error, Result};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::progress;

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Time, level, message and fields on one line; coloured on a terminal.
    #[default]
    Human,
    /// One JSON object a line with `trace_id`, `span_id`, `timestamp`, `level`, `target` and `fields`.
    Json,
}

/// This process in the terms of OpenTelemetry: one trace for a run, one span for a process.
static IDS: LazyLock<Mutex<Ids>> = LazyLock::new(|| {
    let [high, low, span] = [0; 3].map(|_| random());
    Mutex::new(Ids { trace: (u128::from(high) << 64) | u128::from(low), span })
});

struct Ids {
    trace: u128,
    span: u64,
}

/// From now on JSON lines have the trace id that belongs to `run`, which says where the run is kept: the same in all
/// processes that work on it, now and after a restart. Before, it is one of this process alone.
pub fn join_trace(run: &str) {
    let digest: [u8; 32] = Sha256::digest(run).into();
    let half: [u8; 16] = std::array::from_fn(|index| digest[index]);
    IDS.lock().unwrap_or_else(PoisonError::into_inner).trace = u128::from_be_bytes(half);
}

/// Never 0, which means "none". The standard library's hash keys are random and differ from call to call.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id()).max(1)
}

/// Starts logging for the whole process. `level` is what the user gave on the command line (`debug`, or per target as in
/// `info,jrs_worker=debug`); without it the variable `RUST_LOG` counts, and without that `info`. Lines go above the
/// progress bars and never through them.
///
/// # Errors
/// If the level is not understood, or logging was started before.
pub fn init(level: Option<&str>, format: Format) -> Result<()> {
    let from_environment = std::env::var("RUST_LOG").ok().filter(|value| !value.trim().is_empty());
    let filter = filter(level, from_environment.as_deref())?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AboveBars);
    let started = match format {
        Format::Human => {
            let colours =
                io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            builder.with_target(false).with_ansi(colours).try_init()
        }
        Format::Json => builder.json().with_writer(Traced).try_init(),
    };
    started.map_err(|source| {
        Error::input(
            format!("logging cannot be started: {source}"),
            "Start it once, and only from the program's main function",
        )
    })
}

fn filter(level: Option<&str>, from_environment: Option<&str>) -> Result<EnvFilter> {
    let (origin, text) = match (level, from_environment) {
        (Some(level), _) => ("the log level", level),
        (None, Some(variable)) => ("RUST_LOG", variable),
        (None, None) => ("the log level", "info"),
    };
    EnvFilter::try_new(text).map_err(|source| {
        Error::input(
            format!("{origin} {text:?} is not understood: {source}"),
            "Use error, warn, info, debug or trace, or a list as in info,jrs_worker=debug",
        )
    })
}

/// Writes each line to standard error while the bars are off the screen.
struct AboveBars;

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line
    }
}

struct Line;

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        progress::without_bars(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The same with the ids as first members of each line's object.
struct Traced;

impl<'a> MakeWriter<'a> for Traced {
    type Writer = TracedLine;

    fn make_writer(&'a self) -> TracedLine {
        TracedLine
    }
}

struct TracedLine;

impl Write for TracedLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Line.write_all(&traced(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Line.flush()
    }
}

/// A whole line comes in one piece.
fn traced(line: &[u8]) -> Vec<u8> {
    let Some(members) = line.strip_prefix(b"{") else { return line.to_vec() };
    let ids = IDS.lock().unwrap_or_else(PoisonError::into_inner);
    let head = format!("{{\"trace_id\":\"{:032x}\",\"span_id\":\"{:016x}\",", ids.trace, ids.span);
    [head.as_bytes(), members].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_run_have_one_trace() {
        let ids = |line: Vec<u8>| {
            let line = String::from_utf8(line).unwrap();
            let (trace, rest) = line.strip_prefix("{\"trace_id\":\"").unwrap().split_once('"').unwrap();
            let (span, rest) = rest.strip_prefix(",\"span_id\":\"").unwrap().split_once('"').unwrap();
            assert_eq!(rest, ",\"a\":1}\n");
            assert!(
                [trace, span]
                    .iter()
                    .all(|id| id.bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()))
            );
            assert_eq!((trace.len(), span.len()), (32, 16));
            (trace.to_owned(), span.to_owned())
        };
        let line = b"{\"a\":1}\n";
        let before = ids(traced(line));
        join_trace("s3://bucket/runs/first");
        let first = ids(traced(line));
        // `printf s3://bucket/runs/first | sha256sum`
        assert_eq!(first.0, "3ecffbecf983905198668baa4f8743ec");
        assert!(before.0 != first.0 && before.1 == first.1);
    }

    #[test]
    fn the_flag_counts_before_the_environment() {
        assert_eq!(filter(Some("debug"), Some("error")).unwrap().to_string(), "debug");
        assert_eq!(filter(None, Some("warn,jrs_worker=trace")).unwrap().to_string(), "jrs_worker=trace,warn");
        assert_eq!(filter(None, None).unwrap().to_string(), "info");
    }

    #[test]
    fn an_unknown_level_names_its_origin() {
        let error = filter(Some("jrs=loud"), None).unwrap_err().to_string();
        assert!(error.contains("the log level \"jrs=loud\"") && error.contains("trace"), "{error}");
        assert!(filter(None, Some("jrs=loud")).unwrap_err().to_string().starts_with("RUST_LOG"));
    }
}
