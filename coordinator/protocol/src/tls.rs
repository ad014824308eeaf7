//! Transport security. With all three files on both sides, each proves to the other who it is (mutual TLS).

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// PEM files, as a scheduler or cert-manager mounts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that sign the other side's certificate. A server with it refuses clients without
    /// a certificate.
    pub ca: Option<PathBuf>,
    /// This side's certificate (chain).
    pub cert: Option<PathBuf>,
    /// The certificate's private key.
    pub key: Option<PathBuf>,
    /// The name that the other side's certificate must have, if it is not the host of the URL; clients only.
    pub name: Option<String>,
}

impl TlsFiles {
    /// Whether nothing is given: then nothing is encrypted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The server's side; `None` if nothing is given.
    ///
    /// # Errors
    /// If a file cannot be read, or a certificate comes without its key.
    pub fn server(&self) -> Result<Option<ServerTlsConfig>> {
        if self.is_empty() {
            return Ok(None);
        }
        choose_provider();
        let identity = self.identity()?.ok_or_else(|| {
            Error::input(
                "a server with TLS needs a certificate of its own",
                "Give --tls-cert and --tls-key, or leave out --tls-ca",
            )
        })?;
        let config = ServerTlsConfig::new().identity(identity);
        Ok(Some(match &self.ca {
            Some(ca) => config.client_ca_root(Certificate::from_pem(read(ca)?)),
            None => config,
        }))
    }

    /// The client's side; `None` if nothing is given.
    ///
    /// # Errors
    /// If a file cannot be read, a certificate comes without its key, or there is no authority to trust.
    pub fn client(&self) -> Result<Option<ClientTlsConfig>> {
        if self.is_empty() {
            return Ok(None);
        }
        choose_provider();
        let ca = self.ca.as_ref().ok_or_else(|| {
            Error::input(
                "a client with TLS must know whom to trust",
                "Give --tls-ca with the certificate of the authority that signed the coordinator's",
            )
        })?;
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let Some(identity) = self.identity()? {
            config = config.identity(identity);
        }
        if let Some(name) = &self.name {
            config = config.domain_name(name);
        }
        Ok(Some(config))
    }

    fn identity(&self) -> Result<Option<Identity>> {
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Ok(Some(Identity::from_pem(read(cert)?, read(key)?))),
            (None, None) => Ok(None),
            _ => Err(Error::input(
                "a certificate and its key belong together, and one of them is missing",
                "Give both --tls-cert and --tls-key",
            )),
        }
    }
}

/// Which cryptography rustls uses, where a build has more than one. That another was chosen before is fine.
fn choose_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|e| Error::file(path, format!("it cannot be read: {e}"), "Name a PEM file that can be read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_together_is_refused_with_the_flag() {
        let path = || Some(PathBuf::from("/absent.pem"));
        let only = |ca, cert, key| TlsFiles { ca, cert, key, name: None };
        assert!(only(None, None, None).server().unwrap().is_none());
        let cases = [
            (only(path(), None, None).server().err(), "--tls-cert"),
            (only(None, path(), None).server().err(), "--tls-key"),
            (only(None, path(), path()).client().err(), "--tls-ca"),
            (only(path(), None, None).client().err(), "/absent.pem"),
        ];
        for (error, word) in cases {
            assert!(error.unwrap().to_string().contains(word), "{word}");
        }
    }
}
