//! `tracing` to standard error: for people by default, as JSON lines for machines.

use std::io::{self, Write};

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
    /// One JSON object a line with `timestamp`, `level`, `target` and `fields`.
    Json,
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
        Format::Json => builder.json().try_init(),
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

#[cfg(test)]
mod tests {
    use super::*;

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
