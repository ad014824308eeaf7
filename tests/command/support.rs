//! Running the binary, and a tiny cohort that all tests share.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Voxels of the tiny cache, mm.
pub const SPACING: &str = "6";

/// The command, ready for arguments.
pub fn jrs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jrs"));
    command.env_remove("RUST_LOG");
    command
}

/// Runs `jrs` with `arguments`, which must succeed, and returns its standard output.
pub fn run<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    let output = jrs().args(arguments).output().expect("the binary starts");
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

/// The last line of `stdout` as JSON.
pub fn last_json(stdout: &str) -> serde_json::Value {
    let line = stdout.lines().last().expect("something was printed");
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

/// Both streams, for messages of failed tests.
pub fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// An empty folder of this name for one test.
pub fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("command").join(name);
    match std::fs::remove_dir_all(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{}: {e}", path.display()),
        _ => std::fs::create_dir_all(&path).expect("the target folder can be written"),
    }
    path
}

/// Names of all files below `path`, sorted.
pub fn files_below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("the folder can be listed").path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect();
    files.sort();
    files
}

/// The bytes of a file.
pub fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// What most tests start from.
pub struct Tiny {
    /// Cohort of `jrs phantom --preset tiny`.
    pub cohort: PathBuf,
    /// Its prepared cache.
    pub cache: PathBuf,
    /// A model that was trained for one iteration.
    pub model: PathBuf,
}

impl Tiny {
    /// A file of the first pair's planning scan (`s0`) or repeat scan (`s1`).
    pub fn scan(&self, scan: &str, file: &str) -> PathBuf {
        self.cohort.join("p01").join(scan).join(file)
    }
}

/// The shared cohort, made once per run of the tests.
pub fn tiny() -> &'static Tiny {
    static TINY: OnceLock<Tiny> = OnceLock::new();
    TINY.get_or_init(|| {
        let root = folder("tiny");
        let [cohort, cache, config, runs] =
            ["cohort", "cache", "run.toml", "runs"].map(|name| root.join(name));
        run(&["phantom", "--preset", "tiny", "--out", text(&cohort)]);
        run(&["prepare", "--data", text(&cohort), "--out", text(&cache), "--spacing", SPACING]);
        let settings = "system = \"JRS-CNN\"\niterations = 1\nsampling = { patch = 44, batch = 1 }\n\
                        validation = { every = 0 }\n";
        std::fs::write(&config, settings).unwrap();
        run(&["train", "--config", text(&config), "--data", text(&cache), "--out", text(&runs)]);
        Tiny { cohort, cache, model: runs.join("runs/default/model.safetensors") }
    })
}
