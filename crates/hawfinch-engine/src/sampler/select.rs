//! Partial selection: the candidates above a threshold, found without sorting the vocabulary.
//!
//! Only thresholds are looked for, so candidates always stay in the order of their ids: the same candidates are
//! then walked in the same order whatever path found them.

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub id: u32,
    /// exp(logit - shift): proportional to the probability.
    pub weight: f32,
}

/// The candidates in order of id. The buffer keeps its full length, since refilling it for each token would take as
/// long as the selection itself.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    buffer: Vec<Candidate>,
    len: usize,
}

impl Candidates {
    /// Drops those for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&Candidate) -> bool) {
        let mut end = 0;
        for i in 0..self.len {
            let c = self.buffer[i];
            if keep(&c) {
                self.buffer[end] = c;
                end += 1;
            }
        }
        self.len = end;
    }
}

impl std::ops::Deref for Candidates {
    type Target = [Candidate];
    fn deref(&self) -> &[Candidate] {
        &self.buffer[..self.len]
    }
}

impl std::ops::DerefMut for Candidates {
    fn deref_mut(&mut self) -> &mut [Candidate] {
        &mut self.buffer[..self.len]
    }
}

/// Keys are split by their top 12 bits (of the 31 that a non-negative f32 uses).
const BUCKET_SHIFT: u32 = 19;
const BUCKETS: usize = 1 << (31 - BUCKET_SHIFT);

/// Each bucket is summed in this many parts in turn: neighbours that fall into the same bucket (a flat distribution)
/// would otherwise wait for each other's additions.
const COPIES: usize = 4;

/// Scratch of [`Selector::threshold`]; kept between tokens so that nothing is allocated.
#[derive(Debug, Default)]
pub(crate) struct Selector {
    mass: Vec<[f64; COPIES]>,
    band: Vec<(u32, f32)>,
}

impl Selector {
    /// The key of the last item needed when items are taken by descending key until their mass reaches `target`.
    ///
    /// `None` when all items together stay below `target`. Keys are below 2^31; the bits of non-negative floats,
    /// which order as the floats do, are such keys. One pass to fill a histogram, then only the bucket in which the
    /// target is reached is sorted.
    pub(crate) fn threshold<I>(&mut self, items: I, target: f64) -> Option<u32>
    where
        I: Iterator<Item = (u32, f32)> + Clone,
    {
        self.mass.clear();
        self.mass.resize(BUCKETS, [0.0; COPIES]);
        for (i, (key, mass)) in items.clone().enumerate() {
            self.mass[bucket(key)][i % COPIES] += f64::from(mass);
        }
        let mut above = 0.0;
        let mut found = None;
        for b in (0..BUCKETS).rev() {
            let mass = self.mass[b].iter().sum::<f64>();
            if mass > 0.0 && above + mass >= target {
                found = Some(b);
                break;
            }
            above += mass;
        }
        let found = found?;
        self.band.clear();
        self.band.extend(items.filter(|&(key, _)| bucket(key) == found));
        self.band.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1)));
        for &(key, mass) in &self.band {
            above += f64::from(mass);
            if above >= target {
                return Some(key);
            }
        }
        // The band's sum, added in another order, fell short by a rounding: its last item is the one.
        self.band.last().map(|&(key, _)| key)
    }
}

fn bucket(key: u32) -> usize {
    (key >> BUCKET_SHIFT) as usize & (BUCKETS - 1)
}

/// Replaces `out` by all tokens of at least `floor` (> 0) in order of id; returns their mass.
pub(crate) fn gather(weights: &[f32], floor: f32, out: &mut Candidates) -> f64 {
    const LANES: usize = 16;
    // Filled without a branch a token: each is written at the end, and the end moves on if the token passes.
    let buffer = &mut out.buffer;
    if buffer.len() < weights.len() {
        buffer.resize(weights.len(), Candidate { id: 0, weight: 0.0 });
    }
    let mut end = 0;
    let mut mass = 0f64;
    let mut base = 0u32;
    for chunk in weights.chunks(LANES) {
        let mut lanes = [0f32; LANES];
        for (lane, &w) in lanes.iter_mut().zip(chunk) {
            *lane = if w >= floor { w } else { 0.0 };
        }
        // Most chunks hold nothing and are passed over; the floor is above 0, so a sum of 0 says so.
        let sum = tree_sum(lanes);
        if sum > 0.0 {
            mass += f64::from(sum);
            for (id, &weight) in (base..).zip(chunk) {
                buffer[end] = Candidate { id, weight };
                end += usize::from(weight >= floor);
            }
        }
        base += LANES as u32;
    }
    out.len = end;
    mass
}

/// Sum by halves: a fixed order that runs in parallel.
fn tree_sum(mut x: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] += x[i + half];
        }
    }
    x[0]
}

