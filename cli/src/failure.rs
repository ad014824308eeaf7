//! How errors reach the user: one paragraph on standard error and an exit code.

use std::process::ExitCode;

/// Bad input or usage: what clap uses too.
const BAD_INPUT: u8 = 2;

/// Prints `error` with its causes as one paragraph.
pub fn report(error: &anyhow::Error) -> ExitCode {
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
    ExitCode::from(BAD_INPUT)
}
