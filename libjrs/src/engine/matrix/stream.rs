//! The generator as a stream of planes, as [`crate::engine::stream`] has it, with planes that own themselves: a skip is the very plane
//! that the next layer reads, and what a layer no longer needs is dropped.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use jrs_kernels::bf16::{Format, Job, Output, Part, Plane, Unit, View, convolve, stack_images};
use jrs_kernels::pool::{Ledger, Pool};
use rayon::prelude::*;

use super::network::{Filters, NARROW, Network};
use crate::network::{JOINS, Layer, MARGIN};

/// Voxels at full resolution that are in work together, about, but at least four planes: enough to share out, few enough to stay
/// in the cache.
const VOXELS: usize = 1 << 17;

/// A plane, or its size.
enum Counted<'p> {
    Plane(Plane<'p>),
    /// What a pool would have handed out.
    Size {
        held: usize,
        ledger: Rc<RefCell<Ledger>>,
    },
}

impl<'p> Counted<'p> {
    /// Asked only of those that a machine fills.
    fn filled(&self) -> &Plane<'p> {
        let Self::Plane(plane) = self else { unreachable!("sizes are not computed with") };
        plane
    }

    fn filled_mut(&mut self) -> &mut Plane<'p> {
        let Self::Plane(plane) = self else { unreachable!("sizes are not computed with") };
        plane
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Self::Size { held, ledger } = self {
            ledger.borrow_mut().give(*held);
        }
    }
}

/// Planes on their way, oldest first.
type Planes<'p> = VecDeque<Rc<Counted<'p>>>;

/// A skip connection.
struct Skip<'p> {
    planes: Planes<'p>,
    /// Planes still to be left out: the crop along z.
    leave_out: usize,
}

/// What computes, or counts.
enum Means<'p> {
    Machine { unit: Unit, pool: &'p Pool },
    Ledger(Rc<RefCell<Ledger>>),
}

/// A run of the generator.
pub(super) struct Stream<'p> {
    network: &'p Network,
    means: Means<'p>,
    /// Inputs of each block; behind upsampling the coarse ones.
    windows: Vec<Planes<'p>>,
    /// Input edges y, x of each block; behind upsampling the fine ones.
    edges: Vec<[usize; 2]>,
    /// Planes that a block takes in or puts out at a time, at least.
    slab: usize,
    /// Those of [`JOINS`].
    skips: Vec<Skip<'p>>,
    /// Output planes done.
    done: usize,
}

impl<'p> Stream<'p> {
    /// The bytes of all buffers, at work and idle, without the result, for inputs of `size` = \[x, y, z\] voxels.
    pub fn bytes(network: &'p Network, size: [usize; 3]) -> usize {
        let ledger = Rc::<RefCell<Ledger>>::default();
        // The second run finds the first one's buffers idle, which do not always fit.
        for _ in 0..2 {
            Self::new(network, Means::Ledger(ledger.clone()), size).drive(None, size, None);
        }
        size_of::<f32>() * ledger.borrow().peak()
    }

    /// Runs the network on two images of `size` = \[x, y, z\] voxels; `out` receives the components.
    pub fn run(
        network: &'p Network,
        unit: Unit,
        pool: &'p Pool,
        images: [&[f32]; 2],
        size: [usize; 3],
        out: &mut [Vec<f32>; 3],
    ) {
        for component in out.iter_mut() {
            component.resize(size.iter().map(|n| n - 2 * MARGIN).product(), 0.0);
        }
        // On a thread of the pool: from outside every one of the many short loops would cost a sleep and a wake.
        rayon::scope(|_| {
            let mut stream = Self::new(network, Means::Machine { unit, pool }, size);
            stream.drive(Some(images), size, Some(out));
        });
    }

    fn new(network: &'p Network, means: Means<'p>, size: [usize; 3]) -> Self {
        let mut stream = Self {
            network,
            means,
            windows: Vec::new(),
            edges: Vec::new(),
            slab: (VOXELS / (size[0] * size[1])).max(4),
            skips: JOINS.iter().map(|join| Skip { planes: Planes::new(), leave_out: join.crop }).collect(),
            done: 0,
        };
        let mut edges = [size[1], size[0]];
        for block in &network.blocks {
            if JOINS.iter().any(|join| join.before == block.layer.name) {
                edges = edges.map(|n| 2 * n);
            }
            stream.edges.push(edges);
            let mut window = Planes::new();
            if block.layer.padding == 1 {
                window.push_back(Rc::new(stream.plane(block.layer.c_in, edges, network.format, Plane::zero)));
            }
            stream.windows.push(window);
            edges = edges.map(|n| block.layer.output(n));
        }
        stream
    }

    /// A plane made by `make`, unless only sizes are counted.
    fn plane(
        &self,
        channels: usize,
        edges: [usize; 2],
        format: Format,
        make: impl FnOnce(&'p Pool, usize, [usize; 2], Format) -> Plane<'p>,
    ) -> Counted<'p> {
        match &self.means {
            Means::Machine { pool, .. } => Counted::Plane(make(pool, channels, edges, format)),
            Means::Ledger(ledger) => {
                let held = ledger.borrow_mut().take(Plane::floats(channels, edges, format));
                Counted::Size { held, ledger: ledger.clone() }
            }
        }
    }

