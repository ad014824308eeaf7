//! Between rows of f32 and lines of pairs: transposing and splitting.

use crate::bf16::split;
use crate::unit::Unit;

/// Packs rows of up to 16 channels: line `i` of `to` holds value `first + i` of every row, as (high, low); zeros outside the rows
/// and for missing channels.
pub(super) fn pack<'a>(
    unit: Unit,
    channels: impl Iterator<Item = &'a [f32]>,
    first: isize,
    to: &mut [[u32; 16]],
) {
    let mut rows: [&[f32]; 16] = [&[]; 16];
    rows.iter_mut().zip(channels).for_each(|(row, channel)| *row = channel);
    let width = rows[0].len();
    assert!(rows.iter().all(|row| row.is_empty() || row.len() == width) && to.len().is_multiple_of(16));
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: that unit comes with AVX-512 (checked before it is chosen); rows have equal lengths.
        return unsafe { avx512::pack(&rows, width, first, to) };
    }
    let _ = unit;
    for (i, line) in to.iter_mut().enumerate() {
        let place = usize::try_from(first + i as isize).ok();
        for (pair, row) in line.iter_mut().zip(&rows) {
            let [high, low] = split(place.and_then(|x| row.get(x)).copied().unwrap_or(0.0));
            *pair = high as u32 | (low as u32) << 16;
        }
    }
}

/// Left tiles of the weight gradient from 16 values (or fewer: zeros) of a channel: row `channel` of the tile of (high, high)
/// and of that of (low, 0).
pub(super) fn pack_left(unit: Unit, values: &[f32], [high, low]: [&mut [u32; 16]; 2]) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: that unit comes with AVX-512 (checked before it is chosen).
        return unsafe { avx512::pack_left(values, high, low) };
    }
    let _ = unit;
    for i in 0..16 {
        let terms = split(values.get(i).copied().unwrap_or(0.0));
        high[i] = terms[0] as u32 * 0x1_0001;
        low[i] = terms[1] as u32;
    }
}

/// Turns `[voxel][channel]` into `[channel][voxel]`.
pub(super) fn transpose(unit: Unit, sums: &mut [f32; 256]) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: that unit comes with AVX-512 (checked before it is chosen).
        return unsafe { avx512::transpose_in_place(sums) };
    }
    let _ = unit;
    let values = *sums;
    for (i, value) in values.into_iter().enumerate() {
        sums[i % 16 * 16 + i / 16] = value;
    }
}

