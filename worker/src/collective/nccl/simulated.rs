//! NCCL as these tests need it: groups of threads in one process, memory on the host, and every failure on demand.
//!
//! It behaves like the library where that matters: joining ends when all ranks of an identity came, operations match by
//! their order alone, nothing waits, and a rank that is gone is not noticed by the others.

use jrs_nccl::{Communicator, Fault, FaultKind, Library, Reduction, UniqueId};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What goes wrong on a rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flaws {
    /// There is no library.
    pub missing: bool,
    /// The version it claims; 0 stands for a good one.
    pub version: i32,
    /// It cannot make an identity.
    pub no_identity: bool,
    /// It joins another group than it was told.
    pub wrong_identity: bool,
    /// Its joining never ends.
    pub never_joins: bool,
    /// After so many operations, whatever is polled fails in this way.
    pub fails_after: Option<(usize, FaultKind)>,
    /// So many operations are done; those behind them begin and never end.
    pub silent_after: Option<usize>,
    /// Operations behind so many never even begin.
    pub never_begins_after: Option<usize>,
    /// Aborting hangs.
    pub abort_hangs: bool,
    /// Ending in peace hangs.
    pub finalize_hangs: bool,
    /// There is no memory on the device.
    pub no_memory: bool,
}

/// The library of one rank; all of a [`World`] meet.
#[derive(Clone)]
pub struct Simulated {
    world: World,
    flaws: Flaws,
}

/// Where the ranks of a test meet.
#[derive(Clone, Default)]
pub struct World(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Hanging threads end with the test.
    end: Condvar,
}

#[derive(Default)]
struct State {
    identities: u8,
    groups: HashMap<[u8; UniqueId::BYTES], Group>,
    /// Communicators that were freed, in peace or not.
    destroyed: usize,
    aborted: usize,
}

#[derive(Default)]
struct Group {
    size: usize,
    joined: usize,
    /// What each rank asked for, in order.
    asked: HashMap<usize, Vec<Asked>>,
}

#[derive(Clone)]
struct Asked {
    what: What,
    content: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Reduce(Reduction, usize),
    Gather(usize),
    Broadcast(usize, usize),
}

impl World {
    /// A rank's library.
    pub fn library(&self, flaws: Flaws) -> Simulated {
        Simulated { world: self.clone(), flaws }
    }

    /// How many communicators were destroyed and how many aborted.
    pub fn freed(&self) -> (usize, usize) {
        let state = self.0.state.lock().unwrap();
        (state.destroyed, state.aborted)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.state.lock().unwrap())
    }

    fn hang(&self) {
        let state = self.0.state.lock().unwrap();
        let _ = self.0.end.wait_timeout(state, Duration::from_secs(30)).unwrap();
    }
}

impl Simulated {
    /// As loading the real one.
    pub fn load(self) -> Result<Self, Fault> {
        if self.flaws.missing { Err(Fault::new(FaultKind::Missing, "NCCL was not found")) } else { Ok(self) }
    }
}

impl Library for Simulated {
    type Communicator = Rank;

    fn version(&self) -> Result<i32, Fault> {
        Ok(if self.flaws.version == 0 { 2_22_03 } else { self.flaws.version })
    }

    fn unique_id(&self) -> Result<UniqueId, Fault> {
        if self.flaws.no_identity {
            return Err(Fault::new(FaultKind::System, "no network interface"));
        }
        self.world.with(|state| {
            state.identities += 1;
            Ok(UniqueId([state.identities; UniqueId::BYTES]))
        })
    }

    fn join(&self, id: &UniqueId, size: usize, rank: usize) -> Result<Rank, Fault> {
        let mut id = id.0;
        if self.flaws.wrong_identity {
            id[0] = !id[0];
        }
        self.world.with(|state| {
            let group = state.groups.entry(id).or_default();
            group.size = size;
            group.joined += usize::from(!self.flaws.never_joins);
        });
        let (world, flaws) = (self.world.clone(), self.flaws);
        Ok(Rank { world, flaws, id, rank, size, asked: 0, done: 0, waiting: Vec::new(), ends: false })
    }
}

/// A rank's communicator.
pub struct Rank {
    world: World,
    flaws: Flaws,
    id: [u8; UniqueId::BYTES],
    rank: usize,
    size: usize,
    asked: usize,
    done: usize,
    /// Where the results of what was asked for go.
    waiting: Vec<(Memory, usize)>,
    ends: bool,
}

/// Memory that operations under way share with their caller, as a device does.
#[derive(Clone)]
pub enum Memory {
    Host(Arc<Mutex<Vec<u8>>>),
    #[cfg(feature = "cube")]
    Cube(cubecl::client::Client, cubecl::server::Handle),
}

impl Memory {
    fn read(&self, at: usize, bytes: usize) -> Result<Vec<u8>, Fault> {
        let all = match self {
            Self::Host(bytes) => bytes.lock().unwrap().clone(),
            #[cfg(feature = "cube")]
            Self::Cube(client, handle) => client.read_one(handle.clone()).unwrap().to_vec(),
        };
        all.get(at..at + bytes)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| Fault::new(FaultKind::Usage, format!("{bytes} bytes at {at} of {}", all.len())))
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        match self {
            Self::Host(all) => all.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes),
            #[cfg(feature = "cube")]
            Self::Cube(client, handle) => {
                let mut all = client.read_one(handle.clone()).unwrap().to_vec();
                all[at..at + bytes.len()].copy_from_slice(bytes);
                client.write(handle, cubecl::bytes::Bytes::from_bytes_vec(all));
            }
        }
    }
}

