//! Which weights are worth more bits: the choice of least loss within a size.

/// A weight that may be narrow or wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Bytes when it is narrow.
    pub narrow: u64,
    /// Bytes when it is wide; not fewer.
    pub wide: u64,
    /// What narrowing it alone costs; from 0 up. Losses are taken to add up.
    pub loss: f64,
}

/// What the choice must keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Bytes of all candidates together: the least loss within them.
    Bytes(u64),
    /// The sum of losses: the fewest bytes within it.
    Loss(f64),
}

/// Steps of size that the table has at most.
const STEPS: u64 = 1 << 14;

/// Which candidates are wide: an exact solution of the knapsack problem (sizes are rounded up, to a 16,384th of
/// the range, where their common divisor is smaller than that). More bytes never give more loss, and less loss never
/// takes fewer bytes. Widening what loses nothing is never chosen. `None` when even the smallest choice is larger
/// than the limit, or no choice loses so little (a limit below 0).
pub fn choose(candidates: &[Candidate], limit: Limit) -> Option<Vec<bool>> {
    let extra = |c: &Candidate| c.wide - c.narrow;
    let least: u64 = candidates.iter().map(|c| c.narrow).sum();
    let all: u64 = candidates.iter().map(extra).sum();
    let divisor = candidates.iter().fold(0, |a, c| gcd(a, extra(c)));
    let unit = divisor.max(all.div_ceil(STEPS)).max(1);
    let weight = |c: &Candidate| extra(c).div_ceil(unit) as usize;
    let room = match limit {
        Limit::Bytes(bytes) => bytes.checked_sub(least)? / unit,
        Limit::Loss(loss) if loss >= 0.0 => u64::MAX,
        Limit::Loss(_) => return None,
    };
    let steps = room.min(candidates.iter().map(|c| weight(c) as u64).sum()) as usize;
    // saved[s]: the most loss avoided with s steps of size; taken[n][s]: whether candidate n is wide then.
    let mut saved = vec![0.0; steps + 1];
    let mut taken = vec![vec![false; steps + 1]; candidates.len()];
    for (taken, c) in taken.iter_mut().zip(candidates) {
        let (weight, loss) = (weight(c), c.loss);
        for s in (weight..=steps).rev() {
            let with = saved[s - weight] + loss;
            if with > saved[s] {
                (saved[s], taken[s]) = (with, true);
            }
        }
    }
    let mut left = match limit {
        Limit::Bytes(_) => steps,
        Limit::Loss(most) => {
            // All of them are wide at the last step, but for what loses nothing.
            let lost = |s: usize| saved[steps] - saved[s];
            (0..=steps).find(|&s| lost(s) <= most)?
        }
    };
    let mut wide = vec![false; candidates.len()];
    for (i, taken) in taken.iter().enumerate().rev() {
        if taken[left] {
            wide[i] = true;
            left -= weight(&candidates[i]);
        }
    }
    Some(wide)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn bytes(candidates: &[Candidate], wide: &[bool]) -> u64 {
        candidates.iter().zip(wide).map(|(c, w)| if *w { c.wide } else { c.narrow }).sum()
    }

    fn loss(candidates: &[Candidate], wide: &[bool]) -> f64 {
        candidates.iter().zip(wide).filter(|(_, w)| !**w).map(|(c, _)| c.loss).sum()
    }

    fn some(random: &mut Rng, n: usize, odd: bool) -> Vec<Candidate> {
        let one = |_| {
            let numbers = (random.next_u64() % 9 + 1) * if odd { 6007 } else { 4096 }
                + if odd { random.next_u64() % 999 } else { 0 };
            let loss = (random.next_u64() % 1000) as f64 / 1000.0;
            Candidate { narrow: numbers * 9 / 2, wide: numbers * 17 / 2, loss }
        };
        (0..n).map(one).collect()
    }

    /// Against every choice there is.
    #[test]
    fn none_is_better() {
        let mut random = Rng::new(5);
        for round in 0..60 {
            let c = some(&mut random, 9, false);
            let (least, most) = (bytes(&c, &[false; 9]), bytes(&c, &[true; 9]));
            let size = least + (most - least) * round / 59;
            let target = loss(&c, &[false; 9]) * round as f64 / 59.0;
            let all = (0..512u32).map(|bits| (0..9).map(|i| bits >> i & 1 == 1).collect::<Vec<bool>>());
            let all: Vec<_> = all.collect();
            let within = all.iter().filter(|w| bytes(&c, w) <= size);
            let best = within.map(|w| loss(&c, w)).fold(f64::MAX, f64::min);
            let got = choose(&c, Limit::Bytes(size)).unwrap();
            assert!(bytes(&c, &got) <= size && (loss(&c, &got) - best).abs() < 1e-9, "{c:?}");
            let within = all.iter().filter(|w| loss(&c, w) <= target + 1e-9);
            let fewest = within.map(|w| bytes(&c, w)).min().unwrap();
            let got = choose(&c, Limit::Loss(target + 1e-9)).unwrap();
            assert!(loss(&c, &got) <= target + 2e-9 && bytes(&c, &got) <= fewest, "{c:?}");
        }
    }

    /// Sizes without a large common divisor too.
    #[test]
    fn more_bytes_lose_no_more() {
        let mut random = Rng::new(6);
        for _ in 0..4 {
            let c = some(&mut random, 60, true);
            let least = bytes(&c, &[false; 60]);
            let most = bytes(&c, &[true; 60]);
            let mut last = f64::MAX;
            for n in 0..=20 {
                let size = least + (most - least) * n / 20;
                let got = choose(&c, Limit::Bytes(size)).unwrap();
                assert!(bytes(&c, &got) <= size);
                assert!(loss(&c, &got) <= last);
                last = loss(&c, &got);
            }
            assert!(last < 0.1, "nearly all fit: {last}");
        }
    }

    #[test]
    fn limits_that_cannot_be_kept() {
        let c = [Candidate { narrow: 18, wide: 34, loss: 0.0 }; 3];
        assert_eq!(choose(&c, Limit::Bytes(53)), None);
        assert_eq!(choose(&c, Limit::Loss(-1.0)), None);
        // What loses nothing stays narrow.
        assert_eq!(choose(&c, Limit::Bytes(1000)), Some(vec![false; 3]));
        assert_eq!(choose(&c, Limit::Loss(0.0)), Some(vec![false; 3]));
        assert_eq!(choose(&[], Limit::Bytes(0)), Some(vec![]));
    }
}
