//! Messages as bytes: a header of fixed size, then the content. Nothing in it is trusted.

use crate::collective::ring::{Message, Operation};
use std::io::{BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const MAGIC: [u8; 4] = *b"JRSm";
/// magic, credential, step, number, operation, length, checksum.
const HEADER: usize = 4 + 8 + 8 + 8 + 1 + 8 + 4;
/// No message is longer: the state of a network many times ours.
const LONGEST: u64 = 4 << 30;
/// What is set aside for a message before any of it came.
const TRUSTED: u64 = 64 << 20;

/// Stands for (run, generation, key) in every frame.
pub type Credential = [u8; 8];

/// Writes one frame.
pub fn write_frame(to: &mut impl Write, credential: Credential, message: &Message) -> Result<()> {
    let mut header = [0; HEADER];
    let mut rest = &mut header[..];
    let length = (message.content.len() as u64).to_le_bytes();
    for field in [
        &MAGIC[..],
        &credential,
        &message.step.to_le_bytes(),
        &message.number.to_le_bytes(),
        &[message.operation as u8],
        &length,
    ] {
        rest.write_all(field)?;
    }
    let sum = checksum(&header[..HEADER - 4], &message.content);
    header[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
    to.write_all(&header)?;
    to.write_all(&message.content)
}

/// Reads one frame; an error of kind `InvalidData` says what is wrong with it.
pub fn read_frame(
    from: &mut BufReader<TcpStream>,
    credential: Credential,
    deadline: Instant,
) -> Result<Message> {
    let mut from = Until { from, deadline };
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let eight = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    if header[..4] != MAGIC {
        return Err(invalid("what came is no message of ours"));
    }
    if header[4..12] != credential {
        return Err(invalid("a message of another run or generation came"));
    }
    let (step, number, length) = (eight(12), eight(20), eight(29));
    let operation = match header[28] {
        1 => Operation::Max,
        2 => Operation::Sum,
        3 => Operation::Gather,
        4 => Operation::Broadcast,
        _ => return Err(invalid("a message asks for an unknown operation")),
    };
    if length > LONGEST {
        return Err(invalid("a message claims to be longer than any can be"));
    }
    let mut content = Vec::with_capacity(length.min(TRUSTED) as usize);
    if from.take(length).read_to_end(&mut content)? as u64 != length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let sum = u32::from_le_bytes(header[HEADER - 4..].try_into().expect("four bytes"));
    if sum != checksum(&header[..HEADER - 4], &content) {
        return Err(invalid("a message was damaged on its way: its checksum does not match"));
    }
    Ok(Message { step, number, operation, content })
}

fn checksum(header: &[u8], content: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(header);
    hash.update(content);
    hash.finalize()
}

fn invalid(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidData, reason)
}

/// Reads that end at a deadline, however slowly the bytes drip.
struct Until<'a> {
    from: &'a mut BufReader<TcpStream>,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Zero would mean for ever.
        self.from.get_ref().set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        self.from.read(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    const OURS: Credential = [7; 8];

    /// What a receiver makes of `bytes`, after which the sender closes.
    fn received(bytes: &[u8]) -> Result<Message> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        sender.write_all(bytes).unwrap();
        drop(sender);
        read_frame(&mut BufReader::new(receiver), OURS, Instant::now() + Duration::from_secs(5))
    }

    fn framed(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, OURS, message).unwrap();
        bytes
    }

    fn message() -> Message {
        Message { step: 3, number: 9, operation: Operation::Gather, content: b"what ranks say".to_vec() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_damaged_frame_is_never_taken(at in 0..HEADER + 14, flip in 1..=255u8) {
            let mut bytes = framed(&message());
            bytes[at] ^= flip;
            prop_assert!(received(&bytes).is_err());
        }

        #[test]
        fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(received(&bytes).is_err());
        }
    }

    #[test]
    fn frames_come_back_and_short_ones_do_not() {
        let bytes = framed(&message());
        assert_eq!(received(&bytes).unwrap(), message());
        for length in [0, 1, HEADER - 1, HEADER, bytes.len() - 1] {
            assert_eq!(received(&bytes[..length]).unwrap_err().kind(), ErrorKind::UnexpectedEof, "{length}");
        }
    }

    #[test]
    fn a_huge_length_sets_nothing_aside() {
        let mut bytes = framed(&message());
        bytes[29..37].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(received(&bytes).unwrap_err().kind(), ErrorKind::InvalidData);
        bytes[29..37].copy_from_slice(&(LONGEST - 1).to_le_bytes());
        assert_eq!(received(&bytes).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
