//! Messages as bytes: a header of fixed size, then the content. Nothing in it is trusted.

use crate::collective::ring::{Message, Operation};
use std::io::{Error, ErrorKind, Read, Result, Write};

const MAGIC: [u8; 4] = *b"JRSm";
/// magic, credential, step, number, operation, length, checksum.
const HEADER: usize = 4 + 8 + 8 + 8 + 1 + 8 + 4;
/// No message is longer: the state of a network many times ours.
const LONGEST: u64 = 4 << 30;
/// What is set aside for a message before any of it came.
const TRUSTED: u64 = 64 << 20;

/// Stands for (run, generation, key) in every frame.
pub type Credential = [u8; 8];

/// Where frames that carry a message name its operation, others have this.
const SIGN_OF_LIFE: u8 = 0;

/// Writes one message.
pub fn write_frame(to: &mut impl Write, credential: Credential, message: &Message) -> Result<()> {
    let Message { step, number, operation, content } = message;
    write(to, credential, [*step, *number], *operation as u8, content)
}

/// Writes what only says that the sender is there.
pub fn write_sign_of_life(to: &mut impl Write, credential: Credential) -> Result<()> {
    write(to, credential, [0, 0], SIGN_OF_LIFE, &[])
}

fn write(
    to: &mut impl Write,
    credential: Credential,
    [step, number]: [u64; 2],
    kind: u8,
    content: &[u8],
) -> Result<()> {
    let mut header = [0; HEADER];
    let mut rest = &mut header[..];
    let length = (content.len() as u64).to_le_bytes();
    for field in [&MAGIC[..], &credential, &step.to_le_bytes(), &number.to_le_bytes(), &[kind], &length] {
        rest.write_all(field)?;
    }
    let sum = checksum(&header[..HEADER - 4], content);
    header[HEADER - 4..].copy_from_slice(&sum.to_le_bytes());
    to.write_all(&header)?;
    to.write_all(content)
}

/// Reads one frame, `None` for a sign of life; an error of kind `InvalidData` says what is wrong with it.
pub fn read_frame(from: &mut impl Read, credential: Credential) -> Result<Option<Message>> {
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
        SIGN_OF_LIFE => None,
        1 => Some(Operation::Max),
        2 => Some(Operation::Sum),
        3 => Some(Operation::Gather),
        4 => Some(Operation::Broadcast),
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
    Ok(operation.map(|operation| Message { step, number, operation, content }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: Credential = [7; 8];

    /// What a receiver makes of `bytes`, after which the sender closes.
    fn received(mut bytes: &[u8]) -> Result<Option<Message>> {
        read_frame(&mut bytes, OURS)
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
        assert_eq!(received(&bytes).unwrap(), Some(message()));
        let mut alive = Vec::new();
        write_sign_of_life(&mut alive, OURS).unwrap();
        assert_eq!(received(&alive).unwrap(), None);
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
