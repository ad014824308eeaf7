//! An RGB picture in memory: blending, anti-aliased lines, text, PNG.

use libjrs::{Error, Result};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// Red, green, blue.
pub type Rgb = [u8; 3];

/// A picture, 8 bits per channel, rows from top to bottom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stroke {
    /// Colour of the line.
    pub colour: Rgb,
    /// Width in pixels.
    pub width: f32,
    /// 0 (invisible) to 1 (covering).
    pub opacity: f32,
    /// Lengths of dash and gap in pixels; `None` for a solid line.
    pub dash: Option<(f32, f32)>,
}

/// Size and weight of text in a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Font {
    /// 16 pixels a line.
    Small,
    /// 16 pixels a line, bold.
    SmallBold,
    /// 20 pixels a line, bold.
    Title,
}

impl Font {
    fn raster(self) -> (FontWeight, RasterHeight) {
        match self {
            Font::Small => (FontWeight::Regular, RasterHeight::Size16),
            Font::SmallBold => (FontWeight::Bold, RasterHeight::Size16),
            Font::Title => (FontWeight::Bold, RasterHeight::Size20),
        }
    }

    /// Height of a line, pixels.
    pub fn line_height(self) -> usize {
        self.raster().1.val()
    }

    /// Width of `text`, pixels.
    pub fn text_width(self, text: &str) -> usize {
        let (weight, height) = self.raster();
        text.chars().count() * get_raster_width(weight, height)
    }
}

impl RgbImage {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, colour: Rgb) -> Self {
        Self { width, height, data: colour.repeat(width * height) }
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The colour at column `x` and row `y`.
    ///
    /// # Panics
    /// Outside the picture.
    pub fn at(&self, x: usize, y: usize) -> Rgb {
        let i = 3 * (y * self.width + x);
        [self.data[i], self.data[i + 1], self.data[i + 2]]
    }

    /// Sets one pixel; outside the picture nothing happens.
    pub fn set(&mut self, x: usize, y: usize, colour: Rgb) {
        if x < self.width && y < self.height {
            let i = 3 * (y * self.width + x);
            self.data[i..i + 3].copy_from_slice(&colour);
        }
    }

    /// Mixes `colour` into one pixel; outside the picture nothing happens.
    pub fn blend(&mut self, x: usize, y: usize, colour: Rgb, opacity: f32) {
        if x < self.width && y < self.height {
            let i = 3 * (y * self.width + x);
            for (channel, &c) in self.data[i..i + 3].iter_mut().zip(&colour) {
                let old = f32::from(*channel);
                *channel = (old + (f32::from(c) - old) * opacity).round() as u8;
            }
        }
    }

    /// Fills a rectangle, cut off at the edges.
    pub fn rectangle(&mut self, x: usize, y: usize, width: usize, height: usize, colour: Rgb) {
        for row in y..(y + height).min(self.height) {
            for column in x..(x + width).min(self.width) {
                self.set(column, row, colour);
            }
        }
    }

    /// Copies `other` with its top left corner at `(x, y)`, cut off at the edges.
    pub fn paste(&mut self, other: &RgbImage, x: usize, y: usize) {
        let columns = other.width.min(self.width.saturating_sub(x));
        for row in 0..other.height.min(self.height.saturating_sub(y)) {
            let from = 3 * row * other.width;
            let to = 3 * ((y + row) * self.width + x);
            self.data[to..to + 3 * columns].copy_from_slice(&other.data[from..from + 3 * columns]);
        }
    }

    /// Draws lines through `[x, y]` points in pixels (pixel centres are whole numbers). Where lines meet or cross
    /// they are blended once, so that transparent strokes show no knots.
    pub fn lines(&mut self, lines: &[Vec<[f32; 2]>], stroke: &Stroke) {
        let mut coverage = vec![0f32; self.width * self.height];
        for line in lines {
            for [a, b] in dashes(line, stroke.dash) {
                self.cover(&mut coverage, a, b, stroke.width);
            }
        }
        for y in 0..self.height {
            for x in 0..self.width {
                let covered = coverage[y * self.width + x];
                if covered > 0.0 {
                    self.blend(x, y, stroke.colour, covered * stroke.opacity);
                }
            }
        }
    }

    /// Writes `text` with its top left corner at `(x, y)`. Characters that the font lacks show as `?`.
    pub fn text(&mut self, x: usize, y: usize, text: &str, font: Font, colour: Rgb) {
        let (weight, height) = font.raster();
        let advance = get_raster_width(weight, height);
        for (n, c) in text.chars().enumerate() {
            let Some(glyph) = get_raster(c, weight, height).or_else(|| get_raster('?', weight, height))
            else {
                continue;
            };
            for (dy, row) in glyph.rows().enumerate() {
                for (dx, &ink) in row.iter().enumerate() {
                    if ink > 0 {
                        self.blend(x + n * advance + dx, y + dy, colour, f32::from(ink) / 255.0);
                    }
                }
            }
        }
    }

    /// Like [`RgbImage::text`] on a dark rim, readable on any background.
    pub fn text_on_picture(&mut self, x: usize, y: usize, text: &str, font: Font, colour: Rgb) {
        for (dx, dy) in [(0, 1), (2, 1), (1, 0), (1, 2), (0, 0), (2, 2), (0, 2), (2, 0)] {
            self.text((x + dx).saturating_sub(1), (y + dy).saturating_sub(1), text, font, [0, 0, 0]);
        }
        self.text(x, y, text, font, colour);
    }

