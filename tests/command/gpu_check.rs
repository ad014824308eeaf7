//! `scripts/gpu-check`: its logic with a program that plays `jrs`, and all of it on the runtime that needs no GPU.

use super::support::{folder, jrs, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn gpu_check(program: &Path, state: &Path, more: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/gpu-check");
    let mut command = Command::new("python3");
    command.arg("-B").arg(script).args(["--device", "cube-cpu", "--jrs"]).arg(program);
    command.arg("--state").arg(state).args(more).output().expect("python3 starts")
}

fn python_is_missing() -> bool {
    let missing = Command::new("python3").arg("--version").output().is_err();
    if missing {
        eprintln!("SKIPPED: no python3, scripts/gpu-check cannot run");
    }
    missing
}

/// A `jrs` that only says `words`.
fn stand_in(folder: &Path, words: &str) -> PathBuf {
    let program = folder.join("jrs");
    fs::write(&program, format!("#!/bin/sh\necho '{words}'\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn results_are_kept_and_what_is_missing_is_made() {
    if python_is_missing() {
        return;
    }
    let folder = folder("gpu-check-results");
    let state = folder.join("state");
    let result = |check: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(state.join(format!("{check}.json"))).unwrap()).unwrap()
    };
    // No answer that a check can use is a failure that says so, and the next check runs all the same.
    let mute = stand_in(&folder, "nothing");
    let output = gpu_check(&mute, &state, &["--only", "registration,step"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(result("registration")["why"].as_str().unwrap().contains("printed no JSON"));
    assert_eq!(result("step")["status"], "failed");
    // What failed is made again; what passed is not.
    let sound = stand_in(&folder, r#"{"seconds": {"median": 0.5}}"#);
    let output = gpu_check(&sound, &state, &["--only", "registration", "--python", "/bin/false"]);
    assert_eq!(output.status.code(), Some(1), "PyTorch's side failed: {output:?}");
    let python = folder.join("python");
    fs::write(&python, "#!/bin/sh\necho \"No module named 'torch'\" >&2\nexit 1\n").unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let without_torch = ["--only", "registration", "--python", text(&python)];
    let output = gpu_check(&sound, &state, &without_torch);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(result("registration")["figures"]["jrs_seconds"], 0.5);
    let made = fs::read(state.join("registration.json")).unwrap();
    gpu_check(&stand_in(&folder, "nothing"), &state, &without_torch);
    assert_eq!(fs::read(state.join("registration.json")).unwrap(), made);
    // Nothing begins behind the budget; what is missing is told by the exit code.
    let output = gpu_check(&sound, &state, &["--only", "busy", "--budget", "0"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(!state.join("busy.json").exists());
    let summary = fs::read_to_string(state.join("summary.md")).unwrap();
    for part in ["device `cube-cpu`", "| registration | passed", "| step | failed: jrs bench printed no JSON"]
    {
        assert!(summary.contains(part), "{part} is not in\n{summary}");
    }
    let output = gpu_check(&sound, &state, &["--only", "everything"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no check 'everything'"));
}

#[test]
fn every_check_runs_where_there_is_no_gpu() {
    let folder = folder("gpu-check");
    let output = jrs().args(["bench", "generator", "--size", "44", "--device", "cube-cpu"]).output().unwrap();
    if !output.status.success() {
        eprintln!("SKIPPED: this jrs cannot compute on cube-cpu: build it with --features cube-cpu");
        return;
    }
    if python_is_missing() {
        return;
    }
    let state = folder.join("state");
    let checks = "field,training,resume,collective,registration,busy";
    let output = gpu_check(Path::new(env!("CARGO_BIN_EXE_jrs")), &state, &["--only", checks]);
    let summary = fs::read_to_string(state.join("summary.md")).unwrap();
    assert_eq!(output.status.code(), Some(0), "{summary}\n{}", String::from_utf8_lossy(&output.stdout));
}