/// `sums += tile`.
pub(super) fn add(unit: Unit, sums: &mut [f32], tile: &[f32]) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: that unit comes with AVX-512 (checked before it is chosen).
        return unsafe { avx512::add(sums, tile) };
    }
    let _ = unit;
    sums.iter_mut().zip(tile).for_each(|(sum, value)| *sum += value);
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod avx512 {
    use std::arch::x86_64::*;

    /// # Safety
    /// As for all functions here, the processor must have AVX-512 with bf16. Rows are empty or `width` long.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn pack(rows: &[&[f32]; 16], width: usize, first: isize, to: &mut [[u32; 16]]) {
        let pairs = interleaving();
        for (i, lines) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let from = first + 16 * i as isize;
            // Lanes whose place is in 0..width.
            let places = _mm512_add_epi32(_mm512_set1_epi32(from as i32), lanes());
            let inside = _mm512_cmplt_epu32_mask(places, _mm512_set1_epi32(width as i32));
            let mut block = [_mm512_setzero_ps(); 16];
            for (vector, row) in block.iter_mut().zip(rows) {
                let mask = if row.is_empty() { 0 } else { inside };
                // SAFETY: the mask leaves lanes that are in the row.
                *vector = unsafe { _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_offset(from)) };
            }
            for (line, vector) in lines.iter_mut().zip(transpose(block)) {
                let pair = _mm512_permutexvar_epi16(pairs, high_low(vector));
                // SAFETY: a line is 64 bytes.
                unsafe { _mm512_storeu_epi32(line.as_mut_ptr().cast(), pair) };
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn pack_left(values: &[f32], high: &mut [u32; 16], low: &mut [u32; 16]) {
        let mask = if values.len() >= 16 { !0 } else { (1 << values.len()) - 1 };
        // SAFETY: the mask leaves lanes that are in the slice; the results are 64 bytes each.
        unsafe {
            let both = high_low(_mm512_maskz_loadu_ps(mask, values.as_ptr()));
            let highs = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
            let lows = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(both));
            let twice = _mm512_or_epi32(highs, _mm512_slli_epi32::<16>(highs));
            _mm512_storeu_epi32(high.as_mut_ptr().cast(), twice);
            _mm512_storeu_epi32(low.as_mut_ptr().cast(), lows);
        }
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn transpose_in_place(sums: &mut [f32; 256]) {
        let mut block = [_mm512_setzero_ps(); 16];
        let rows = sums.as_chunks_mut::<16>().0;
        for (vector, row) in block.iter_mut().zip(&*rows) {
            // SAFETY: a row is 16 values.
            *vector = unsafe { _mm512_loadu_ps(row.as_ptr()) };
        }
        for (row, vector) in rows.iter_mut().zip(transpose(block)) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(row.as_mut_ptr(), vector) };
        }
    }

    #[target_feature(enable = "avx512f")]
    pub unsafe fn add(sums: &mut [f32], tile: &[f32]) {
        sums.iter_mut().zip(tile).for_each(|(sum, value)| *sum += value);
    }

    /// 16 high terms, then 16 low ones.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn high_low(value: __m512) -> __m512i {
        // SAFETY: vectors of bf16 are vectors of bits.
        unsafe {
            let bits = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value));
            let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits));
            let low = _mm512_sub_ps(value, _mm512_castsi512_ps(high));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(low, value))
        }
    }

    #[target_feature(enable = "avx512f")]
    fn lanes() -> __m512i {
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    }

    /// Brings 16 high and 16 low terms into pairs.
    #[target_feature(enable = "avx512f")]
    fn interleaving() -> __m512i {
        // Pair i holds terms i and 16 + i.
        let low = _mm512_slli_epi32::<16>(_mm512_add_epi32(lanes(), _mm512_set1_epi32(16)));
        _mm512_or_epi32(lanes(), low)
    }

    /// `out[i][k] = rows[k][i]`: in lanes of four values, then the lanes.
    #[target_feature(enable = "avx512f")]
    fn transpose(rows: [__m512; 16]) -> [__m512; 16] {
        let mut quads = [_mm512_setzero_ps(); 16];
        for i in (0..16).step_by(4) {
            let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
            let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
            let (ab2, cd2) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
            // Lane l of quads[i + k] holds column 4 l + k of rows i to i + 3.
            quads[i] = _mm512_shuffle_ps::<0x44>(ab, cd);
            quads[i + 1] = _mm512_shuffle_ps::<0xee>(ab, cd);
            quads[i + 2] = _mm512_shuffle_ps::<0x44>(ab2, cd2);
            quads[i + 3] = _mm512_shuffle_ps::<0xee>(ab2, cd2);
        }
        let mut out = [_mm512_setzero_ps(); 16];
        for k in 0..4 {
            let [a, b, c, d] = [quads[k], quads[4 + k], quads[8 + k], quads[12 + k]];
            let (even_ab, even_cd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
            let (odd_ab, odd_cd) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
            out[k] = _mm512_shuffle_f32x4::<0x88>(even_ab, even_cd);
            out[8 + k] = _mm512_shuffle_f32x4::<0xdd>(even_ab, even_cd);
            out[4 + k] = _mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd);
            out[12 + k] = _mm512_shuffle_f32x4::<0xdd>(odd_ab, odd_cd);
        }
        out
    }
}
