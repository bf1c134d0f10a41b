//! Sums over ranks, in the order of ranks.

use super::{Collective, Wire};
use crate::Result;

/// How many of `n` things each rank has when they are divided evenly, the first ranks one more.
pub fn even(n: usize, ranks: usize) -> Vec<usize> {
    (0..ranks).map(|r| n / ranks + usize::from(r < n % ranks)).collect()
}

fn bytes(counts: &[usize], each: usize) -> Vec<usize> {
    counts.iter().map(|n| n * each).collect()
}

/// Rounded to the nearest bf16, ties to even; what is no number stays none.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Adds up equal parts, one after the other.
fn add_up(to: &mut [f32], parts: impl Iterator<Item = f32>) {
    let n = to.len();
    for (i, x) in parts.enumerate() {
        // The first is taken as it is: the sum of two ranks is that of two micro-batches, the sign of a zero included.
        if i < n {
            to[i] = x;
        } else {
            to[i % n] += x;
        }
    }
}

/// Of numbers that every rank has, `counts[r]` of them rank r's: the sum over ranks of this rank's, into `receive`. On
/// the wire `Bf16` the sums are rounded too.
///
/// # Errors
/// As [`Collective::all_to_all`].
///
/// # Panics
/// When the counts are not those of the slices.
pub fn reduce_scatter(
    c: &dyn Collective,
    wire: Wire,
    send: &[f32],
    counts: &[usize],
    receive: &mut [f32],
) -> Result<()> {
    let own = counts[c.rank()];
    assert!(send.len() == counts.iter().sum::<usize>() && receive.len() == own, "as many numbers as counted");
    let from = vec![own; c.size()];
    match wire {
        Wire::F32 => {
            let mut parts = vec![0f32; own * c.size()];
            let to = bytes(counts, 4);
            c.all_to_all(
                bytemuck::cast_slice(send),
                &to,
                bytemuck::cast_slice_mut(&mut parts),
                &bytes(&from, 4),
            )?;
            add_up(receive, parts.into_iter());
        }
        Wire::Bf16 => {
            let send: Vec<u16> = send.iter().map(|x| to_bf16(*x)).collect();
            let mut parts = vec![0u16; own * c.size()];
            let to = bytes(counts, 2);
            c.all_to_all(
                bytemuck::cast_slice(&send),
                &to,
                bytemuck::cast_slice_mut(&mut parts),
                &bytes(&from, 2),
            )?;
            add_up(receive, parts.into_iter().map(from_bf16));
            receive.iter_mut().for_each(|x| *x = from_bf16(to_bf16(*x)));
        }
    }
    Ok(())
}

/// Every rank's numbers, `counts[r]` of rank r, on all of them.
///
/// # Errors
/// As [`Collective::all_gather`].
pub fn all_gather(c: &dyn Collective, send: &[f32], receive: &mut [f32], counts: &[usize]) -> Result<()> {
    c.all_gather(bytemuck::cast_slice(send), bytemuck::cast_slice_mut(receive), &bytes(counts, 4))
}

/// Puts the sum over all ranks in the place of each number: the same bits on all.
///
/// # Errors
/// As [`Collective::all_to_all`].
pub fn all_reduce(c: &dyn Collective, wire: Wire, numbers: &mut [f32]) -> Result<()> {
    if c.size() == 1 {
        return Ok(());
    }
    let counts = even(numbers.len(), c.size());
    let mut own = vec![0f32; counts[c.rank()]];
    reduce_scatter(c, wire, numbers, &counts, &mut own)?;
    match wire {
        Wire::F32 => all_gather(c, &own, numbers, &counts),
        Wire::Bf16 => {
            // What was rounded is not rounded again.
            let own: Vec<u16> = own.into_iter().map(to_bf16).collect();
            let mut all = vec![0u16; numbers.len()];
            let to = bytes(&counts, 2);
            c.all_gather(bytemuck::cast_slice(&own), bytemuck::cast_slice_mut(&mut all), &to)?;
            numbers.iter_mut().zip(all).for_each(|(to, x)| *to = from_bf16(x));
            Ok(())
        }
    }
}

