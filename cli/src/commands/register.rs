//! `jrs register`: one pair of scans, from files to files.

use super::{Align, ComputeArgs};
use anyhow::Context;
use jrs_report::html::{Tile, Verdict};
use jrs_report::registration_page::{Check, OrganChange, RegistrationReport};
use jrs_report::{OrganScores, RegistrationPictures, registration_page};
use libjrs::align::{read_affine, write_affine};
use libjrs::field::{invert_points, warp_labels};
use libjrs::field_io::{NiftiFlavour, write_mha, write_nifti};
use libjrs::landmarks::{NamedPoint, read_points, write_points};
use libjrs::model::Model;
use libjrs::nifti::{Sample, read_image, read_labels, write_image, write_labels};
use libjrs::progress::{Progress, Stopwatch};
use libjrs::qa::{Agreement, QaLimits, QaReport, Status, assess_registration};
use libjrs::refine::RefineOptions;
use libjrs::register::{Forward, Prealign, RegisterOptions, Registration, register_meanwhile};
use libjrs::{Error, Volume};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

/// Arguments of `jrs register`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    jrs register --model model.safetensors --fixed today.nii.gz --moving planning.nii.gz \\\n               \
    --labels planning-contours.nii.gz --out result\n  \
    jrs register --refine 100 --fixed a.nii.gz --moving b.nii.gz --out result   (no training needed)")]
pub struct Args {
    /// Trained model; may be left out with --refine.
    #[arg(long, value_name = "FILE", required_unless_present = "refine")]
    model: Option<PathBuf>,
    /// Today's scan (NIfTI), on which the result is given.
    #[arg(long, value_name = "FILE")]
    fixed: PathBuf,
    /// The planning scan (NIfTI).
    #[arg(long, value_name = "FILE")]
    moving: PathBuf,
    /// Label map on the moving scan's grid, to be carried over.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Known label map on the fixed scan's grid, to score the result.
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// CSV `name,x,y,z` of points in the moving scan (LPS mm), to be carried over by the inverse.
    #[arg(long, value_name = "FILE")]
    points: Option<PathBuf>,
    /// Affine made elsewhere, fixed to moving points (JSON, ITK .tfm or 4x4 text), instead of --align.
    #[arg(long, value_name = "FILE")]
    affine: Option<PathBuf>,
    /// Alignment before the network: rigid, affine or none.
    #[arg(long, default_value = "rigid")]
    align: Align,
    /// Gradient steps on NCC + bending energy after (or, without a model, instead of) the network.
    #[arg(long, value_name = "STEPS")]
    refine: Option<usize>,
    /// Memory limit for the network, MB; larger volumes are tiled, without seams.
    #[arg(long, default_value_t = 4096, value_name = "MB")]
    memory: usize,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Leave out the opposite direction: nearly half the time, but no inverse consistency in the report.
    #[arg(long)]
    one_way: bool,
    /// Voxels on which --refine works, mm.
    #[arg(long, default_value_t = 1.0)]
    spacing: f64,
    /// Folder for the results.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// End with one JSON line: the QA report.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Everything is read and checked, the device and the output folder too, before the work begins.
    let compute = args.compute.checked()?;
    let started = Instant::now();
    let mut clock = Stopwatch::start();
    let model = args.model.as_ref().map(Model::load).transpose()?;
    let (fixed, moving) = rayon::join(|| read_image(&args.fixed), || read_image(&args.moving));
    let (fixed, moving) = (fixed?, moving?);
    let labels = labels_on(args.labels.as_deref(), &moving, &args.moving)?;
    let reference = labels_on(args.reference.as_deref(), &fixed, &args.fixed)?;
    let points = args.points.as_ref().map(read_points).transpose()?;
    let affine = args.affine.as_ref().map(read_affine).transpose()?;
    std::fs::create_dir_all(&args.out)
        .map_err(|e| Error::io(&args.out, e, "Give --out a folder that can be written"))?;
    clock.lap("read");