    /// The picture as a PNG file.
    ///
    /// # Errors
    /// If the picture is empty, which the format cannot say.
    pub fn png(&self) -> Result<Vec<u8>> {
        let fail = |e: png::EncodingError| {
            Error::input(
                format!(
                    "a picture of {} x {} pixels cannot be written as PNG ({e})",
                    self.width, self.height
                ),
                "choose a view that covers part of the volume",
            )
        };
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Balanced);
        let mut writer = encoder.write_header().map_err(fail)?;
        writer.write_image_data(&self.data).map_err(fail)?;
        writer.finish().map_err(fail)?;
        Ok(bytes)
    }

    /// Marks how much of each pixel the segment `a`-`b` covers (distance to the segment, one pixel of soft edge).
    fn cover(&self, coverage: &mut [f32], a: [f32; 2], b: [f32; 2], width: f32) {
        let reach = width / 2.0 + 1.0;
        let range = |p: f32, q: f32, end: usize| {
            let low = (p.min(q) - reach).floor().max(0.0) as usize;
            let high = ((p.max(q) + reach).ceil() + 1.0).clamp(0.0, end as f32) as usize;
            low..high
        };
        let d = [b[0] - a[0], b[1] - a[1]];
        let length2 = (d[0] * d[0] + d[1] * d[1]).max(1e-12);
        for y in range(a[1], b[1], self.height) {
            for x in range(a[0], b[0], self.width) {
                let p = [x as f32 - a[0], y as f32 - a[1]];
                let t = ((p[0] * d[0] + p[1] * d[1]) / length2).clamp(0.0, 1.0);
                let away = (p[0] - t * d[0]).hypot(p[1] - t * d[1]);
                let covered = (width / 2.0 + 0.5 - away).clamp(0.0, 1.0);
                let cell = &mut coverage[y * self.width + x];
                *cell = cell.max(covered);
            }
        }
    }
}

/// The segments of a line, cut into dashes where asked.
fn dashes(line: &[[f32; 2]], dash: Option<(f32, f32)>) -> Vec<[[f32; 2]; 2]> {
    let segments = line.windows(2).map(|w| [w[0], w[1]]);
    let Some((on, off)) = dash else { return segments.collect() };
    let period = (on + off).max(1e-3);
    let mut cut = Vec::new();
    let mut along = 0f32;
    for [a, b] in segments {
        let length = (b[0] - a[0]).hypot(b[1] - a[1]);
        let point = |s: f32| [a[0] + (b[0] - a[0]) * s / length, a[1] + (b[1] - a[1]) * s / length];
        let mut start = 0f32;
        while start < length {
            let phase = (along + start) % period;
            let step = if phase < on { on - phase } else { period - phase };
            // Rounding may leave a step of nothing; move on by a visible amount.
            let end = (start + step.max(0.05)).min(length);
            if phase < on {
                cut.push([point(start), point(end)]);
            }
            start = end;
        }
        along = (along + length) % period;
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn png_decodes_to_the_same_pixels() {
        let mut image = RgbImage::filled(7, 5, [10, 20, 30]);
        image.set(6, 4, [255, 0, 128]);
        let bytes = image.png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut data = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut data).unwrap();
        assert_eq!((info.width, info.height), (7, 5));
        assert_eq!(data, image.data);
    }

    #[test]
    fn an_empty_picture_is_refused() {
        assert!(RgbImage::filled(0, 5, [0; 3]).png().is_err());
    }

    #[test]
    fn a_line_covers_its_pixels_and_no_others() {
        let mut image = RgbImage::filled(20, 10, [0; 3]);
        let stroke = Stroke { colour: [255; 3], width: 1.0, opacity: 1.0, dash: None };
        image.lines(&[vec![[2.0, 5.0], [17.0, 5.0]]], &stroke);
        assert_eq!(image.at(10, 5), [255; 3]);
        assert_eq!(image.at(10, 7), [0; 3]);
        assert_eq!(image.at(0, 5), [0; 3]);
    }

    #[test]
    fn dashes_have_gaps() {
        let mut image = RgbImage::filled(40, 3, [0; 3]);
        let stroke = Stroke { colour: [255; 3], width: 1.0, opacity: 1.0, dash: Some((5.0, 5.0)) };
        image.lines(&[vec![[0.0, 1.0], [13.0, 1.0], [39.0, 1.0]]], &stroke);
        let lit: Vec<bool> = [2, 7, 12, 17, 22].iter().map(|&x| image.at(x, 1) == [255; 3]).collect();
        assert_eq!(lit, [true, false, true, false, true]);
    }

    #[test]
    fn drawing_outside_is_cut_off() {
        let mut image = RgbImage::filled(4, 4, [0; 3]);
        image.text(2, 2, "R", Font::Title, [255; 3]);
        image.rectangle(3, 3, 10, 10, [1; 3]);
        image.paste(&RgbImage::filled(9, 9, [7; 3]), 2, 2);
        assert_eq!(image.at(3, 3), [7; 3]);
        assert_eq!(image.at(1, 1), [0; 3]);
    }
}
