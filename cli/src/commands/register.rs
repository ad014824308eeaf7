//! `jrs register`: one pair of scans, from files to files.

use super::Align;
use anyhow::Context;
use jrs_report::html::{Tile, Verdict};
use jrs_report::registration_page::{OrganChange, RegistrationReport};
use jrs_report::{OrganScores, RegistrationPictures, registration_page};
use libjrs::align::{read_affine, write_affine};
use libjrs::field::{invert_points, warp_labels};
use libjrs::field_io::{NiftiFlavour, write_mha, write_nifti};
use libjrs::landmarks::{NamedPoint, read_points, write_points};
use libjrs::metrics::jacobian;
use libjrs::model::Model;
use libjrs::nifti::{Sample, read_image, read_labels, write_image, write_labels};
use libjrs::progress::Progress;
use libjrs::qa::{Agreement, QaLimits, QaReport, Status, assess_registration};
use libjrs::refine::RefineOptions;
use libjrs::register::{Prealign, RegisterOptions, Registration, register};
use libjrs::{Error, Volume};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
    // Everything is read and checked, the output folder too, before the work begins.
    let model = args.model.as_ref().map(Model::load).transpose()?;
    let (fixed, moving) = (read_image(&args.fixed)?, read_image(&args.moving)?);
    let labels = labels_on(args.labels.as_deref(), &moving, &args.moving)?;
    let reference = labels_on(args.reference.as_deref(), &fixed, &args.fixed)?;
    let points = args.points.as_ref().map(read_points).transpose()?;
    let affine = args.affine.as_ref().map(read_affine).transpose()?;
    std::fs::create_dir_all(&args.out)
        .map_err(|e| Error::io(&args.out, e, "Give --out a folder that can be written"))?;
    let affine = match affine {
        Some(affine) => affine,
        None => args.align.find(&fixed, &moving)?,
    };

    let options = RegisterOptions {
        prealign: Prealign::Given(affine),
        max_bytes: args.memory << 20,
        refine: RefineOptions { steps: args.refine.unwrap_or(0), ..Default::default() },
        both_directions: true,
        spacing_mm: args.spacing,
        ..Default::default()
    };
    let bar = super::phase("register", 100);
    let report = |stage: &str, done: usize, total: usize| bar.message(format!("{stage} {done}/{total}"));
    let progress = Progress { report: Some(&report), cancel: None };
    let result = register(model.as_ref(), &fixed, &moving, &options, progress)?;
    bar.finish();
    for warning in &result.warnings {
        tracing::warn!("{warning}");
    }

    let propagated = labels.as_ref().map(|l| warp_labels(l, &result.field, None));
    write_results(args, &result, propagated.as_ref(), points.as_deref())?;
    let spacing = model.as_ref().map_or(args.spacing, |m| m.manifest.preprocessing.spacing_mm);
    let scans = [&fixed, &moving];
    let contours = [reference.as_ref(), labels.as_ref()];
    let qa = assess_registration(scans, &result, contours, spacing, &QaLimits::default())?;
    jrs_report::save(args.out.join("qa.json"), qa.to_json())?;
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
    let page = page(args, &qa, &result, model.as_ref(), pictures.figures(360)?);
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

fn write_results(
    args: &Args,
    result: &Registration,
    propagated: Option<&Volume<u8>>,
    points: Option<&[NamedPoint]>,
) -> anyhow::Result<()> {
    let out = |name: &str| args.out.join(name);
    // Gzip runs on one thread per file.
    let field = |name: &str, flavour| write_nifti(out(name), &result.field, flavour);
    let (nifti, rest) = rayon::join(
        || {
            rayon::join(
                || field("dvf.nii.gz", NiftiFlavour::Itk),
                || field("dvf-ants.nii.gz", NiftiFlavour::Ants),
            )
        },
        || {
            write_mha(out("dvf.mha"), &result.field)?;
            write_image(out("warped.nii.gz"), &result.warped, Sample::Int16)
        },
    );
    nifti.0.and(nifti.1).and(rest)?;
    write_affine(out("affine.json"), &result.affine)?;
    if let Some(propagated) = propagated {
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
    Ok(())
}

fn page(
    args: &Args,
    qa: &QaReport,
    result: &Registration,
    model: Option<&Model>,
    figures: Vec<jrs_report::Figure>,
) -> RegistrationReport {
    let verdict = match qa.status {
        Status::Ok => Verdict::Ok,
        Status::Review => Verdict::Review,
        Status::Reject => Verdict::Reject,
    };
    let seconds: f64 = result.timings.iter().map(|(_, s)| s).sum();
    let tile =
        |label: &str, value: String| Tile { label: label.into(), value, note: String::new(), verdict: None };
    let number = |v: Option<f64>, unit: &str| v.map_or("not measured".into(), |v| format!("{v:.3}{unit}"));
    let folded = jacobian(&result.network_field).statistics(|_| true).map(|s| 100.0 * s.folded);
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
        verdict,
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
        checks: Vec::new(),
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
        provenance: provenance(args, result, model),
        footer: concat!("jrs ", env!("CARGO_PKG_VERSION")).into(),
    }
}

fn provenance(args: &Args, result: &Registration, model: Option<&Model>) -> Vec<(String, String)> {
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
    facts.extend(result.timings.iter().map(|(stage, s)| (format!("seconds: {stage}"), format!("{s:.2}"))));
    facts
}
