//! Iso-lines of a scalar field on the pixel grid: marching squares, chained into lines.

/// An iso-line, with higher values on its left where x runs right and y **up** (a loop around a maximum runs
/// counter-clockwise there).
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Places in pixels, x then y; pixel centres are whole numbers. A closed line does not repeat its first point.
    pub points: Vec<[f32; 2]>,
    /// False for a line that ends at the edge of the field.
    pub closed: bool,
}

/// The lines along which `field` (`width` x `height`, x fastest) crosses `level`.
pub fn lines(field: &[f32], width: usize, height: usize, level: f32) -> Vec<Line> {
    if width < 2 || height < 2 {
        return Vec::new();
    }
    let crossings = Crossings { field, width, level };
    // Higher values are always on the left, so every crossed edge is entered once and left once.
    let mut next = vec![NONE; 2 * width * height];
    let mut is_entered = vec![false; next.len()];
    let mut starts = Vec::new();
    for y in 0..height - 1 {
        for x in 0..width - 1 {
            for (from, to) in crossings.segments(x, y).into_iter().flatten() {
                next[from] = to;
                is_entered[to] = true;
                starts.push(from);
            }
        }
    }
    // Open lines first, from their beginnings; what is left are loops.
    let beginnings: Vec<usize> = starts.iter().copied().filter(|&edge| !is_entered[edge]).collect();
    let mut lines = Vec::new();
    for start in beginnings.into_iter().chain(starts) {
        let mut at = start;
        let mut points = Vec::new();
        while next[at] != NONE {
            points.push(crossings.position(at));
            at = std::mem::replace(&mut next[at], NONE);
        }
        if points.is_empty() {
            continue;
        }
        let closed = at == start;
        if !closed {
            points.push(crossings.position(at));
        }
        lines.push(Line { points, closed });
    }
    lines
}

const NONE: usize = usize::MAX;

struct Crossings<'a> {
    field: &'a [f32],
    width: usize,
    level: f32,
}

impl Crossings<'_> {
    /// Segments from edge to edge in the cell whose lowest corner is `(x, y)`. An edge is numbered by its end with
    /// the lower x or y: twice the pixel number, plus one if the edge runs along y.
    fn segments(&self, x: usize, y: usize) -> [Option<(usize, usize)>; 2] {
        let p = y * self.width + x;
        // Counter-clockwise.
        let corners = [p, p + 1, p + self.width + 1, p + self.width];
        let case = (0..4).filter(|&n| self.field[corners[n]] > self.level).fold(0, |c, n| c | 1 << n);
        let (low, left, right, high) = (2 * p, 2 * p + 1, 2 * (p + 1) + 1, 2 * (p + self.width));
        // A saddle's mean says whether its two high corners are joined.
        let is_joined = || corners.iter().map(|&c| self.field[c]).sum::<f32>() / 4.0 > self.level;
        match case {
            1 => [Some((low, left)), None],
            2 => [Some((right, low)), None],
            3 => [Some((right, left)), None],
            4 => [Some((high, right)), None],
            6 => [Some((high, low)), None],
            7 => [Some((high, left)), None],
            8 => [Some((left, high)), None],
            9 => [Some((low, high)), None],
            11 => [Some((right, high)), None],
            12 => [Some((left, right)), None],
            13 => [Some((low, right)), None],
            14 => [Some((left, low)), None],
            5 if is_joined() => [Some((low, right)), Some((high, left))],
            5 => [Some((low, left)), Some((high, right))],
            10 if is_joined() => [Some((left, low)), Some((right, high))],
            10 => [Some((right, low)), Some((left, high))],
            _ => [None, None],
        }
    }

    fn position(&self, edge: usize) -> [f32; 2] {
        let p = edge / 2;
        let vertical = edge % 2 == 1;
        let q = if vertical { p + self.width } else { p + 1 };
        let (a, b) = (self.field[p], self.field[q]);
        let t = if a == b { 0.5 } else { ((self.level - a) / (b - a)).clamp(0.0, 1.0) };
        let (x, y) = ((p % self.width) as f32, (p / self.width) as f32);
        if vertical { [x, y + t] } else { [x + t, y] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(line: &Line) -> f32 {
        let p = &line.points;
        (0..p.len())
            .map(|i| (p[i], p[(i + 1) % p.len()]))
            .map(|(a, b)| a[0] * b[1] - b[0] * a[1])
            .sum::<f32>()
            / 2.0
    }

    #[test]
    fn a_disc_gives_one_closed_circle() {
        let (w, h, radius) = (64, 48, 15.0f32);
        let field: Vec<f32> =
            (0..w * h).map(|p| radius - ((p % w) as f32 - 30.0).hypot((p / w) as f32 - 24.0)).collect();
        let lines = lines(&field, w, h, 0.0);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].closed);
        assert!(lines[0].points.iter().all(|p| ((p[0] - 30.0).hypot(p[1] - 24.0) - radius).abs() < 0.1));
        let circle = std::f32::consts::PI * radius * radius;
        assert!((area(&lines[0]) / circle - 1.0).abs() < 0.01, "{} and {circle}", area(&lines[0]));
    }

    #[test]
    fn a_hole_runs_clockwise() {
        let (w, h) = (40, 40);
        let field: Vec<f32> = (0..w * h)
            .map(|p| 5.0 - (((p % w) as f32 - 20.0).hypot((p / w) as f32 - 20.0) - 10.0).abs())
            .collect();
        let mut areas: Vec<f32> = lines(&field, w, h, 0.0).iter().map(area).collect();
        areas.sort_by(f32::total_cmp);
        assert_eq!(areas.len(), 2);
        assert!((areas[0] / -78.5 - 1.0).abs() < 0.02 && (areas[1] / 706.9 - 1.0).abs() < 0.02, "{areas:?}");
    }

    #[test]
    fn a_line_through_the_edge_stays_open_and_whole() {
        let (w, h) = (20, 10);
        let field: Vec<f32> = (0..w * h).map(|p| if p / w < 5 { 1.0 } else { 0.0 }).collect();
        let lines = lines(&field, w, h, 0.5);
        assert_eq!((lines.len(), lines[0].points.len(), lines[0].closed), (1, w, false));
        assert!(lines[0].points.iter().all(|p| (p[1] - 4.5).abs() < 1e-6));
    }

    #[test]
    fn a_saddle_keeps_every_crossing() {
        for field in [[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 0.4, 0.4, 1.0]] {
            let lines = lines(&field, 2, 2, 0.5);
            assert_eq!(lines.iter().map(|l| l.points.len()).sum::<usize>(), 4, "{field:?}");
        }
    }
}
