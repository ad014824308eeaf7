//! Every picture, chart and page on made-up data: `cargo run -p jrs-report --example gallery -- OUTDIR`.
//!
//! A pelvis of ellipsoids with a smooth known motion; the "registration" recovers most of it. Scores of the study
//! are drawn around the paper's values by a fixed generator: they show the layout, nothing else.

use std::path::Path;

use jrs_report::colour::{ORGANS, Scale};
use jrs_report::curves::{Chart, Series};
use jrs_report::evaluation::BEFORE;
use jrs_report::html::Tile;
use jrs_report::overlay::{ContourStyle, Overlay};
use jrs_report::registration_page::{Check, OrganChange};
use jrs_report::table::{References, published_msd, score_table};
use jrs_report::view::{Plane, View};
use jrs_report::{
    Case, Evaluation, EvaluationReport, Figure, OrganScores, Picture, RegistrationPictures,
    RegistrationReport, Score, System, Verdict, boxplot, evaluation_page, registration_page, save,
};
use libjrs::{DisplacementField, Grid, Result, Volume};

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "gallery".into());
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)
        .map_err(|e| libjrs::Error::io(folder, e, "name a folder that can be created"))?;

    let phantom = Phantom::new();
    let pictures = phantom.pictures();
    save(folder.join("comparison.png"), pictures.comparison(330).png()?)?;
    save(folder.join("checkerboard.png"), pictures.checkerboard(440).png()?)?;
    save(folder.join("displacement.png"), pictures.displacement(&phantom.field, 440).png()?)?;
    save(folder.join("grid.png"), pictures.deformed_grid(&phantom.field, 440).png()?)?;
    save(folder.join("jacobian.png"), pictures.jacobian(&phantom.jacobian, 440).png()?)?;
    let view = View::whole(&phantom.fixed.grid, Plane::Coronal, [0.0, 0.0, 0.0], 700);
    let whole = Overlay::ct(view, &phantom.fixed, &Scale::soft_tissue())
        .contours(&phantom.fixed_labels, ContourStyle::Propagated)
        .annotated();
    save(folder.join("whole.png"), whole.finish().png()?)?;

    save(folder.join("registration.html"), registration_page(&registration_report(&pictures)?))?;

    let evaluation = study();
    let references = References { dagger: Some("elastix-MI".into()), double_dagger: Some("Reg-CNN".into()) };
    for score in Score::ALL {
        let table = score_table(&evaluation, score, &references);
        save(folder.join(format!("{}.md", score.key())), table.markdown())?;
        save(folder.join(format!("{}.csv", score.key())), table.csv())?;
        save(folder.join(format!("{}.json", score.key())), table.json())?;
        save(folder.join(format!("{}.svg", score.key())), boxplot::box_plot(&evaluation, score))?;
    }
    save(folder.join("loss.svg"), curves()[0].svg())?;
    let overlays = ["Best", "Median", "Worst"].map(|rank| {
        let picture = Picture::Png(pictures.comparison(300).png()?);
        Ok(Figure {
            picture,
            caption: format!("{rank} case by mean surface distance (the same made-up pair)."),
        })
    });
    let report = EvaluationReport {
        title: "Prostate CT study".into(),
        subtitle: "Five networks and two conventional registrations on made-up scores".into(),
        evaluation,
        references,
        findings: vec!["These numbers are random draws: they show the page, not a result.".into()],
        overlays: overlays.into_iter().collect::<Result<_>>()?,
        curves: curves(),
        provenance: vec![
            ("dataset".into(), "none, generated".into()),
            ("seed".into(), "1".into()),
            ("version".into(), env!("CARGO_PKG_VERSION").into()),
        ],
        footer: format!("Made by jrs {}.", env!("CARGO_PKG_VERSION")),
    };
    save(folder.join("evaluation.html"), evaluation_page(&report))
}

/// Two made-up scans, their contours and a field between them.
struct Phantom {
    fixed: Volume<f32>,
    moving: Volume<f32>,
    warped: Volume<f32>,
    fixed_labels: Volume<u8>,
    moving_labels: Volume<u8>,
    warped_labels: Volume<u8>,
    field: DisplacementField,
    jacobian: Volume<f32>,
}

