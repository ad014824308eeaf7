//! The shared library as a host sees it: symbols, soname, and a client in C built with the system's compiler.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use libjrs::model::{GeneratorWeights, Model, Provenance};

/// libjrs.so lies beside the test's own executable or one folder up, depending on cargo's mood.
fn shared_library() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let folders = here.ancestors().skip(1).take(2);
    let mut found: Vec<PathBuf> = folders.map(|f| f.join("libjrs.so")).filter(|p| p.is_file()).collect();
    found.sort_by_key(|p| std::fs::metadata(p).unwrap().modified().unwrap());
    found.pop().expect("cargo builds the cdylib before the tests of its package")
}

/// The output of a program, or `None` (said loudly) where it is not installed.
fn run(program: &str, command: &mut Command) -> Option<Output> {
    match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: {program} is not installed");
            None
        }
        output => Some(output.unwrap()),
    }
}

fn must_succeed(output: &Output) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&text));
}

#[test]
#[cfg(target_os = "linux")]
fn exports_the_listed_symbols_and_no_other() {
    let Some(output) = run("nm", Command::new("nm").args(["-D", "--defined-only"]).arg(shared_library()))
    else {
        return;
    };
    must_succeed(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut symbols: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next_back()).collect();
    symbols.sort();
    let listed: Vec<&str> = include_str!("exported_symbols.txt").lines().collect();
    assert_eq!(symbols, listed);
}

#[test]
#[cfg(target_os = "linux")]
fn soname_carries_the_abi_version() {
    let Some(output) = run("readelf", Command::new("readelf").arg("-d").arg(shared_library())) else {
        return;
    };
    must_succeed(&output);
    assert!(String::from_utf8(output.stdout).unwrap().contains("soname: [libjrs.so.0]"));
}

#[test]
fn header_is_c99_and_cpp11() {
    let folder = tempfile::tempdir().unwrap();
    for (compiler, standard, name) in
        [("cc", "-std=c99", "only_header.c"), ("c++", "-std=c++11", "only_header.cpp")]
    {
        let source = folder.path().join(name);
        std::fs::write(&source, "#include <jrs.h>\n").unwrap();
        if let Some(output) = run(compiler, strict(compiler, standard).arg("-fsyntax-only").arg(source)) {
            must_succeed(&output);
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn c_client_loads_describes_and_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.safetensors");
    let training = Provenance { system: "untrained".into(), ..Provenance::default() };
    Model::new(GeneratorWeights::random(1), training).save(&model).unwrap();
    for name in ["libjrs.so", "libjrs.so.0"] {
        std::os::unix::fs::symlink(shared_library(), folder.path().join(name)).unwrap();
    }

    let client = folder.path().join("client");
    let mut compile = strict("cc", "-std=c99");
    compile.arg(source("tests/client.c")).arg("-o").arg(&client);
    compile.arg("-L").arg(folder.path()).arg("-ljrs");
    let Some(output) = run("cc", &mut compile) else { return };
    must_succeed(&output);

    let output = Command::new(&client).arg(&model).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    must_succeed(&output);
    assert!(output.stderr.is_empty(), "the library wrote to the host's stderr");
    let manifest: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(manifest["training"]["system"], "untrained");
    assert_eq!(manifest["network"]["name"], libjrs::model::NETWORK);
}

fn strict(compiler: &str, standard: &str) -> Command {
    let mut command = Command::new(compiler);
    command.args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]).arg(source("include"));
    command
}

fn source(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}
