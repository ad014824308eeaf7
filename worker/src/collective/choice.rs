//! Which collective a worker takes part in: one choice for its life, agreed anew in every generation.

use super::nccl::{Agreement, Offer, Settings, Wanted, agree, form};
use super::tcp::{Abort, TcpLink};
use super::{Collective, Failure, Ring};
use jrs_nccl::{Fault, FaultKind, Library};
use std::time::{Duration, Instant};

/// All ranks have to agree and join within this time. NCCL looks at the machine's links while it joins, which takes seconds.
const JOIN: Duration = Duration::from_secs(45);

/// A ring that NCCL may be formed over, (run, generation, key) as a number, and what breaks it off.
type Form = dyn Fn(Ring<TcpLink>, u64, &Abort) -> Result<Box<dyn Collective>, Failure> + Send + Sync;

/// What a worker offers to each generation, and how it joins NCCL if all do.
pub struct Choice {
    offer: Offer,
    form: Option<Box<Form>>,
}

impl Default for Choice {
    /// The ring over TCP.
    fn default() -> Self {
        let offer = Offer { nccl: Err("it was told to use TCP".into()), required: false };
        Self { offer, form: None }
    }
}

impl Choice {
    /// What `wanted` means for a worker on GPU number `gpu`, or on the CPU.
    ///
    /// # Errors
    /// If NCCL is wanted and nothing else, and this worker cannot use it; the fault says why.
    pub fn new(wanted: Wanted, gpu: Option<usize>) -> Result<Self, Fault> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = gpu {
            return Self::with(wanted, || jrs_nccl::loaded::Loaded::open(gpu));
        }
        let reason = match (wanted, gpu) {
            (Wanted::Tcp, _) => return Ok(Self::default()),
            (_, Some(_)) => "this program was built without CUDA",
            (_, None) => "it trains on the CPU, and NCCL works between GPUs",
        };
        if wanted == Wanted::Nccl {
            return Err(Fault::new(FaultKind::Missing, reason));
        }
        Ok(Self { offer: Offer { nccl: Err(reason.into()), required: false }, form: None })
    }

    /// The same with whatever plays the library.
    ///
    /// # Errors
    /// As [`Choice::new`].
    pub fn with<L: Library>(
        wanted: Wanted,
        library: impl FnOnce() -> Result<L, Fault>,
    ) -> Result<Self, Fault> {
        let (offer, library) = Offer::new(wanted, library);
        if let (Err(reason), true) = (&offer.nccl, offer.required) {
            return Err(Fault::new(FaultKind::Missing, reason));
        }
        let form = library.map(|library| -> Box<Form> {
            Box::new(move |ring, credential, abort| {
                let deadline = Instant::now() + JOIN;
                let nccl = form(&library, ring, credential, Settings::default(), deadline, abort)?;
                Ok(Box::new(nccl))
            })
        });
        Ok(Self { offer, form })
    }

    /// For logs: what this worker offers.
    pub fn describe(&self) -> String {
        match &self.offer.nccl {
            Ok(v) => format!("NCCL {}.{}.{}", v / 10_000, v / 100 % 100, v % 100),
            Err(reason) => format!("TCP ({reason})"),
        }
    }

    /// What the ranks of `ring` agree on. `credential` stands for (run, generation, key).
    ///
    /// # Errors
    /// If a rank is lost or late meanwhile, or a rank that may use nothing but NCCL cannot.
    pub fn connect(
        &self,
        mut ring: Ring<TcpLink>,
        credential: u64,
        abort: &Abort,
    ) -> Result<Box<dyn Collective>, Failure> {
        ring.begin(0, JOIN);
        match (agree(&mut ring, &self.offer)?, &self.form) {
            (Agreement::Nccl, Some(form)) => form(ring, credential, abort),
            (Agreement::Nccl, None) => unreachable!("whoever offers NCCL can form it"),
            (Agreement::Tcp(reason), form) => {
                if form.is_some() {
                    tracing::warn!(reason, "NCCL is here, but not on all ranks: the group uses TCP");
                }
                Ok(Box::new(ring))
            }
        }
    }
}