impl Phantom {
    fn new() -> Self {
        // Planning-CT-like: finer in the slice than across.
        let grid = Grid::axis_aligned([170, 120, 50], [2.0, 2.0, 3.0], [-169.0, -119.0, -73.5]);
        let mut field = DisplacementField::zero(grid.clone());
        for i in 0..grid.len() {
            let u = motion(place(&grid, i));
            (0..3).for_each(|a| field.u[a][i] = (0.9 * u[a]) as f32);
        }
        let image = |share: f64, seed: u64| {
            let mut noise = Noise(seed);
            let data = (0..grid.len()).map(|i| {
                // The mean of eight points per voxel, as a scanner's partial volumes.
                let x = place(&grid, i);
                let u = motion(x);
                let hu: f32 = (0..8usize)
                    .map(|n| {
                        let off = |a: usize| ((n >> a & 1) as f64 - 0.5) * grid.spacing[a] / 2.0;
                        pelvis(std::array::from_fn(|a| x[a] + off(a) + share * u[a])).0 / 8.0
                    })
                    .sum();
                hu + 9.0 * noise.normal() as f32
            });
            Volume::new(grid.clone(), data.collect())
        };
        let labels = |share: f64| {
            let data = (0..grid.len()).map(|i| {
                let x = place(&grid, i);
                let u = motion(x);
                pelvis(std::array::from_fn(|a| x[a] + share * u[a])).1
            });
            Volume::new(grid.clone(), data.collect())
        };
        let jacobian = jacobian(&field);
        // A scan with the share s of the motion shows at x what the undeformed pelvis has at x + s u(x).
        Self {
            fixed: image(1.0, 1),
            moving: image(0.0, 2),
            warped: image(0.88, 3),
            fixed_labels: labels(1.0),
            moving_labels: labels(0.0),
            warped_labels: labels(0.88),
            field,
            jacobian,
        }
    }

    fn pictures(&self) -> RegistrationPictures<'_> {
        RegistrationPictures {
            fixed: &self.fixed,
            moving: &self.moving,
            warped: &self.warped,
            fixed_labels: Some(&self.fixed_labels),
            moving_labels: Some(&self.moving_labels),
            warped_labels: Some(&self.warped_labels),
            field: Some(&self.field),
            jacobian: Some(&self.jacobian),
        }
    }
}

fn place(grid: &Grid, i: usize) -> [f64; 3] {
    let n = grid.size;
    grid.to_physical([i % n[0], i / n[0] % n[1], i / (n[0] * n[1])].map(|v| v as f64))
}

/// A smooth pelvic motion, mm: the bladder fills, the rectum shifts.
fn motion(x: [f64; 3]) -> [f64; 3] {
    let bump =
        |c: [f64; 3], s: f64| (-(0..3).map(|a| (x[a] - c[a]).powi(2)).sum::<f64>() / (2.0 * s * s)).exp();
    let (bladder, rectum) = (bump([0.0, -28.0, 28.0], 26.0), bump([6.0, 32.0, 0.0], 20.0));
    [
        0.16 * x[0] * bladder + 7.0 * rectum,
        0.20 * (x[1] + 28.0) * bladder - 4.0 * rectum,
        0.35 * (x[2] - 8.0) * bladder + 2.0 * rectum,
    ]
}

