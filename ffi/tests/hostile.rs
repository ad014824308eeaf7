//! A caller that does everything wrong gets codes and words, never a crash, and its outputs stay as they were.

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use jrs::cancel::{jrs_cancel_create, jrs_cancel_free, jrs_cancel_request, jrs_cancel_reset};
use jrs::contours::{jrs_contours, jrs_contours_init};
use jrs::limits::{jrs_qa_limits, jrs_qa_limits_init};
use jrs::model::*;
use jrs::qa::*;
use jrs::register::*;
use jrs::result::*;
use jrs::session::*;
use jrs::status::*;
use jrs::volume::{jrs_volume, jrs_volume_init};
use jrs::write::jrs_result_write;
use libjrs::engine::{Compute, Precision};
use libjrs::model::SecretKey;

mod support;
use support::{handle, input, last_error, scan, session, volume};

const SIZE: [usize; 3] = [10, 9, 8];

/// What a refused call must leave alone.
fn untouched<T>() -> *mut T {
    std::ptr::without_provenance_mut(0x77)
}

#[test]
fn null_everywhere() {
    let (fixed, moving) = (scan(SIZE, 1.0), scan(SIZE, 0.0));
    let (f, m) = (volume(&fixed), volume(&moving));
    let (model, session) = (handle(), session(|_| {}));
    let given = input(&f, &m);
    let e = JRS_E_ARGUMENT;
    // SAFETY: NULL is allowed by every function's contract; what is not NULL is live.
    unsafe {
        let mut result = untouched();
        let register = |s, m, i, r| jrs_register(s, m, i, null(), r);
        assert_eq!(register(null_mut(), model, &given, &mut result), e);
        assert_eq!(register(session, model, null(), &mut result), e);
        assert_eq!(register(session, model, &given, null_mut()), e);
        assert_eq!(register(session, null(), &given, &mut result), e, "no model and no refinement");
        assert_eq!(register(session, model, &jrs_register_input { fixed: null(), ..given }, &mut result), e);
        assert!(last_error().contains("fixed"));
        assert_eq!(register(session, model, &jrs_register_input { moving: null(), ..given }, &mut result), e);
        assert_eq!(jrs_estimate(session, model, &given, null_mut()), e);
        assert_eq!(jrs_estimate(null_mut(), model, &given, null_mut()), e);
        assert_eq!(result, untouched());

        let mut model_out = untouched();
        assert_eq!(jrs_model_load(null(), null(), &mut model_out), e);
        assert_eq!(jrs_model_load(c"m".as_ptr(), null(), null_mut()), e);
        assert_eq!(jrs_model_load(c"\xff".as_ptr(), null(), &mut model_out), e, "not UTF-8");
        assert_eq!(jrs_model_load_memory(null(), 3, null(), &mut model_out), e);
        assert_eq!(jrs_model_load_memory(b"x".as_ptr().cast(), usize::MAX, null(), &mut model_out), e);
        assert_eq!(model_out, untouched());
        let mut needed = 7;
        assert_eq!(jrs_model_card_json(null(), null_mut(), 0, &mut needed), e);
        assert_eq!(jrs_model_card_json(model, null_mut(), 5, &mut needed), e);
        assert_eq!(jrs_model_card_json(model, null_mut(), 0, null_mut()), e);
        assert_eq!(jrs_session_last_error(null(), null_mut(), 0, &mut needed), e);
        assert_eq!(needed, 7);

        assert_eq!(jrs_session_create(null(), null_mut()), e);
        assert_eq!(jrs_cancel_create(null_mut()), e);
        assert_eq!(jrs_volume_init(null_mut(), size_of::<jrs_volume>()), e);
        assert_eq!(jrs_contours_init(null_mut(), size_of::<jrs_contours>()), e);
        assert_eq!(jrs_qa_limits_init(null_mut(), size_of::<jrs_qa_limits>()), e);
        assert_eq!(jrs_register_input_init(null_mut(), 8), e);
        assert_eq!(jrs_session_options_init(null_mut(), 8), e);

        let none = null::<jrs_result>();
        assert_eq!(jrs_result_dims(none, null_mut()), e);
        assert_eq!(jrs_result_dvf(none, null_mut(), 0, &mut needed), e);
        assert_eq!(jrs_result_dvf_view(none, null_mut(), null_mut(), null_mut()), e);
        assert_eq!(jrs_result_warped_view(none, null_mut()), e);
        assert_eq!(jrs_result_labels_view(none, null_mut()), e);
        assert_eq!(jrs_result_contours_view(none, null_mut()), e);
        assert_eq!(jrs_result_prealign(none, null_mut()), e);
        assert_eq!(jrs_result_carry_points(none, null(), 0, null_mut(), null_mut(), null_mut()), e);
        assert_eq!(jrs_result_map_points(none, null(), 0, null_mut()), e);
        assert_eq!(jrs_result_qa(none, null_mut()), e);
        assert_eq!(jrs_result_structure_qa(none, 0, null_mut()), e);
        assert_eq!(jrs_result_qa_json(none, null_mut(), 0, &mut needed), e);
        assert_eq!(jrs_result_write(none, 1, c"x".as_ptr()), e);

        let mut good = null_mut();
        assert_eq!(register(session, model, &given, &mut good), JRS_OK, "{}", last_error());
        assert_eq!(jrs_result_dvf_view(good, null_mut(), null_mut(), null_mut()), e);
        assert_eq!(jrs_result_dvf(good, null_mut(), 5, &mut needed), e);
        assert_eq!(jrs_result_warped_view(good, null_mut()), e);
        assert_eq!(
            jrs_result_labels_view(good, &mut untouched::<u8>().cast_const()),
            JRS_E_INPUT,
            "there are none"
        );
        assert_eq!(jrs_result_carry_points(good, null(), 1, null_mut(), null_mut(), null_mut()), e);
        assert_eq!(
            jrs_result_carry_points(good, [1.0; 3].as_ptr(), 1, null_mut(), null_mut(), null_mut()),
            e
        );
        let nan = [f64::NAN; 3];
        assert_eq!(jrs_result_map_points(good, nan.as_ptr(), 1, [0.0; 3].as_mut_ptr()), JRS_E_INPUT);
        assert_eq!(jrs_result_map_points(good, nan.as_ptr(), usize::MAX, [0.0; 3].as_mut_ptr()), e);
        assert_eq!(jrs_result_structure_qa(good, u64::MAX, null_mut()), e);
        assert_eq!(jrs_result_qa(good, null_mut()), e);
        assert_eq!(jrs_result_write(good, 99, c"x".as_ptr()), e);
        assert_eq!(jrs_result_write(good, 1, null()), e);
        assert_eq!(jrs_result_write(good, 1, c"/no/such/folder/u.mha".as_ptr()), JRS_E_FILE);
        assert!(last_error().contains("/no/such/folder/u.mha"));
        jrs_result_free(good);

        for _ in 0..2 {
            jrs_result_free(null_mut());
            jrs_model_free(null_mut());
            jrs_session_free(null_mut());
            jrs_cancel_free(null_mut());
            jrs_cancel_request(null());
            jrs_cancel_reset(null());
        }
        jrs_session_free(session);
        jrs_model_free(model);
    }
}

