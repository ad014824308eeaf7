//! Signals to a real process: the first is a request, the second ends it.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jrs_telemetry::interrupt::Interrupt;

/// Set in the child process that is sent signals: `leave` after the first, or `stay`.
const CHILD: &str = "JRS_TEST_INTERRUPT_CHILD";

#[test]
fn the_first_signal_lets_the_process_finish() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let (mut child, mut lines) = start("leave");
        send(&child, signal);
        assert_eq!(next(&mut lines), "leaving");
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
    }
}

#[test]
fn the_second_signal_ends_the_process() {
    for (first, second, code) in [("INT", "INT", 130), ("TERM", "INT", 130), ("INT", "TERM", 143)] {
        let (mut child, mut lines) = start("stay");
        send(&child, first);
        assert_eq!(next(&mut lines), "staying");
        send(&child, second);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{first} {second}");
    }
}

#[test]
fn a_flag_without_signals() {
    let interrupt = Interrupt::never();
    assert!(!interrupt.requested() && interrupt.exit_code().is_none());
    interrupt.clone().request();
    assert!(interrupt.requested());
    assert_eq!(interrupt.exit_code(), Some(130));
}

/// Not a test of its own: the process that receives the signals.
#[test]
fn child_that_waits_for_signals() {
    let Ok(behaviour) = std::env::var(CHILD) else { return };
    let interrupt = Interrupt::install().unwrap();
    println!("\n@ready");
    while !interrupt.requested() {
        std::thread::sleep(Duration::from_millis(2));
    }
    if behaviour == "leave" {
        println!("\n@leaving");
        std::process::exit(interrupt.exit_code().unwrap().into());
    }
    println!("\n@staying");
    std::thread::sleep(Duration::from_secs(20));
}

type Lines = std::io::Lines<BufReader<std::process::ChildStdout>>;

fn start(behaviour: &str) -> (Child, Lines) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_waits_for_signals", "--nocapture"])
        .env(CHILD, behaviour)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(next(&mut lines), "ready");
    (child, lines)
}

/// The child's next word; the test harness prints lines of its own between.
fn next(lines: &mut Lines) -> String {
    lines.find_map(|line| line.unwrap().strip_prefix('@').map(str::to_owned)).unwrap()
}

fn send(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    // The shell's built-in kill: no package is needed.
    let sent = Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid]).status().unwrap();
    assert!(sent.success());
}
