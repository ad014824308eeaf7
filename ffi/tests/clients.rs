//! Programs in C, C++, Python and C#, built from an installed prefix: the examples, which must give what `jrs register`
//! gives, byte for byte; and what valgrind, AddressSanitizer and an injected panic make of them.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libjrs::contour::trace;
use libjrs::engine::{Compute, Precision};
use libjrs::model::Model;
use libjrs::nifti::{read_image, read_labels};
use libjrs::{Grid, Volume};

mod support;
use support::{must_succeed, output, shared_library};

/// Files of `jrs register` that a client writes too.
const COMPARED: [&str; 6] =
    ["dvf.mha", "dvf.nii.gz", "dvf-ants.nii.gz", "warped.nii.gz", "labels.nii.gz", "qa.json"];
const STRICT: [&str; 5] = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// A prefix and a pair of scans, made once.
struct Ground {
    prefix: PathBuf,
    model: PathBuf,
    /// Raw volumes and contours, as the examples read them.
    pair: PathBuf,
    /// What `jrs register` made of it.
    expected: PathBuf,
}

fn here(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn temporary(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The `jrs` command beside the tests: `cargo test --workspace` builds it before any test runs.
fn command() -> Option<PathBuf> {
    let here = std::env::current_exe().unwrap();
    let found = here.ancestors().map(|f| f.join("jrs")).find(|p| p.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: the jrs command is not built (cargo build -p jrs)");
    }
    found
}

/// `None`, said loudly, where something is missing.
fn ground() -> Option<&'static Ground> {
    static GROUND: OnceLock<Option<Ground>> = OnceLock::new();
    GROUND.get_or_init(make_ground).as_ref()
}

fn make_ground() -> Option<Ground> {
    let jrs = command()?;
    let prefix = temporary("prefix");
    let mut install = Command::new(here("install.sh"));
    install.arg(&prefix).arg("--from").arg(shared_library().parent().unwrap());
    must_succeed(&output(&mut install)?);

    let root = temporary("pair");
    let (cohort, pair, expected) = (root.join("cohort"), root.join("raw"), root.join("jrs"));
    must_succeed(&output(Command::new(&jrs).args(["phantom", "--preset", "tiny", "--out"]).arg(&cohort))?);
    std::fs::create_dir(&pair).unwrap();
    let file = |scan: &str, name: &str| cohort.join("p01").join(scan).join(name);
    let [fixed, moving] = ["s1", "s0"].map(|scan| file(scan, "ct.nii.gz"));
    let labels = file("s0", "labels.nii.gz");
    write_scan(&pair, "fixed", &read_image(&fixed).unwrap());
    write_scan(&pair, "moving", &read_image(&moving).unwrap());
    let organs = read_labels(&labels).unwrap();
    std::fs::write(pair.join("labels.raw"), &organs.data).unwrap();
    write_contours(&pair, &organs);

    let model = root.join("model.safetensors");
    let mut coarse: Model = support::model();
    coarse.manifest.preprocessing.spacing_mm = 6.0;
    coarse.save(&model).unwrap();
    let mut register = Command::new(&jrs);
    register
        .arg("register")
        .arg("--model")
        .arg(&model)
        .arg("--fixed")
        .arg(&fixed)
        .arg("--moving")
        .arg(&moving);
    must_succeed(&output(register.arg("--labels").arg(&labels).arg("--out").arg(&expected))?);
    Some(Ground { prefix, model, pair, expected })
}

fn write_scan(folder: &Path, name: &str, scan: &Volume<f32>) {
    let bytes: Vec<u8> = scan.data.iter().flat_map(|&hu| (hu as i16).to_le_bytes()).collect();
    std::fs::write(folder.join(format!("{name}.raw")), bytes).unwrap();
    let Grid { size, spacing, origin, direction } = &scan.grid;
    let numbers = spacing.iter().chain(origin).chain(direction.as_flattened()).map(|v| format!("{v:?}"));
    let words: Vec<String> = size.iter().map(usize::to_string).chain(numbers).collect();
    std::fs::write(folder.join(format!("{name}.txt")), words.join(" ")).unwrap();
}

fn write_contours(folder: &Path, organs: &Volume<u8>) {
    let mut lines = String::new();
    for label in 1..=5u8 {
        for contour in trace(&organs.map(|l| f32::from(u8::from(l == label)))) {
            let points: Vec<String> =
                contour.points.iter().map(|p| format!("{:?} {:?} {:?}", p[0], p[1], p[2])).collect();
            lines += &format!("{label} {} {}\n", points.len(), points.join(" "));
        }
    }
    std::fs::write(folder.join("contours.txt"), lines).unwrap();
}

impl Ground {
    fn libraries(&self) -> PathBuf {
        self.prefix.join("lib")
    }

    /// A command that finds the installed library.
    fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.libraries());
        command
    }

    /// Model, pair and an empty folder for the results.
    fn arguments(&self, name: &str) -> [PathBuf; 3] {
        [self.model.clone(), self.pair.clone(), temporary(name)]
    }

    fn compare(&self, out: &Path) {
        for name in COMPARED {
            let [theirs, ours] = [out, &self.expected].map(|f| std::fs::read(f.join(name)).unwrap());
            assert!(theirs == ours, "{name} is not that of jrs register");
        }
    }

    /// A program in C99 that uses the installed library by pkg-config.
    fn compile(&self, source: &Path, name: &str, more: &[&str]) -> Option<PathBuf> {
        let mut ask = Command::new("pkg-config");
        ask.env("PKG_CONFIG_PATH", self.libraries().join("pkgconfig")).args(["--cflags", "--libs", "jrs"]);
        let flags = must_succeed(&output(&mut ask)?);
        let program = temporary(name).join("client");
        let mut compile = Command::new("cc");
        compile
            .args(STRICT)
            .args(more)
            .arg(source)
            .arg("-o")
            .arg(&program)
            .args(flags.split_whitespace())
            .arg("-lm");
        must_succeed(&output(&mut compile)?);
        Some(program)
    }
}

