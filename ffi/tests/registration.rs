//! Registering through the C interface: results, limits, cancelling, determinism, threads.

use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jrs::cancel::{jrs_cancel_create, jrs_cancel_free, jrs_cancel_request, jrs_cancel_reset};
use jrs::contours::jrs_contours;
use jrs::model::{jrs_model, jrs_model_free};
use jrs::qa::{jrs_qa, jrs_result_provenance_json, jrs_result_qa, jrs_result_qa_json};
use jrs::register::{jrs_estimate, jrs_estimate_result, jrs_register, jrs_register_input};
use jrs::result::*;
use jrs::session::{jrs_session, jrs_session_free, jrs_session_last_error};
use jrs::status::*;
use libjrs::engine::{Compute, Precision, on_cpu};
use libjrs::field::warp_labels;
use libjrs::progress::Progress;
use libjrs::register::{RegisterOptions, register};
use libjrs::{Grid, Volume};

mod support;
use support::{handle, input, last_error, scan, session, volume};

const SIZE: [usize; 3] = [22, 20, 18];

/// Registers, which must succeed.
fn run(session: *mut jrs_session, model: *const jrs_model, input: &jrs_register_input) -> *mut jrs_result {
    let mut result = std::ptr::null_mut();
    // SAFETY: handles are live, and the input borrows what its test owns.
    let code = unsafe { jrs_register(session, model, input, std::ptr::null(), &mut result) };
    assert_eq!(code, JRS_OK, "{}", last_error());
    result
}

/// A text of the interface.
fn text<T>(
    get: unsafe extern "C" fn(*const T, *mut c_char, usize, *mut usize) -> i32,
    of: *const T,
) -> String {
    let mut needed = 0;
    // SAFETY: `of` is live; the buffer is as long as asked for.
    unsafe {
        assert_eq!(get(of, std::ptr::null_mut(), 0, &mut needed), JRS_OK);
        let mut buffer = vec![0u8; needed];
        assert_eq!(get(of, buffer.as_mut_ptr().cast(), needed - 1, &mut needed), JRS_E_BUFFER_TOO_SMALL);
        assert_eq!(get(of, buffer.as_mut_ptr().cast(), needed, &mut needed), JRS_OK);
        CStr::from_bytes_with_nul(&buffer).unwrap().to_str().unwrap().to_owned()
    }
}

/// Interleaved displacement.
fn dvf(result: *const jrs_result) -> Vec<f32> {
    let mut needed = 0;
    // SAFETY: the result is live; the buffer is as long as asked for.
    unsafe {
        assert_eq!(jrs_result_dvf(result, std::ptr::null_mut(), 0, &mut needed), JRS_OK);
        let mut u = vec![0.0; needed];
        assert_eq!(jrs_result_dvf(result, u.as_mut_ptr(), needed - 1, &mut needed), JRS_E_BUFFER_TOO_SMALL);
        assert_eq!(jrs_result_dvf(result, u.as_mut_ptr(), needed, &mut needed), JRS_OK);
        u
    }
}

/// The engine that was asked for computes, is estimated and recorded.
#[test]
fn precision_is_an_option_of_the_session() {
    if (Compute { precision: Precision::Bf16, ..Default::default() }).check().is_err() {
        eprintln!("SKIPPED: this processor has no matrix unit");
        return;
    }
    let (fixed, moving) = (scan(SIZE, 2.0), scan([24, 20, 20], 0.0));
    let model = handle();
    let (f, m) = (volume(&fixed), volume(&moving));
    let mut given = input(&f, &m);
    given.both_directions = 0;
    for (precision, name) in [(Precision::F32, "f32"), (Precision::Bf16, "bf16")] {
        let session = session(|o| o.precision = u32::from(precision == Precision::Bf16));
        let result = run(session, model, &given);
        let compute = Compute { precision, ..Default::default() };
        let options = RegisterOptions { compute, ..Default::default() };
        let ours = register(Some(&support::model()), &fixed, &moving, &options, Progress::SILENT).unwrap();
        let interleaved: Vec<f32> = (0..fixed.grid.len()).flat_map(|i| ours.field.at(i)).collect();
        assert!(dvf(result) == interleaved, "the displacement is not that of {name}");
        let record = text(jrs_result_provenance_json, result);
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["device"]["precision"], name);
        let engine = on_cpu(&support::model().generator, precision).unwrap();
        let device = record["device"]["name"].as_str().unwrap();
        let kind = |name: &str| name.split_once("threads").unwrap().1.to_owned();
        assert_eq!(kind(device), kind(&engine.name()));
        // SAFETY: freed once each.
        unsafe {
            jrs_result_free(result);
            jrs_session_free(session);
        }
    }
    // SAFETY: freed once.
    unsafe { jrs_model_free(model) };
}

