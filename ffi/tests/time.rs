//! The estimate of time against the time. A program of its own: tests beside it would make the machine busier for one of the
//! two than for the other.

use std::ptr::{null, null_mut};
use std::time::Instant;

use jrs::model::{jrs_model, jrs_model_free};
use jrs::register::*;
use jrs::result::jrs_result_free;
use jrs::session::{jrs_session, jrs_session_free};
use jrs::status::JRS_OK;
use libjrs::engine::{Precision, on_cpu};

mod support;
use support::{handle, input, last_error, scan, session, volume};

/// How far apart the two may be: what is promised is a rough figure.
const FACTOR: f64 = 3.0;
/// How often a case may be tried: machines that run tests are shared, and other work may begin between estimate and call. An
/// estimate that is wrong by itself is wrong every time.
const TRIES: usize = 3;

fn estimated(session: *mut jrs_session, model: *const jrs_model, given: &jrs_register_input) -> f64 {
    // SAFETY: zero is valid for a struct of numbers, and the size is set.
    let mut found: jrs_estimate_result = unsafe { std::mem::zeroed() };
    found.struct_size = size_of::<jrs_estimate_result>();
    // SAFETY: handles are live.
    assert_eq!(unsafe { jrs_estimate(session, model, given, &mut found) }, JRS_OK, "{}", last_error());
    found.seconds
}

fn measured(session: *mut jrs_session, model: *const jrs_model, given: &jrs_register_input) -> f64 {
    let (clock, mut result) = (Instant::now(), null_mut());
    // SAFETY: handles are live, and the result is freed once.
    unsafe {
        assert_eq!(jrs_register(session, model, given, null(), &mut result), JRS_OK, "{}", last_error());
        jrs_result_free(result);
    }
    clock.elapsed().as_secs_f64()
}

/// What tiles of 60 voxels per edge take.
fn tile_bytes() -> u64 {
    on_cpu(&support::model().generator, Precision::F32).unwrap().bytes([60; 3]) as u64
}

/// Where the network, refinement, alignment or none of them decides; from what the session measures for it, and from what it
/// learned of the registration before.
#[test]
fn time_is_about_what_was_estimated() {
    let [large, small] = [[80, 70, 60], [44, 40, 38]].map(|size| [scan(size, 2.0), scan(size, 0.0)]);
    let model = handle();
    type Change = fn(&mut jrs_register_input);
    let cases: [(&str, bool, &[_; 2], Change); 5] = [
        ("the network", true, &large, |_| {}),
        ("small tiles", true, &small, |i| (i.max_tile_bytes, i.both_directions) = (tile_bytes(), 0)),
        ("refinement", false, &small, |i| (i.refine_steps, i.refine_spacing_mm) = (60, 1.25)),
        ("network and refinement", true, &small, |i| (i.refine_steps, i.refine_spacing_mm) = (20, 2.5)),
        ("alignment", true, &small, |i| i.prealign_mode = JRS_PREALIGN_RIGID),
    ];
    for (name, with_model, [fixed, moving], change) in cases {
        let model = if with_model { model } else { null_mut() };
        let (f, m) = (volume(fixed), volume(moving));
        let mut given = input(&f, &m);
        change(&mut given);
        let is_near = || {
            let session = session(|_| {});
            let near = ["measured for it", "learned"].map(|how| {
                let (before, time) = (estimated(session, model, &given), measured(session, model, &given));
                eprintln!("{name}, {how}: {before:.2} s estimated, {time:.2} s taken");
                (1.0 / FACTOR..=FACTOR).contains(&(before / time))
            });
            // SAFETY: freed once.
            unsafe { jrs_session_free(session) };
            near == [true; 2]
        };
        assert!((0..TRIES).any(|_| is_near()), "{name}: never within a factor of {FACTOR}");
    }
    // SAFETY: freed once.
    unsafe { jrs_model_free(model) };
}
