//! How errors reach the user: one paragraph on standard error and an exit code.

use std::process::ExitCode;

/// Bad input or usage: what clap uses too.
const BAD_INPUT: u8 = 2;

/// Prints `error` with its causes as one paragraph.
pub fn report(error: &anyhow::Error) -> ExitCode {
    report_as(error, BAD_INPUT)
}

/// The same, for commands with exit codes of their own.
pub fn report_as(error: &anyhow::Error, code: u8) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Wrapped errors often repeat their source.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    eprintln!("jrs: {}", text.trim_end().trim_end_matches('.').to_owned() + ".");
    ExitCode::from(code)
}