#[test]
fn everything_is_what_the_library_makes_of_it() {
    let (fixed, moving) = (scan(SIZE, 2.0), scan([24, 20, 20], 0.0));
    let labels = moving.map(|hu| if hu > 60.0 { 5 } else { u8::from(hu > -200.0) });
    let (model, session) = (handle(), session(|o| o.threads = 2));
    let (f, m) = (volume(&fixed), volume(&moving));
    let mut l = volume(&moving);
    (l.data, l.data_bytes, l.dtype) = (labels.data.as_ptr().cast(), labels.data.len() as u64, 3);
    let matrix: [f64; 16] = [1., 0., 0., 1.5, 0., 1., 0., -0.5, 0., 0., 1., 0.25, 0., 0., 0., 1.];
    let mut given = input(&f, &m);
    (given.labels, given.prealign) = (&l, matrix.as_ptr());
    let result = run(session, model, &given);

    let affine = libjrs::Affine { translation: [1.5, -0.5, 0.25], ..libjrs::Affine::IDENTITY };
    let options = RegisterOptions {
        prealign: libjrs::register::Prealign::Given(affine),
        both_directions: true,
        ..Default::default()
    };
    let ours = register(Some(&support::model()), &fixed, &moving, &options, Progress::SILENT).unwrap();
    let interleaved: Vec<f32> = (0..fixed.grid.len()).flat_map(|i| ours.field.at(i)).collect();
    assert!(dvf(result) == interleaved, "the displacement differs");
    let by_network =
        affine.translation.iter().zip(&ours.field.u).flat_map(|(t, u)| u.iter().map(move |u| u - *t as f32));
    // An untrained network moves little, but more than rounding does.
    assert!(by_network.fold(0.0f32, |most, u| most.max(u.abs())) > 1e-3, "the network did nothing");
    // SAFETY: the result is live and has as many voxels as the fixed scan.
    unsafe {
        let (mut x, mut y, mut z) = (std::ptr::null(), std::ptr::null(), std::ptr::null());
        assert_eq!(jrs_result_dvf_view(result, &mut x, &mut y, &mut z), JRS_OK);
        for (at, u) in [x, y, z].into_iter().zip(&ours.field.u) {
            assert!(std::slice::from_raw_parts(at, u.len()) == u);
        }
        let mut warped = std::ptr::null();
        assert_eq!(jrs_result_warped_view(result, &mut warped), JRS_OK);
        assert!(std::slice::from_raw_parts(warped, fixed.grid.len()) == ours.warped.data);
        let mut carried = std::ptr::null();
        assert_eq!(jrs_result_labels_view(result, &mut carried), JRS_OK);
        assert!(
            std::slice::from_raw_parts(carried, fixed.grid.len())
                == warp_labels(&labels, &ours.field, None).data
        );
        let (mut dims, mut back) = ([0; 3], [0.0; 16]);
        assert_eq!(jrs_result_dims(result, dims.as_mut_ptr()), JRS_OK);
        assert_eq!(jrs_result_prealign(result, back.as_mut_ptr()), JRS_OK);
        assert_eq!((dims, back), ([22, 20, 18], matrix));

        let mut qa: jrs_qa = std::mem::zeroed();
        qa.struct_size = size_of::<jrs_qa>();
        assert_eq!(jrs_result_qa(result, &mut qa), JRS_OK);
        let json: serde_json::Value = serde_json::from_str(&text(jrs_result_qa_json, result)).unwrap();
        assert_eq!(json["ncc_after"].as_f64(), Some(qa.ncc_after));
        assert_eq!(json["displacement"]["p95_mm"].as_f64(), Some(qa.displacement_p95_mm));
        assert_eq!(json["inverse_consistency"]["p95_mm"].as_f64(), Some(qa.inverse_consistency_p95_mm));
        assert_eq!(json["reasons"].as_array().unwrap().len(), qa.reason_count as usize);
        assert_eq!(qa.structure_count, 2);
    }
    let record: serde_json::Value = serde_json::from_str(&text(jrs_result_provenance_json, result)).unwrap();
    assert_eq!(record["model"]["sha256"], support::model().sha256());
    assert_eq!(record["inputs"]["labels"]["sha256"].as_str().map(str::len), Some(64));
    assert_eq!(record["device"]["precision"], "f32");

    // Results outlive what made them.
    // SAFETY: freed once each, the result last.
    unsafe {
        jrs_session_free(session);
        jrs_model_free(model);
        let (point, mut there, mut back) = ([3.0, 2.0, 1.0], [0.0; 3], [0.0; 3]);
        let (mut residual, mut flags) = (1.0, 0);
        assert_eq!(jrs_result_map_points(result, point.as_ptr(), 1, there.as_mut_ptr()), JRS_OK);
        let carried =
            jrs_result_carry_points(result, there.as_ptr(), 1, back.as_mut_ptr(), &mut residual, &mut flags);
        assert_eq!((carried, flags), (JRS_OK, JRS_POINT_FOUND));
        assert!(residual < 1e-3 && libjrs::geometry::distance(point, back) < 0.01, "{back:?}");
        jrs_result_free(result);
    }
}