#[test]
fn c_by_pkg_config() {
    let Some(ground) = ground() else { return };
    let Some(client) = ground.compile(&here("examples/c/register.c"), "c-build", &["-O1"]) else { return };
    let arguments = ground.arguments("c");
    let said = output(ground.run(client).args(&arguments)).unwrap();
    assert!(said.stderr.is_empty(), "the library wrote to the host's stderr");
    println!("{}", must_succeed(&said));
    ground.compare(&arguments[2]);
    let contours = std::fs::read_to_string(arguments[2].join("contours.txt")).unwrap();
    let labels: std::collections::BTreeSet<&str> =
        contours.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(labels.len(), 5, "every organ was carried over");
}

#[test]
fn c_with_the_static_library() {
    let Some(ground) = ground() else { return };
    let mut ask = Command::new("pkg-config");
    ask.env("PKG_CONFIG_PATH", ground.libraries().join("pkgconfig")).args([
        "--static",
        "--libs-only-l",
        "jrs",
    ]);
    let Some(said) = output(&mut ask) else { return };
    let flags = must_succeed(&said).replace("-ljrs", "-l:libjrs.a");
    let program = temporary("c-static").join("client");
    let mut compile = Command::new("cc");
    compile.args(STRICT).arg(here("examples/c/register.c")).arg("-o").arg(&program);
    compile.arg("-I").arg(ground.prefix.join("include")).arg("-L").arg(ground.libraries());
    let Some(said) = output(compile.args(flags.split_whitespace())) else { return };
    must_succeed(&said);
    let arguments = ground.arguments("static");
    must_succeed(&output(Command::new(program).args(&arguments)).unwrap());
    ground.compare(&arguments[2]);
}

#[test]
fn cpp_by_cmake() {
    let Some(ground) = ground() else { return };
    let build = temporary("cpp-build");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(ground.prefix.join("share/jrs/examples/cpp")).arg("-B").arg(&build);
    configure.arg(format!("-DCMAKE_PREFIX_PATH={}", ground.prefix.display()));
    let Some(said) = output(&mut configure) else { return };
    must_succeed(&said);
    must_succeed(&output(Command::new("cmake").arg("--build").arg(&build)).unwrap());
    let arguments = ground.arguments("cpp");
    let said = must_succeed(&output(ground.run(build.join("register")).args(&arguments)).unwrap());
    assert!(said.contains("the operator changed her mind"), "{said}");
    ground.compare(&arguments[2]);
}

/// A Python with NumPy.
fn python() -> Option<String> {
    let python = std::env::var("JRS_PYTHON").unwrap_or_else(|_| "python3".into());
    let said = output(Command::new(&python).args(["-c", "import numpy"]))?;
    if !said.status.success() {
        eprintln!("SKIPPED: {python} has no NumPy (JRS_PYTHON names the Python to use)");
        return None;
    }
    Some(python)
}

#[test]
fn python_without_copies() {
    let (Some(ground), Some(python)) = (ground(), python()) else { return };
    let arguments = ground.arguments("python");
    let examples = ground.prefix.join("share/jrs/examples/python");
    println!(
        "{}",
        must_succeed(
            &output(ground.run(&python).arg(examples.join("register.py")).args(&arguments)).unwrap()
        )
    );
    ground.compare(&arguments[2]);
    let mut panic = ground.run(&python);
    panic.env("PYTHONPATH", &examples).arg(here("tests/clients/panic.py"));
    must_succeed(&output(&mut panic).unwrap());
}

#[test]
fn csharp_on_mono() {
    let Some(ground) = ground() else { return };
    let examples = ground.prefix.join("share/jrs/examples/csharp");
    for (source, arguments) in [
        (examples.join("Register.cs"), Some(ground.arguments("csharp"))),
        (here("tests/clients/Panic.cs"), None),
    ] {
        let program = temporary("csharp-build").join("client.exe");
        let mut compile = Command::new("mcs");
        compile
            .arg("-warnaserror")
            .arg(format!("-out:{}", program.display()))
            .arg(examples.join("Jrs.cs"))
            .arg(source);
        let Some(said) = output(&mut compile) else { return };
        must_succeed(&said);
        let Some(said) = output(ground.run("mono").arg(program).args(arguments.iter().flatten())) else {
            return;
        };
        println!("{}", must_succeed(&said));
        if let Some([.., out]) = &arguments {
            ground.compare(out);
        }
    }
}