/// The same of a few numbers in f64.
///
/// # Errors
/// As [`Collective::all_gather`].
pub fn all_reduce_f64(c: &dyn Collective, numbers: &mut [f64]) -> Result<()> {
    let n = numbers.len();
    if c.size() == 1 || n == 0 {
        return Ok(());
    }
    let mut all = vec![0f64; n * c.size()];
    let counts = vec![n * 8; c.size()];
    c.all_gather(bytemuck::cast_slice(numbers), bytemuck::cast_slice_mut(&mut all), &counts)?;
    for (i, to) in numbers.iter_mut().enumerate() {
        let first = all[i];
        *to = all[i..].iter().step_by(n).skip(1).fold(first, |sum, x| sum + x);
    }
    Ok(())
}

/// What each rank says, however long it is.
///
/// # Errors
/// As [`Collective::all_gather`].
pub fn gather(c: &dyn Collective, said: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut lengths = vec![0u64; c.size()];
    let each = vec![8; c.size()];
    let own = (said.len() as u64).to_ne_bytes();
    c.all_gather(&own, bytemuck::cast_slice_mut(&mut lengths), &each)?;
    let lengths: Vec<usize> = lengths.into_iter().map(|n| n as usize).collect();
    let mut all = vec![0u8; lengths.iter().sum()];
    c.all_gather(said, &mut all, &lengths)?;
    let mut rest = &all[..];
    Ok(lengths
        .into_iter()
        .map(|n| {
            let (one, others) = rest.split_at(n);
            rest = others;
            one.to_vec()
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Threads;

    /// What each rank of a group gives.
    fn on_all<T: Send>(ranks: usize, work: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
        std::thread::scope(|s| {
            let group = Threads::group(ranks);
            let work = &work;
            let threads: Vec<_> = group.into_iter().map(|c| s.spawn(move || work(&c))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn numbers(n: usize, rank: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 31 + rank * 17) as f32 * 0.37).sin() * 10f32.powi(rank as i32)).collect()
    }

    #[test]
    fn sums_are_in_the_order_of_ranks_on_all_of_them() {
        for (ranks, n) in [(1, 5), (2, 7), (3, 2), (4, 1000)] {
            let mut want = numbers(n, 0);
            for r in 1..ranks {
                want.iter_mut().zip(numbers(n, r)).for_each(|(sum, x)| *sum += x);
            }
            let got = on_all(ranks, |c| {
                let mut x = numbers(n, c.rank());
                all_reduce(c, Wire::F32, &mut x).unwrap();
                let mut wide = vec![c.rank() as f64, 0.25];
                all_reduce_f64(c, &mut wide).unwrap();
                assert_eq!(wide, [(0..ranks).sum::<usize>() as f64, 0.25 * ranks as f64]);
                (x, c.sent())
            });
            for (x, sent) in got {
                assert_eq!(
                    x.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                    want.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                );
                assert!((sent > 0) == (ranks > 1));
            }
        }
    }

    #[test]
    fn bf16_rounds_what_is_sent_and_the_sum() {
        let got = on_all(3, |c| {
            let mut x = numbers(100, c.rank());
            all_reduce(c, Wire::Bf16, &mut x).unwrap();
            x
        });
        assert!(got.iter().all(|x| *x == got[0]));
        for (i, x) in got[0].iter().enumerate() {
            let parts: Vec<f32> = (0..3).map(|r| numbers(100, r)[i]).collect();
            let (sum, size) = (parts.iter().sum::<f32>(), parts.iter().map(|x| x.abs()).sum::<f32>());
            assert!((x - sum).abs() <= size / 128.0 && x.to_bits() & 0xffff == 0, "{x} for {sum}");
        }
        assert_eq!(from_bf16(to_bf16(f32::INFINITY)), f32::INFINITY);
        assert!(from_bf16(to_bf16(f32::from_bits(0x7f80_0001))).is_nan());
        assert_eq!(from_bf16(to_bf16(1.0 + 1.0 / 256.0)), 1.0, "ties to even");
        assert_eq!(from_bf16(to_bf16(f32::MAX)), f32::INFINITY);
    }

    #[test]
    fn shares_are_even() {
        assert_eq!((even(7, 3), even(1, 2)), (vec![3, 2, 2], vec![1, 0]));
    }

    #[test]
    fn what_each_says_is_heard() {
        let got = on_all(3, |c| gather(c, &vec![c.rank() as u8; c.rank() * 2]).unwrap());
        assert!(got.iter().all(|g| *g == [vec![], vec![1, 1], vec![2; 4]]));
    }
}
