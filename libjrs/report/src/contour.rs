//! Contours of a scalar field on the pixel grid: marching squares, chained into lines.

/// The lines where `field` (`width` x `height`, rows from the top) crosses `level`, as pixel positions.
/// Closed lines repeat their first point. Lines end at the edge of the field.
pub(crate) fn contours(field: &[f32], width: usize, height: usize, level: f32) -> Vec<Vec<[f32; 2]>> {
    if width < 2 || height < 2 {
        return Vec::new();
    }
    let crossings = Crossings { field, width, level };
    // Every cell edge belongs to at most two cells, so each crossing has at most two neighbours.
    let mut neighbours = vec![[NONE; 2]; 2 * width * height];
    let mut order = Vec::new();
    for y in 0..height - 1 {
        for x in 0..width - 1 {
            for (a, b) in crossings.segments(x, y).into_iter().flatten() {
                for (from, to) in [(a, b), (b, a)] {
                    let slots = &mut neighbours[from];
                    let free = usize::from(slots[0] != NONE);
                    slots[free] = to;
                }
                order.push(a);
            }
        }
    }
    // Open lines first, from their ends; what is left are loops.
    let ends = order.iter().flat_map(|&e| neighbours[e].iter().copied().chain([e])).collect::<Vec<_>>();
    let ends = ends.into_iter().filter(|&e| e != NONE && neighbours[e][1] == NONE).collect::<Vec<_>>();
    let mut visited = vec![false; neighbours.len()];
    let mut lines = Vec::new();
    for start in ends.into_iter().chain(order) {
        if visited[start] {
            continue;
        }
        let mut line = Vec::new();
        let mut at = start;
        loop {
            visited[at] = true;
            line.push(crossings.position(at));
            match neighbours[at].iter().copied().find(|&n| n != NONE && !visited[n]) {
                Some(next) => at = next,
                None => break,
            }
        }
        if line.len() > 2 && neighbours[at].contains(&start) {
            line.push(crossings.position(start));
        }
        lines.push(line);
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
    /// Pairs of edges that the contour joins in the cell whose top left corner is `(x, y)`. An edge is numbered by
    /// its left or upper end: twice the pixel number, plus one if the edge is vertical.
    fn segments(&self, x: usize, y: usize) -> [Option<(usize, usize)>; 2] {
        let p = y * self.width + x;
        let corners = [p, p + 1, p + self.width + 1, p + self.width];
        let case = (0..4).filter(|&n| self.field[corners[n]] > self.level).fold(0, |c, n| c | 1 << n);
        let (top, left, right, bottom) = (2 * p, 2 * p + 1, 2 * (p + 1) + 1, 2 * (p + self.width));
        let mean = corners.iter().map(|&c| self.field[c]).sum::<f32>() / 4.0;
        match case {
            1 | 14 => [Some((left, top)), None],
            2 | 13 => [Some((top, right)), None],
            3 | 12 => [Some((left, right)), None],
            4 | 11 => [Some((right, bottom)), None],
            6 | 9 => [Some((top, bottom)), None],
            7 | 8 => [Some((left, bottom)), None],
            // Saddles: the mean of the corners says which diagonal is joined.
            5 if mean > self.level => [Some((top, right)), Some((left, bottom))],
            10 if mean > self.level => [Some((left, top)), Some((right, bottom))],
            5 => [Some((left, top)), Some((right, bottom))],
            10 => [Some((top, right)), Some((left, bottom))],
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

    #[test]
    fn a_disc_gives_one_closed_circle() {
        let (w, h, radius) = (64, 48, 15.0f32);
        let field: Vec<f32> =
            (0..w * h).map(|p| radius - ((p % w) as f32 - 30.0).hypot((p / w) as f32 - 24.0)).collect();
        let lines = contours(&field, w, h, 0.0);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].first(), lines[0].last());
        assert!(lines[0].iter().all(|p| ((p[0] - 30.0).hypot(p[1] - 24.0) - radius).abs() < 0.1));
        let length: f32 = lines[0].windows(2).map(|s| (s[1][0] - s[0][0]).hypot(s[1][1] - s[0][1])).sum();
        assert!((length / (std::f32::consts::TAU * radius) - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_line_through_the_edge_stays_open_and_whole() {
        let (w, h) = (20, 10);
        let field: Vec<f32> = (0..w * h).map(|p| if p / w < 5 { 1.0 } else { 0.0 }).collect();
        let lines = contours(&field, w, h, 0.5);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].len(), w);
        assert!(lines[0].iter().all(|p| (p[1] - 4.5).abs() < 1e-6));
    }

    #[test]
    fn a_saddle_keeps_every_crossing() {
        let field = [1.0, 0.0, 0.0, 1.0];
        let lines = contours(&field, 2, 2, 0.5);
        assert_eq!(lines.iter().map(Vec::len).sum::<usize>(), 4);
    }
}
