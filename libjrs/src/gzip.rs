//! Gzip by all threads: one ordinary member, made of blocks that were compressed on their own (as pigz does it).
//!
//! ```text
//! header | block | block | ... | empty final block | CRC-32, length
//! ```
//!
//! Every block ends on a byte (a sync flush), so blocks are joined by writing one after the other, and their checksums
//! combine. Where a sample of a block does not shrink enough, the block is stored. For displacements, floats whose lower
//! bytes are noise, that is the rule: coding them takes longer than all the rest of a registration to save a tenth.
//! What is cut where depends on the content alone, so equal content gives equal bytes for any number of threads.

use std::io::{Read, Result, Write};

use flate2::Crc;
use rayon::prelude::*;
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Strategy};

/// Bytes of a block before compression, except for the last of a part.
pub(crate) const BLOCK: usize = 1 << 20;
/// Blocks in memory at one time, twice: one batch is written while the next is made.
const BATCH: usize = 8;
/// Bytes in the middle of a block that decide whether it is compressed.
const SAMPLE: usize = 1 << 14;
/// Most bytes in one stored block of the format.
const MOST_STORED: usize = u16::MAX as usize;
/// Magic, deflate, no flags, no time stamp, no extra flags, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// A final block of fixed codes that holds nothing.
const FINAL: [u8; 2] = [3, 0];

/// Writes `blocks` blocks, of which `block(i)` gives the bytes, as one gzip member. A block is compressed if a sample of it
/// shrinks to at most `worth` of its length.
pub(crate) fn write(
    out: &mut (dyn Write + Send),
    worth: f64,
    blocks: usize,
    block: impl Fn(usize) -> Vec<u8> + Sync,
) -> Result<()> {
    let mut check = Crc::new();
    out.write_all(&HEADER)?;
    let packed = |i: usize| {
        let bytes = block(i);
        let mut crc = Crc::new();
        crc.update(&bytes);
        (compressed(&bytes, worth), crc)
    };
    in_order(blocks, packed, |(bytes, crc)| {
        check.combine(&crc);
        out.write_all(&bytes)
    })?;
    out.write_all(&FINAL)?;
    out.write_all(&check.sum().to_le_bytes())?;
    // Modulo 2^32, as the format has it.
    out.write_all(&check.amount().to_le_bytes())
}

/// Makes `make(0)`, `make(1)`, ... in parallel and hands them to `take` in order, a few at a time.
pub(crate) fn in_order<T: Send>(
    count: usize,
    make: impl Fn(usize) -> T + Sync,
    mut take: impl FnMut(T) -> Result<()> + Send,
) -> Result<()> {
    let batch =
        |start: usize| -> Vec<T> { (start..(start + BATCH).min(count)).into_par_iter().map(&make).collect() };
    let mut ready = batch(0);
    let mut start = BATCH;
    while !ready.is_empty() {
        let (written, next) = rayon::join(|| ready.into_iter().try_for_each(&mut take), || batch(start));
        written?;
        ready = next;
        start += BATCH;
    }
    Ok(())
}

/// The whole content of a gzip file of any number of members.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<u8>> {
    // The last four bytes are the length of the last member. Damaged ones must not reserve all memory: deflate
    // shrinks to a thousandth at best.
    let length = bytes.last_chunk().map_or(0, |&last| u32::from_le_bytes(last) as usize);
    let mut inflated = Vec::with_capacity(length.min(1032 * bytes.len()) + 1);
    flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut inflated)?;
    Ok(inflated)
}

/// Deflate blocks of these bytes that end on a byte.
fn compressed(bytes: &[u8], worth: f64) -> Vec<u8> {
    let middle = bytes.len().saturating_sub(SAMPLE) / 2;
    let sample = &bytes[middle..bytes.len().min(middle + SAMPLE)];
    let limit = (worth * sample.len() as f64) as usize;
    if deflated(sample).len() > limit { stored(bytes) } else { deflated(bytes) }
}

/// Runs and Huffman codes only: longer matches cost three times the time and save little in images full of noise.
fn deflated(bytes: &[u8]) -> Vec<u8> {
    const RAW: i32 = -15; // no wrapper, the largest window
    let config = DeflateConfig { level: 1, window_bits: RAW, strategy: Strategy::Rle, ..Default::default() };
    let mut deflate = Deflate::new_with_config(config);
    // Deflate stores what does not shrink, at a few bytes per 16 kB; the flush takes five more.
    let mut out = vec![0; bytes.len() + bytes.len() / 1000 + 64];
    deflate.compress(bytes, &mut out, DeflateFlush::SyncFlush).expect("memory in, memory out");
    assert_eq!(deflate.total_in(), bytes.len() as u64, "the buffer holds any block");
    out.truncate(deflate.total_out() as usize);
    out
}

fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 5 * bytes.len().div_ceil(MOST_STORED));
    for part in bytes.chunks(MOST_STORED) {
        let length = part.len() as u16;
        out.push(0);
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes by a linear congruence; the top `bits` of each.
    fn noise(length: usize, bits: u32) -> Vec<u8> {
        let mut state = 1u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> (64 - bits)) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    fn written(content: &[u8], threads: usize) -> Vec<u8> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut file = Vec::new();
            let blocks: Vec<&[u8]> = content.chunks(BLOCK).collect();
            write(&mut file, 0.75, blocks.len(), |i| blocks[i].to_vec()).unwrap();
            file
        })
    }

    #[test]
    fn any_length_comes_back_from_one_member() {
        for length in
            [0, 1, 2, SAMPLE - 1, SAMPLE + 1, MOST_STORED, MOST_STORED + 1, BLOCK - 1, BLOCK, BLOCK + 1]
        {
            for bits in [1, 8] {
                let content = noise(length, bits);
                let file = written(&content, 2);
                // A decoder of one member, so that nothing may follow it.
                let mut rest = &file[..];
                let mut back = Vec::new();
                flate2::bufread::GzDecoder::new(&mut rest).read_to_end(&mut back).unwrap();
                assert!(back == content && rest.is_empty(), "{length} bytes of {bits} bits");
                assert_eq!(read(&file).unwrap(), content);
            }
        }
    }

    #[test]
    fn many_blocks_are_the_same_bytes_for_any_number_of_threads() {
        // Compressible, noise, compressible: more than one batch.
        let mut content = noise(5 * BLOCK, 3);
        content.extend(noise(4 * BLOCK + 12_345, 8));
        content.extend(vec![7; 2 * BLOCK]);
        let file = written(&content, 1);
        assert_eq!(file, written(&content, 3));
        assert!(read(&file).unwrap() == content);
        // 3 of 8 bits for five blocks, noise as it is, next to nothing for two.
        assert!(file.len() < 5 * BLOCK / 2 + 4 * BLOCK + 50_000, "{}", file.len());
    }

    #[test]
    fn noise_is_stored() {
        let content = noise(3 * BLOCK, 8);
        let chunks = 3 * BLOCK.div_ceil(MOST_STORED);
        assert_eq!(written(&content, 2).len(), content.len() + 5 * chunks + HEADER.len() + FINAL.len() + 8);
    }

    #[test]
    fn a_lying_length_reserves_little() {
        let mut file = written(&[1, 2, 3], 1);
        let end = file.len() - 4;
        file[end..].fill(0xff);
        assert!(read(&file).is_err());
    }
}
