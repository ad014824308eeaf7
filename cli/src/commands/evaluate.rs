//! `jrs evaluate`: the paper's table on a split of a dataset.

use super::{Align, ComputeArgs, phase};
use jrs_data::dataset::{Dataset, Pair, Split};
use jrs_report::boxplot::box_plot;
use jrs_report::evaluation::BEFORE;
use jrs_report::table::{References, case_table, score_table};
use jrs_report::{
    Case, Evaluation, EvaluationReport, Figure, OrganScores, RegistrationPictures, Score, System,
    evaluation_page,
};
use libjrs::align::read_affine;
use libjrs::field::{compose_with_affine, warp_image, warp_labels};
use libjrs::landmarks::read_landmarks;
use libjrs::metrics::{dice, jacobian, surface_distances, target_registration_error};
use libjrs::model::Model;
use libjrs::nifti::{read_image, read_labels};
use libjrs::preprocess::torso_mask;
use libjrs::progress::Progress;
use libjrs::refine::RefineOptions;
use libjrs::register::{Prealign, RegisterOptions, register};
use libjrs::{DisplacementField, Error, Volume};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Arguments of `jrs evaluate`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  jrs evaluate --model model.safetensors --data cohort --split test --out tables"
)]
pub struct Args {
    /// Trained model.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Folder with dataset.json and the NIfTI files.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// train, validation or test.
    #[arg(long, default_value = "test")]
    pub split: SplitArg,
    /// Alignment before the network, also for the "before registration" row.
    #[arg(long, default_value = "rigid")]
    pub align: Align,
    /// Also score the network followed by this many gradient steps on NCC + bending energy, as a system of its own.
    #[arg(long, value_name = "STEPS")]
    pub refine: Option<usize>,
    /// Voxels on which --refine works, mm.
    #[arg(long, default_value_t = 1.0)]
    pub spacing: f64,
    /// Memory limit for the network, MB.
    #[arg(long, default_value_t = 4096, value_name = "MB")]
    pub memory: usize,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Folder for tables, plots and the page.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// End with one JSON line.
    #[arg(long)]
    pub json: bool,
    /// What the progress bar says.
    #[arg(skip = "evaluate")]
    pub title: &'static str,
}

/// A split on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitArg {
    /// Seen by the optimiser.
    Train,
    /// Chose the best model.
    Validation,
    /// Never seen.
    Test,
}

impl From<SplitArg> for Split {
    fn from(split: SplitArg) -> Self {
        match split {
            SplitArg::Train => Self::Train,
            SplitArg::Validation => Self::Validation,
            SplitArg::Test => Self::Test,
        }
    }
}

/// Means over the evaluated pairs.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// Mean MSD over organs and pairs after the affine step alone, mm.
    pub msd_before_mm: f64,
    /// The same after registration (with the refinement, if one was asked for), mm.
    pub msd_after_mm: f64,
    /// The same after the network alone, mm; only if a refinement followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msd_network_mm: Option<f64>,
    /// Per organ: (before, after), mm.
    pub msd_per_organ: std::collections::BTreeMap<String, [f64; 2]>,
    /// Mean share of voxels in the body that fold, per cent.
    pub folding_percent: f64,
    /// The HTML page.
    pub report: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let summary = evaluate(args, Vec::new())?;
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        summary.print();
    }
    Ok(ExitCode::SUCCESS)
}

/// Registers every pair of the split and writes tables, plots and the page; `curves` go into the page.
pub fn evaluate(args: &Args, curves: Vec<jrs_report::curves::Chart>) -> anyhow::Result<Summary> {
    let model = Model::load(&args.model)?;
    let dataset = Dataset::open(&args.data)?;
    let split = Split::from(args.split);
    let pairs: Vec<&Pair> = dataset.pairs.iter().filter(|p| p.split == split).collect();
    if pairs.is_empty() {
        return Err(Error::file(
            args.data.join(jrs_data::dataset::MANIFEST),
            format!("no pair is in the {split:?} split"),
            "Choose another --split",
        )
        .into());
    }
    std::fs::create_dir_all(&args.out)
        .map_err(|e| Error::io(&args.out, e, "Give --out a folder that can be written"))?;
    let name = model.manifest.training.system.clone();
    let refined = args.refine.map(|steps| format!("{name} + {steps} steps of refinement"));
    let last = refined.clone().unwrap_or_else(|| name.clone());
    let systems = [BEFORE.to_owned(), name].into_iter().chain(refined);
    let mut evaluation = Evaluation {
        data: format!("{} ({:?} split, {} pairs)", dataset.name, split, pairs.len()),
        systems: systems.map(|name| System { name, cases: Vec::new() }).collect(),
    };
    let bar = phase(args.title, pairs.len() as u64);
    let mut overlays = HashMap::new();
    for pair in pairs {
        let judged = judge(args, &dataset, pair, &model)?;
        for (system, case) in evaluation.systems.iter_mut().zip(judged.cases) {
            system.cases.push(case);
        }
        overlays.insert(pair.id.clone(), judged.overlay);
        bar.advance(1);
    }
    bar.finish();
    let shown = representative(&evaluation, &last, overlays);
    let report = write(args, &evaluation, &model, shown, curves)?;
    Ok(Summary::new(&evaluation, report))
}

