//! Gives the shared library its soname: programs linked against 0.x find `libjrs.so.0`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libjrs.so.0");
    }
}
