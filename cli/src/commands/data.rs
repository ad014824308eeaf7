//! Prepared data, wherever it is.

use jrs_coordinator::Bucket;
use jrs_data::cache::Prepared;
use jrs_data::source::{Nearby, Source};
use libjrs::{Error, Result};
use std::ffi::OsString;
use std::path::PathBuf;

/// Where copies of remote data are kept.
#[derive(clap::Args)]
pub struct Copies {
    /// Folder for copies of pairs, if the data is in a bucket.
    #[arg(long, value_name = "DIR", default_value_os_t = Self::default().copies)]
    copies: PathBuf,
    /// Megabytes that copies may take; those not used for longest go first.
    #[arg(long, value_name = "MB", default_value_t = Self::default().copies_mb)]
    copies_mb: u64,
}

impl Default for Copies {
    fn default() -> Self {
        Self { copies: std::env::temp_dir().join("jrs-data"), copies_mb: 20_000 }
    }
}

impl Copies {
    /// What another process needs to open the same `data` with the same copies.
    pub fn flags(&self, data: &str) -> [OsString; 6] {
        let megabytes = self.copies_mb.to_string();
        [
            "--data".into(),
            data.into(),
            "--copies".into(),
            self.copies.clone().into(),
            "--copies-mb".into(),
            megabytes.into(),
        ]
    }

    /// Opens a prepared cache in a folder or at a URL.
    pub fn open(&self, place: &str) -> Result<Prepared> {
        let folder = place.strip_prefix("file://").unwrap_or(place);
        if !folder.contains("://") {
            return Prepared::open(folder);
        }
        let bucket = Bucket::open(place).map_err(unreachable)?;
        // Caches of different places must not mix.
        let name: String = place.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        Prepared::open_remote(Nearby::new(Remote(bucket), &self.copies.join(name), self.copies_mb << 20)?)
    }
}

#[derive(Debug)]
struct Remote(Bucket);

impl Source for Remote {
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.0.read(name).map_err(unreachable)?.to_vec())
    }

    fn length(&self, name: &str) -> Result<u64> {
        self.0.size(name).map_err(unreachable)
    }

    fn place(&self, name: &str) -> PathBuf {
        format!("{}/{name}", self.0.location()).into()
    }
}

fn unreachable(error: jrs_coordinator::Error) -> Error {
    Error::io("the prepared data", std::io::Error::other(error), "Check --data")
}
