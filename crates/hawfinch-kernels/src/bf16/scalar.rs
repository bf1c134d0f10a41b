//! The meaning: plain loops over the panels.

use super::{BLOCK, BLOCK_BYTES, ROWS, Strip, Tokens, place};

/// Sums of every panel and token.
pub fn strip(strip: Strip<'_>, x: &Tokens, sums: &mut [[f32; ROWS]]) {
    let panels = strip.data.chunks_exact(strip.blocks * BLOCK_BYTES);
    for (panel, sums) in panels.zip(sums.chunks_exact_mut(x.tokens())) {
        for (t, sums) in sums.iter_mut().enumerate() {
            *sums = std::array::from_fn(|r| output(panel, x, t, r));
        }
    }
}

/// Output `r` of a panel with token `t`.
fn output(panel: &[u8], x: &Tokens, t: usize, r: usize) -> f32 {
    let mut sum = 0f32;
    for (b, block) in panel.chunks_exact(BLOCK_BYTES).enumerate() {
        for p in 0..BLOCK / 2 {
            let at = place(r, p);
            let number = |n: usize| {
                f32::from_bits(u32::from_le_bytes([0, 0, block[at + 2 * n], block[at + 2 * n + 1]]))
            };
            for n in [1, 0] {
                sum = number(n).mul_add(x.number(t, b * BLOCK + 2 * p + n), sum);
            }
        }
    }
    sum
}
