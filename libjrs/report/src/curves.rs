//! Line charts of losses and other series over training, as SVG.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::svg::{Anchor, Drawing, SERIES, tick_label, ticks};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// (x, y) in rising x. Values that are not finite (or not positive on a log axis) interrupt the line.
    pub points: Vec<(f64, f64)>,
}

/// A line chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chart {
    /// Written above.
    pub title: String,
    /// Name of the x axis, for instance `generator step`.
    pub x_label: String,
    /// Name of the y axis.
    pub y_label: String,
    /// True for a logarithmic y axis.
    #[serde(default)]
    pub log_y: bool,
    /// The lines. Long ones are thinned to what can be seen, keeping the extremes.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 760.0;
const PLOT_HEIGHT: f64 = 260.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
/// Points kept of a longer series: two (lowest, highest) per bin of about a pixel.
const BINS: usize = 640;

impl Chart {
    /// The chart as an SVG file.
    pub fn svg(&self) -> String {
        let legend: Vec<(String, &str)> =
            self.series.iter().enumerate().map(|(n, s)| (s.name.clone(), colour(n))).collect();
        let legend_height = Drawing::new(WIDTH, 1.0, "").legend(LEFT, WIDTH - RIGHT, 0.0, &legend);
        let top = 38.0 + legend_height;
        let bottom = top + PLOT_HEIGHT;
        let mut svg = Drawing::new(WIDTH, bottom + 48.0, &self.title);
        svg.text("jrs-title", [LEFT, 22.0], Anchor::Start, &self.title);
        svg.legend(LEFT, WIDTH - RIGHT, 44.0, &legend);

        let drawable = self.series.iter().flat_map(|s| &s.points).filter(|p| self.drawable(**p));
        let bounds = drawable.fold(None, |b: Option<[f64; 4]>, &(x, y)| {
            let y = self.scaled(y);
            let [a, b, c, d] = b.unwrap_or([x, x, y, y]);
            Some([a.min(x), b.max(x), c.min(y), d.max(y)])
        });
        let Some([x0, x1, y0, y1]) = bounds else {
            svg.text("jrs-axis", [WIDTH / 2.0, top + PLOT_HEIGHT / 2.0], Anchor::Middle, "no values yet");
            return svg.finish();
        };
        let x1 = if x1 > x0 { x1 } else { x0 + 1.0 };
        let margin = if y1 > y0 { 0.05 * (y1 - y0) } else { 0.5 };
        let (y0, y1) = (y0 - margin, y1 + margin);
        let px = |x: f64| LEFT + (WIDTH - LEFT - RIGHT) * (x - x0) / (x1 - x0);
        let py = |y: f64| bottom - PLOT_HEIGHT * (y - y0) / (y1 - y0);

        for (at, label) in self.y_ticks(y0, y1) {
            svg.line("jrs-grid", [LEFT, py(at)], [WIDTH - RIGHT, py(at)]);
            svg.text("jrs-tick", [LEFT - 8.0, py(at) + 4.0], Anchor::End, &label);
        }
        for tick in ticks(x0, x1, 8) {
            svg.line("jrs-base", [px(tick), bottom], [px(tick), bottom + 4.0]);
            svg.text("jrs-tick", [px(tick), bottom + 17.0], Anchor::Middle, &tick_label(tick));
        }
        svg.line("jrs-base", [LEFT, bottom], [WIDTH - RIGHT, bottom]);
        svg.text("jrs-axis", [(LEFT + WIDTH - RIGHT) / 2.0, bottom + 37.0], Anchor::Middle, &self.x_label);
        svg.y_label(15.0, top + PLOT_HEIGHT / 2.0, &self.y_label);
        for (n, series) in self.series.iter().enumerate() {
            svg.element(&self.line(series, colour(n), &px, &py));
        }
        svg.finish()
    }

