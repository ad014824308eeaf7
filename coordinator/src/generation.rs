//! Who leads: a generation belongs to the one coordinator whose create-only object holds it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layout;
use crate::objects::Created;
use crate::store::RunStore;

/// `gen/<n>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// The number; it only grows.
    pub generation: u64,
    /// Random id of the claim, by which a claimant knows its own after a lost reply.
    pub claimant: String,
    /// What the claimant says about itself: host, process, members.
    pub info: serde_json::Value,
}

impl RunStore {
    /// Claims generation `number` for the caller.
    ///
    /// # Errors
    /// [`Error::GenerationTaken`] if this or a later generation is held by someone else.
    pub fn claim_generation(&self, number: u64, info: serde_json::Value) -> Result<Claim> {
        if let Some(newest) = self.latest_generation()?
            && newest >= number
        {
            return Err(self.held(number, newest)?);
        }
        let claim = Claim { generation: number, claimant: uuid::Uuid::new_v4().simple().to_string(), info };
        let bytes = serde_json::to_vec_pretty(&claim).expect("a claim has string keys only");
        match self.objects.create(&layout::generation(number), Bytes::from(bytes))? {
            Created::Yes => Ok(claim),
            // Our own id there means that only the acknowledgement was lost.
            Created::Exists if self.read_claim(number)?.as_ref() == Some(&claim) => Ok(claim),
            Created::Exists => Err(self.held(number, number)?),
        }
    }

    /// The newest claimed generation, or `None` before the first.
    ///
    /// # Errors
    /// If the store fails.
    pub fn latest_generation(&self) -> Result<Option<u64>> {
        let listed = self.objects.list(layout::GENERATIONS)?;
        Ok(listed.iter().filter_map(|object| layout::parse_generation(&object.key)).max())
    }

    /// The newest claim that can be read, or `None` before the first.
    ///
    /// # Errors
    /// If the store fails.
    pub fn newest_claim(&self) -> Result<Option<Claim>> {
        let Some(newest) = self.latest_generation()? else { return Ok(None) };
        for number in (1..=newest).rev() {
            if let Some(claim) = self.read_claim(number)? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    fn read_claim(&self, number: u64) -> Result<Option<Claim>> {
        let bytes = self.objects.read(&layout::generation(number))?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    fn held(&self, generation: u64, newest: u64) -> Result<Error> {
        let holder = self
            .read_claim(newest)?
            .map_or_else(|| "its claim cannot be read".to_owned(), |claim| claim.info.to_string());
        Ok(Error::GenerationTaken { location: self.location().to_owned(), generation, newest, holder })
    }
}