/// The pictures of the best, median and worst pair by mean surface distance, each once.
fn representative(
    evaluation: &Evaluation,
    system: &str,
    mut overlays: HashMap<String, jrs_report::Picture>,
) -> Vec<Figure> {
    let cases = evaluation.representative_cases(system, Score::Msd);
    let named = cases.into_iter().flat_map(|cases| ["Best", "Median", "Worst"].into_iter().zip(cases));
    named
        .filter_map(|(which, case)| {
            let picture = overlays.remove(&case.pair)?;
            let caption =
                format!("{which} pair by mean surface distance: {}, aligned and registered", case.pair);
            Some(Figure { picture, caption })
        })
        .collect()
}

struct Judged {
    /// One per system, in their order.
    cases: Vec<Case>,
    /// What the last system did.
    overlay: jrs_report::Picture,
}

fn judge(args: &Args, dataset: &Dataset, pair: &Pair, model: &Model) -> anyhow::Result<Judged> {
    let path = |file: &str| args.data.join(file);
    let labels = |file: &Option<String>| -> libjrs::Result<Volume<u8>> {
        match file {
            Some(file) => read_labels(path(file)),
            None => Err(Error::input(
                format!("pair {} has no label maps, so there is nothing to score", pair.id),
                "Add \"labels\" to both scans in dataset.json",
            )),
        }
    };
    let (fixed, moving) = (read_image(path(&pair.fixed.image))?, read_image(path(&pair.moving.image))?);
    let (fixed_labels, moving_labels) = (labels(&pair.fixed.labels)?, labels(&pair.moving.labels)?);
    let clock = Instant::now();
    let affine = match &pair.affine {
        Some(file) => read_affine(path(file))?,
        None => args.align.find(&fixed, &moving)?,
    };
    let alignment = clock.elapsed().as_secs_f64();

    let at_start = compose_with_affine(&DisplacementField::zero(fixed.grid.clone()), &affine);
    let unregistered = warp_labels(&moving_labels, &at_start, None);
    let aligned = warp_image(&moving, &at_start, None, moving.range()[0]);
    let body = torso_mask(&fixed)?;
    let landmarks = pair.truth.as_ref().and_then(|t| t.landmarks.as_ref());
    let landmarks = landmarks.map(|file| read_landmarks(path(file))).transpose()?;

    let case = |labels: &Volume<u8>, field: &DisplacementField| -> libjrs::Result<Case> {
        let tre = landmarks.as_ref().and_then(|l| target_registration_error(l, field, None));
        Ok(Case {
            pair: pair.id.clone(),
            patient: pair.patient.clone(),
            organs: organ_scores(dataset, &fixed_labels, labels)?,
            tre_mean_mm: tre.as_ref().map(|t| t.mean_mm),
            tre_max_mm: tre.as_ref().map(|t| t.max_mm),
            ..Case::default()
        })
    };
    let mut cases = vec![case(&unregistered, &at_start)?];
    let mut overlay = None;
    for steps in [Some(0), args.refine].into_iter().flatten() {
        let clock = Instant::now();
        let options = RegisterOptions {
            prealign: Prealign::Given(affine),
            max_bytes: args.memory << 20,
            refine: RefineOptions { steps, ..Default::default() },
            both_directions: true,
            spacing_mm: args.spacing,
            compute: args.compute.checked()?,
            ..Default::default()
        };
        let result = register(Some(model), &fixed, &moving, &options, Progress::SILENT)?;
        let seconds = alignment + clock.elapsed().as_secs_f64();
        let propagated = warp_labels(&moving_labels, &result.field, None);
        let local = libjrs::field::resample_field(&result.network_field, &fixed.grid);
        let folding = jacobian(&local).statistics(|i| body.data[i] != 0);
        cases.push(Case {
            jacobian_std: folding.as_ref().map(|j| j.std),
            jacobian_min: folding.as_ref().map(|j| j.min),
            folding_percent: folding.as_ref().map(|j| 100.0 * j.folded),
            inverse_consistency_mm: result.inverse_consistency(Some(&body))?.map(|i| i.mean_mm),
            seconds: Some(seconds),
            ..case(&propagated, &result.field)?
        });
        let pictures = RegistrationPictures {
            fixed: &fixed,
            moving: &aligned,
            warped: &result.warped,
            fixed_labels: Some(&fixed_labels),
            moving_labels: Some(&unregistered),
            warped_labels: Some(&propagated),
            field: None,
            jacobian: None,
        };
        overlay = Some(jrs_report::Picture::Png(pictures.comparison(360).png()?));
    }
    Ok(Judged { cases, overlay: overlay.expect("the network alone is always scored") })
}

