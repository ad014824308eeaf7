//! One error type for runs in a store. Every message names the place, the value and the fix.

/// What can go wrong with a run in a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The place where runs are kept cannot be used.
    #[error("{location}: {problem}. {fix}")]
    Location {
        /// The URL or folder as the user gave it.
        location: String,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        fix: String,
    },
    /// The store refused or failed an operation, after the store's own retries.
    #[error(
        "{object}: the store could not {action} it: {source}. Check that the store is reachable, that its \
         credentials{credentials} allow this, and that the disk is not full, then run the command again; saved checkpoints are untouched"
    )]
    Store {
        /// The object, with the location of its run.
        object: String,
        /// The operation, as a verb.
        action: &'static str,
        /// What the store said.
        source: Box<object_store::Error>,
        /// Where its credentials come from, in brackets; empty for a folder.
        credentials: &'static str,
    },
    /// A new run was asked for under a name that is taken.
    #[error(
        "{location}: this run was started before{}. Pass --resume to continue it, or give the new run another name",
        newest_checkpoint(*.newest_step)
    )]
    RunExists {
        /// Where the run is kept.
        location: String,
        /// Its newest checkpoint.
        newest_step: Option<u64>,
    },
    /// A run was to be continued with another config or dataset than it was started with.
    #[error(
        "{location}: the run was started with other settings: {}. Continue it with its own config.toml and dataset, or \
         give the new run another name", differences.join("; ")
    )]
    RunDiffers {
        /// Where the run is kept.
        location: String,
        /// One entry per differing key, with both values.
        differences: Vec<String>,
    },
    /// A run was to be continued that does not exist.
    #[error(
        "{location}: there is no run to resume. Check the run's name and the store, or start it without --resume"
    )]
    NoRun {
        /// Where the run was looked for.
        location: String,
    },
    /// A step was asked for by number and has no checkpoint.
    #[error("{location}: there is no checkpoint of step {step}. {}", available(.steps))]
    NoCheckpoint {
        /// Where the run is kept.
        location: String,
        /// The step asked for.
        step: u64,
        /// The steps that have one, ascending.
        steps: Vec<u64>,
    },
    /// A step was asked for by number and its checkpoint is damaged.
    #[error(
        "{location}: the checkpoint of step {step} is damaged: {reason}. Resume without a step number to take the newest \
         sound one"
    )]
    DamagedCheckpoint {
        /// Where the run is kept.
        location: String,
        /// The step asked for.
        step: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Checkpoints exist and none of them can be read: starting afresh would silently throw the run away.
    #[error(
        "{location}: none of the {} checkpoints can be used: {}. Restore the store from a backup, or start a new run under \
         another name", reasons.len(), reasons.join("; ")
    )]
    NothingSound {
        /// Where the run is kept.
        location: String,
        /// One entry per checkpoint, newest first.
        reasons: Vec<String>,
    },
    /// Another writer committed different content for the same step.
    #[error(
        "{location}: step {step} was already saved with other content by attempt {attempt}. Two trainings write to this \
         run, or it went back to an earlier step without deterministic arithmetic; stop the other one, or discard the \
         later checkpoints first"
    )]
    Conflict {
        /// Where the run is kept.
        location: String,
        /// The step.
        step: u64,
        /// The attempt that holds the step.
        attempt: String,
    },
    /// Another coordinator leads this generation or a later one.
    #[error(
        "{location}: generation {generation} cannot be claimed because generation {newest} is already held ({holder}). \
         Another coordinator leads this run; leave it to that one, or claim generation {} if it is known to be dead",
        newest.saturating_add(1)
    )]
    GenerationTaken {
        /// Where the run is kept.
        location: String,
        /// The generation asked for.
        generation: u64,
        /// The newest generation that is held.
        newest: u64,
        /// What its holder wrote about itself.
        holder: String,
    },
    /// A value given by the caller cannot be used.
    #[error("{problem}. {fix}")]
    Input {
        /// What is wrong, with the value.
        problem: String,
        /// What the user can do.
        fix: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An unusable location. `problem` and `fix` are clauses without a final full stop.
    pub(crate) fn location(
        location: impl Into<String>,
        problem: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Location { location: location.into(), problem: problem.into(), fix: fix.into() }
    }

    /// An unusable value. `problem` and `fix` are clauses without a final full stop.
    pub(crate) fn input(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Input { problem: problem.into(), fix: fix.into() }
    }
}

fn newest_checkpoint(step: Option<u64>) -> String {
    step.map_or_else(String::new, |step| format!(" and has a checkpoint of step {step}"))
}

fn available(steps: &[u64]) -> String {
    if steps.is_empty() {
        return "The run has none yet; start it without a step number".to_owned();
    }
    let listed: Vec<String> = steps.iter().map(u64::to_string).collect();
    format!("Choose one of {}", listed.join(", "))
}
