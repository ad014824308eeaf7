//! Nearest-neighbour upsampling by 2 beside the centre crop of a skip connection, in one pass.

use rayon::prelude::*;

/// `y[:, ..c_up] = upsample(a)`, `y[:, c_up..] = crop(skip)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpsampleConcat {
    /// Volumes in the batch.
    pub batch: usize,
    /// Channels of the low-resolution input `a`.
    pub c_up: usize,
    /// Channels of the skip connection.
    pub c_skip: usize,
    /// Size of `a` (z, y, x); the output has twice this.
    pub low: [usize; 3],
    /// Voxels cut from `skip` on every side; `skip` has size `2 * low + 2 * crop`.
    pub crop: usize,
}

impl UpsampleConcat {
    /// Output size z, y, x.
    pub fn output(&self) -> [usize; 3] {
        self.low.map(|n| 2 * n)
    }

    /// Size z, y, x of the skip connection.
    pub fn skip(&self) -> [usize; 3] {
        self.low.map(|n| 2 * n + 2 * self.crop)
    }

    /// Values of `a`.
    pub fn low_len(&self) -> usize {
        self.batch * self.c_up * self.low.iter().product::<usize>()
    }

    /// Values of `skip`.
    pub fn skip_len(&self) -> usize {
        self.batch * self.c_skip * self.skip().iter().product::<usize>()
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.batch * (self.c_up + self.c_skip) * self.output().iter().product::<usize>()
    }

    /// Overwrites `y`.
    ///
    /// # Panics
    /// If a length is wrong.
    pub fn forward(&self, a: &[f32], skip: &[f32], y: &mut [f32]) {
        self.check(a.len(), skip.len(), y.len());
        let [depth, height, width] = self.output();
        let [_, low_height, low_width] = self.low;
        y.par_chunks_mut(height * width).enumerate().for_each(|(plane, y)| {
            match self.source(plane / depth) {
                Source::Low(volume) => {
                    let from = (volume * self.low[0] + plane % depth / 2) * low_height * low_width;
                    let low = &a[from..][..low_height * low_width];
                    for (rows, low) in y.chunks_exact_mut(2 * width).zip(low.chunks_exact(low_width)) {
                        let (even, odd) = rows.split_at_mut(width);
                        for (pair, &value) in even.chunks_exact_mut(2).zip(low) {
                            pair.fill(value);
                        }
                        odd.copy_from_slice(even);
                    }
                }
                Source::Skip(volume) => {
                    for (row, y) in y.chunks_exact_mut(width).enumerate() {
                        y.copy_from_slice(&skip[self.skip_row(volume, plane % depth, row)..][..width]);
                    }
                }
            }
        });
    }

    /// Gradients from the gradient `dy` of the output: overwrites `da` and `dskip` (0 outside the crop).
    ///
    /// # Panics
    /// If a length is wrong.
    pub fn backward(&self, dy: &[f32], da: &mut [f32], dskip: &mut [f32]) {
        self.check(da.len(), dskip.len(), dy.len());
        let [depth, height, width] = self.output();
        let channels = self.c_up + self.c_skip;
        let [low_depth, low_height, low_width] = self.low;
        let plane_of =
            |volume: usize, z: usize| &dy[(volume * depth + z) * height * width..][..height * width];

        da.par_chunks_mut(low_height * low_width).enumerate().for_each(|(plane, da)| {
            let (n, c) = (plane / low_depth / self.c_up, plane / low_depth % self.c_up);
            let z = 2 * (plane % low_depth);
            let planes = [plane_of(n * channels + c, z), plane_of(n * channels + c, z + 1)];
            for (row, da) in da.chunks_exact_mut(low_width).enumerate() {
                let rows = planes.map(|plane| {
                    let rows = &plane[2 * row * width..][..2 * width];
                    rows.split_at(width)
                });
                let [(a, b), (c, d)] = rows;
                for (x, value) in da.iter_mut().enumerate() {
                    let pair = |row: &[f32]| row[2 * x] + row[2 * x + 1];
                    *value = (pair(a) + pair(b)) + (pair(c) + pair(d));
                }
            }
        });

        let [skip_depth, skip_height, skip_width] = self.skip();
        let crop = self.crop;
        dskip.par_chunks_mut(skip_height * skip_width).enumerate().for_each(|(plane, dskip)| {
            let (volume, z) = (plane / skip_depth, plane % skip_depth);
            if z < crop || z >= crop + depth {
                dskip.fill(0.0);
                return;
            }
            let (n, c) = (volume / self.c_skip, volume % self.c_skip);
            let dy = plane_of(n * channels + self.c_up + c, z - crop);
            let (above, rest) = dskip.split_at_mut(crop * skip_width);
            let (inside, below) = rest.split_at_mut(height * skip_width);
            above.fill(0.0);
            below.fill(0.0);
            for (to, from) in inside.chunks_exact_mut(skip_width).zip(dy.chunks_exact(width)) {
                to[..crop].fill(0.0);
                to[crop..crop + width].copy_from_slice(from);
                to[crop + width..].fill(0.0);
            }
        });
    }

    /// Where an output volume (batch and channel) comes from: the volume's number in `a` or in `skip`.
    fn source(&self, volume: usize) -> Source {
        let (n, c) = (volume / (self.c_up + self.c_skip), volume % (self.c_up + self.c_skip));
        if c < self.c_up {
            Source::Low(n * self.c_up + c)
        } else {
            Source::Skip(n * self.c_skip + c - self.c_up)
        }
    }

    fn skip_row(&self, volume: usize, z: usize, row: usize) -> usize {
        let [depth, height, width] = self.skip();
        ((volume * depth + z + self.crop) * height + row + self.crop) * width + self.crop
    }

    fn check(&self, a: usize, skip: usize, y: usize) {
        assert_eq!([a, skip, y], [self.low_len(), self.skip_len(), self.output_len()], "lengths of {self:?}");
    }
}

enum Source {
    Low(usize),
    Skip(usize),
}