/// HU and label at a point of the undeformed pelvis.
fn pelvis(x: [f64; 3]) -> (f32, u8) {
    let inside = |c: [f64; 3], r: [f64; 3]| (0..3).map(|a| ((x[a] - c[a]) / r[a]).powi(2)).sum::<f64>() < 1.0;
    let tube =
        |cx: f64, cy: f64, rx: f64, ry: f64| ((x[0] - cx) / rx).powi(2) + ((x[1] - cy) / ry).powi(2) < 1.0;
    if !tube(0.0, 0.0, 158.0, 106.0) {
        return (-1000.0, 0);
    }
    if !tube(0.0, 0.0, 136.0, 86.0) {
        return (-105.0, 0);
    }
    let side = x[0].abs();
    if inside([0.0, -28.0, 30.0], [30.0, 26.0, 24.0]) {
        return (8.0, 5);
    }
    if inside([0.0, -4.0, -12.0], [22.0, 18.0, 19.0]) {
        return (48.0, 1);
    }
    if (0..3)
        .map(|a| (([side, x[1], x[2]][a] - [14.0, 8.0, 10.0][a]) / [14.0, 6.0, 7.0][a]).powi(2))
        .sum::<f64>()
        < 1.0
    {
        return (38.0, 2);
    }
    if tube(4.0 + 0.05 * x[2], 34.0, 15.0, 13.0) && x[2].abs() < 62.0 {
        let gas = tube(4.0 + 0.05 * x[2], 32.0, 7.0, 6.0);
        return (if gas { -600.0 } else { 30.0 }, 4);
    }
    let node = [side - 46.0, x[1] + 8.0, x[2] - 34.0];
    if node[0].powi(2) / 64.0 + node[1].powi(2) / 150.0 + node[2].powi(2) / 700.0 < 1.0 {
        return (28.0, 3);
    }
    let hip = ((side - 92.0).powi(2) + (x[1] - 2.0).powi(2) + (x[2] + 6.0).powi(2)).sqrt();
    let sacrum = ((x[0] / 34.0).powi(2) + ((x[1] - 68.0) / 14.0).powi(2)) < 1.0;
    let pubis = inside([x[0].signum() * 20.0, -52.0, -26.0], [17.0, 9.0, 12.0]);
    if hip < 25.0 || sacrum || pubis {
        return (if hip < 20.0 { 380.0 } else { 620.0 }, 0);
    }
    (if tube(0.0, 4.0, 64.0, 60.0) { -80.0 } else { 55.0 }, 0)
}

/// det(I + du/dx) by central differences, 1 at the border.
fn jacobian(field: &DisplacementField) -> Volume<f32> {
    let grid = &field.grid;
    let n = grid.size;
    let mut det = Volume::filled(grid.clone(), 1.0f32);
    for z in 1..n[2] - 1 {
        for y in 1..n[1] - 1 {
            for x in 1..n[0] - 1 {
                let at = [x, y, z];
                let m: [[f64; 3]; 3] = std::array::from_fn(|r| {
                    std::array::from_fn(|c| {
                        let (mut low, mut high) = (at, at);
                        low[c] -= 1;
                        high[c] += 1;
                        let value = |p: [usize; 3]| f64::from(field.u[r][grid.index(p[0], p[1], p[2])]);
                        (value(high) - value(low)) / (2.0 * grid.spacing[c]) + f64::from(u8::from(r == c))
                    })
                });
                let i = grid.index(x, y, z);
                det.data[i] = libjrs::geometry::determinant(&m) as f32;
            }
        }
    }
    det
}

fn registration_report(pictures: &RegistrationPictures<'_>) -> Result<RegistrationReport> {
    let tile = |label: &str, value: &str, note: &str, verdict| Tile {
        label: label.into(),
        value: value.into(),
        note: note.into(),
        verdict,
    };
    let check = |name: &str, value: &str, limit: &str, verdict| Check {
        name: name.into(),
        value: value.into(),
        limit: limit.into(),
        verdict,
    };
    let scores = |organ: &str, dsc, msd, hd95| {
        Some(OrganScores { organ: organ.into(), dsc: Some(dsc), msd_mm: Some(msd), hd95_mm: Some(hd95) })
    };
    let organs = [
        ("prostate", scores("", 0.84, 1.9, 4.8), scores("", 0.92, 0.9, 2.4)),
        ("seminal vesicles", scores("", 0.55, 2.8, 7.1), scores("", 0.74, 1.5, 4.2)),
        ("rectum", scores("", 0.71, 3.6, 10.2), scores("", 0.86, 1.7, 6.0)),
        ("bladder", scores("", 0.70, 5.2, 15.0), None),
    ];
    Ok(RegistrationReport {
        title: "Patient 07, repeat scan 3".into(),
        subtitle: "Registered with jrs-gan-a.jrs on 170 x 120 x 50 voxels".into(),
        verdict: Verdict::Review,
        reasons: vec![
            "the displacement reaches 9.8 mm at the bladder dome, near the capture range of the network"
                .into(),
            "1 of 5 checks asks for a look; none failed".into(),
        ],
        tiles: vec![
            tile("time", "0.42 s", "whole volume, 16 threads", None),
            tile("mean displacement", "1.6 mm", "in the body", None),
            tile("largest displacement", "9.8 mm", "at the bladder", Some(Verdict::Review)),
            tile("folding", "0 %", "of the body", Some(Verdict::Ok)),
            tile("similarity", "0.98", "NCC, from 0.91", Some(Verdict::Ok)),
        ],
        checks: vec![
            check("folding", "0.000 %", "below 0.5 % of the body", Verdict::Ok),
            check("smallest Jacobian", "0.42", "above 0", Verdict::Ok),
            check("largest displacement", "9.8 mm", "below 8 mm, at most 20 mm", Verdict::Review),
            check("similarity gain", "+0.07", "above 0", Verdict::Ok),
            check("inverse consistency", "0.6 mm", "mean below 2 mm", Verdict::Ok),
        ],
        organs: organs
            .map(|(organ, before, after)| OrganChange { organ: organ.into(), before, after })
            .into(),
        figures: pictures.figures(360)?,
        provenance: vec![
            ("fixed".into(), "p07/planning.nii.gz, 170 x 120 x 50, 2 x 2 x 3 mm".into()),
            ("moving".into(), "p07/repeat-3.nii.gz, 170 x 120 x 50, 2 x 2 x 3 mm".into()),
            (
                "model".into(),
                "sha256 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae".into(),
            ),
        ],
        footer: format!("Made by jrs {}. Not a medical device.", env!("CARGO_PKG_VERSION")),
    })
}

