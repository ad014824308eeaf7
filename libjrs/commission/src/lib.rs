//! The commissioning suite: is this model, on this machine, as accurate as it has to be?
//!
//! A synthetic pelvis is deformed by maps that are known exactly, both states are drawn as scans of their own, and
//! what registration finds is held against the truth: [`run`]. The tolerances follow AAPM TG-132, see [`Tolerances`]. It
//! finds wrong conventions, a damaged or unsuitable model and a broken build; it does not replace a clinic's own
//! commissioning on its own scanners' images.
#![forbid(unsafe_code)]

mod cases;
mod judge;
mod page;
mod scene;

pub use cases::{CASES, Case};
pub use judge::{Check, Outcome, Tolerances};
pub use page::page;

use libjrs::Result;
use libjrs::engine::Compute;
use libjrs::model::Model;
use libjrs::progress::Progress;
use libjrs::refine::RefineOptions;
use serde::Serialize;

/// How the suite is run.
#[derive(Debug, Clone, Serialize)]
pub struct Suite {
    /// Edge of the phantom's voxels in the axial plane and between slices, mm.
    pub spacing_mm: [f64; 2],
    /// Gradient steps of refinement after the network; 0 = the network alone.
    pub refine_steps: usize,
    /// Voxels on which refinement works, mm.
    pub refine_spacing_mm: f64,
    /// Bound of the network's working memory, bytes.
    pub max_bytes: usize,
    /// What runs the network.
    pub compute: Compute,
    /// The phantom; another seed is another patient.
    pub seed: u64,
    /// What counts as passed.
    pub tolerances: Tolerances,
}

impl Default for Suite {
    fn default() -> Self {
        Self {
            spacing_mm: [1.5, 2.5],
            refine_steps: 0,
            refine_spacing_mm: 1.0,
            max_bytes: 4 << 30,
            compute: Compute::default(),
            seed: 132,
            tolerances: Tolerances::default(),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// True if every case passed.
    pub passed: bool,
    /// Software and version.
    pub software: String,
    /// SHA-256 (hex) of the model file; `None` for refinement alone.
    pub model_sha256: Option<String>,
    /// The trained system, or `none`.
    pub system: String,
    /// How the suite was run.
    pub suite: Suite,
    /// The cases in order.
    pub cases: Vec<Outcome>,
}

/// Runs every case with `model`, or with refinement alone. `started` hears the name of each case before it begins.
///
/// # Errors
/// What registration reports; a case that is merely inaccurate is no error.
pub fn run(model: Option<&Model>, suite: &Suite, started: &dyn Fn(&str)) -> Result<Report> {
    let scene = scene::Scene::new(suite);
    let mut cases = Vec::new();
    for case in &CASES {
        started(case.name);
        cases.push(judge::run(case, &scene, model, suite)?);
    }
    Ok(Report {
        passed: cases.iter().all(Outcome::passed),
        software: concat!("jrs ", env!("CARGO_PKG_VERSION")).into(),
        model_sha256: model.map(Model::sha256),
        system: model.map_or("none", |m| &m.manifest.training.system).into(),
        suite: suite.clone(),
        cases,
    })
}

impl Suite {
    fn refine(&self) -> RefineOptions {
        RefineOptions { steps: self.refine_steps, ..Default::default() }
    }
}

/// No progress within a case: it takes seconds.
const SILENT: Progress<'static> = Progress::SILENT;

#[cfg(test)]
mod tests {
    use super::*;
    use libjrs::model::{GeneratorWeights, Provenance};

    /// Coarse enough for a test.
    fn suite() -> Suite {
        Suite { spacing_mm: [4.0, 4.0], refine_spacing_mm: 4.0, ..Default::default() }
    }

    fn case<'a>(report: &'a Report, name: &str) -> &'a Outcome {
        report.cases.iter().find(|case| case.name == name).unwrap()
    }

    fn check<'a>(report: &'a Report, name: &str, check: &str) -> &'a Check {
        case(report, name).checks.iter().find(|c| c.name.starts_with(check)).unwrap()
    }

    #[test]
    fn an_untrained_model_fails_and_the_page_says_so() {
        let training = Provenance { system: "untrained".into(), ..Default::default() };
        let mut model = Model::new(GeneratorWeights::random(1), training);
        model.manifest.preprocessing.spacing_mm = 4.0;
        let report = run(Some(&model), &suite(), &|_| {}).unwrap();
        assert!(!report.passed);
        assert_eq!(report.cases.len(), CASES.len());
        assert!(!check(&report, "smooth bump", "error in the organs (p95)").passed);
        assert!(check(&report, "cut field of view", "a warning").passed);
        let page = page(&report);
        assert!(page.contains("FAILED") && page.contains("smooth bump") && page.contains("untrained"));
    }

    /// On 4 mm voxels refinement does not reach the tolerances everywhere, but the truth of every case must be what it
    /// moves towards: a wrong sign or grid in the suite would leave it farther away than it began.
    #[test]
    fn refinement_comes_closer_to_every_truth() {
        let still = run(None, &Suite { refine_steps: 1, ..suite() }, &|_| {}).unwrap();
        let refined = run(None, &Suite { refine_steps: 60, ..suite() }, &|_| {}).unwrap();
        assert!(case(&refined, "identity").passed(), "{:?}", case(&refined, "identity"));
        let rigid = check(&refined, "shift", "error of the prealignment");
        assert!(rigid.passed, "{rigid:?}");
        let moved =
            ["smooth bump", "bladder filling", "oblique grid", "anisotropic grid", "cut field of view"];
        for name in moved {
            let error = |report| check(report, name, "error in the organs (p95)").value.unwrap();
            let (before, after) = (error(&still), error(&refined));
            eprintln!("{name}: p95 {before:.2} mm, after refinement {after:.2} mm");
            assert!(after < 0.75 * before, "{name}: {before} and {after} mm");
        }
    }
}