    let options = RegisterOptions {
        prealign: affine.map_or(args.align.prealign(), Prealign::Given),
        max_bytes: args.memory << 20,
        refine: RefineOptions { steps: args.refine.unwrap_or(0), ..Default::default() },
        both_directions: !args.one_way,
        spacing_mm: args.spacing,
        compute,
        ..Default::default()
    };
    let bar = super::phase("register", 100);
    let report = |stage: &str, done: usize, total: usize| bar.message(format!("{stage} {done}/{total}"));
    let progress = Progress { report: Some(&report), cancel: None };
    // The disk takes its time: the results are written while the backward direction is computed.
    let write = |forward: &Forward| write_results(args, forward, labels.as_ref(), points.as_deref());
    let (result, written) = register_meanwhile(model.as_ref(), &fixed, &moving, &options, progress, write)?;
    let propagated = written?;
    bar.finish();
    for warning in &result.warnings {
        tracing::warn!("{warning}");
    }

    let mut timings = clock.laps().to_vec();
    timings.extend(&result.timings);
    let mut clock = Stopwatch::start();
    let spacing = model.as_ref().map_or(args.spacing, |m| m.manifest.preprocessing.spacing_mm);
    let scans = [&fixed, &moving];
    let contours = [reference.as_ref(), labels.as_ref()];
    let qa = assess_registration(scans, &result, contours, spacing, &QaLimits::default())?;
    clock.lap("QA");
    let pictures = RegistrationPictures {
        fixed: &fixed,
        moving: &moving,
        warped: &result.warped,
        fixed_labels: reference.as_ref(),
        moving_labels: labels.as_ref(),
        warped_labels: propagated.as_ref(),
        field: Some(&result.field),
        jacobian: None,
    };
    let figures = pictures.figures(360)?;
    clock.lap("pictures");
    jrs_report::save(args.out.join("qa.json"), qa.to_json())?;
    timings.extend(clock.laps());
    timings.push(("all of it", started.elapsed().as_secs_f64()));
    let page = page(args, &qa, &result, &timings, model.as_ref(), figures);
    jrs_report::save(args.out.join("report.html"), registration_page(&page))?;
    if args.json {
        println!("{}", serde_json::to_string(&qa)?);
    } else {
        println!("{:?}: {}", qa.status, args.out.join("report.html").display());
    }
    Ok(ExitCode::SUCCESS)
}

fn labels_on(
    path: Option<&Path>,
    image: &Volume<f32>,
    image_path: &Path,
) -> libjrs::Result<Option<Volume<u8>>> {
    let Some(path) = path else { return Ok(None) };
    let labels = read_labels(path)?;
    if !labels.grid.same_space(&image.grid, 0.1) {
        return Err(Error::file(
            path,
            format!(
                "its grid {:?} at {:?} is not that of {} ({:?} at {:?})",
                labels.grid.size,
                labels.grid.origin,
                image_path.display(),
                image.grid.size,
                image.grid.origin
            ),
            "Resample the label map to the image's grid by nearest neighbour",
        ));
    }
    Ok(Some(labels))
}

/// Everything but the report; the labels on the fixed grid.
fn write_results(
    args: &Args,
    result: &Forward,
    labels: Option<&Volume<u8>>,
    points: Option<&[NamedPoint]>,
) -> anyhow::Result<Option<Volume<u8>>> {
    let out = |name: &str| args.out.join(name);
    // A thread per large file: one waits for the disk while another computes.
    std::thread::scope(|scope| {
        let mha = scope.spawn(|| write_mha(out("dvf.mha"), &result.field));
        let itk = scope.spawn(|| write_nifti(out("dvf.nii.gz"), &result.field, NiftiFlavour::Itk));
        let ants = scope.spawn(|| write_nifti(out("dvf-ants.nii.gz"), &result.field, NiftiFlavour::Ants));
        let warped = scope.spawn(|| write_image(out("warped.nii.gz"), &result.warped, Sample::Int16));
        let finished = |thread: ScopedJoinHandle<'_, libjrs::Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        [mha, itk, ants, warped].map(finished).into_iter().collect::<libjrs::Result<()>>()
    })?;
    write_affine(out("affine.json"), &result.affine)?;
    let propagated = labels.map(|labels| warp_labels(labels, &result.field, None));
    if let Some(propagated) = &propagated {
        write_labels(out("labels.nii.gz"), propagated)?;
    }
    if let Some(points) = points {
        let places: Vec<_> = points.iter().map(|p| p.point).collect();
        let found = invert_points(&result.field, None, &places).context("carrying the points over")?;
        let lost: Vec<&str> =
            points.iter().zip(&found).filter(|(_, f)| !f.converged).map(|(p, _)| p.name.as_str()).collect();
        if !lost.is_empty() {
            tracing::warn!(points = ?lost, "the inverse did not converge for these points");
        }
        let named: Vec<NamedPoint> = points
            .iter()
            .zip(&found)
            .map(|(p, f)| NamedPoint { name: p.name.clone(), point: f.point })
            .collect();
        write_points(out("points.csv"), &named)?;
    }
    Ok(propagated)
}

