//! Event files that TensorBoard reads: protobuf events in TFRecord framing.
//!
//! The format, from TensorFlow's `core/lib/io/record_writer.h` and `core/util/event.proto`: each record is its length as
//! a little-endian u64, the masked CRC-32C of those eight bytes, the event, and the masked CRC-32C of the event.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use libjrs::error::{Error, Result};
use prost::Message;

/// Appends scalars to one event file. Each call reaches the operating system before it returns.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// A new event file in `folder`, called `events.out.tfevents.<seconds>.<host>` as TensorBoard expects; older ones stay
    /// beside it. After a resume at `resumed_step`, TensorBoard drops what older files say of that step and later ones.
    ///
    /// # Errors
    /// If the folder or the file cannot be written.
    pub fn create(folder: impl AsRef<Path>, resumed_step: Option<u64>) -> Result<Self> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|source| unwritable(folder, source))?;
        let (path, file) = new_file(folder)?;
        let mut writer = Self { path, file };
        writer.event(0, What::FileVersion("brain.Event:2".to_owned()))?;
        if let Some(step) = resumed_step {
            writer.event(step, What::SessionLog(SessionLog { status: SESSION_START }))?;
        }
        Ok(writer)
    }

    /// Writes the scalars of one step, each a tag such as `train/critic` and its value.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let value =
            |(tag, value): &(&str, f64)| Value { tag: (*tag).to_owned(), simple_value: Some(*value as f32) };
        self.event(step, What::Summary(Summary { value: scalars.iter().map(value).collect() }))
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn event(&mut self, step: u64, what: What) -> Result<()> {
        let event = Event { wall_time: seconds_since_1970(), step: step as i64, what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec())).map_err(|source| unwritable(&self.path, source))
    }
}

/// `event.proto`: Event.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// `summary.proto`: Summary.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `summary.proto`: Summary.Value. The number is in a oneof there, so it is written even if it is zero.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// `event.proto`: SessionLog. A start at a step tells readers to forget older values from there on.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SESSION_START: i32 = 1;

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked_crc(event).to_le_bytes());
    record
}

/// TensorFlow rotates and shifts the checksum, so that a checksum of checksums is safe (`core/lib/hash/crc32c.h`).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A file that did not exist before; a number is appended if the run resumed within the same second.
fn new_file(folder: &Path) -> Result<(PathBuf, File)> {
    let host = crate::host_name().replace(['/', '\0'], "_");
    let name = format!("events.out.tfevents.{:010}.{host}", seconds_since_1970() as u64);
    let names = std::iter::once(name.clone()).chain((1..).map(|number| format!("{name}.{number}")));
    for name in names {
        let path = folder.join(name);
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(unwritable(&path, source)),
        }
    }
    unreachable!("the names do not end")
}

fn seconds_since_1970() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn unwritable(path: &Path, source: std::io::Error) -> Error {
    Error::io(path, source, "Choose an output folder that you may write to and that has space left")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4: CRC-32C of 32 zero bytes is 0x8a9136aa; masked by the formula above in Python.
    #[test]
    fn checksums_are_masked_castagnoli() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }

    /// The bytes every TensorFlow event file starts with: length 24, its checksum, and an event with a time and
    /// the file version.
    #[test]
    fn a_file_begins_as_tensorflow_begins_it() {
        let folder = tempfile::tempdir().unwrap();
        let writer = EventWriter::create(folder.path(), None).unwrap();
        let bytes = std::fs::read(writer.path()).unwrap();
        assert_eq!(bytes[..12], [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(bytes[12], 0x09);
        assert_eq!(bytes[21..36], *b"\x1a\x0dbrain.Event:2");
        assert_eq!(bytes.len(), 12 + 24 + 4);
    }

    #[test]
    fn a_second_file_does_not_touch_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventWriter::create(folder.path(), None).unwrap();
        let second = EventWriter::create(folder.path(), Some(3)).unwrap();
        assert_ne!(first.path(), second.path());
        let below_a_file = first.path().join("events");
        assert!(EventWriter::create(below_a_file, None).unwrap_err().to_string().contains("tfevents"));
    }
}