#[test]
fn values_that_mean_nothing() {
    let (fixed, moving) = (scan(SIZE, 1.0), scan(SIZE, 0.0));
    let (f, m) = (volume(&fixed), volume(&moving));
    let (model, session) = (handle(), session(|_| {}));
    let given = input(&f, &m);
    let code = |input: &jrs_register_input| {
        let mut result = untouched();
        // SAFETY: what is wrong in the input is what every case is about; nothing of it is followed out of bounds.
        let code = unsafe { jrs_register(session, model, input, null(), &mut result) };
        assert_eq!(result, untouched());
        code
    };
    let with = |fixed: &jrs_volume| code(&jrs_register_input { fixed, ..given });

    let struct_size = |size| jrs_register_input { struct_size: size, ..given };
    for size in [0, 7, 12, 1 << 20, usize::MAX] {
        assert_eq!(code(&struct_size(size)), JRS_E_STRUCT_SIZE, "{size}");
        assert_eq!(with(&jrs_volume { struct_size: size, ..f }), JRS_E_STRUCT_SIZE, "{size}");
    }
    assert_eq!(code(&struct_size(8)), JRS_E_ARGUMENT, "a struct without volumes");
    assert_eq!(code(&jrs_register_input { prealign_mode: 9, ..given }), JRS_E_ARGUMENT);
    assert_eq!(code(&jrs_register_input { both_directions: 2, ..given }), JRS_E_ARGUMENT);
    assert_eq!(code(&jrs_register_input { reserved: 1, ..given }), JRS_E_ARGUMENT);
    assert_eq!(code(&jrs_register_input { refine_steps: u32::MAX, ..given }), JRS_E_ARGUMENT);
    for spacing in [0.0, -1.0, 1e-9, f64::NAN, f64::INFINITY] {
        assert_eq!(code(&jrs_register_input { refine_spacing_mm: spacing, ..given }), JRS_E_ARGUMENT);
    }
    for last in [[0.0, 0.0, 0.0, 2.0], [0.0, 0.0, f64::NAN, 1.0]] {
        let mut matrix = [1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 0.];
        matrix[12..].copy_from_slice(&last);
        assert_eq!(code(&jrs_register_input { prealign: matrix.as_ptr(), ..given }), JRS_E_ARGUMENT);
    }
    assert_eq!(
        code(&jrs_register_input { max_tile_bytes: 1, ..given }),
        JRS_E_MEMORY,
        "no tile is that small"
    );

    assert_eq!(with(&jrs_volume { strides: [4, i64::MAX / 8, i64::MAX / 8], ..f }), JRS_E_GEOMETRY);
    assert_eq!(with(&jrs_volume { strides: [-4, 40, 360], ..f }), JRS_E_GEOMETRY);
    assert_eq!(with(&jrs_volume { strides: [4, 40, 400], ..f }), JRS_E_GEOMETRY, "beyond the caller's bytes");
    assert_eq!(with(&jrs_volume { dims: [u64::MAX / 4, 4, 4], ..f }), JRS_E_GEOMETRY);
    assert_eq!(with(&jrs_volume { dims: [10, 9, 1], ..f }), JRS_E_GEOMETRY, "a single slice");
    assert_eq!(
        with(&jrs_volume { data_bytes: u64::MAX, dims: [1 << 10, 1 << 10, 1 << 12], ..f }),
        JRS_E_GEOMETRY
    );
    assert_eq!(with(&jrs_volume { dtype: 3, ..f }), JRS_E_ARGUMENT, "a label map as a scan");
    assert_eq!(with(&jrs_volume { origin: [900.0, 0.0, 0.0], ..f }), JRS_E_INPUT, "no overlap");
    let air = [-1000f32; 720];
    assert_eq!(with(&jrs_volume { data: air.as_ptr().cast(), ..f }), JRS_E_INPUT, "every voxel the same");
    let nan = [f32::NAN; 720];
    assert_eq!(with(&jrs_volume { data: nan.as_ptr().cast(), ..f }), JRS_E_INPUT);
    assert!(last_error().contains("NaN"), "{}", last_error());
    let wrong_labels = jrs_volume { dtype: 3, dims: [9, 9, 8], ..m };
    assert_eq!(code(&jrs_register_input { labels: &wrong_labels, ..given }), JRS_E_GEOMETRY);

    // The session is as good as before.
    let mut result = null_mut();
    // SAFETY: live handles, freed once.
    unsafe {
        assert_eq!(jrs_register(session, model, &given, null(), &mut result), JRS_OK);
        jrs_result_free(result);
        jrs_session_free(session);
        jrs_model_free(model);
    }
}