#[test]
fn contours_come_back_with_holes() {
    let (fixed, moving) = (scan(SIZE, 1.0), scan(SIZE, 0.0));
    let ring = |radius: f64, slice: usize| {
        let angle = |n: usize| n as f64 / 48.0 * std::f64::consts::TAU;
        let z = moving.grid.to_physical([0.0, 0.0, slice as f64])[2];
        (0..48).map(move |n| [radius * angle(n).cos(), radius * angle(n).sin(), z])
    };
    let points: Vec<[f64; 3]> = (5..13).flat_map(|k| ring(17.0, k).chain(ring(8.0, k))).collect();
    let (counts, labels) = ([48u64; 16], [5u8; 16]);
    // SAFETY: zero is valid, and everything that is needed is set.
    let mut contours: jrs_contours = unsafe { std::mem::zeroed() };
    contours.struct_size = size_of::<jrs_contours>();
    (contours.points, contours.point_count) = (points.as_ptr().cast(), points.len() as u64);
    (contours.polygon_points, contours.polygon_labels) = (counts.as_ptr(), labels.as_ptr());
    contours.polygon_count = 16;
    let (model, session) = (handle(), session(|_| {}));
    let (f, m) = (volume(&fixed), volume(&moving));
    let mut given = input(&f, &m);
    given.contours = &contours;
    let result = run(session, model, &given);
    // SAFETY: views are valid until the result is freed.
    unsafe {
        let mut found: jrs_contours = std::mem::zeroed();
        found.struct_size = size_of::<jrs_contours>();
        assert_eq!(jrs_result_contours_view(result, &mut found), JRS_OK);
        let polygons = found.polygon_count as usize;
        let holes = std::slice::from_raw_parts(found.polygon_is_hole, polygons);
        let counts = std::slice::from_raw_parts(found.polygon_points, polygons);
        let slices = std::slice::from_raw_parts(found.polygon_slices, polygons);
        let mut rest =
            std::slice::from_raw_parts(found.points.cast::<[f64; 3]>(), found.point_count as usize);
        assert!(holes.iter().filter(|&&h| h == 1).count() >= 6 && polygons >= 14, "{holes:?}");
        for n in 0..polygons {
            let (own, after) = rest.split_at(counts[n] as usize);
            rest = after;
            let z = fixed.grid.to_physical([0.0, 0.0, f64::from(slices[n])])[2];
            assert!(own.iter().all(|p| (p[2] - z).abs() < 1e-9));
            // Sent back through the deformation, an outline lies near its circle: voxels are 2.5 mm.
            let mut there = vec![0.0; 3 * own.len()];
            jrs_result_map_points(result, own.as_ptr().cast(), own.len(), there.as_mut_ptr());
            let inner_slices = (-14.0..=14.0).contains(&there[2]);
            let radius = if holes[n] == 1 { 8.0 } else { 17.0 };
            for p in there.chunks_exact(3).filter(|_| inner_slices) {
                assert!((p[0].hypot(p[1]) - radius).abs() < 1.3, "{} instead of {radius}", p[0].hypot(p[1]));
            }
        }
        assert!(rest.is_empty());
        let mut labels = std::ptr::null();
        assert_eq!(jrs_result_labels_view(result, &mut labels), JRS_OK);
        let mut qa: jrs_qa = std::mem::zeroed();
        qa.struct_size = size_of::<jrs_qa>();
        assert_eq!((jrs_result_qa(result, &mut qa), qa.structure_count), (JRS_OK, 1));
        jrs_result_free(result);
        jrs_session_free(session);
        jrs_model_free(model);
    }
}

