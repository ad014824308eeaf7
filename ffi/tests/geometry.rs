//! Geometries that no scan has, through the interface: each is refused as JRS_E_GEOMETRY with a message that names the volume
//! and what is wrong with it, before anything is computed.

use std::ptr::{null, null_mut};

use jrs::model::jrs_model_free;
use jrs::register::{jrs_estimate, jrs_estimate_result, jrs_register, jrs_register_input};
use jrs::session::jrs_session_free;
use jrs::status::{JRS_E_GEOMETRY, JRS_OK};
use jrs::volume::{JRS_UINT8, jrs_volume};

mod support;
use support::{handle, input, last_error, scan, session, volume};

const SIZE: [usize; 3] = [10, 9, 8];
const IDENTITY: [f64; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];

/// Changes to a good volume, and a word of the message.
fn wrong(good: jrs_volume) -> Vec<(jrs_volume, &'static str)> {
    let turned = |direction| jrs_volume { direction, ..good };
    let spaced = |z| jrs_volume { spacing: [2.5, 2.5, z], ..good };
    let scaled = IDENTITY.map(|v| 2.0 * v);
    let mut flat = IDENTITY;
    (flat[6], flat[7], flat[8]) = (1.0, 0.0, 0.0);
    let mut mirrored = IDENTITY;
    mirrored[8] = -1.0;
    let (swapped, mut sheared, mut unknown) =
        ([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], IDENTITY, IDENTITY);
    sheared[1] = 0.1;
    unknown[4] = f64::NAN;
    vec![
        (turned(mirrored), "left-handed"),
        (turned(swapped), "left-handed"),
        (turned(sheared), "orthonormal"),
        (turned(scaled), "orthonormal"),
        (turned(flat), "orthonormal"),
        (turned([0.0; 9]), "orthonormal"),
        (turned(unknown), "direction"),
        (spaced(0.0), "spacing"),
        (spaced(-2.5), "spacing"),
        (spaced(f64::NAN), "spacing"),
        (spaced(f64::INFINITY), "spacing"),
        (spaced(1e4), "spacing"),
        (jrs_volume { origin: [0.0, f64::NAN, 0.0], ..good }, "origin"),
        (jrs_volume { origin: [1e9, 0.0, 0.0], ..good }, "origin"),
        (jrs_volume { dims: [10, 9, 9], ..good }, "data_bytes"),
        (jrs_volume { dims: [10, 0, 8], ..good }, "voxels"),
        (jrs_volume { dims: [10, 9, 3], ..good }, "voxels"),
    ]
}

#[test]
fn scans_are_refused_with_what_is_wrong_with_them() {
    let (fixed, moving) = (scan(SIZE, 1.0), scan(SIZE, 0.0));
    let (f, m) = (volume(&fixed), volume(&moving));
    let (model, session) = (handle(), session(|_| {}));
    let refused = |given: &jrs_register_input, name: &str, word: &str| {
        let mut result = null_mut();
        // SAFETY: zero is valid for a struct of numbers.
        let mut figures: jrs_estimate_result = unsafe { std::mem::zeroed() };
        figures.struct_size = size_of::<jrs_estimate_result>();
        // SAFETY: live handles; what is wrong in the input is the matter here, and nothing of it is followed out of bounds.
        unsafe {
            assert_eq!(
                jrs_register(session, model, given, null(), &mut result),
                JRS_E_GEOMETRY,
                "{name}: {word}"
            );
            let said = last_error();
            assert!(said.contains(name) && said.contains(word), "{name}, {word}: {said}");
            assert!(result.is_null(), "the result is as before");
            assert_eq!(jrs_estimate(session, model, given, &mut figures), JRS_E_GEOMETRY, "{name}: {word}");
            assert_eq!(figures.host_bytes, 0, "the estimate is as before");
        }
    };
    let good = input(&f, &m);
    for (wrong, word) in wrong(f) {
        refused(&jrs_register_input { fixed: &wrong, ..good }, "fixed", word);
    }
    for (wrong, word) in wrong(m) {
        refused(&jrs_register_input { moving: &wrong, ..good }, "moving", word);
    }
    // SAFETY: freed once each.
    unsafe {
        jrs_session_free(session);
        jrs_model_free(model);
    }
}

/// Labels belong to a scan: the size alone is not enough.
#[test]
fn label_maps_must_lie_on_their_scans_grid() {
    let (fixed, moving) = (scan(SIZE, 1.0), scan([11, 9, 8], 0.0));
    let (f, m) = (volume(&fixed), volume(&moving));
    let (model, session) = (handle(), session(|_| {}));
    let voxels = vec![1u8; 1000];
    let map = |scan: &jrs_volume| jrs_volume {
        data: voxels.as_ptr().cast(),
        data_bytes: voxels.len() as u64,
        dtype: JRS_UINT8,
        ..*scan
    };
    let code = |given: &jrs_register_input| {
        let mut result = null_mut();
        // SAFETY: live handles, and data are as long as they say; NULL does nothing.
        unsafe {
            let code = jrs_register(session, model, given, null(), &mut result);
            jrs::result::jrs_result_free(result);
            code
        }
    };
    let good = input(&f, &m);
    let (on_fixed, on_moving) = (map(&f), map(&m));
    let both = jrs_register_input { labels: &on_moving, reference_labels: &on_fixed, ..good };
    assert_eq!(code(&both), JRS_OK, "{}", last_error());
    let mut turned = on_moving;
    (turned.direction[0], turned.direction[1]) = (0.8, -0.6);
    (turned.direction[3], turned.direction[4]) = (0.6, 0.8);
    for wrong in [
        on_fixed,
        jrs_volume { dims: [11, 8, 9], ..on_moving },
        jrs_volume { spacing: [2.5, 2.5, 3.0], ..on_moving },
        jrs_volume { origin: on_moving.origin.map(|mm| mm + 2.5), ..on_moving },
        turned,
    ] {
        assert_eq!(code(&jrs_register_input { labels: &wrong, ..good }), JRS_E_GEOMETRY);
        assert!(last_error().contains("labels") && last_error().contains("moving"), "{}", last_error());
    }
    assert_eq!(code(&jrs_register_input { reference_labels: &on_moving, ..good }), JRS_E_GEOMETRY);
    assert!(last_error().contains("reference_labels") && last_error().contains("fixed"), "{}", last_error());
    // SAFETY: freed once each.
    unsafe {
        jrs_session_free(session);
        jrs_model_free(model);
    }
}
