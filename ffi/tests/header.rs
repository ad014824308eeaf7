//! `include/jrs.h` is what cbindgen makes of the source, and compiles strictly as C99 and C++11.

use std::path::{Path, PathBuf};
use std::process::Command;

mod support;

/// In the order of the header.
const MODULES: [&str; 11] = [
    "version", "status", "volume", "contours", "model", "session", "cancel", "limits", "register", "result",
    "qa",
];

fn source(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let config = cbindgen::Config::from_file(source("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for module in MODULES.iter().chain(&["write"]) {
        builder = builder.with_src(source(&format!("src/{module}.rs")));
    }
    let mut generated = Vec::new();
    builder.generate().unwrap().write(&mut generated);
    let generated = String::from_utf8(generated).unwrap();
    let path = source("include/jrs.h");
    if std::env::var_os("JRS_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == generated,
        "include/jrs.h is stale: run JRS_BLESS=1 cargo test -p jrs-ffi --test header"
    );
}

#[test]
fn headers_are_c99_and_cpp11() {
    let folder = tempfile::tempdir().unwrap();
    for (compiler, standard, name, header) in [
        ("cc", "-std=c99", "only_header.c", "jrs.h"),
        ("c++", "-std=c++11", "only_header.cpp", "jrs.h"),
        ("c++", "-std=c++11", "only_raii.cpp", "jrs.hpp"),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, format!("#include <{header}>\nint main(void) {{ return 0; }}\n")).unwrap();
        let mut compile = Command::new(compiler);
        compile.args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"]);
        if let Some(output) = support::output(compile.arg(source("include")).arg(file)) {
            support::must_succeed(&output);
        }
    }
}