fn hash(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    libjrs::model::sha256_hex(&bytes)
}

#[test]
fn twenty_runs_one_hash_with_one_and_two_threads() {
    let (fixed, moving, model) = (scan(SIZE, 2.0), scan(SIZE, 0.0), handle());
    let (f, m) = (volume(&fixed), volume(&moving));
    let mut given = input(&f, &m);
    (given.both_directions, given.prealign_mode) = (0, 0);
    let mut hashes = std::collections::BTreeSet::new();
    for threads in [1, 2] {
        let session = session(|o| o.threads = threads);
        for _ in 0..10 {
            let result = run(session, model, &given);
            // SAFETY: live, and freed once.
            unsafe {
                let mut warped = std::ptr::null();
                assert_eq!(jrs_result_warped_view(result, &mut warped), JRS_OK);
                let warped = std::slice::from_raw_parts(warped, fixed.grid.len());
                let qa = text(jrs_result_qa_json, result);
                hashes.insert([hash(&dvf(result)), hash(warped), libjrs::model::sha256_hex(qa.as_bytes())]);
                jrs_result_free(result);
            }
        }
        // SAFETY: freed once.
        unsafe { jrs_session_free(session) };
    }
    assert_eq!(hashes.len(), 1, "{hashes:?}");
    // SAFETY: freed once.
    unsafe { jrs_model_free(model) };
}

/// A pointer that threads may share: the interface says which they may.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T);
// SAFETY: only handles that the header lets threads share are put in here.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