    /// All planes through all blocks.
    fn drive(&mut self, images: Option<[&[f32]; 2]>, size: [usize; 3], mut out: Option<&mut [Vec<f32>; 3]>) {
        let [nx, ny, nz] = size;
        let slab = self.slab;
        for first in (0..nz).step_by(slab) {
            let slab = first..nz.min(first + slab);
            let edges = [ny - 2, nx];
            // Stacked images hold their low terms as channels.
            let stacked = |_| self.plane(NARROW, edges, Format::One, Plane::new);
            let mut inputs: Vec<_> = slab.clone().map(stacked).collect();
            if let Some(images) = images {
                let planes: Vec<_> = inputs.iter_mut().map(Counted::filled_mut).collect();
                planes.into_par_iter().zip(slab.clone()).for_each(|(plane, z)| {
                    stack_images(images.map(|image| &image[z * ny * nx..][..ny * nx]), [ny, nx], plane);
                });
            }
            self.windows[0].extend(inputs.into_iter().map(Rc::new));
            for block in 0..self.network.blocks.len() {
                self.advance(block, slab.end == nz, out.as_deref_mut());
            }
        }
    }

    /// Computes what block `i` can compute, if that is enough to be worth it or `finished`.
    fn advance(&mut self, i: usize, finished: bool, out: Option<&mut [Vec<f32>; 3]>) {
        let block = &self.network.blocks[i];
        let layer = &block.layer;
        let join = JOINS.iter().position(|join| join.before == layer.name);
        let planes = self.windows[i].len();
        // Two outputs meet the same two coarse planes.
        let (count, used) = match join {
            Some(_) => (2 * planes.saturating_sub(1), planes.saturating_sub(1)),
            None if planes < layer.kernel => (0, 0),
            None => {
                let outputs = (planes - layer.kernel) / layer.stride + 1;
                (outputs, layer.stride * outputs)
            }
        };
        let edges = self.edges[i].map(|n| layer.output(n));
        if count == 0 || (count < self.slab && !finished) {
            return;
        }
        if i + 1 == self.network.blocks.len() {
            self.displacement(i, count, edges, out);
        } else {
            let fresh = |_| self.plane(layer.c_out, edges, self.network.format, Plane::new);
            let mut outputs: Vec<Counted<'p>> = (0..count).map(fresh).collect();
            if let Means::Machine { unit, .. } = self.means {
                let mut jobs: Vec<Job<'_, '_>> = outputs
                    .iter_mut()
                    .enumerate()
                    .map(|(z, output)| self.job(i, z, Output::Plane(output.filled_mut())))
                    .collect();
                convolve(unit, &block.activation, &mut jobs);
            }
            for output in outputs.into_iter().map(Rc::new) {
                if let Some(skip) = JOINS.iter().position(|join| join.skip == layer.name) {
                    let skip = &mut self.skips[skip];
                    match skip.leave_out {
                        0 => skip.planes.push_back(output.clone()),
                        _ => skip.leave_out -= 1,
                    }
                }
                self.windows[i + 1].push_back(output);
            }
        }
        self.windows[i].drain(..used);
        if let Some(skip) = join {
            self.skips[skip].planes.drain(..count);
        }
    }

    /// The last block, with the head, into `count` planes of the result.
    fn displacement(&mut self, i: usize, count: usize, edges: [usize; 2], out: Option<&mut [Vec<f32>; 3]>) {
        let area = edges[0] * edges[1];
        let head = &self.network.head;
        if let (&Means::Machine { unit, .. }, Some(out)) = (&self.means, out) {
            let [x, y, z] =
                out.each_mut().map(|u| u[self.done * area..][..count * area].chunks_exact_mut(area));
            let mut jobs: Vec<Job<'_, '_>> = x
                .zip(y)
                .zip(z)
                .enumerate()
                .map(|(z, ((ux, uy), uz))| {
                    self.job(i, z, Output::Displacement { head, edges, u: [ux, uy, uz] })
                })
                .collect();
            convolve(unit, &self.network.blocks[i].activation, &mut jobs);
        }
        self.done += count;
    }

    /// Output plane `z` of block `i`, counted from the first that its window gives.
    fn job<'a>(&'a self, i: usize, z: usize, output: Output<'a, 'p>) -> Job<'a, 'p> {
        let block = &self.network.blocks[i];
        let window = &self.windows[i];
        let group = block.group;
        match &block.filters {
            Filters::Plain(filter) => {
                let Layer { stride, padding, kernel, .. } = block.layer;
                let planes = filled(window, stride * z, kernel);
                let pairs = if planes[0].channels() == NARROW { 2 } else { 1 };
                // The border in front of row and column 0 is the padding.
                let origin = [-(padding as isize); 2];
                let view = View { planes, group: pairs, origin, step: [stride; 2] };
                let parts = vec![Part { filter, inputs: vec![view] }];
                Job { parts, lattices: [1, 1], group, output }
            }
            Filters::Joined { of_planes, lattices } => {
                let join = JOINS.iter().position(|join| join.before == block.layer.name).expect("joined");
                let crop = JOINS[join].crop;
                let part = |(i, filter)| {
                    let (odd_row, odd_column) = (i / lattices[1], i % lattices[1]);
                    let planes = filled(window, z / 2, 2);
                    let coarse = View { planes, group: 1, origin: [0, 0], step: [1, 1] };
                    let planes = filled(&self.skips[join].planes, z, 3);
                    let origin = [(crop + odd_row) as isize, (crop / group + odd_column) as isize];
                    let fine = View { planes, group, origin, step: [2, 2 / group] };
                    Part { filter, inputs: vec![coarse, fine] }
                };
                let parts = of_planes[z % 2].iter().enumerate().map(part).collect();
                Job { parts, lattices: *lattices, group, output }
            }
        }
    }
}

/// Planes that a machine has filled.
fn filled<'a, 'p>(planes: &'a Planes<'p>, first: usize, count: usize) -> Vec<&'a Plane<'p>> {
    let planes = planes.range(first..first + count);
    planes.map(|counted| counted.filled()).collect()
}