impl Rank {
    fn ask(&mut self, what: What, from: &Memory, to: &Memory, at: usize, bytes: usize) -> Result<(), Fault> {
        let content = from.read(at, bytes)?;
        if self.flaws.silent_after.is_none_or(|after| self.asked < after) {
            let (rank, asked) = (self.rank, Asked { what, content });
            self.world.with(|state| {
                let group = state.groups.get_mut(&self.id).expect("joined");
                group.asked.entry(rank).or_default().push(asked);
            });
        }
        self.asked += 1;
        self.waiting.push((to.clone(), at));
        Ok(())
    }

    /// The result of operation `number`, once all ranks asked for it.
    fn result(&self, number: usize) -> Option<Result<Vec<u8>, Fault>> {
        self.world.with(|state| {
            let group = &state.groups[&self.id];
            let all: Vec<&Asked> =
                (0..self.size).filter_map(|rank| group.asked.get(&rank)?.get(number)).collect();
            if all.len() < self.size {
                return None;
            }
            let what = all[0].what;
            if all.iter().any(|asked| asked.what != what) {
                return Some(Err(Fault::new(FaultKind::Internal, "ranks asked for different operations")));
            }
            let numbers = |i: usize, bytes: usize| all.iter().map(move |asked| &asked.content[i..i + bytes]);
            let result = match what {
                What::Gather(_) => all.iter().flat_map(|asked| asked.content.iter().copied()).collect(),
                What::Broadcast(root, _) => all[root].content.clone(),
                What::Reduce(Reduction::MaxI32, count) => (0..count)
                    .flat_map(|i| {
                        let max = numbers(4 * i, 4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).max();
                        max.unwrap().to_le_bytes()
                    })
                    .collect(),
                What::Reduce(Reduction::SumI64, count) => (0..count)
                    .flat_map(|i| {
                        let sum = numbers(8 * i, 8).map(|b| i64::from_le_bytes(b.try_into().unwrap()));
                        sum.fold(0, i64::wrapping_add).to_le_bytes()
                    })
                    .collect(),
            };
            Some(Ok(result))
        })
    }
}

impl Communicator for Rank {
    type Memory = Memory;

    fn poll(&mut self) -> Result<bool, Fault> {
        if let Some((after, kind)) = self.flaws.fails_after
            && self.asked >= after
        {
            return Err(Fault::new(kind, "a flaw"));
        }
        if self.ends {
            return Ok(!self.flaws.finalize_hangs);
        }
        if self.flaws.never_begins_after.is_some_and(|after| self.asked > after) {
            return Ok(false);
        }
        Ok(self.world.with(|state| state.groups[&self.id].joined >= self.size))
    }

    fn idle(&mut self) -> Result<bool, Fault> {
        while self.done < self.asked {
            let Some(result) = self.result(self.done) else { return Ok(false) };
            let (memory, at) = &self.waiting[self.done];
            memory.write(*at, &result?);
            self.done += 1;
        }
        Ok(true)
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory, Fault> {
        if self.flaws.no_memory {
            return Err(Fault::new(FaultKind::Device, "out of memory"));
        }
        Ok(Memory::Host(Arc::new(Mutex::new(vec![0xaa; bytes]))))
    }

    fn upload(&mut self, memory: &mut Memory, bytes: &[u8]) -> Result<(), Fault> {
        memory.write(0, bytes);
        Ok(())
    }

    fn download(&mut self, memory: &Memory, bytes: &mut [u8]) -> Result<(), Fault> {
        bytes.copy_from_slice(&memory.read(0, bytes.len())?);
        Ok(())
    }

    #[cfg(feature = "cube")]
    fn lend(
        &mut self,
        client: &cubecl::client::Client,
        handle: &cubecl::server::Handle,
    ) -> Result<Memory, Fault> {
        Ok(Memory::Cube(client.clone(), handle.clone()))
    }

    fn reduce(
        &mut self,
        reduction: Reduction,
        memory: &mut Memory,
        first: usize,
        count: usize,
    ) -> Result<(), Fault> {
        let (what, width) = (What::Reduce(reduction, count), reduction.bytes());
        let memory = memory.clone();
        self.ask(what, &memory, &memory, first * width, count * width)
    }

    fn gather(&mut self, own: &Memory, all: &mut Memory, bytes: usize) -> Result<(), Fault> {
        self.ask(What::Gather(bytes), own, all, 0, bytes)
    }

    fn broadcast(&mut self, root: usize, memory: &mut Memory, bytes: usize) -> Result<(), Fault> {
        let memory = memory.clone();
        self.ask(What::Broadcast(root, bytes), &memory, &memory, 0, bytes)
    }

    fn finalize(&mut self) -> Result<(), Fault> {
        self.ends = true;
        Ok(())
    }

    fn destroy(self) {
        self.world.with(|state| state.destroyed += 1);
    }

    fn abort(self) {
        if self.flaws.abort_hangs {
            self.world.hang();
        }
        self.world.with(|state| state.aborted += 1);
    }
}