#[test]
fn a_panic_is_a_status_code_in_c() {
    let Some(ground) = ground() else { return };
    let Some(client) = ground.compile(&here("tests/clients/panic.c"), "panic", &[]) else { return };
    let said = output(&mut ground.run(client)).unwrap();
    must_succeed(&said);
    assert!(said.stderr.is_empty(), "the panic's text belongs into the log");
}

/// "1" if this processor can do what a client asks for.
fn has_matrix_unit() -> &'static str {
    let compute = Compute { precision: Precision::Bf16, ..Default::default() };
    if compute.check().is_ok() { "1" } else { "0" }
}

#[test]
fn bf16_without_a_matrix_unit_is_a_status_code_in_c() {
    let Some(ground) = ground() else { return };
    let Some(client) = ground.compile(&here("tests/clients/unsupported.c"), "unsupported", &[]) else {
        return;
    };
    let said = output(ground.run(client).arg(has_matrix_unit())).unwrap();
    must_succeed(&said);
    assert!(said.stderr.is_empty(), "the library wrote to the host's stderr");
}

#[test]
fn bf16_without_a_matrix_unit_is_an_exception_in_python() {
    let (Some(ground), Some(python)) = (ground(), python()) else { return };
    let mut run = ground.run(&python);
    run.env("PYTHONPATH", ground.prefix.join("share/jrs/examples/python"));
    must_succeed(&output(run.arg(here("tests/clients/unsupported.py")).arg(has_matrix_unit())).unwrap());
}

#[test]
fn address_sanitizer_finds_nothing() {
    let Some(ground) = ground() else { return };
    let flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let Some(client) = ground.compile(&here("examples/c/register.c"), "asan-build", &flags) else { return };
    let arguments = ground.arguments("asan");
    must_succeed(&output(ground.run(client).args(&arguments)).unwrap());
    ground.compare(&arguments[2]);
}

#[test]
fn valgrind_finds_nothing() {
    let Some(ground) = ground() else { return };
    let Some(client) = ground.compile(&here("examples/c/register.c"), "valgrind-build", &["-g"]) else {
        return;
    };
    // Everything takes fifty times as long there: a pair that is just large enough to be aligned.
    let root = temporary("small-pair");
    let (fixed, moving) = (support::scan([22, 20, 18], 2.0), support::scan([22, 20, 18], 0.0));
    write_scan(&root, "fixed", &fixed);
    write_scan(&root, "moving", &moving);
    let organs = moving.map(|hu| if hu > 60.0 { 5 } else { u8::from(hu > -200.0) });
    std::fs::write(root.join("labels.raw"), &organs.data).unwrap();
    write_contours(&root, &organs);
    let mut run = ground.run("valgrind");
    run.args(["--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"]);
    let Some(said) = output(run.arg(client).arg(&ground.model).arg(root).arg(temporary("valgrind"))) else {
        return;
    };
    must_succeed(&said);
}

#[test]
fn nothing_is_asked_of_the_host() {
    let Some(ground) = ground() else { return };
    let Some(client) = ground.compile(&here("tests/clients/quiet.c"), "quiet-build", &["-O1"]) else {
        return;
    };
    let said = output(ground.run(client).arg(&ground.model)).unwrap();
    assert!(said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
    must_succeed(&said);
}

/// Measured on volumes of some size, so that what a process has besides does not matter.
#[test]
fn memory_is_what_was_estimated() {
    let Some(ground) = ground() else { return };
    let Some(client) = ground.compile(&here("tests/clients/measure.c"), "measure-build", &["-O1"]) else {
        return;
    };
    let measured = |case: &str| {
        let said =
            must_succeed(&output(ground.run(&client).arg(&ground.model).args(case.split(' '))).unwrap());
        let figures: serde_json::Value = serde_json::from_str(&said).unwrap();
        let [peak, estimated] = ["peak_bytes", "estimated_bytes"].map(|key| figures[key].as_f64().unwrap());
        println!("{case}: estimate / peak = {:.2} {said}", estimated / peak);
        estimated / peak
    };
    // Images and fields decide; one direction and both.
    let images = ["240 220 170 1.5 1 2 0 0", "240 220 170 1.5 0 2 0 0"];
    // The network decides: few voxels of 10 mm are many on the model's grid. One thread and two, whole and in tiles.
    let network =
        ["40 40 40 10 0 1 0 0", "60 50 50 10 1 2 0 0", "60 50 50 10 0 2 60000000 0", "20 20 20 10 1 2 0 0"];
    // In between: fields are brought onto the scans' grids while the engine still holds its buffers.
    let both = ["180 160 60 3 1 2 0 0", "180 160 60 3 0 2 0 0"];
    let ratios: Vec<f64> = images.iter().chain(&network).chain(&both).map(|case| measured(case)).collect();
    assert!(ratios.iter().all(|ratio| (ratio - 1.0).abs() < 0.15), "estimates / peaks: {ratios:?}");
}
