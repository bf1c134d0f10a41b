//! In which order training reads a data set: the reference's, or a plain shuffle of data of any size.
//!
//! The tokens are divided into slots of `ctx` tokens; a sample is `ctx + 1` tokens from the start of a slot on (inputs,
//! and the same shifted by one as targets), whatever documents they belong to. Both orders are functions of the
//! sample's number: nothing is kept, any sample can be asked for at once, and every rank computes its own.

use crate::error::{Error, Result};

/// Samples of a mini-epoch of the reference, over all ranks.
pub const MINI_EPOCH: u64 = 40_320;

/// The number of a sample in the reference: `1 + epoch * 40320 + index * world + rank`, where `epoch` counts
/// mini-epochs and `index` the samples of this rank in it.
pub fn sample_number(epoch: u64, index: u64, world: u64, rank: u64) -> u64 {
    1 + epoch * MINI_EPOCH + index * world + rank
}

/// The largest prime of the form 3 k + 2 below `tokens / ctx`; `None` if there is none (fewer than three slots).
/// This is what the reference's scripts print as `magic_prime`.
pub fn magic_prime(tokens: u64, ctx: u64) -> Option<u64> {
    let top = tokens.checked_div(ctx)?.checked_sub(1)?;
    (2..=top).rev().find(|&p| p % 3 == 2 && is_prime(p))
}

/// The reference's factor for a prime: `floor(P (√5 - 1) / 2)` in double precision.
pub fn magic_factor(prime: u64) -> u64 {
    (prime as f64 * (5f64.sqrt() - 1.0) / 2.0) as u64
}

/// The slot of sample `number` (from 1) in the reference: `F n³ mod P`, `P` the [`magic_prime`] and `F` its
/// [`magic_factor`].
///
/// # Panics
/// When `prime` is 0.
pub fn magic_slot(number: u64, prime: u64, factor: u64) -> u64 {
    let p = u128::from(prime);
    let n = u128::from(number) % p;
    (n * n % p * n % p * u128::from(factor) % p) as u64
}

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// An order of samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampler {
    ctx: u64,
    order: Order,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Order {
    MagicPrime { prime: u64, factor: u64 },
    Shuffle { slots: u64, seed: u64 },
}

impl Sampler {
    /// The reference's: sample `n` (from 1) begins in its [`magic_slot`]. As `P mod 3 = 2`, cubing permutes: `P` samples read each slot
    /// once. The last slots of the data, `P` and above, are never read.
    ///
    /// # Errors
    /// The data has too few slots for the reference's own check, `P / slots > 0.9`; [`Sampler::shuffle`] takes any.
    pub fn magic_prime(tokens: u64, ctx: u64) -> Result<Sampler> {
        let slots = tokens.checked_div(ctx).unwrap_or(0);
        match magic_prime(tokens, ctx) {
            // 0.9 < P / slots, without rounding.
            Some(prime) if u128::from(prime) * 10 > u128::from(slots) * 9 => {
                Ok(Sampler { ctx, order: Order::MagicPrime { prime, factor: magic_factor(prime) } })
            }
            _ => Err(Error::request(format!(
                "{tokens} tokens make {slots} samples of {ctx}, too few for the reference's order (its prime would leave out a tenth): use a plain shuffle"
            ))),
        }
    }

    /// A plain shuffle of all slots, another each time the data was read once, decided by the seed.
    ///
    /// # Errors
    /// There are not `ctx + 1` tokens, or `ctx` is 0.
    pub fn shuffle(tokens: u64, ctx: u64, seed: u64) -> Result<Sampler> {
        let slots = tokens.saturating_sub(1).checked_div(ctx).unwrap_or(0);
        if slots == 0 {
            return Err(Error::request(format!(
                "a data set of {tokens} tokens is too short for a sample of {ctx}: it takes {}; shorten the context or add text",
                ctx.saturating_add(1)
            )));
        }
        Ok(Sampler { ctx, order: Order::Shuffle { slots, seed } })
    }

    /// Samples until each slot that is read was read once.
    pub fn period(&self) -> u64 {
        match self.order {
            Order::MagicPrime { prime, .. } => prime,
            Order::Shuffle { slots, .. } => slots,
        }
    }