    fn line(
        &self,
        series: &Series,
        colour: &str,
        px: &impl Fn(f64) -> f64,
        py: &impl Fn(f64) -> f64,
    ) -> String {
        let mut path = String::new();
        let mut dots = String::new();
        for run in series.points.split(|p| !self.drawable(*p)).filter(|run| !run.is_empty()) {
            for (n, (x, y)) in thinned(run).into_iter().enumerate() {
                let command = if n == 0 { 'M' } else { 'L' };
                // Writing to a String cannot fail (here and below).
                let _ = write!(path, "{command}{:.1} {:.1}", px(x), py(self.scaled(y)));
            }
            if let [(x, y)] = run {
                let (x, y) = (px(*x), py(self.scaled(*y)));
                let _ = write!(dots, r#"<circle cx="{x:.1}" cy="{y:.1}" r="2.5" fill="{colour}"/>"#);
            }
        }
        format!(
            r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.7" stroke-linejoin="round"/>{dots}"#
        )
    }

    fn drawable(&self, (x, y): (f64, f64)) -> bool {
        x.is_finite() && y.is_finite() && (!self.log_y || y > 0.0)
    }

    fn scaled(&self, y: f64) -> f64 {
        if self.log_y { y.log10() } else { y }
    }

    /// Positions (scaled) and labels.
    fn y_ticks(&self, y0: f64, y1: f64) -> Vec<(f64, String)> {
        if !self.log_y {
            return ticks(y0, y1, 6).into_iter().map(|t| (t, tick_label(t))).collect();
        }
        // 1, 2, 5 in each decade as far as they fit, else decades only.
        let steps: &[f64] = if y1 - y0 < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let decades = y0.floor() as i32..=y1.ceil() as i32;
        decades
            .flat_map(|d| steps.iter().map(move |m| m * 10f64.powi(d)))
            .map(|v| (v.log10(), tick_label(v)))
            .filter(|(at, _)| (y0..=y1).contains(at))
            .collect()
    }
}

fn colour(n: usize) -> &'static str {
    // The first colour of the palette is grey, for the row without registration; lines start after it.
    SERIES[1 + n % (SERIES.len() - 1)]
}

/// At most two points (lowest and highest) per bin, in their order.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * BINS {
        return points.to_vec();
    }
    let bin = points.len().div_ceil(BINS);
    points
        .chunks(bin)
        .flat_map(|chunk| {
            let extreme = |sign: f64| {
                (0..chunk.len()).max_by(|&a, &b| (sign * chunk[a].1).total_cmp(&(sign * chunk[b].1)))
            };
            let (low, high) = (extreme(-1.0).unwrap_or(0), extreme(1.0).unwrap_or(0));
            let both = [low.min(high), low.max(high)];
            let count = if low == high { 1 } else { 2 };
            both.into_iter().take(count).map(|n| chunk[n]).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, log_y: bool) -> Chart {
        Chart {
            title: "t".into(),
            x_label: "step".into(),
            y_label: "loss".into(),
            log_y,
            series: vec![Series { name: "a".into(), points }],
        }
    }

    #[test]
    fn gaps_interrupt_the_line() {
        let svg = chart(vec![(0., 1.), (1., 2.), (2., f64::NAN), (3., 2.), (4., 1.)], false).svg();
        let path = svg.split("<path d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 2);
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn log_axis_leaves_out_what_is_not_positive() {
        let svg = chart(vec![(0., 1000.), (1., 0.), (2., 0.001)], true).svg();
        assert!(svg.contains(">100</text>") && svg.contains(">0.01</text>"), "{svg}");
        assert!(!svg.contains("inf") && !svg.contains("NaN"));
    }

    #[test]
    fn long_series_are_thinned_but_keep_extremes() {
        let mut points: Vec<(f64, f64)> =
            (0..100_000).map(|n| (f64::from(n), (f64::from(n) * 0.01).sin())).collect();
        points[54_321].1 = 9.0;
        let kept = thinned(&points);
        assert!(kept.len() <= 2 * BINS);
        assert!(kept.contains(&(54_321.0, 9.0)));
        assert!(kept.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn empty_charts_say_so() {
        assert!(chart(vec![], false).svg().contains("no values yet"));
        assert!(chart(vec![(1.0, 2.0)], false).svg().contains("<circle"));
    }
}
