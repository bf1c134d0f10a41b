//! Merging the bytes of one word: again and again the pair of neighbours with the lowest rank, the leftmost of equal
//! ones, becomes one token.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};

/// Rank and result of a merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) id: u32,
}

/// Merges by their pair of ids.
pub(super) struct Merges {
    map: HashMap<u64, Merge, Mix>,
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Merges {
    pub(super) fn with_capacity(n: usize) -> Merges {
        Merges { map: HashMap::with_capacity_and_hasher(n, Mix::default()) }
    }
    pub(super) fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        self.map.insert(key(left, right), merge);
    }
    #[inline]
    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.map.get(&key(left, right)).copied()
    }

    /// Merges the ids of a word's bytes in place. Time grows as n log n with the word's length.
    pub(super) fn apply(&self, ids: &mut Vec<u32>) {
        // Up to here looking through all pairs is quicker than keeping them ordered.
        const SHORT: usize = 48;
        if ids.len() <= SHORT { self.apply_scanning(ids) } else { self.apply_ordered(ids) }
    }

    /// The meaning: look through all pairs for each merge.
    fn apply_scanning(&self, ids: &mut Vec<u32>) {
        const NONE: Merge = Merge { rank: u32::MAX, id: 0 };
        let merge = |left, right| self.get(left, right).unwrap_or(NONE);
        let mut pairs: Vec<Merge> = ids.windows(2).map(|w| merge(w[0], w[1])).collect();
        while let Some((at, best)) = pairs.iter().copied().enumerate().min_by_key(|(_, m)| m.rank)
            && best != NONE
        {
            ids[at] = best.id;
            ids.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = merge(ids[at - 1], ids[at]);
            }
            if at < pairs.len() {
                pairs[at] = merge(ids[at], ids[at + 1]);
            }
        }
    }

    /// The same with the pairs in a heap and the ids in a linked list.
    fn apply_ordered(&self, ids: &mut Vec<u32>) {
        const END: usize = usize::MAX;
        const GONE: u32 = u32::MAX; // ids stay below 2^20
        let n = ids.len();
        let mut next: Vec<usize> = (1..n).chain([END]).collect();
        let mut prev: Vec<usize> = std::iter::once(END).chain(0..n.saturating_sub(1)).collect();
        // (rank, place, left id, right id, merged id): entries whose ids have changed meanwhile are stale.
        let mut heap = BinaryHeap::with_capacity(n);
        let entry = |at: usize, left: u32, right: u32| {
            self.get(left, right).map(|m| Reverse((m.rank, at, left, right, m.id)))
        };
        for at in 1..n {
            heap.extend(entry(at - 1, ids[at - 1], ids[at]));
        }
        while let Some(Reverse((_, at, left, right, id))) = heap.pop() {
            let after = next[at];
            if after == END || ids[at] != left || ids[after] != right {
                continue;
            }
            ids[at] = id;
            ids[after] = GONE;
            let beyond = next[after];
            next[at] = beyond;
            if beyond != END {
                prev[beyond] = at;
                heap.extend(entry(at, id, ids[beyond]));
            }
            let before = prev[at];
            if before != END {
                heap.extend(entry(before, ids[before], id));
            }
        }
        ids.retain(|&id| id != GONE);
    }
}

/// A quick hash for keys of one `u64`, with a secret of the process so that a file cannot aim at collisions.
#[derive(Clone)]
pub(super) struct Mix {
    secret: u64,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix { secret: RandomState::new().hash_one(0) }
    }
}

impl BuildHasher for Mix {
    type Hasher = MixHasher;
    fn build_hasher(&self) -> MixHasher {
        MixHasher { state: self.secret }
    }
}

/// See [`Mix`].
pub(super) struct MixHasher {
    state: u64,
}

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.state
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn write_u64(&mut self, value: u64) {
        // Both halves of a 128-bit product, so that every bit reaches the low bits that choose the place.
        let product = u128::from(self.state ^ value) * 0x9E37_79B9_7F4A_7C15;
        self.state = (product >> 64) as u64 ^ product as u64 ^ self.state.rotate_left(23);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn ordered_merging_is_scanning() {
        let mut random = Random::new(5);
        for round in 0..400 {
            // Random merges over a few ids, results up to 30 so that merges build on merges.
            let mut merges = Merges::with_capacity(0);
            for rank in 0..random.below(60) as u32 {
                let (left, right) = (random.below(12) as u32, random.below(12) as u32);
                merges.insert(left, right, Merge { rank, id: random.below(14) as u32 });
            }
            let word: Vec<u32> = (0..random.below(200)).map(|_| random.below(4) as u32).collect();
            let (mut scanned, mut ordered) = (word.clone(), word.clone());
            merges.apply_scanning(&mut scanned);
            merges.apply_ordered(&mut ordered);
            assert_eq!(scanned, ordered, "round {round}, word {word:?}");
        }
    }

    #[test]
    fn a_megabyte_word_is_no_trouble() {
        let mut merges = Merges::with_capacity(0);
        for level in 0..10 {
            merges.insert(level, level, Merge { rank: level, id: level + 1 });
        }
        let mut ids = vec![0; 1 << 20];
        merges.apply(&mut ids);
        assert_eq!(ids, vec![10; 1 << 10]);
    }
}