    /// The slot of sample `number` ([`sample_number`], from 1; 0 is taken as any other).
    pub fn slot(&self, number: u64) -> u64 {
        match self.order {
            Order::MagicPrime { prime, factor } => magic_slot(number, prime, factor),
            Order::Shuffle { slots, seed } => {
                let n = number.saturating_sub(1);
                permute(n % slots, slots, mix(seed ^ mix(n / slots)))
            }
        }
    }

    /// The first token of sample `number`; `ctx + 1` tokens from there on are in the data.
    pub fn start(&self, number: u64) -> u64 {
        self.slot(number) * self.ctx
    }
}

/// Place `n` of `size` in an order that `seed` chooses: each place below `size` once.
///
/// # Panics
/// When `n` is not below `size`.
pub fn permutation(n: u64, size: u64, seed: u64) -> u64 {
    assert!(n < size, "place {n} of {size}");
    permute(n, size, mix(seed))
}

/// Bits of a number stirred (SplitMix64's last step).
pub(crate) fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// The image of `n` under a permutation of `0..size` that `key` chooses: a Feistel network over the smallest even
/// number of bits that holds `size`, applied until it lands inside (fewer than four times on average).
pub(crate) fn permute(n: u64, size: u64, key: u64) -> u64 {
    let half = ((64 - size.saturating_sub(1).leading_zeros()).div_ceil(2)).max(1);
    let mask = (1u64 << half) - 1;
    let mut n = n;
    loop {
        let (mut left, mut right) = (n >> half, n & mask);
        for round in 0..6u64 {
            let stirred = mix(right ^ mix(key ^ round)) & mask;
            (left, right) = (right, left ^ stirred);
        }
        n = left << half | right;
        if n < size {
            return n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_references_numbers() {
        let s = Sampler::magic_prime(1_498_226_207, 512).unwrap();
        assert_eq!(s.order, Order::MagicPrime { prime: 2_926_181, factor: 1_808_479 });
        let slots = [1, 2, 3, 4, 40_320, 40_321].map(|n| s.slot(n));
        assert_eq!(slots, [1_808_479, 2_763_108, 2_010_037, 1_621_597, 1_326_902, 1_232_952]);
        assert_eq!(s.start(1), 1_808_479 * 512);
        assert_eq!(magic_prime(1_498_226_207, 1024), Some(1_463_027));
        assert_eq!(magic_prime(1_498_226_207, 4096), Some(365_759));
        assert_eq!(magic_prime(332_115_325_534, 4096), Some(81_082_817));
        assert_eq!(sample_number(1, 0, 1, 0), 40_321);
        assert_eq!(sample_number(0, 2, 8, 3), 20);
    }

    #[test]
    fn the_shuffle_reads_every_slot_once_and_stays_inside() {
        for (tokens, ctx) in [(17, 16), (33, 16), (34, 16), (1000, 3), (1 << 12, 1), (99_999, 7)] {
            let s = Sampler::shuffle(tokens, ctx, 42).unwrap();
            let mut orders = Vec::new();
            for epoch in 0..2 {
                let first = 1 + epoch * s.period();
                let order: Vec<u64> = (first..first + s.period()).map(|n| s.slot(n)).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..s.period()), "{tokens} / {ctx}");
                assert!(order.iter().all(|slot| slot * ctx + ctx < tokens));
                orders.push(order);
            }
            assert!(s.period() < 8 || orders[0] != orders[1], "each pass has its own order");
        }
        assert!(Sampler::shuffle(16, 16, 0).unwrap_err().to_string().contains("too short"));
        assert!(Sampler::shuffle(16, 0, 0).is_err());
        assert!(Sampler::magic_prime(100, 512).unwrap_err().to_string().contains("plain shuffle"));
        assert!(Sampler::magic_prime(100, 0).is_err());
    }

    /// Neighbours of the order are far apart in the data: a shuffle, not a shift.
    #[test]
    fn the_shuffle_stirs() {
        let s = Sampler::shuffle(1_000_001, 10, 7).unwrap();
        let far = (1..10_000u64).filter(|&n| s.slot(n).abs_diff(s.slot(n + 1)) > 10_000).count();
        // Of independent places 81% are that far apart.
        assert!((7_800..8_400).contains(&far), "{far}");
    }
}
