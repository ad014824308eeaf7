//! What the engine for any processor says that it holds is what the process grows by. Where there is a matrix unit the tests of
//! the C interface, which ask the same of the whole library, do not come to this engine.
#![cfg(target_os = "linux")]

use std::process::Command;

use libjrs::engine::{CpuEngine, Engine};
use libjrs::model::GeneratorWeights;

/// Names the case in a process of its own, because an allocator keeps some of what is freed.
const CASE: &str = "JRS_MEMORY_CASE";

#[test]
fn the_process_grows_by_what_the_engine_says() {
    if let Ok(case) = std::env::var(CASE) {
        return grow(&case);
    }
    for case in ["60 60 60 1", "60 60 60 2", "76 60 120 2"] {
        let mut own = Command::new(std::env::current_exe().unwrap());
        let status = own.env(CASE, case).arg("--nocapture").status().unwrap();
        assert!(status.success(), "{case}");
    }
}

/// Runs two tiles of a size on so many threads.
fn grow(case: &str) {
    let numbers: Vec<usize> = case.split(' ').map(|n| n.parse().unwrap()).collect();
    let size = [numbers[0], numbers[1], numbers[2]];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(numbers[3]).build().unwrap();
    let image = vec![0.5; size.iter().product()];
    pool.install(|| {
        let weights = GeneratorWeights::random(1);
        let before = status("VmRSS:");
        let engine = CpuEngine::new(&weights);
        let mut u = Default::default();
        for _ in 0..2 {
            engine.displacement(&image, &image, size, &mut u).unwrap();
        }
        let (said, grown) = (engine.bytes(size) as f64, status("VmHWM:") - before);
        println!("{case}: said / grown = {:.2}, {said} bytes", said / grown);
        assert!((said / grown - 1.0).abs() < 0.15, "{case}: {said} and {grown} bytes");
    });
}

/// A line of /proc/self/status, bytes.
fn status(key: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    1024.0 * line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
}