/// Draws by weight; returns the id and its probability among the candidates.
///
/// The sum over all candidates is made of sums over blocks of 64, in a fixed order; the walk then goes by blocks.
/// `blocks` is scratch. With no candidates the answer is token 0.
pub(crate) fn draw(candidates: &[Candidate], rng: &mut super::Rng, blocks: &mut Vec<f64>) -> (u32, f64) {
    const BLOCK: usize = 64;
    let block_sum = |block: &[Candidate]| {
        let mut lanes = [0f64; 4];
        for (i, c) in block.iter().enumerate() {
            lanes[i % 4] += f64::from(c.weight);
        }
        (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
    };
    blocks.clear();
    blocks.extend(candidates.chunks(BLOCK).map(block_sum));
    let total: f64 = blocks.iter().sum();
    let at = rng.next_f64() * total;
    let mut before = 0.0;
    let mut last = (0, 1.0);
    for (block, &sum) in candidates.chunks(BLOCK).zip(blocks.iter()) {
        if before + sum <= at {
            before += sum;
            continue;
        }
        let mut sum = before;
        for c in block.iter().filter(|c| c.weight > 0.0) {
            sum += f64::from(c.weight);
            last = (c.id, f64::from(c.weight) / total);
            if at < sum {
                return last;
            }
        }
        // Rounding left a sliver at the end of the block; its last token has it.
        return last;
    }
    candidates.iter().rev().find(|c| c.weight > 0.0).map_or(last, |c| (c.id, f64::from(c.weight) / total))
}

/// The id of the largest value; the lowest id among equals.
pub(crate) fn argmax(values: &[f32], max: f32) -> u32 {
    values.iter().position(|&x| x == max).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Rng;

    fn weights(n: usize, spread: f32) -> Vec<f32> {
        let mut rng = Rng::new(n as u64);
        (0..n).map(|_| (rng.next_f64() as f32 * spread).exp()).collect()
    }

    #[test]
    fn threshold_equals_a_full_sort() {
        let mut selector = Selector::default();
        for n in [1, 2, 17, 1000, 5000] {
            for spread in [0.0, 0.001, 1.0, 30.0] {
                let w = weights(n, spread);
                let total: f64 = w.iter().map(|&x| f64::from(x)).sum();
                for share in [0.0, 0.01, 0.5, 0.85, 0.999] {
                    let target = total * share;
                    let mut sorted = w.clone();
                    sorted.sort_by(|a, b| b.total_cmp(a));
                    let mut acc = 0.0;
                    let want = sorted.iter().find(|&&x| {
                        acc += f64::from(x);
                        acc >= target
                    });
                    let got = selector.threshold(w.iter().map(|&x| (x.to_bits(), x)), target);
                    let (got, want) = (got.map(f32::from_bits).unwrap(), *want.unwrap());
                    assert!(
                        (got - want).abs() <= want * 1e-4,
                        "n {n} spread {spread} share {share}: {got} {want}"
                    );
                }
            }
        }
        assert_eq!(selector.threshold([(1u32, 1.0f32)].into_iter(), 2.0), None);
        assert_eq!(selector.threshold(std::iter::empty(), 1.0), None);
    }

    #[test]
    fn threshold_by_count_is_the_kth() {
        let mut selector = Selector::default();
        let w = weights(3000, 8.0);
        let mut sorted = w.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1usize, 2, 40, 2999, 3000] {
            let got = selector.threshold(w.iter().map(|&x| (x.to_bits(), 1.0)), k as f64).unwrap();
            assert_eq!(f32::from_bits(got), sorted[k - 1]);
        }
    }

    #[test]
    fn gather_keeps_order_and_mass() {
        let w = weights(1003, 4.0);
        let mut out = Candidates::default();
        let mass = gather(&w, 20.0, &mut out);
        let want: Vec<u32> = (0..1003u32).filter(|&i| w[i as usize] >= 20.0).collect();
        assert_eq!(out.iter().map(|c| c.id).collect::<Vec<_>>(), want);
        // Sums of 16 are made in f32.
        assert!((mass - out.iter().map(|c| f64::from(c.weight)).sum::<f64>()).abs() < 1e-6 * mass);
        assert_eq!(argmax(&[1.0, 3.0, 3.0], 3.0), 1);
        for n in [0, 1, 15, 16, 17] {
            gather(&vec![1.0; n], 1.0, &mut out);
            assert_eq!(out.len(), n);
        }
    }

    #[test]
    fn draw_walks_blocks_as_it_would_walk_tokens() {
        let candidates: Vec<Candidate> = (0..1000u32)
            .map(|id| Candidate { id: id * 3, weight: if id % 7 == 0 { 0.0 } else { (id % 13) as f32 } })
            .collect();
        let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
        let mut rng = Rng::new(5);
        for _ in 0..5000 {
            let at = rng.clone().next_f64() * total;
            let mut sum = 0.0;
            let want = candidates.iter().find(|c| {
                sum += f64::from(c.weight);
                at < sum
            });
            let (id, p) = draw(&candidates, &mut rng, &mut Vec::new());
            let want = want.unwrap();
            assert_eq!((id, p), (want.id, f64::from(want.weight) / total));
        }
        assert_eq!(draw(&[], &mut rng, &mut Vec::new()).0, 0);
    }
}
