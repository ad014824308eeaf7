//! What the SVG charts share: a canvas with text, colours that follow light and dark mode, axis ticks.

use std::fmt::Write;

/// Colours of data series, readable on white and on near-black, apart for common colour deficiencies.
pub(crate) const SERIES: [&str; 8] =
    ["#8a919e", "#4c78d0", "#e8873a", "#2f9e77", "#c95b9b", "#b39a1f", "#7b61c9", "#d1495b"];

/// A drawing with a fixed coordinate system that scales with its place on the page.
pub(crate) struct Drawing {
    width: f64,
    height: f64,
    title: String,
    body: String,
}

/// Where a text is held.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    pub(crate) fn new(width: f64, height: f64, title: &str) -> Self {
        Self { width, height, title: escape(title), body: String::new() }
    }

    /// A raw element. Text inside must be escaped by the caller.
    pub(crate) fn element(&mut self, element: &str) {
        self.body += element;
        self.body.push('\n');
    }

    pub(crate) fn line(&mut self, class: &str, from: [f64; 2], to: [f64; 2]) {
        let ([x1, y1], [x2, y2]) = (from, to);
        // Writing to a String cannot fail (here and below).
        let _ = writeln!(
            self.body,
            r#"<line class="{class}" x1="{x1:.2}" y1="{y1:.2}" x2="{x2:.2}" y2="{y2:.2}"/>"#
        );
    }

    pub(crate) fn text(&mut self, class: &str, at: [f64; 2], anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let [x, y] = at;
        let text = escape(text);
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" x="{x:.2}" y="{y:.2}" text-anchor="{anchor}">{text}</text>"#
        );
    }

    /// Names and colours in lines of at most the width between `left` and `right`; returns the height used.
    pub(crate) fn legend(&mut self, left: f64, right: f64, top: f64, entries: &[(String, &str)]) -> f64 {
        let (mut x, mut y) = (left, top);
        for (name, colour) in entries {
            let width = 30.0 + text_width(name);
            if x > left && x + width > right {
                (x, y) = (left, y + LEGEND_LINE);
            }
            let box_y = y - 9.0;
            let _ = writeln!(
                self.body,
                r#"<rect x="{x:.1}" y="{box_y:.1}" width="11" height="11" rx="2" fill="{colour}"/>"#
            );
            self.text("jrs-label", [x + 17.0, y], Anchor::Start, name);
            x += width;
        }
        y - top + LEGEND_LINE
    }

    /// Vertical grid lines or horizontal ones are drawn by the caller; this draws a label turned along the y axis.
    pub(crate) fn y_label(&mut self, x: f64, y: f64, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.body,
            r#"<text class="jrs-axis" transform="translate({x:.2} {y:.2}) rotate(-90)" text-anchor="middle">{text}</text>"#
        );
    }

    /// The finished file. It can stand alone or inside a page.
    pub(crate) fn finish(self) -> String {
        let Self { width, height, title, body } = self;
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="jrs-chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{title}">
<title>{title}</title>
<style>{STYLE}</style>
{body}</svg>
"#
        )
    }
}

const LEGEND_LINE: f64 = 20.0;

/// All rules start with the class of the chart, so that they touch nothing else on a page.
const STYLE: &str = "\
.jrs-chart{--ink:#23272f;--dim:#5c6470;--rule:#e3e6ea;--paper:#ffffff;font-family:system-ui,-apple-system,'Segoe UI',\
Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif;max-width:100%;height:auto}\
.jrs-chart text{fill:var(--ink);font-size:12px}\
.jrs-chart .jrs-title{font-size:14px;font-weight:600}\
.jrs-chart .jrs-tick{fill:var(--dim);font-size:11px}\
.jrs-chart .jrs-axis{fill:var(--dim);font-size:12px}\
.jrs-chart .jrs-grid{stroke:var(--rule);stroke-width:1}\
.jrs-chart .jrs-base{stroke:var(--dim);stroke-width:1}\
.jrs-chart .jrs-median{stroke:var(--ink);stroke-width:2}\
.jrs-chart .jrs-mean{fill:var(--paper);stroke:var(--ink);stroke-width:1.2}\
@media screen and (prefers-color-scheme:dark){.jrs-chart{--ink:#e6e9ee;--dim:#a2abb8;--rule:#2c323c;--paper:#171b22}}";

/// Text safe inside XML and HTML, also in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // Control characters are not allowed in XML.
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Round values (1, 2 or 5 times a power of ten apart) that cover `low..=high`; about `count` of them.
pub(crate) fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = (high - low).max(1e-12);
    let rough = span / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= rough).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

/// A tick's number without needless digits.
pub(crate) fn tick_label(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let size = value.abs();
    if !(1e-3..1e5).contains(&size) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Rough width of a label, enough for a legend.
pub(crate) fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * 6.8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_ticks() {
        assert_eq!(ticks(0.0, 10.0, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(0.0, 0.9, 5), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8]);
        assert_eq!(tick_label(0.6000000000000001), "0.6");
        assert_eq!(tick_label(20000.0), "20000");
        assert_eq!(tick_label(1e-5), "1e-5");
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a href=\"x\">&'\u{1}"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39; ");
    }
}