#[test]
fn contours_that_are_none() {
    let (fixed, moving) = (scan(SIZE, 1.0), scan(SIZE, 0.0));
    let (f, m) = (volume(&fixed), volume(&moving));
    let (model, session) = (handle(), session(|_| {}));
    let z = moving.grid.to_physical([0.0, 0.0, 3.0])[2];
    let points = [[-5.0, -5.0, z], [5.0, -5.0, z], [5.0, 5.0, z], [-5.0, 5.0, z]];
    let (counts, labels) = ([4u64], [1u8]);
    let good = jrs_contours {
        struct_size: size_of::<jrs_contours>(),
        points: points.as_ptr().cast(),
        point_count: 4,
        polygon_points: counts.as_ptr(),
        polygon_labels: labels.as_ptr(),
        polygon_count: 1,
        polygon_is_hole: null(),
        polygon_slices: null(),
    };
    let code = |contours: jrs_contours| {
        let given = jrs_register_input { contours: &contours, ..input(&f, &m) };
        let mut result = null_mut();
        // SAFETY: arrays are as long as said, or refused before they are read.
        unsafe {
            let code = jrs_register(session, model, &given, null(), &mut result);
            jrs_result_free(result);
            code
        }
    };
    assert_eq!(code(good), JRS_OK, "{}", last_error());
    assert_eq!(code(jrs_contours { points: null(), ..good }), JRS_E_ARGUMENT);
    assert_eq!(code(jrs_contours { polygon_points: null(), ..good }), JRS_E_ARGUMENT);
    assert_eq!(code(jrs_contours { polygon_labels: null(), ..good }), JRS_E_ARGUMENT);
    assert_eq!(code(jrs_contours { point_count: 3, ..good }), JRS_E_ARGUMENT);
    assert_eq!(code(jrs_contours { point_count: u64::MAX / 2, ..good }), JRS_E_ARGUMENT);
    assert_eq!(code(jrs_contours { polygon_count: u64::MAX, ..good }), JRS_E_ARGUMENT);
    assert_eq!(code(jrs_contours { polygon_labels: [0u8].as_ptr(), ..good }), JRS_E_ARGUMENT);
    assert_eq!(
        code(jrs_contours { points: points.as_ptr().cast::<f64>().wrapping_byte_add(1), ..good }),
        JRS_E_ARGUMENT
    );
    let tilted = points.map(|[x, y, z]| [x, y, z + 0.3 * x]);
    assert_eq!(code(jrs_contours { points: tilted.as_ptr().cast(), ..good }), JRS_E_INPUT);
    let nowhere = points.map(|[x, _, z]| [x, f64::INFINITY, z]);
    assert_eq!(code(jrs_contours { points: nowhere.as_ptr().cast(), ..good }), JRS_E_INPUT);
    // SAFETY: freed once.
    unsafe {
        jrs_session_free(session);
        jrs_model_free(model);
    }
}

