//! The beginning of a generation: all ranks bring themselves to the newest state that any of them holds.

use super::Keeper;
use crate::collective::{Cause, Collective, Failure};
use crate::trainer::{StepError, Trainer};
use libjrs::Error;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// The longest that loading a checkpoint and handing it on may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Has a state, updates, SHA-256 of the state.
const ACCOUNT: usize = 1 + 8 + 32;

/// What a rank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    holds: bool,
    updates: u64,
    digest: [u8; 32],
}

/// Brings `trainer` to the newest state in the group. If no rank has any, the first one begins from the checkpoint after
/// `resume` updates, or the newest, or at the beginning. `holds` says whether `trainer` has a state of the run yet. Returns
/// whether the state came from elsewhere.
///
/// # Errors
/// [`StepError::Group`] if a rank is lost, [`StepError::Run`] if a state cannot be loaded.
pub(super) fn newest_state(
    trainer: &mut Trainer,
    holds: bool,
    resume: Option<u64>,
    collective: &mut dyn Collective,
    keeper: &mut dyn Keeper,
) -> Result<bool, StepError> {
    // Ranks that are not in the same step yet must understand each other.
    collective.begin(0, PATIENCE);
    let mut accounts = exchange(trainer, holds, collective)?;
    let mut loaded = false;
    if accounts.iter().all(|account| !account.holds) {
        if collective.rank() == 0
            && let Some(state) = keeper.load(resume)?
        {
            trainer.restore(&state)?;
            loaded = true;
        }
        accounts = exchange(trainer, collective.rank() == 0, collective)?;
    }
    let newest = |(_, account): &(usize, &Account)| (account.holds, account.updates);
    let best = accounts.iter().enumerate().max_by_key(newest).map(|(_, account)| *account);
    let best = best.expect("a group has at least one rank");
    let root = accounts.iter().position(|a| (a.holds, a.updates) == (best.holds, best.updates));
    let root = root.expect("the best account is one of them");
    let source = accounts[root];
    if accounts.iter().all(|account| account.digest == source.digest) {
        return Ok(loaded);
    }
    if accounts.iter().any(|a| a.holds && a.updates == source.updates && a.digest != source.digest) {
        tracing::error!(
            updates = source.updates,
            "ranks that did the same updates hold different states; the lowest rank's counts"
        );
    }
    let mine = accounts[collective.rank()];
    let state = if collective.rank() == root { trainer.state() } else { Vec::new() };
    let state = collective.broadcast(root, state)?;
    if mine.digest == source.digest {
        return Ok(loaded);
    }
    if digest(&state) != source.digest {
        let reason = "the state it sent is not the one it announced".to_owned();
        return Err(Failure { cause: Cause::Garbled, suspect: Some(root), reason }.into());
    }
    trainer.restore(&state)?;
    tracing::info!(updates = source.updates, from = root, bytes = state.len(), "took over a newer state");
    Ok(true)
}

fn exchange(
    trainer: &Trainer,
    holds: bool,
    collective: &mut dyn Collective,
) -> Result<Vec<Account>, StepError> {
    let own = Account { holds, updates: trainer.cursor().updates, digest: digest(&trainer.state()) };
    let mut accounts = Vec::new();
    for (rank, said) in collective.gather(own.to_bytes())?.iter().enumerate() {
        let account = Account::parse(said).ok_or_else(|| {
            Error::input(
                format!("rank {rank} gave no account of its state"),
                "Run the same version of the program everywhere",
            )
        })?;
        accounts.push(account);
    }
    Ok(accounts)
}

/// SHA-256 of a state.
pub(super) fn digest(state: &[u8]) -> [u8; 32] {
    Sha256::digest(state).into()
}

impl Account {
    fn to_bytes(self) -> Vec<u8> {
        [&[u8::from(self.holds)][..], &self.updates.to_le_bytes(), &self.digest].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ACCOUNT] = bytes.try_into().ok()?;
        Some(Self {
            holds: bytes[0] != 0,
            updates: u64::from_le_bytes(bytes[1..9].try_into().ok()?),
            digest: bytes[9..].try_into().ok()?,
        })
    }
}
