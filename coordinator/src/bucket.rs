//! A folder or bucket that is only read: where workers find prepared data.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::location::Location;
use crate::objects::Objects;

/// Objects below one place. All methods block.
#[derive(Debug)]
pub struct Bucket {
    objects: Objects,
}

impl Bucket {
    /// Opens a place as [`RunStore::open`](crate::RunStore::open) understands it.
    ///
    /// # Errors
    /// If it is not understood or does not exist.
    pub fn open(url: &str) -> Result<Self> {
        let Location { store, prefix, name, credentials, .. } = Location::parse(url, false)?;
        Ok(Self { objects: Objects::new(store, prefix, name, credentials)? })
    }

    /// Where it is, for messages.
    pub fn location(&self) -> &str {
        self.objects.location()
    }

    /// The content of the object `key`.
    ///
    /// # Errors
    /// If it is not there or the store fails.
    pub fn read(&self, key: &str) -> Result<Bytes> {
        self.objects.read(key)?.ok_or_else(|| self.missing(key))
    }

    /// The size of the object `key`.
    ///
    /// # Errors
    /// If it is not there or the store fails.
    pub fn size(&self, key: &str) -> Result<u64> {
        self.objects.size(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> Error {
        Error::location(
            format!("{}/{key}", self.location()),
            "there is no such object",
            "Check the URL, and that everything was copied there",
        )
    }
}