/// Scores drawn around the paper's means.
fn study() -> Evaluation {
    let mut noise = Noise(7);
    let pairs: Vec<f64> = (0..50).map(|_| noise.normal()).collect();
    let mut rows: Vec<(String, Vec<f64>)> = published_msd()
        .rows
        .into_iter()
        .map(|row| (row.name, row.cells.iter().flatten().map(|c| c.mean).collect()))
        .collect();
    rows.push((BEFORE.into(), vec![2.4, 3.2, 1.6, 4.4, 7.6]));
    let system = |(name, means): (String, Vec<f64>)| {
        let registered = name != BEFORE;
        let cases = pairs.iter().enumerate().map(|(n, difficulty)| {
            // The vesicles are absent in some scans.
            let present = ORGANS.iter().zip(&means).filter(|(o, _)| o.label != 2 || n % 9 != 0);
            let organs = present
                .map(|(organ, mean)| {
                    let msd = (mean * (0.32 * difficulty + 0.12 * noise.normal()).exp()).max(0.2);
                    OrganScores {
                        organ: organ.name.into(),
                        msd_mm: Some(msd),
                        hd95_mm: Some(3.1 * msd * (0.1 * noise.normal()).exp()),
                        dsc: Some((1.0 - 0.075 * msd).clamp(0.05, 0.99)),
                    }
                })
                .collect();
            Case {
                pair: format!("p{:02}-{n:02}", n / 9),
                patient: format!("p{:02}", n / 9),
                organs,
                tre_mean_mm: Some(1.4 * means[0] * (0.2 * noise.normal()).exp()),
                jacobian_std: registered.then(|| 0.15 * (0.15 * noise.normal()).exp()),
                folding_percent: registered.then(|| 0.02 * (0.8 * noise.normal()).exp()),
                seconds: registered.then(|| 0.6 * (0.05 * noise.normal()).exp()),
                ..Case::default()
            }
        });
        let cases = cases.collect();
        System { name, cases }
    };
    let systems = rows.into_iter().map(system).collect();
    Evaluation { data: "random draws, for the layout only".into(), systems }
}

fn curves() -> Vec<Chart> {
    let mut noise = Noise(11);
    let mut series = |name: &str, start: f64, end: f64, tau: f64| {
        let points = (0..4000).map(|n| {
            let x = f64::from(n);
            (x, (end + (start - end) * (-x / tau).exp()) * (0.06 * noise.normal()).exp())
        });
        Series { name: name.into(), points: points.collect() }
    };
    vec![
        Chart {
            title: "Generator losses".into(),
            x_label: "generator step".into(),
            y_label: "loss (log)".into(),
            log_y: true,
            series: vec![
                series("1 - DSC", 0.6, 0.12, 700.0),
                series("1 - NCC", 0.3, 0.03, 500.0),
                series("bending energy", 0.0005, 0.004, 900.0),
            ],
        },
        Chart {
            title: "Validation".into(),
            x_label: "generator step".into(),
            y_label: "mean MSD (mm)".into(),
            log_y: false,
            series: vec![series("validation MSD", 3.2, 1.4, 900.0)],
        },
    ]
}

/// A small generator with a fixed seed (SplitMix64), normal by the sum of twelve.
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}
