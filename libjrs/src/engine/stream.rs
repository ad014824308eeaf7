//! The generator as a stream of planes: no tensor exists as a whole.
//!
//! ```text
//!  input planes -> x0 -> x1 -> x2 -> x3 -> x4 -> x5 -> x6 -> x7 --+
//!                         \                  \                    v
//!                          \                  +--- skip B ------> x10 -> x11 --+
//!                           \                                                  v
//!                            +------------------ skip A --------------------> x14 -> x15, u
//! ```
//!
//! Every block has a window: the input planes that its next outputs need. When enough have come in, it computes all outputs it can, for the
//! window of the next one. Planes own themselves: a skip is the very plane that the next block reads, upsampling is left to whoever reads
//! (the coarse planes are what the window holds), and what a block no longer needs is dropped. So memory grows with the area of a
//! plane and not with the number of planes, and what a block reads is still in the cache.
//!
//! [`Stream::bytes`] runs the same schedule without data, with the pool's own rule for lengths.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use jrs_kernels::pool::{Ledger, Pool};
use rayon::prelude::*;

use crate::network::{GENERATOR, JOINS, Layer, MARGIN};

/// Voxels at full resolution that are in work together, about, but at least so many planes as the arithmetic asks for: enough to share
/// out, few enough to stay in the cache.
const VOXELS: usize = 1 << 17;

/// The generator's blocks in some arithmetic: how planes are held, and what turns them into the next ones.
pub(super) trait Blocks: Sync {
    /// A z-plane of a tensor; edges are \[y, x\].
    type Plane<'p>: Send + Sync;

    /// Planes that a block takes in or puts out at a time, at least.
    const FEWEST_PLANES: usize;

    /// Length of a plane's buffer, in f32.
    fn floats(&self, of: Content, edges: [usize; 2]) -> usize;