fn page(
    args: &Args,
    qa: &QaReport,
    result: &Registration,
    timings: &[(&str, f64)],
    model: Option<&Model>,
    figures: Vec<jrs_report::Figure>,
) -> RegistrationReport {
    let verdict = |status: Status| match status {
        Status::Ok => Verdict::Ok,
        Status::Review => Verdict::Review,
        Status::Reject => Verdict::Reject,
    };
    let seconds = timings.last().map_or(0.0, |(_, all)| *all);
    let tile =
        |label: &str, value: String| Tile { label: label.into(), value, note: String::new(), verdict: None };
    let number = |v: Option<f64>, unit: &str| v.map_or("not measured".into(), |v| format!("{v:.3}{unit}"));
    let folded = qa.jacobian.as_ref().map(|j| 100.0 * j.folded);
    let scores = |organ: &str, agreement: &Option<Agreement>| {
        agreement.as_ref().map(|a| OrganScores {
            organ: organ.to_owned(),
            dsc: Some(a.dice),
            msd_mm: a.surface.as_ref().map(|s| s.msd),
            hd95_mm: a.surface.as_ref().map(|s| s.hd95),
        })
    };
    RegistrationReport {
        title: "Registration".into(),
        subtitle: format!("{} onto {}", args.moving.display(), args.fixed.display()),
        verdict: verdict(qa.status),
        reasons: qa.reasons.clone(),
        tiles: vec![
            tile("time", format!("{seconds:.1} s")),
            tile("mean displacement", format!("{:.1} mm", qa.displacement.mean_mm)),
            tile("largest displacement", format!("{:.1} mm", qa.displacement.max_mm)),
            tile("folding", number(folded, " %")),
            tile(
                "inverse consistency (p95)",
                number(qa.inverse_consistency.as_ref().map(|i| i.p95_mm), " mm"),
            ),
            tile("NCC before", number(qa.ncc_before, "")),
            tile("NCC after", number(qa.ncc_after, "")),
        ],
        checks: qa
            .checks()
            .into_iter()
            .map(|c| Check { name: c.figure, value: c.value, limit: c.limit, verdict: verdict(c.status) })
            .collect(),
        organs: qa
            .organs
            .iter()
            .filter(|o| o.before.is_some() || o.after.is_some())
            .map(|o| OrganChange {
                organ: o.name.clone(),
                before: scores(&o.name, &o.before),
                after: scores(&o.name, &o.after),
            })
            .collect(),
        figures,
        provenance: provenance(args, result, timings, model),
        footer: concat!("jrs ", env!("CARGO_PKG_VERSION")).into(),
    }
}

fn provenance(
    args: &Args,
    result: &Registration,
    timings: &[(&str, f64)],
    model: Option<&Model>,
) -> Vec<(String, String)> {
    let mut facts = vec![
        ("fixed".into(), args.fixed.display().to_string()),
        ("moving".into(), args.moving.display().to_string()),
        ("prealignment".into(), format!("{:?}", result.affine)),
    ];
    if let (Some(path), Some(model)) = (&args.model, model) {
        facts.push(("model".into(), path.display().to_string()));
        facts.push(("model SHA-256".into(), model.sha256()));
        facts.push(("system".into(), model.manifest.training.system.clone()));
    }
    facts.extend(timings.iter().map(|(stage, s)| (format!("seconds: {stage}"), format!("{s:.2}"))));
    facts
}