#[test]
fn options_that_cannot_be_honoured() {
    let code = |change: fn(&mut jrs_session_options)| {
        let mut made = untouched();
        // SAFETY: initialised before it is changed.
        unsafe {
            let mut options = std::mem::zeroed();
            jrs_session_options_init(&mut options, size_of::<jrs_session_options>());
            change(&mut options);
            let code = jrs_session_create(&options, &mut made);
            assert_eq!(made, untouched());
            code
        }
    };
    assert_eq!(code(|o| o.device = JRS_DEVICE_CUDA), JRS_E_DEVICE);
    assert_eq!(code(|o| o.device = 7), JRS_E_ARGUMENT);
    assert_eq!(code(|o| o.device_number = 1), JRS_E_ARGUMENT);
    assert_eq!(code(|o| o.reserved = 1), JRS_E_ARGUMENT);
    if (Compute { precision: Precision::Bf16, ..Default::default() }).check().is_err() {
        assert_eq!(code(|o| o.precision = JRS_PRECISION_BF16), JRS_E_UNSUPPORTED);
    }
    assert_eq!(code(|o| o.precision = JRS_PRECISION_TF32), JRS_E_UNSUPPORTED);
    assert_eq!(code(|o| o.precision = 7), JRS_E_ARGUMENT);
    assert_eq!(code(|o| o.deterministic = 2), JRS_E_ARGUMENT);
    assert_eq!(code(|o| o.threads = u32::MAX), JRS_E_ARGUMENT);
    assert_eq!(code(|o| o.struct_size = 0), JRS_E_STRUCT_SIZE);
}