    /// A plane whose voxels are whatever an earlier user of the pool left.
    fn plane<'p>(&self, pool: &'p Pool, of: Content, edges: [usize; 2]) -> Self::Plane<'p>;

    /// A plane of zeros: padding along z.
    fn zero<'p>(&self, pool: &'p Pool, channels: usize, edges: [usize; 2]) -> Self::Plane<'p>;

    /// A plane of both images, `[y][x]` each.
    fn load(&self, images: [&[f32]; 2], edges: [usize; 2], to: &mut Self::Plane<'_>);

    /// Computes planes of block `i` of [`GENERATOR`]. Its first output meets the first plane of `window` (coarse ones behind
    /// upsampling) and of `skip`, which is empty for blocks that no skip joins.
    fn compute(
        &self,
        i: usize,
        window: &[&Self::Plane<'_>],
        skip: &[&Self::Plane<'_>],
        results: Results<'_, Self::Plane<'_>>,
    );
}

/// What a plane holds.
#[derive(Clone, Copy)]
pub(super) enum Content {
    /// Both images.
    Images,
    /// So many channels.
    Channels(usize),
}

/// Where results go.
pub(super) enum Results<'a, P> {
    /// Into planes.
    Planes(Vec<&'a mut P>),
    /// Those of the last block through the head, to the components' planes of these edges, one after another.
    Displacement([&'a mut [f32]; 3], [usize; 2]),
}

/// A plane, or its size.
enum Counted<P> {
    Plane(P),
    /// What a pool would have handed out.
    Size {
        held: usize,
        ledger: Rc<RefCell<Ledger>>,
    },
}

impl<P> Counted<P> {
    /// Asked only of those that are computed with.
    fn filled(&self) -> &P {
        let Self::Plane(plane) = self else { unreachable!("sizes are not computed with") };
        plane
    }

    fn filled_mut(&mut self) -> &mut P {
        let Self::Plane(plane) = self else { unreachable!("sizes are not computed with") };
        plane
    }
}

impl<P> Drop for Counted<P> {
    fn drop(&mut self) {
        if let Self::Size { held, ledger } = self {
            ledger.borrow_mut().give(*held);
        }
    }
}

/// Planes on their way, oldest first.
type Planes<P> = VecDeque<Rc<Counted<P>>>;

/// A skip connection.
struct Skip<P> {
    planes: Planes<P>,
    /// Planes still to be left out: the crop along z.
    leave_out: usize,
}

/// What computes, or counts.
enum Means<'p> {
    Pool(&'p Pool),
    Ledger(Rc<RefCell<Ledger>>),
}

/// A run of the generator.
pub(super) struct Stream<'p, B: Blocks> {
    blocks: &'p B,
    means: Means<'p>,
    /// Inputs of each block; behind upsampling the coarse ones.
    windows: Vec<Planes<B::Plane<'p>>>,
    /// Input edges y, x of each block; behind upsampling the fine ones.
    edges: Vec<[usize; 2]>,
    /// Planes that a block takes in or puts out at a time, at least.
    slab: usize,
    /// Those of [`JOINS`].
    skips: Vec<Skip<B::Plane<'p>>>,
    /// Output planes done.
    done: usize,
}

/// All layers but the head.
fn blocks() -> &'static [Layer] {
    GENERATOR.split_last().expect("the generator ends in a head").1
}

impl<'p, B: Blocks> Stream<'p, B> {
    /// The bytes of all buffers, at work and idle, without the result, for inputs of `size` = \[x, y, z\] voxels.
    pub fn bytes(blocks: &'p B, size: [usize; 3]) -> usize {
        let ledger = Rc::<RefCell<Ledger>>::default();
        // The second run finds the first one's buffers idle, which do not always fit.
        for _ in 0..2 {
            Self::new(blocks, Means::Ledger(ledger.clone()), size).drive(None, size, None);
        }
        size_of::<f32>() * ledger.borrow().peak()
    }

    /// True if a run would not make `pool` hold more than it did before.
    pub fn fits(blocks: &'p B, pool: &Pool, size: [usize; 3]) -> bool {
        let ledger = Rc::new(RefCell::new(pool.ledger()));
        let peak = ledger.borrow().peak();
        Self::new(blocks, Means::Ledger(ledger.clone()), size).drive(None, size, None);
        ledger.borrow().peak() == peak
    }

    /// Runs the network on two images of `size` = \[x, y, z\] voxels; `out` receives the components.
    pub fn run(
        blocks: &'p B,
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
            Self::new(blocks, Means::Pool(pool), size).drive(Some(images), size, Some(out));
        });
    }

    fn new(network: &'p B, means: Means<'p>, size: [usize; 3]) -> Self {
        let mut stream = Self {
            blocks: network,
            means,
            windows: Vec::new(),
            edges: Vec::new(),
            slab: (VOXELS / (size[0] * size[1])).max(B::FEWEST_PLANES),
            skips: JOINS.iter().map(|join| Skip { planes: Planes::new(), leave_out: join.crop }).collect(),
            done: 0,
        };
        let mut edges = [size[1], size[0]];
        for layer in blocks() {
            if layer.join().is_some() {
                edges = edges.map(|n| 2 * n);
            }
            stream.edges.push(edges);
            let mut window = Planes::new();
            if layer.padding == 1 {
                let zero = |pool| network.zero(pool, layer.c_in, edges);
                window.push_back(Rc::new(stream.counted(Content::Channels(layer.c_in), edges, zero)));
            }
            stream.windows.push(window);
            edges = edges.map(|n| layer.output(n));
        }
        stream
    }

    /// A fresh plane.
    fn plane(&self, of: Content, edges: [usize; 2]) -> Counted<B::Plane<'p>> {
        self.counted(of, edges, |pool| self.blocks.plane(pool, of, edges))
    }

    /// A plane made by `make`, unless only sizes are counted.
    fn counted(
        &self,
        of: Content,
        edges: [usize; 2],
        make: impl FnOnce(&'p Pool) -> B::Plane<'p>,
    ) -> Counted<B::Plane<'p>> {
        match &self.means {
            Means::Pool(pool) => Counted::Plane(make(pool)),
            Means::Ledger(ledger) => {
                let held = ledger.borrow_mut().take(self.blocks.floats(of, edges));
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
            let mut inputs: Vec<_> = slab.clone().map(|_| self.plane(Content::Images, [ny, nx])).collect();
            if let Some(images) = images {
                let network = self.blocks;
                let planes: Vec<_> = inputs.iter_mut().map(Counted::filled_mut).collect();
                planes.into_par_iter().zip(slab.clone()).for_each(|(plane, z)| {
                    network.load(images.map(|image| &image[z * ny * nx..][..ny * nx]), [ny, nx], plane);
                });
            }
            self.windows[0].extend(inputs.into_iter().map(Rc::new));
            for block in 0..blocks().len() {
                self.advance(block, slab.end == nz, out.as_deref_mut());
            }
        }
    }

    /// Computes what block `i` can compute, if that is enough to be worth it or `finished`.
    fn advance(&mut self, i: usize, finished: bool, out: Option<&mut [Vec<f32>; 3]>) {
        let layer = &GENERATOR[i];
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
        if i + 1 == blocks().len() {
            let area = edges[0] * edges[1];
            if let Some(out) = out {
                let u = out.each_mut().map(|u| &mut u[self.done * area..][..count * area]);
                self.compute(i, join, Results::Displacement(u, edges));
            }
            self.done += count;
        } else {
            let mut outputs: Vec<Counted<B::Plane<'p>>> =
                (0..count).map(|_| self.plane(Content::Channels(layer.c_out), edges)).collect();
            if let Means::Pool(_) = self.means {
                let planes = outputs.iter_mut().map(Counted::filled_mut).collect();
                self.compute(i, join, Results::Planes(planes));
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

    /// The results of block `i` that its window gives.
    fn compute(&self, i: usize, join: Option<usize>, results: Results<'_, B::Plane<'p>>) {
        let skip = join.map_or(Vec::new(), |join| filled(&self.skips[join].planes));
        self.blocks.compute(i, &filled(&self.windows[i]), &skip, results);
    }
}

/// Planes that are computed with.
fn filled<P>(planes: &Planes<P>) -> Vec<&P> {
    planes.iter().map(|plane| plane.filled()).collect()
}
