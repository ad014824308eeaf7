//! Values that lie on a device, as collectives take them: CubeCL's buffers.
//!
//! A collective that knows nothing of devices reads them, works on the host and writes them back; NCCL takes them where
//! they are.

use super::{Cause, Failure};
use bytemuck::Pod;
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

/// `len` numbers on a device, one after the other without gaps. Clones are the same memory.
#[derive(Clone)]
pub struct DeviceValues {
    client: Client,
    handle: Handle,
    len: usize,
}

impl DeviceValues {
    /// What `handle` holds, `len` numbers of the type that the collective operation has.
    pub fn new(client: Client, handle: Handle, len: usize) -> Self {
        Self { client, handle, len }
    }

    /// A copy of `values` on the device.
    pub fn from_slice<T: Pod>(client: &Client, values: &[T]) -> Self {
        let handle = client.create_from_slice(bytemuck::cast_slice(values));
        Self { client: client.clone(), handle, len: values.len() }
    }

    /// Of which device and in which order of work.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The buffer.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The numbers, once everything that computes them has run.
    ///
    /// # Errors
    /// If the device failed.
    pub fn read<T: Pod>(&self) -> Result<Vec<T>, Failure> {
        let failed = |problem: String| Failure {
            cause: Cause::Unusable,
            suspect: None,
            reason: format!("this process's device: {problem}"),
        };
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = self.client.read_one(self.handle.clone()).map_err(|error| failed(error.to_string()))?;
        let wanted = self.len * size_of::<T>();
        let values = bytes.get(..wanted).ok_or_else(|| {
            failed(format!("a buffer of {} numbers holds {} bytes, not {wanted}", self.len, bytes.len()))
        })?;
        Ok(bytemuck::pod_collect_to_vec(values))
    }

    /// Puts other numbers in their place, behind what was asked of the device before.
    pub fn write<T: Pod>(&self, values: &[T]) {
        assert_eq!(values.len(), self.len, "as many numbers as there are");
        if !self.is_empty() {
            let bytes: &[u8] = bytemuck::cast_slice(values);
            self.client.write(&self.handle, Bytes::from_bytes_vec(bytes.to_vec()));
        }
    }

    /// `work` on a copy on the host, and back.
    pub(super) fn through_host<T: Pod>(
        &self,
        work: impl FnOnce(&mut [T]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut values = self.read()?;
        work(&mut values)?;
        self.write(&values);
        Ok(())
    }
}