#[test]
fn two_threads_on_one_model_get_the_same() {
    let (fixed, moving, model) = (scan(SIZE, 2.0), scan(SIZE, 0.0), Shared(handle()));
    let fields: Vec<Vec<f32>> = std::thread::scope(|scope| {
        let one = |_| {
            let (fixed, moving, model) = (&fixed, &moving, &model);
            scope.spawn(move || {
                let session = session(|o| o.threads = 1);
                let (f, m) = (volume(fixed), volume(moving));
                let result = run(session, model.0, &input(&f, &m));
                let field = dvf(result);
                // SAFETY: freed once each.
                unsafe {
                    jrs_result_free(result);
                    jrs_session_free(session);
                }
                field
            })
        };
        let threads: Vec<_> = (0..2).map(one).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(fields[0] == fields[1]);
    // SAFETY: freed once.
    unsafe { jrs_model_free(model.0) };
}

/// What the progress callback of the cancelling test keeps.
struct Seen {
    started: Instant,
    tiles: Vec<(u64, u64, Duration)>,
    stop_at: u64,
    on_thread: std::thread::ThreadId,
}

unsafe extern "C" fn watch(user: *mut c_void, stage: *const c_char, done: u64, total: u64) -> i32 {
    // SAFETY: the test gives a `Seen` that outlives the call, and the stage is a string.
    let (seen, stage) = unsafe { (&mut *user.cast::<Seen>(), CStr::from_ptr(stage)) };
    assert_eq!(seen.on_thread, std::thread::current().id(), "callbacks come on the caller's thread");
    if stage == c"network" {
        seen.tiles.push((done, total, seen.started.elapsed()));
    }
    i32::from(stage == c"network" && done == seen.stop_at)
}

#[test]
fn cancelling_takes_effect_within_one_tile() {
    let (fixed, moving, model) = (scan([44, 40, 38], 2.0), scan([44, 40, 38], 0.0), handle());
    let new = |stop_at| Seen {
        started: Instant::now(),
        tiles: Vec::new(),
        stop_at,
        on_thread: std::thread::current().id(),
    };
    // The callback writes to it, so it is only touched through the pointer.
    let mut place = new(2);
    let seen = &raw mut place;
    let user = Shared(seen.cast::<c_void>());
    let session = session(|o| {
        o.threads = 1;
        o.progress = Some(watch);
        o.progress_user = user.0;
    });
    let (f, m) = (volume(&fixed), volume(&moving));
    let mut given = input(&f, &m);
    // Small tiles: the smallest that 60-voxel edges take.
    let engine = on_cpu(&support::model().generator, Precision::F32).unwrap();
    given.max_tile_bytes = engine.bytes([60; 3]) as u64;
    let mut result = std::ptr::null_mut();
    // SAFETY: handles are live and inputs are ours; the result must stay untouched.
    unsafe {
        assert_eq!(jrs_register(session, model, &given, std::ptr::null(), &mut result), JRS_E_CANCELLED);
        assert!(result.is_null());
        let tiles = std::mem::take(&mut (*seen).tiles);
        assert_eq!(
            tiles.last().map(|t| t.0),
            Some(2),
            "the answer to the second tile is the last that counts"
        );
        assert!(tiles[0].1 >= 4, "{} tiles", tiles[0].1);
        let tile = tiles[2].2 - tiles[1].2;

        // From another thread, in the middle of a tile.
        *seen = new(u64::MAX);
        let mut cancel = std::ptr::null_mut();
        assert_eq!(jrs_cancel_create(&mut cancel), JRS_OK);
        let (token, asked) = (Shared(cancel), AtomicU64::new(0));
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let token = token;
                std::thread::sleep(tile + tile / 2);
                jrs_cancel_request(token.0);
                asked.store(started.elapsed().as_micros() as u64, Ordering::SeqCst);
            });
            assert_eq!(jrs_register(session, model, &given, cancel, &mut result), JRS_E_CANCELLED);
        });
        let latency = started.elapsed() - Duration::from_micros(asked.load(Ordering::SeqCst));
        let tiles = std::mem::take(&mut (*seen).tiles);
        let longest = tiles.windows(2).map(|t| t[1].2 - t[0].2).max().unwrap_or(tile).max(tile);
        println!("cancelled {latency:.1?} after the request; a tile takes {longest:.1?}");
        assert!(latency <= 2 * longest + Duration::from_millis(50), "{latency:?} for tiles of {longest:?}");
        assert!(text(jrs_session_last_error, session).contains("cancelled"));

        // The session can be used again, the token too.
        jrs_cancel_reset(cancel);
        *seen = new(u64::MAX);
        given.both_directions = 0;
        assert_eq!(jrs_register(session, model, &given, cancel, &mut result), JRS_OK);
        jrs_cancel_request(std::ptr::null());
        jrs_cancel_free(cancel);
        jrs_result_free(result);
        jrs_session_free(session);
        jrs_model_free(model);
    }
}

