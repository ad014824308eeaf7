//! The shared library as a linker and a package maintainer see it.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

mod support;
use support::{must_succeed, output, shared_library};

/// All that the library may need at run time. The loader itself is among them because Rust's standard library, which comes
/// compiled, asks it for thread-local variables (`__tls_get_addr`); no stable option changes that.
const NEEDED: [&str; 4] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
/// Largest stripped release, bytes: a warning that something large has been linked in.
const LARGEST: u64 = 5 << 20;

/// The release build that CI installed, if it did.
fn release() -> Option<PathBuf> {
    let prefix = std::env::var_os("JRS_PREFIX").map(PathBuf::from);
    if prefix.is_none() {
        eprintln!("SKIPPED: JRS_PREFIX names no installed release (ffi/install.sh PREFIX)");
    }
    prefix
}

fn exported(library: &Path) -> Option<Vec<String>> {
    let said = output(Command::new("nm").args(["-D", "--defined-only"]).arg(library))?;
    let mut symbols: Vec<String> =
        must_succeed(&said).lines().filter_map(|l| l.split(' ').next_back().map(str::to_owned)).collect();
    symbols.sort();
    Some(symbols)
}

fn dynamic(library: &Path, tag: &str) -> Option<Vec<String>> {
    let said = output(Command::new("readelf").args(["-d", "-W"]).arg(library))?;
    let values = must_succeed(&said);
    let inside = |l: &str| Some(l.split_once('[')?.1.split_once(']')?.0.to_owned());
    Some(values.lines().filter(|l| l.contains(tag)).filter_map(inside).collect())
}

fn check_dynamic(library: &Path) {
    let Some(soname) = dynamic(library, "(SONAME)") else { return };
    assert_eq!(soname, ["libjrs.so.0"]);
    let needed = dynamic(library, "(NEEDED)").unwrap();
    println!("needs {needed:?}");
    assert!(needed.iter().all(|n| NEEDED.contains(&n.as_str())), "{needed:?}");
}

#[test]
fn exports_the_listed_symbols_and_no_other() {
    let Some(mut symbols) = exported(&shared_library()) else { return };
    if cfg!(debug_assertions) {
        symbols.retain(|s| s != "jrs_debug_panic");
    }
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exported_symbols.txt");
    if std::env::var_os("JRS_BLESS").is_some() {
        std::fs::write(&list, symbols.join("\n") + "\n").unwrap();
    }
    let listed = std::fs::read_to_string(list).unwrap();
    assert_eq!(symbols, listed.lines().collect::<Vec<_>>());
    assert!(symbols.iter().all(|s| s.starts_with("jrs_")));
}

#[test]
fn soname_and_needed() {
    check_dynamic(&shared_library());
}

#[test]
fn the_release_is_small_tight_and_says_nothing_of_its_birth() {
    let Some(prefix) = release() else { return };
    let library = prefix.join("lib/libjrs.so");
    check_dynamic(&library);
    let Some(symbols) = exported(&library) else { return };
    assert_eq!(symbols, include_str!("exported_symbols.txt").lines().collect::<Vec<_>>());
    let bytes = std::fs::read(&library).unwrap();
    println!("the stripped release has {} bytes", bytes.len());
    assert!((bytes.len() as u64) < LARGEST, "{} bytes", bytes.len());
    let home = std::env::var("HOME").unwrap_or_default();
    for place in [env!("CARGO_MANIFEST_DIR"), &format!("{home}/.cargo")] {
        assert!(!bytes.windows(place.len()).any(|w| w == place.as_bytes()), "{place} is in the library");
    }
    for file in
        ["SOUP.md", "sbom.cdx.json", "integrators.md", "licences/LICENSE-MIT", "examples/c/register.c"]
    {
        assert!(prefix.join("share/jrs").join(file).is_file(), "{file}");
    }
}

