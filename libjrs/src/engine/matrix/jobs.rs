//! The generator's blocks as the matrix unit's jobs.

use jrs_kernels::bf16::{Format, Job, Output, Part, Plane, View, convolve, stack_images};
use jrs_kernels::pool::Pool;

use super::network::{Filters, NARROW, Network};
use crate::engine::stream::{Blocks, Content, Results};
use crate::network::Layer;

impl Network {
    /// Channels, edges and format of a plane. Stacked images hold their low terms as channels.
    fn shape(&self, of: Content, [height, width]: [usize; 2]) -> (usize, [usize; 2], Format) {
        match of {
            Content::Images => (NARROW, [height - 2, width], Format::One),
            Content::Channels(channels) => (channels, [height, width], self.format),
        }
    }

    /// Output plane `z` of block `i`, counted from the first that the window gives.
    fn job<'a, 'p>(
        &'a self,
        i: usize,
        z: usize,
        window: &[&'a Plane<'a>],
        skip: &[&'a Plane<'a>],
        output: Output<'a, 'p>,
    ) -> Job<'a, 'p> {
        let block = &self.blocks[i];
        let group = block.group;
        match &block.filters {
            Filters::Plain(filter) => {
                let Layer { stride, padding, kernel, .. } = block.layer;
                let planes = window[stride * z..][..kernel].to_vec();
                let pairs = if planes[0].channels() == NARROW { 2 } else { 1 };
                // The border in front of row and column 0 is the padding.
                let origin = [-(padding as isize); 2];
                let view = View { planes, group: pairs, origin, step: [stride; 2] };
                let parts = vec![Part { filter, inputs: vec![view] }];
                Job { parts, lattices: [1, 1], group, output }
            }
            Filters::Joined { of_planes, lattices } => {
                let join = block.layer.join().expect("joined");
                let part = |(i, filter)| {
                    let (odd_row, odd_column) = (i / lattices[1], i % lattices[1]);
                    let planes = window[z / 2..][..2].to_vec();
                    let coarse = View { planes, group: 1, origin: [0, 0], step: [1, 1] };
                    let planes = skip[z..][..3].to_vec();
                    let origin = [(join.crop + odd_row) as isize, (join.crop / group + odd_column) as isize];
                    let fine = View { planes, group, origin, step: [2, 2 / group] };
                    Part { filter, inputs: vec![coarse, fine] }
                };
                let parts = of_planes[z % 2].iter().enumerate().map(part).collect();
                Job { parts, lattices: *lattices, group, output }
            }
        }
    }
}

impl Blocks for Network {
    type Plane<'p> = Plane<'p>;

    const FEWEST_PLANES: usize = 4;

    fn floats(&self, of: Content, edges: [usize; 2]) -> usize {
        let (channels, edges, format) = self.shape(of, edges);
        Plane::floats(channels, edges, format)
    }

    fn plane<'p>(&self, pool: &'p Pool, of: Content, edges: [usize; 2]) -> Plane<'p> {
        let (channels, edges, format) = self.shape(of, edges);
        Plane::new(pool, channels, edges, format)
    }

    fn zero<'p>(&self, pool: &'p Pool, channels: usize, edges: [usize; 2]) -> Plane<'p> {
        Plane::zero(pool, channels, edges, self.format)
    }

    fn load(&self, images: [&[f32]; 2], edges: [usize; 2], to: &mut Plane<'_>) {
        stack_images(images, edges, to);
    }

    fn compute(&self, i: usize, window: &[&Plane<'_>], skip: &[&Plane<'_>], results: Results<'_, Plane<'_>>) {
        let outputs: Vec<Output<'_, '_>> = match results {
            Results::Planes(planes) => planes.into_iter().map(Output::Plane).collect(),
            Results::Displacement(u, edges) => {
                let head = &self.head;
                let [x, y, z] = u.map(|u| u.chunks_exact_mut(edges[0] * edges[1]));
                let planes = x.zip(y).zip(z);
                planes.map(|((x, y), z)| Output::Displacement { head, edges, u: [x, y, z] }).collect()
            }
        };
        let jobs = outputs.into_iter().enumerate();
        let mut jobs: Vec<Job<'_, '_>> =
            jobs.map(|(z, output)| self.job(i, z, window, skip, output)).collect();
        convolve(self.unit, &self.blocks[i].activation, &mut jobs);
    }
}