fn figures(
    session: *mut jrs_session,
    model: *const jrs_model,
    input: &jrs_register_input,
) -> jrs_estimate_result {
    // SAFETY: zero is valid, and the size is set.
    let mut found: jrs_estimate_result = unsafe { std::mem::zeroed() };
    found.struct_size = size_of::<jrs_estimate_result>();
    // SAFETY: handles are live.
    assert_eq!(unsafe { jrs_estimate(session, model, input, &mut found) }, JRS_OK, "{}", last_error());
    found
}

#[test]
fn a_memory_limit_makes_tiles_or_is_refused_up_front() {
    let (fixed, moving, model) = (scan([44, 40, 38], 2.0), scan([44, 40, 38], 0.0), handle());
    let (f, m) = (volume(&fixed), volume(&moving));
    let given = input(&f, &m);
    let free = session(|_| {});
    let whole = figures(free, model, &given);
    assert_eq!(whole.tiles, 1);
    assert!(whole.least_host_bytes < whole.host_bytes && whole.seconds > 0.0);
    let unlimited = run(free, model, &given);

    let limit = (whole.least_host_bytes + whole.host_bytes) / 2;
    let tight = session(|o| o.max_host_bytes = limit);
    let tiled = figures(tight, model, &given);
    assert!(
        tiled.tiles > 1 && tiled.host_bytes <= limit,
        "{} tiles, {} bytes",
        tiled.tiles,
        tiled.host_bytes
    );
    let limited = run(tight, model, &given);
    let apart = dvf(unlimited).iter().zip(dvf(limited)).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart < 1e-3, "tiles change the field by {apart} mm");

    let tighter = session(|o| o.max_host_bytes = whole.least_host_bytes - 1);
    let mut result = std::ptr::null_mut();
    // SAFETY: live handles, freed once each.
    unsafe {
        assert_eq!(jrs_register(tighter, model, &given, std::ptr::null(), &mut result), JRS_E_MEMORY);
        assert!(last_error().contains(&whole.least_host_bytes.to_string()), "{}", last_error());
        assert!(result.is_null());
        for s in [free, tight, tighter] {
            jrs_session_free(s);
        }
        jrs_result_free(limited);
        jrs_result_free(unlimited);
        jrs_model_free(model);
    }
}

#[test]
fn int16_with_strides_and_slope_gives_the_same_field() {
    let (fixed, moving, model) = (scan(SIZE, 2.0), scan(SIZE, 0.0), handle());
    let whole = |v: &Volume<f32>| v.map(|hu| hu.round());
    let (fixed, moving) = (whole(&fixed), whole(&moving));
    let session = session(|_| {});
    let (f, m) = (volume(&fixed), volume(&moving));
    let reference = run(session, model, &input(&f, &m));
    let expected = dvf(reference);
    // Stored with k fastest and 1024 added, as int16.
    let Grid { size: [nx, ny, nz], .. } = fixed.grid;
    let mut stored = vec![0i16; fixed.grid.len()];
    for i in 0..stored.len() {
        let (x, y, z) = (i % nx, i / nx % ny, i / nx / ny);
        stored[z + nz * (y + ny * x)] = fixed.data[i] as i16 + 1024;
    }
    let mut f = volume(&fixed);
    (f.data, f.data_bytes, f.dtype) = (stored.as_ptr().cast(), 2 * stored.len() as u64, 1);
    (f.strides, f.intercept) = ([2 * (ny * nz) as i64, 2 * nz as i64, 2], -1024.0);
    let result = run(session, model, &input(&f, &m));
    assert!(dvf(result) == expected);
    // SAFETY: freed once each.
    unsafe {
        jrs_result_free(reference);
        jrs_result_free(result);
        jrs_session_free(session);
        jrs_model_free(model);
    }
}
