//! Why a coordinator cannot start or go on.

/// Error of this crate; the message is one paragraph with the value and the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another coordinator leads the run.
    #[error("{reason}. Leave the run to it, or stop it first")]
    Superseded {
        /// Which, as far as known.
        reason: String,
    },
    /// An address that cannot be listened on, perhaps because the coordinator before this one is not quite gone.
    #[error("{address} cannot be listened on: {source}. Choose a free port of this machine, or 0 for any")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The run's store.
    #[error(transparent)]
    Store(#[from] jrs_coordinator::Error),
    /// Token or certificates.
    #[error(transparent)]
    Protocol(#[from] jrs_protocol::Error),
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
    pub(crate) fn input(problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Input { problem: problem.into(), fix: fix.into() }
    }

    pub(crate) fn tls(source: &dyn std::error::Error) -> Self {
        let cause = source.source().map_or_else(String::new, |cause| format!(": {cause}"));
        Self::input(
            format!("the certificates cannot be used: {source}{cause}"),
            "Give --tls-ca, --tls-cert and --tls-key PEM files that belong together",
        )
    }

    pub(crate) fn server(problem: String) -> Self {
        Self::input(
            format!("the server failed: {problem}"),
            "Start the coordinator again; workers wait for it",
        )
    }
}
