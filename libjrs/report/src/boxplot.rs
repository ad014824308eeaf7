//! Box plots of a score per organ and system (the paper's Figure 2), as SVG.

use std::fmt::Write;

use crate::evaluation::{Evaluation, Score};
use crate::stats::Summary;
use crate::svg::{Anchor, Drawing, SERIES, escape, tick_label, ticks};

const WIDTH: f64 = 960.0;
const PLOT_HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;

/// Groups of boxes, one group per organ, one box per system: quartiles, median, mean (diamond), Tukey whiskers and
/// points beyond them. An organ that a system lacks leaves a gap.
pub fn box_plot(evaluation: &Evaluation, score: Score) -> String {
    let systems = evaluation.ordered_systems();
    let mut organs = evaluation.organs();
    organs.retain(|o| systems.iter().any(|s| !s.scores(score, o).is_empty()));
    let values = |n: usize, organ: &str| systems[n].scores(score, organ);
    let all = || organs.iter().flat_map(|o| (0..systems.len()).flat_map(move |n| values(n, o)));
    let highest = all().fold(0.0, f64::max);
    let (low, high) = match score {
        Score::Dsc => ((all().fold(1.0, f64::min) * 10.0).floor() / 10.0, 1.0),
        _ => (0.0, if highest > 0.0 { highest * 1.04 } else { 1.0 }),
    };

    let legend: Vec<(String, &str)> =
        systems.iter().enumerate().map(|(n, s)| (s.name.clone(), SERIES[n % SERIES.len()])).collect();
    // A throw-away drawing tells how many lines the legend takes.
    let legend_height = Drawing::new(WIDTH, 1.0, "").legend(LEFT, WIDTH - RIGHT, 0.0, &legend);
    let top = 40.0 + legend_height;
    let mut svg = Drawing::new(WIDTH, top + PLOT_HEIGHT + 34.0, score.title());
    svg.text("jrs-title", [LEFT, 22.0], Anchor::Start, score.title());
    svg.legend(LEFT, WIDTH - RIGHT, 45.0, &legend);

    let y = |value: f64| top + PLOT_HEIGHT * (1.0 - (value - low) / (high - low));
    for tick in ticks(low, high, 6) {
        svg.line("jrs-grid", [LEFT, y(tick)], [WIDTH - RIGHT, y(tick)]);
        svg.text("jrs-tick", [LEFT - 8.0, y(tick) + 4.0], Anchor::End, &tick_label(tick));
    }
    svg.line("jrs-base", [LEFT, y(low)], [WIDTH - RIGHT, y(low)]);
    svg.y_label(15.0, top + PLOT_HEIGHT / 2.0, score.title());
    if organs.is_empty() {
        svg.text("jrs-axis", [WIDTH / 2.0, top + PLOT_HEIGHT / 2.0], Anchor::Middle, "no scores");
        return svg.finish();
    }

    let group = (WIDTH - LEFT - RIGHT) / organs.len() as f64;
    let slot = (group * 0.84 / systems.len() as f64).min(46.0);
    for (g, organ) in organs.iter().enumerate() {
        let middle = LEFT + group * (g as f64 + 0.5);
        if g > 0 {
            let x = LEFT + group * g as f64;
            svg.line("jrs-grid", [x, top], [x, top + PLOT_HEIGHT]);
        }
        svg.text("jrs-label", [middle, top + PLOT_HEIGHT + 21.0], Anchor::Middle, organ);
        for n in 0..systems.len() {
            let x = middle + slot * (n as f64 - (systems.len() as f64 - 1.0) / 2.0);
            let values = values(n, organ);
            if let Some(summary) = Summary::of(&values) {
                let label = format!("{}, {organ}", systems[n].name);
                draw_box(&mut svg, x, slot * 0.72, &y, &summary, &values, SERIES[n % SERIES.len()], &label);
            }
        }
    }
    svg.finish()
}

fn draw_box(
    svg: &mut Drawing,
    x: f64,
    width: f64,
    y: &impl Fn(f64) -> f64,
    summary: &Summary,
    values: &[f64],
    colour: &str,
    label: &str,
) {
    let ([low, high], outliers) = summary.whiskers(values);
    let (left, half) = (x - width / 2.0, width / 4.0);
    let mut group = format!(
        "<g stroke=\"{colour}\" fill=\"{colour}\"><title>{}: median {:.2}, quartiles {:.2} to {:.2}, mean {:.2}, n = {}</title>",
        escape(label),
        summary.median,
        summary.q1,
        summary.q3,
        summary.mean,
        summary.n
    );
    // Writing to a String cannot fail (here and below).
    for (from, to) in [(summary.q3, high), (summary.q1, low)] {
        let _ = write!(
            group,
            r#"<path d="M{x:.2} {:.2}V{:.2}M{:.2} {:.2}h{width_half:.2}" stroke-width="1.3" fill="none"/>"#,
            y(from),
            y(to),
            x - half,
            y(to),
            width_half = 2.0 * half
        );
    }
    let height = (y(summary.q1) - y(summary.q3)).max(0.5);
    let _ = write!(
        group,
        r#"<rect x="{left:.2}" y="{:.2}" width="{width:.2}" height="{height:.2}" rx="1.5" fill-opacity="0.4" stroke-width="1.3"/>"#,
        y(summary.q3)
    );
    for value in outliers {
        let _ = write!(
            group,
            r#"<circle cx="{x:.2}" cy="{:.2}" r="2.1" fill-opacity="0.55" stroke="none"/>"#,
            y(value)
        );
    }
    group += "</g>";
    svg.element(&group);
    svg.line("jrs-median", [left, y(summary.median)], [left + width, y(summary.median)]);
    let (m, r) = (y(summary.mean), 3.4);
    svg.element(&format!(r#"<path class="jrs-mean" d="M{x:.2} {:.2}l{r} {r}l-{r} {r}l-{r} -{r}z"/>"#, m - r));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{Case, OrganScores, System};

    fn study() -> Evaluation {
        let system = |name: &str, shift: f64| {
            let cases = (0..9).map(|n| Case {
                pair: n.to_string(),
                organs: vec![OrganScores {
                    organ: "prostate".into(),
                    msd_mm: Some(shift + f64::from(n) * 0.1),
                    ..Default::default()
                }],
                ..Case::default()
            });
            System { name: name.into(), cases: cases.collect() }
        };
        Evaluation { data: "d".into(), systems: vec![system("A<b>", 1.0), system("B", 2.0)] }
    }

    #[test]
    fn one_box_per_system_and_organ() {
        let svg = box_plot(&study(), Score::Msd);
        assert_eq!(svg.matches("class=\"jrs-median\"").count(), 2);
        assert!(svg.contains("A&lt;b&gt;, prostate: median 1.40, quartiles 1.20 to 1.60"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_score_without_values_says_so() {
        assert!(box_plot(&study(), Score::Dsc).contains("no scores"));
    }
}
