//! Samples, ready when they are needed: a thread loads pairs and makes the next step's samples while this one computes.

use crate::batch::{Cutter, Samples, Scans};
use crate::config::TrainConfig;
use burn::tensor::Device;
use jrs_data::cache::Prepared;
use jrs_data::dataset::Split;
use jrs_data::sampling::SampleOrder;
use libjrs::{Error, Result};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

/// The thread that makes samples.
pub struct Feed {
    orders: Sender<Range<u64>>,
    made: Receiver<Result<Samples>>,
    /// Ordered and not yet taken.
    ahead: Option<Range<u64>>,
}

impl Feed {
    /// Begins to feed training on `device` with the training pairs of `prepared`.
    ///
    /// # Errors
    /// If there are no training pairs.
    pub fn new(config: &TrainConfig, prepared: Arc<Prepared>, device: &Device) -> Result<Self> {
        let mut source = Source::new(config, prepared, device)?;
        let (orders, ordered) = channel::<Range<u64>>();
        let (making, made) = channel();
        let make = move || {
            for positions in ordered {
                if making.send(source.samples(positions)).is_err() {
                    return; // nobody is left to take them
                }
            }
        };
        std::thread::Builder::new().name("feed".into()).spawn(make).map_err(|e| {
            Error::input(format!("no thread for loading data: {e}"), "Raise the process limit")
        })?;
        Ok(Self { orders, made, ahead: None })
    }

    /// The samples at `positions` of the run's sample order. Those `stride` positions later are made meanwhile, because
    /// they are most likely asked for next.
    ///
    /// # Errors
    /// If a pair cannot be read.
    pub fn samples(&mut self, positions: Range<u64>, stride: u64) -> Result<Samples> {
        if positions.is_empty() {
            return Ok(Samples::NONE);
        }
        if self.ahead.take_if(|ahead| *ahead != positions).is_some() {
            // A new generation shares the work out anew; what was made for the old one is of no use.
            let _ = self.take();
        }
        if self.ahead.is_none() {
            self.order(positions.clone())?;
        }
        let samples = self.take();
        self.order(positions.start + stride..positions.end + stride)?;
        samples
    }

    fn order(&mut self, positions: Range<u64>) -> Result<()> {
        self.ahead = Some(positions.clone());
        self.orders.send(positions).map_err(|_| ended())
    }

    fn take(&mut self) -> Result<Samples> {
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

/// Training samples in the run's order, with the pairs of the current window in memory.
struct Source {
    prepared: Arc<Prepared>,
    /// Indices of the training pairs in the cache.
    train: Vec<usize>,
    order: SampleOrder,
    loaded: VecDeque<(usize, Arc<Scans>)>,
    capacity: usize,
    cutter: Cutter,
}

impl Source {
    fn new(config: &TrainConfig, prepared: Arc<Prepared>, device: &Device) -> Result<Self> {
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
            cutter: Cutter::new(config, prepared.preprocessing().divide_by as f32, device),
            prepared,
        })
    }

    fn samples(&mut self, positions: Range<u64>) -> Result<Samples> {
        let ids: Vec<_> = positions.map(|position| self.order.at(position)).collect();
        let scans: Vec<_> = ids.iter().map(|id| self.scans(id.pair)).collect::<Result<_>>()?;
        Ok(self.cutter.samples(&ids, &scans))
    }

    fn scans(&mut self, index: usize) -> Result<Arc<Scans>> {
        if let Some((_, scans)) = self.loaded.iter().find(|(i, _)| *i == index) {
            return Ok(scans.clone());
        }
        let scans = Arc::new(Scans::from(self.prepared.load(self.train[index])?));
        self.loaded.push_back((index, scans.clone()));
        if self.loaded.len() > self.capacity {
            self.loaded.pop_front();
        }
        Ok(scans)
    }
}