fn organ_scores(
    dataset: &Dataset,
    reference: &Volume<u8>,
    propagated: &Volume<u8>,
) -> libjrs::Result<Vec<OrganScores>> {
    dataset
        .organs
        .iter()
        .map(|organ| {
            let surfaces = surface_distances(reference, propagated, organ.id)?;
            Ok(OrganScores {
                organ: organ.name.clone(),
                dsc: dice(reference, propagated, organ.id)?,
                msd_mm: surfaces.as_ref().map(|s| s.msd),
                hd95_mm: surfaces.as_ref().map(|s| s.hd95),
            })
        })
        .collect()
}

fn write(
    args: &Args,
    evaluation: &Evaluation,
    model: &Model,
    overlays: Vec<Figure>,
    curves: Vec<jrs_report::curves::Chart>,
) -> anyhow::Result<PathBuf> {
    let out = |name: &str| args.out.join(name);
    let references = References { dagger: Some(BEFORE.into()), double_dagger: None };
    let mut markdown = String::new();
    for score in Score::ALL {
        let table = score_table(evaluation, score, &references);
        markdown.push_str(&table.markdown());
        markdown.push('\n');
        jrs_report::save(out(&format!("{}.csv", score.key())), table.csv())?;
        jrs_report::save(out(&format!("{}.svg", score.key())), box_plot(evaluation, score))?;
    }
    markdown.push_str(&case_table(evaluation).markdown());
    jrs_report::save(out("tables.md"), markdown)?;
    jrs_report::save(out("evaluation.json"), serde_json::to_string_pretty(evaluation)?)?;
    let training = &model.manifest.training;
    let report = EvaluationReport {
        title: "Evaluation".into(),
        subtitle: evaluation.data.clone(),
        evaluation: evaluation.clone(),
        references,
        findings: Vec::new(),
        overlays,
        curves,
        provenance: vec![
            ("model".into(), file_name(&args.model)),
            ("model SHA-256".into(), model.sha256()),
            ("system".into(), training.system.clone()),
            ("generator iterations".into(), training.steps.to_string()),
            ("config SHA-256".into(), training.config_sha256.clone()),
            ("data SHA-256".into(), training.dataset_sha256.clone()),
        ],
        footer: concat!("jrs ", env!("CARGO_PKG_VERSION")).into(),
    };
    let page = out("report.html");
    jrs_report::save(&page, evaluation_page(&report))?;
    Ok(page)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Summary {
    fn new(evaluation: &Evaluation, report: PathBuf) -> Self {
        let mean = |v: &[f64]| if v.is_empty() { f64::NAN } else { v.iter().sum::<f64>() / v.len() as f64 };
        let [before, network] = [0, 1].map(|i| &evaluation.systems[i]);
        let after = evaluation.systems.last().expect("there are two or three systems");
        let all = |system: &System| -> f64 {
            let values: Vec<f64> =
                system.cases.iter().flat_map(|c| &c.organs).filter_map(|o| o.msd_mm).collect();
            mean(&values)
        };
        let per_organ = |system: &System, organ: &str| -> f64 {
            let values: Vec<f64> = system.cases.iter().filter_map(|c| c.score(Score::Msd, organ)).collect();
            mean(&values)
        };
        let folding: Vec<f64> = after.cases.iter().filter_map(|c| c.folding_percent).collect();
        Self {
            msd_before_mm: all(before),
            msd_after_mm: all(after),
            msd_network_mm: (evaluation.systems.len() > 2).then(|| all(network)),
            msd_per_organ: evaluation
                .organs()
                .into_iter()
                .map(|o| (o.clone(), [per_organ(before, &o), per_organ(after, &o)]))
                .collect(),
            folding_percent: mean(&folding),
            report,
        }
    }

    /// A short table for people.
    pub fn print(&self) {
        println!("mean surface distance, mm    before    after");
        for (organ, [before, after]) in &self.msd_per_organ {
            println!("  {organ:<24} {before:>8.2} {after:>8.2}");
        }
        println!("  {:<24} {:>8.2} {:>8.2}", "all organs", self.msd_before_mm, self.msd_after_mm);
        if let Some(network) = self.msd_network_mm {
            println!("  {:<24} {:>8} {network:>8.2}", "... by the network alone", "");
        }
        println!("folding {:.3} %", self.folding_percent);
        println!("report  {}", self.report.display());
    }
}