/// `abidiff` against the committed description of the interface. `JRS_BLESS=1` writes that anew.
///
/// What is compared is the header's interface as a C compiler sees it: a library of empty functions with its
/// prototypes, and its constants as an enumeration. Another test holds the header against the source; and the real library's debug
/// information would also describe what is behind the handles, which may change.
#[test]
fn the_binary_interface_is_the_baselines() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let baseline = here.join("tests/abi_baseline.xml");
    let folder = tempfile::tempdir().unwrap();
    let header = std::fs::read_to_string(here.join("include/jrs.h")).unwrap();
    assert_eq!(prototypes(&header).len(), include_str!("exported_symbols.txt").lines().count());
    let Some(library) = interface(&header, folder.path()) else { return };
    if std::env::var_os("JRS_BLESS").is_some() {
        let mut describe = Command::new("abidw");
        describe.args(["--no-corpus-path", "--no-comp-dir-path", "--no-show-locs", "--out-file"]);
        let Some(said) = output(describe.arg(&baseline).arg(&library)) else { return };
        must_succeed(&said);
    }
    let compare = |library: &Path| {
        let mut compare = Command::new("abidiff");
        // An enumerator more counts as harmless, and is said all the same.
        compare.args(["--no-added-syms", "--fail-no-debug-info", "--harmless"]);
        output(compare.arg(&baseline).arg(library))
    };
    let Some(said) = compare(&library) else { return };
    must_succeed(&said);

    // The gate itself: what must not pass does not.
    for (what, from, to) in [
        ("a field of another type", "uint32_t threads;", "uint64_t threads;"),
        ("a field more", "uint32_t threads;", "uint32_t threads; uint32_t more;"),
        (
            "a constant more",
            "#define JRS_E_CANCELLED 700",
            "#define JRS_E_CANCELLED 700\n#define JRS_E_MORE 701",
        ),
        ("another value", "#define JRS_E_CANCELLED 700", "#define JRS_E_CANCELLED 701"),
        ("a function less", "const char *jrs_version_string(void);", ""),
        ("another result", "int32_t jrs_session_create(", "int64_t jrs_session_create("),
    ] {
        assert!(header.contains(from), "{from}");
        let library = interface(&header.replace(from, to), folder.path()).unwrap();
        let said = compare(&library).unwrap();
        // Bit 2: the interface has changed; bits 0 and 1: abidiff could not tell.
        assert_eq!(said.status.code().map(|code| code & 7), Some(4), "{what} is not noticed");
    }
}

/// A library of nothing but a header's interface, with debug information.
fn interface(header: &str, folder: &Path) -> Option<PathBuf> {
    let library = folder.join("libjrs.so");
    std::fs::write(folder.join("jrs.h"), header).unwrap();
    let bodies: Vec<String> =
        prototypes(header).iter().map(|f| format!("{f} {{ __builtin_trap(); }}")).collect();
    let constants: Vec<String> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define ")?.split_once(' '))
        .map(|(name, _)| format!("is_{name} = {name}"))
        .collect();
    let constants = format!(
        "enum jrs_constants {{ {} }};\nvoid constants(enum jrs_constants any);\nvoid constants(enum jrs_constants any) \
         {{ (void)any; }}",
        constants.join(", ")
    );
    std::fs::write(
        folder.join("interface.c"),
        format!("#include <jrs.h>\n{}\n{constants}\n", bodies.join("\n")),
    )
    .unwrap();
    let mut compile = Command::new("cc");
    compile.args([
        "-g",
        "-gno-record-gcc-switches",
        "-fPIC",
        "-shared",
        "-Wl,-soname,libjrs.so.0",
        "-I.",
        "interface.c",
    ]);
    // Names relative to the folder: the description has them.
    must_succeed(&output(compile.current_dir(folder).arg("-o").arg(&library))?);
    Some(library)
}

/// The function declarations of a header.
fn prototypes(header: &str) -> Vec<String> {
    let is_code = |line: &&str| !line.starts_with("//") && !line.starts_with('#');
    let code = header.split_once("*/").unwrap().1.lines().filter(is_code).collect::<Vec<_>>().join(" ");
    let declared =
        code.split(';').map(|statement| statement.split_whitespace().collect::<Vec<_>>().join(" "));
    let is_function =
        |text: &String| text.contains("jrs_") && text.ends_with(')') && !text.contains("typedef");
    let plain = |text: String| {
        text.rsplit('}').next().unwrap().trim().trim_start_matches("extern \"C\" {").trim().to_owned()
    };
    declared.map(plain).filter(is_function).collect()
}
