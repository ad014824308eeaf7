//! Slices of one scan as PNG, for looking at: `picture OUT_PREFIX [PRESET] [SEED] [PATIENT] [SCAN]`.
//!
//! Window -160..240 HU. One sheet of axial slices from below the symphysis to the sacrum, the same with the
//! labels in colour, and one of coronal and sagittal slices.

use jrs_phantom::motion::Patient;
use jrs_phantom::{Preset, render};
use libjrs::Volume;
use libjrs::geometry::Point;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |n: usize, default: &str| arguments.get(n).cloned().unwrap_or_else(|| default.to_owned());
    let (prefix, preset) = (word(0, "picture"), Preset::named(&word(1, "small"))?);
    let seed: u64 = word(2, "1").parse()?;
    let (number, scan): (usize, usize) = (word(3, "0").parse()?, word(4, "0").parse()?);

    let start = Instant::now();
    let patient = Patient::new(seed, number);
    let grid = preset.grid(&patient);
    let mut motion = patient.motion(seed, scan);
    eprintln!("patient {:.2} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let map = patient.pull_back_over(&mut motion, &grid, preset.knots);
    eprintln!("map {:.2} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let scan = render::render(&patient, &map, &grid, seed, scan, render::Texture::OfScan);
    eprintln!("render {:.2} s", start.elapsed().as_secs_f64());
    for (id, name) in jrs_phantom::anatomy::ORGANS {
        let count = scan.labels.data.iter().filter(|&&l| l == id).count();
        eprintln!("{name}: {:.1} mL", count as f64 * grid.voxel_volume() / 1000.0);
    }
    eprintln!("bladder asked for: {:.1} mL", motion.bladder_ml);

    let heights = [-68.0, -56.0, -45.0, -32.0, -18.0, -6.0, 6.0, 20.0, 36.0, 54.0, 72.0, 86.0];
    let axial: Vec<_> = heights.iter().map(|&z| Slice { at: [0.0, 0.0, z], normal: 2 }).collect();
    write(&format!("{prefix}-axial.png"), &scan.image, None, &axial, 3)?;
    write(&format!("{prefix}-labels.png"), &scan.image, Some(&scan.labels), &axial, 3)?;
    let other = [
        Slice { at: [0.0, 10.0, 0.0], normal: 1 },
        Slice { at: [0.0, 45.0, 0.0], normal: 1 },
        Slice { at: [0.0, -30.0, 0.0], normal: 1 },
        Slice { at: [0.0, 0.0, 0.0], normal: 0 },
        Slice { at: [20.0, 0.0, 0.0], normal: 0 },
        Slice { at: [90.0, 0.0, 0.0], normal: 0 },
    ];
    write(&format!("{prefix}-planes.png"), &scan.image, None, &other, 3)
}

struct Slice {
    at: Point,
    normal: usize,
}

/// A contact sheet; all slices are drawn with square pixels.
fn write(
    path: &str,
    image: &Volume<f32>,
    labels: Option<&Volume<u8>>,
    slices: &[Slice],
    columns: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    const COLORS: [[u16; 3]; 6] =
        [[0, 0, 0], [255, 60, 60], [255, 200, 0], [60, 220, 60], [200, 120, 40], [60, 120, 255]];
    let grid = &image.grid;
    let pixel = grid.spacing[0];
    let extent: [f64; 3] = std::array::from_fn(|a| grid.size[a] as f64 * grid.spacing[a]);
    let axes = |normal: usize| match normal {
        0 => (1, 2),
        1 => (0, 2),
        _ => (0, 1),
    };
    let widest = |pick: fn((usize, usize)) -> usize| {
        slices.iter().map(|s| (extent[pick(axes(s.normal))] / pixel) as usize).max().unwrap_or(1)
    };
    let (width, height) = (widest(|a| a.0), widest(|a| a.1));
    let (w, h) = (columns * width, slices.len().div_ceil(columns) * height);
    let mut rgb = vec![0u8; 3 * w * h];
    for (n, slice) in slices.iter().enumerate() {
        let (u, v) = axes(slice.normal);
        let rows = (extent[v] / pixel) as usize;
        for b in 0..rows {
            for a in 0..(extent[u] / pixel) as usize {
                let mut p = slice.at;
                p[u] = grid.origin[u] + a as f64 * pixel;
                // Superior is up in coronal and sagittal pictures.
                let down = if v == 2 { rows - 1 - b } else { b };
                p[v] = grid.origin[v] + down as f64 * pixel;
                let index = grid.to_index(p).map(f64::round);
                if (0..3).any(|k| index[k] < 0.0 || index[k] > (grid.size[k] - 1) as f64) {
                    continue;
                }
                let [i, j, k] = index.map(|t| t as usize);
                let gray = ((image.at(i, j, k) + 160.0) / 400.0 * 255.0).clamp(0.0, 255.0) as u16;
                let tint = labels.map_or(0, |l| l.at(i, j, k));
                let at = 3 * ((n % columns) * width + a + w * ((n / columns) * height + b));
                for c in 0..3 {
                    let mixed = if tint == 0 { gray } else { (gray + COLORS[usize::from(tint)][c]) / 2 };
                    rgb[at + c] = mixed as u8;
                }
            }
        }
    }
    let file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut encoder = png::Encoder::new(file, w as u32, h as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&rgb)?;
    Ok(())
}
