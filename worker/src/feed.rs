//! Patches, ready when they are needed: a thread loads pairs and cuts the next step's patches while this one computes.

use crate::config::TrainConfig;
use jrs_data::cache::{Prepared, PreparedPair};
use jrs_data::dataset::Split;
use jrs_data::sampling::{Cropping, Patch, SampleOrder};
use libjrs::{Error, Result};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// The thread that makes patches.
pub struct Feed {
    orders: Sender<Range<u64>>,
    made: Receiver<Result<Vec<Patch>>>,
    /// Ordered and not yet taken.
    ahead: Option<Range<u64>>,
}

impl Feed {
    /// Begins to feed training with the training pairs of `prepared`.
    ///
    /// # Errors
    /// If there are no training pairs.
    pub fn new(config: &TrainConfig, prepared: Arc<Prepared>) -> Result<Self> {
        let mut source = Source::new(config, prepared)?;
        let (orders, ordered) = channel::<Range<u64>>();
        let (making, made) = channel();
        let make = move || {
            for positions in ordered {
                if making.send(source.patches(positions)).is_err() {
                    return; // nobody is left to take them
                }
            }
        };
        std::thread::Builder::new().name("feed".into()).spawn(make).map_err(|e| {
            Error::input(format!("no thread for loading data: {e}"), "Raise the process limit")
        })?;
        Ok(Self { orders, made, ahead: None })
    }

    /// The patches at `positions` of the run's sample order. Those `stride` positions later are made meanwhile, because
    /// they are most likely asked for next.
    ///
    /// # Errors
    /// If a pair cannot be read.
    pub fn patches(&mut self, positions: Range<u64>, stride: u64) -> Result<Vec<Patch>> {
        if positions.is_empty() {
            return Ok(Vec::new());
        }
        if self.ahead.take_if(|ahead| *ahead != positions).is_some() {
            // A new generation shares the work out anew; what was made for the old one is of no use.
            let _ = self.take();
        }
        if self.ahead.is_none() {
            self.order(positions.clone())?;
        }
        let patches = self.take();
        self.order(positions.start + stride..positions.end + stride)?;
        patches
    }

    fn order(&mut self, positions: Range<u64>) -> Result<()> {
        self.ahead = Some(positions.clone());
        self.orders.send(positions).map_err(|_| ended())
    }

    fn take(&mut self) -> Result<Vec<Patch>> {
        self.ahead = None;
        self.made.recv().unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> Error {
    Error::input(
        "the thread that loads data ended early",
        "This is a mistake in the program; please report it",
    )
}

/// Training patches in the run's order, with the pairs of the current window in memory.
struct Source {
    prepared: Arc<Prepared>,
    /// Indices of the training pairs in the cache.
    train: Vec<usize>,
    order: SampleOrder,
    loaded: VecDeque<(usize, Arc<PreparedPair>)>,
    capacity: usize,
    cropping: Cropping,
}

impl Source {
    fn new(config: &TrainConfig, prepared: Arc<Prepared>) -> Result<Self> {
        let train: Vec<usize> =
            (0..prepared.pairs.len()).filter(|&i| prepared.pairs[i].split == Split::Train).collect();
        if train.is_empty() {
            return Err(Error::input(
                format!("none of the {} prepared pairs is in the train split", prepared.pairs.len()),
                "Set \"split\": \"train\" for some patients in dataset.json and prepare again",
            ));
        }
        let s = &config.sampling;
        Ok(Self {
            order: SampleOrder::new(config.seed, train.len(), s.patches_per_pair, s.window),
            train,
            loaded: VecDeque::new(),
            // A batch may straddle two windows.
            capacity: 2 * s.window,
            cropping: Cropping {
                seed: config.seed,
                edge: s.patch,
                full_scale: prepared.preprocessing().divide_by as f32,
                around_organs: s.around_organs,
            },
            prepared,
        })
    }

    fn patches(&mut self, positions: Range<u64>) -> Result<Vec<Patch>> {
        let ids: Vec<_> = positions.map(|position| self.order.at(position)).collect();
        let pairs: Vec<_> = ids.iter().map(|id| self.pair(id.pair)).collect::<Result<_>>()?;
        let cropping = self.cropping;
        Ok(ids.par_iter().zip(&pairs).map(|(&id, pair)| cropping.crop(id, pair)).collect())
    }

    fn pair(&mut self, index: usize) -> Result<Arc<PreparedPair>> {
        if let Some((_, pair)) = self.loaded.iter().find(|(i, _)| *i == index) {
            return Ok(pair.clone());
        }
        let pair = Arc::new(self.prepared.load(self.train[index])?);
        self.loaded.push_back((index, pair.clone()));
        if self.loaded.len() > self.capacity {
            self.loaded.pop_front();
        }
        Ok(pair)
    }
}