#[test]
fn models_that_are_damaged_or_not_the_vendors() {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, [9u8; 32]).unwrap();
    let key = SecretKey::load(&key_file).unwrap();
    let public: Vec<u8> =
        (0..32).map(|i| u8::from_str_radix(&key.public().to_hex()[2 * i..][..2], 16).unwrap()).collect();
    let mut model = support::model();
    let unsigned = model.to_bytes();
    model.sign(&key);
    let signed = model.to_bytes();
    let code = |bytes: &[u8], key: *const u8| {
        let mut model = untouched();
        // SAFETY: the bytes are as long as said, keys have 32 bytes.
        let code = unsafe { jrs_model_load_memory(bytes.as_ptr().cast(), bytes.len(), key, &mut model) };
        if code == JRS_OK {
            // SAFETY: just made.
            unsafe { jrs_model_free(model) };
        } else {
            assert_eq!(model, untouched());
        }
        code
    };
    assert_eq!(code(&signed, public.as_ptr()), JRS_OK, "{}", last_error());
    assert_eq!(code(&signed, null()), JRS_OK);
    assert_eq!(code(&unsigned, public.as_ptr()), JRS_E_MODEL_SIGNATURE);
    let mut other = support::model();
    std::fs::write(&key_file, [8u8; 32]).unwrap();
    other.sign(&SecretKey::load(&key_file).unwrap());
    assert_eq!(code(&other.to_bytes(), public.as_ptr()), JRS_E_MODEL_SIGNATURE);
    assert_eq!(code(&signed, [0u8; 32].as_ptr()), JRS_E_ARGUMENT, "no key at all");
    let mut flipped = signed.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(code(&flipped, null()), JRS_E_MODEL_INVALID);
    assert_eq!(code(&signed[..signed.len() - 1], null()), JRS_E_MODEL_INVALID);
    assert_eq!(code(&[], null()), JRS_E_MODEL_INVALID);
    let mut model = untouched();
    // SAFETY: a string and our own pointer.
    let missing = unsafe { jrs_model_load(c"/no/such/model".as_ptr(), null(), &mut model) };
    assert_eq!((missing, model), (JRS_E_MODEL_UNREADABLE, untouched()));
    assert!(last_error().contains("/no/such/model"));
}

/// Calls the session from its own callback.
unsafe extern "C" fn again(user: *mut std::ffi::c_void, _: *const c_char, _: u64, _: u64) -> i32 {
    // SAFETY: the test gives its own array of session and answer.
    let state = unsafe { &mut *user.cast::<(*mut jrs_session, i32)>() };
    let mut found: jrs_estimate_result = jrs_estimate_result {
        struct_size: size_of::<jrs_estimate_result>(),
        host_bytes: 0,
        least_host_bytes: 0,
        device_bytes: 0,
        least_device_bytes: 0,
        tiles: 0,
        seconds: 0.0,
    };
    // SAFETY: the session is live.
    state.1 = unsafe { jrs_estimate(state.0, null(), null(), &mut found) };
    0
}

#[test]
fn a_session_in_a_call_is_busy() {
    let (fixed, moving) = (scan(SIZE, 1.0), scan(SIZE, 0.0));
    let (f, m) = (volume(&fixed), volume(&moving));
    let mut state = (null_mut(), 0);
    let user: *mut (*mut jrs_session, i32) = &mut state;
    let session = session(|o| {
        o.progress = Some(again);
        o.progress_user = user.cast();
    });
    // SAFETY: `state` outlives the call, and handles are freed once.
    unsafe {
        (*user).0 = session;
        let (model, mut result) = (handle(), null_mut());
        assert_eq!(jrs_register(session, model, &input(&f, &m), null(), &mut result), JRS_OK);
        assert_eq!((*user).1, JRS_E_BUSY);
        jrs_result_free(result);
        jrs_session_free(session);
        jrs_model_free(model);
    }
}

/// Keeps what was logged.
unsafe extern "C" fn keep(user: *mut std::ffi::c_void, level: i32, message: *const c_char) {
    // SAFETY: the test gives its own list, and the message is a string.
    let (list, message) =
        unsafe { (&mut *user.cast::<Vec<(i32, String)>>(), std::ffi::CStr::from_ptr(message)) };
    list.push((level, message.to_string_lossy().into_owned()));
}

#[test]
#[cfg(debug_assertions)]
fn a_panic_inside_is_a_code_and_a_log_line() {
    let mut lines: Vec<(i32, String)> = Vec::new();
    let user: *mut Vec<(i32, String)> = &mut lines;
    let session = session(|o| {
        o.log = Some(keep);
        o.log_user = user.cast();
    });
    for place in [0, 1] {
        // SAFETY: the session is live.
        assert_eq!(unsafe { jrs::debug::jrs_debug_panic(session, place) }, JRS_E_INTERNAL);
        assert!(
            last_error().contains("injected on") && last_error().contains("debug.rs"),
            "{}",
            last_error()
        );
    }
    // SAFETY: freed once; the list is read when nothing writes to it any more.
    unsafe {
        jrs_session_free(session);
        assert_eq!((*user).len(), 2);
        assert!((*user).iter().all(|(level, text)| *level == JRS_LOG_ERROR && text.contains("injected")));
    }
}
