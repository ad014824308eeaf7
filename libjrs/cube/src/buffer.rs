//! Values up to a device and back.

use cubecl::prelude::CubeElement;

use crate::{Client, Error, Handle};

/// A buffer of the device with `values`. Queued: an error shows in the next [`download`].
pub fn upload<T: CubeElement>(client: &Client, values: &[T]) -> Handle {
    client.create_from_slice(T::as_bytes(values))
}

/// A buffer of `len` values `T` that something will overwrite.
pub fn for_overwriting<T: CubeElement>(client: &Client, len: usize) -> Handle {
    client.empty(len * size_of::<T>())
}

/// The values of a buffer. Waits for everything queued before it.
///
/// # Errors
/// [`Error::Failed`] if this or anything before it failed: no memory, a lost device, a kernel that could not run.
pub fn download<T: CubeElement>(client: &Client, handle: Handle) -> Result<Vec<T>, Error> {
    let bytes = client.read_one(handle).map_err(Error::failed)?;
    Ok(T::from_bytes(&bytes).to_vec())
}

/// Waits for everything queued.
///
/// # Errors
/// As [`download`].
pub fn wait(client: &Client) -> Result<(), Error> {
    cubecl::future::block_on(client.sync()).map_err(Error::failed)
}
