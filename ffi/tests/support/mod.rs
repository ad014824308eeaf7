//! What the tests of the C interface share: other programs, a small model and a small pair of scans.
#![allow(dead_code)] // every test crate uses a part

use std::ffi::CStr;
use std::path::PathBuf;
use std::process::{Command, Output};

use jrs::model::{jrs_model, jrs_model_load_memory};
use jrs::register::{jrs_register_input, jrs_register_input_init};
use jrs::session::{jrs_session, jrs_session_create, jrs_session_options, jrs_session_options_init};
use jrs::status::{JRS_OK, jrs_last_error};
use jrs::volume::{JRS_FLOAT32, jrs_volume, jrs_volume_init};
use libjrs::model::{GeneratorWeights, Model, Provenance};
use libjrs::{Grid, Volume};

/// The output of a program, or `None` (said loudly) where it is not installed.
pub fn output(command: &mut Command) -> Option<Output> {
    match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: {} is not installed", command.get_program().to_string_lossy());
            None
        }
        output => Some(output.unwrap()),
    }
}

/// Fails with what the program said.
pub fn must_succeed(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&text));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// libjrs.so lies beside the test's own executable or one folder up, depending on cargo's mood.
pub fn shared_library() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let folders = here.ancestors().skip(1).take(2);
    let mut found: Vec<PathBuf> = folders.map(|f| f.join("libjrs.so")).filter(|p| p.is_file()).collect();
    found.sort_by_key(|p| std::fs::metadata(p).unwrap().modified().unwrap());
    found.pop().expect("cargo builds the cdylib before the tests of its package")
}

/// This thread's message.
pub fn last_error() -> String {
    // SAFETY: the pointer is to this thread's message, which no call replaces while it is copied.
    unsafe { CStr::from_ptr(jrs_last_error()) }.to_string_lossy().into_owned()
}

/// Untrained weights on coarse voxels: quick and not trivial.
pub fn model() -> Model {
    untrained(40.0)
}

/// An untrained model with displacements `times` as long as drawn.
pub fn untrained(times: f32) -> Model {
    let mut weights = GeneratorWeights::random(3);
    let head = weights.layers.last_mut().unwrap();
    head.weight.iter_mut().for_each(|w| *w *= times);
    let training = Provenance { system: "untrained".into(), ..Default::default() };
    let mut model = Model::new(weights, training);
    model.manifest.preprocessing.spacing_mm = 2.5;
    model
}

/// [`model`] through the interface.
pub fn handle() -> *mut jrs_model {
    load(&model())
}

/// A model through the interface.
pub fn load(model: &Model) -> *mut jrs_model {
    let bytes = model.to_bytes();
    let mut handle = std::ptr::null_mut();
    // SAFETY: bytes and handle are ours.
    let code =
        unsafe { jrs_model_load_memory(bytes.as_ptr().cast(), bytes.len(), std::ptr::null(), &mut handle) };
    assert_eq!(code, JRS_OK, "{}", last_error());
    handle
}

/// A session with options changed by `change`.
pub fn session(change: impl FnOnce(&mut jrs_session_options)) -> *mut jrs_session {
    let mut handle = std::ptr::null_mut();
    // SAFETY: the struct is initialised before it is changed, and the handle is ours.
    let code = unsafe {
        let mut options = std::mem::zeroed();
        assert_eq!(jrs_session_options_init(&mut options, size_of::<jrs_session_options>()), JRS_OK);
        change(&mut options);
        jrs_session_create(&options, &mut handle)
    };
    assert_eq!(code, JRS_OK, "{}", last_error());
    handle
}

/// A lumpy body in air, HU, with `shift` mm along x in its middle.
pub fn scan(size: [usize; 3], shift: f64) -> Volume<f32> {
    let mut grid = Grid::axis_aligned(size, [2.5, 2.5, 2.5], [0.0; 3]);
    grid.origin = size.map(|n| -2.5 * (n - 1) as f64 / 2.0);
    let value = |i: usize| {
        let p =
            grid.to_physical([i % size[0], i / size[0] % size[1], i / size[0] / size[1]].map(|v| v as f64));
        let x = p[0] + shift * (-(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]) / 400.0).exp();
        let radius = (p[0].powi(2) + p[1].powi(2) + p[2].powi(2)).sqrt();
        let inside = 1.0 / (1.0 + (radius - 1.1 * size[1] as f64).exp());
        let organs = (x / 4.1).sin() * (p[1] / 4.7 + 0.4).sin() * (p[2] / 5.9 + 1.0).cos();
        (-1000.0 + inside * (1050.0 + 250.0 * organs)) as f32
    };
    let data = (0..grid.len()).map(value).collect();
    Volume::new(grid.clone(), data)
}

/// The scan as the interface takes it; borrows the voxels.
pub fn volume(scan: &Volume<f32>) -> jrs_volume {
    // SAFETY: a struct of numbers and pointers, initialised at once.
    let mut volume: jrs_volume = unsafe { std::mem::zeroed() };
    // SAFETY: valid for its own size.
    assert_eq!(unsafe { jrs_volume_init(&mut volume, size_of::<jrs_volume>()) }, JRS_OK);
    volume.data = scan.data.as_ptr().cast();
    volume.data_bytes = size_of_val(&scan.data[..]) as u64;
    volume.dtype = JRS_FLOAT32;
    volume.dims = scan.grid.size.map(|n| n as u64);
    volume.spacing = scan.grid.spacing;
    volume.origin = scan.grid.origin;
    volume
}

/// An input of two volumes.
pub fn input(fixed: &jrs_volume, moving: &jrs_volume) -> jrs_register_input {
    // SAFETY: a struct of numbers and pointers, initialised at once.
    let mut input: jrs_register_input = unsafe { std::mem::zeroed() };
    // SAFETY: valid for its own size.
    assert_eq!(unsafe { jrs_register_input_init(&mut input, size_of::<jrs_register_input>()) }, JRS_OK);
    (input.fixed, input.moving) = (fixed, moving);
    input
}
