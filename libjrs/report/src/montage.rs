//! Panels side by side with titles, a legend and colour bars.

use crate::colour::Scale;
use crate::image::{Font, Rgb, RgbImage};
use crate::overlay::ContourStyle;

const BACKGROUND: Rgb = [17, 19, 24];
const INK: Rgb = [236, 239, 244];
const DIM: Rgb = [165, 172, 184];
const GAP: usize = 10;

/// A picture with its title.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Written above the picture, ASCII.
    pub title: String,
    /// The picture.
    pub image: RgbImage,
}

/// What a colour or a line style means.
#[derive(Debug, Clone)]
pub struct LegendEntry {
    /// Meaning, ASCII.
    pub text: String,
    /// Colour of the sample.
    pub colour: Rgb,
    /// A line in this style, or a filled square if `None`.
    pub style: Option<ContourStyle>,
}

/// Rows of panels.
#[derive(Debug, Clone, Default)]
pub struct Montage {
    /// Rows from the top; panels from the left.
    pub rows: Vec<Vec<Panel>>,
    /// Written below the panels.
    pub legend: Vec<LegendEntry>,
    /// Drawn below the legend.
    pub scales: Vec<Scale>,
}

impl Montage {
    /// Puts everything on one picture. Columns are as wide as their widest panel, rows as high as their highest.
    pub fn render(&self) -> RgbImage {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let title_width = |p: &Panel| Font::SmallBold.text_width(&p.title);
        let widths: Vec<usize> = (0..columns)
            .map(|c| {
                let panels = self.rows.iter().filter_map(|row| row.get(c));
                panels.map(|p| p.image.width().max(title_width(p))).max().unwrap_or(0)
            })
            .collect();
        let heights: Vec<usize> =
            self.rows.iter().map(|r| r.iter().map(|p| p.image.height()).max().unwrap_or(0)).collect();
        let title = Font::SmallBold.line_height() + 6;
        let inner: usize = widths.iter().sum::<usize>() + GAP * columns.saturating_sub(1);
        let width = (inner + 2 * GAP).max(320);
        let legend_rows = flow(&self.legend, width - 2 * GAP, |e| 34 + Font::Small.text_width(&e.text));
        let scale_rows = flow(&self.scales, width - 2 * GAP, |s| BAR + bar_text_width(s));
        let legend_height = legend_rows.iter().map(|&(_, row, _)| row + 1).max().unwrap_or(0) * LINE;
        let scale_height = scale_rows.iter().map(|&(_, row, _)| row + 1).max().unwrap_or(0) * LINE;
        let panels_height: usize = heights.iter().map(|h| h + title + GAP).sum();
        let mut canvas =
            RgbImage::filled(width, GAP + panels_height + legend_height + scale_height + GAP / 2, BACKGROUND);

        let mut y = GAP;
        for (row, height) in self.rows.iter().zip(&heights) {
            let mut x = GAP;
            for (panel, column) in row.iter().zip(&widths) {
                canvas.text(x, y, &panel.title, Font::SmallBold, INK);
                canvas.paste(&panel.image, x, y + title);
                x += column + GAP;
            }
            y += height + title + GAP;
        }
        for (x, row, entry) in legend_rows {
            draw_entry(&mut canvas, GAP + x, y + row * LINE, entry);
        }
        y += legend_height;
        for (x, row, scale) in scale_rows {
            draw_bar(&mut canvas, GAP + x, y + row * LINE, scale);
        }
        canvas
    }
}

/// Height of a line of the legend.
const LINE: usize = 24;
/// Width of a colour bar.
const BAR: usize = 140;

/// Places items of the given widths in lines: (x, line, item).
fn flow<T>(items: &[T], width: usize, item_width: impl Fn(&T) -> usize) -> Vec<(usize, usize, &T)> {
    let (mut x, mut line) = (0, 0);
    let mut placed = Vec::new();
    for item in items {
        let needed = item_width(item);
        if x > 0 && x + needed > width {
            (x, line) = (0, line + 1);
        }
        placed.push((x, line, item));
        x += needed + 18;
    }
    placed
}

fn draw_entry(canvas: &mut RgbImage, x: usize, y: usize, entry: &LegendEntry) {
    match entry.style {
        None => canvas.rectangle(x + 8, y + 4, 12, 12, entry.colour),
        Some(style) => {
            let line = [vec![[x as f32 + 2.0, y as f32 + 10.0], [x as f32 + 25.0, y as f32 + 10.0]]];
            for stroke in style.legend_strokes(entry.colour) {
                canvas.lines(&line, &stroke);
            }
        }
    }
    canvas.text(x + 31, y + 2, &entry.text, Font::Small, DIM);
}

fn bar_label(scale: &Scale) -> [String; 2] {
    [number(scale.low), format!("{} {}", number(scale.high), scale.label)]
}

fn bar_text_width(scale: &Scale) -> usize {
    let [low, high] = bar_label(scale);
    Font::Small.text_width(&low) + Font::Small.text_width(&high) + 16
}

fn draw_bar(canvas: &mut RgbImage, x: usize, y: usize, scale: &Scale) {
    let [low, high] = bar_label(scale);
    canvas.text(x, y + 2, &low, Font::Small, DIM);
    let start = x + Font::Small.text_width(&low) + 6;
    for n in 0..BAR {
        let t = n as f32 / (BAR - 1) as f32;
        canvas.rectangle(start + n, y + 4, 1, 12, scale.palette.colour(t));
    }
    canvas.text(start + BAR + 6, y + 2, &high, Font::Small, DIM);
}

/// At most two decimals, none that say nothing.
fn number(value: f32) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_keep_their_pixels_and_do_not_overlap() {
        let panel = |v: u8| Panel { title: "t".into(), image: RgbImage::filled(200, 100, [v; 3]) };
        let montage = Montage { rows: vec![vec![panel(1), panel(2)], vec![panel(3)]], ..Montage::default() };
        let image = montage.render();
        for v in 1..=3u8 {
            let mut count = 0;
            for y in 0..image.height() {
                count += (0..image.width()).filter(|&x| image.at(x, y) == [v; 3]).count();
            }
            assert_eq!(count, 200 * 100);
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(200.0), "200");
        assert_eq!(number(0.5), "0.5");
        assert_eq!(number(-160.0), "-160");
    }
}
