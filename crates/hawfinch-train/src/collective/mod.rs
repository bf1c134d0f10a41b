//! Training on more than one machine: what ranks (processes, or threads in tests) say to each other.
//!
//! A [`Collective`] moves bytes and does no arithmetic. Sums are made here, once for all of them: every number is owned by
//! one rank, which adds up what the others send it in the order of the ranks and hands the sum back. So the result does not
//! depend on the network or on the algorithm that an MPI library would choose, every rank has the same bits, and threads in
//! one process stand for machines in the tests.

mod agree;
pub(crate) mod buckets;
mod shards;
mod sums;
mod threads;

use serde::{Deserialize, Serialize};

use crate::Result;

pub use agree::{Fact, agree};
pub(crate) use shards::Shards;
pub use sums::{all_gather, all_reduce, all_reduce_f64, even, gather, reduce_scatter};
pub use threads::Threads;

/// Ranks that work together. Every rank makes the same calls in the same order, from one thread at a time. All counts are
/// in bytes.
pub trait Collective: Send + Sync {
    /// Which one this is, from 0.
    fn rank(&self) -> usize;
    /// How many there are.
    fn size(&self) -> usize;
    /// Sends `to[r]` bytes of `send` to each rank r, in the order of ranks, and puts `from[r]` bytes of each into `receive`.
    ///
    /// # Errors
    /// The others cannot be reached, have ended or do something else.
    fn all_to_all(&self, send: &[u8], to: &[usize], receive: &mut [u8], from: &[usize]) -> Result<()>;
    /// Every rank's bytes, `counts[r]` of rank r, on all.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn all_gather(&self, send: &[u8], receive: &mut [u8], counts: &[usize]) -> Result<()>;
    /// The bytes of one rank in the place of the others'.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<()>;
    /// Sends to one rank, which has to [`Collective::receive`] as many bytes.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn send(&self, bytes: &[u8], to: usize) -> Result<()>;
    /// Receives from one rank.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn receive(&self, bytes: &mut [u8], from: usize) -> Result<()>;
    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// As [`Collective::all_to_all`].
    fn barrier(&self) -> Result<()>;
    /// Bytes that this rank has sent to others so far, each receiver's counted.
    fn sent(&self) -> u64;
    /// Whether a thread other than the one that made it may call it.
    fn works_from_any_thread(&self) -> bool {
        true
    }
}

/// One process that works alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn all_to_all(&self, send: &[u8], _: &[usize], receive: &mut [u8], _: &[usize]) -> Result<()> {
        receive.copy_from_slice(send);
        Ok(())
    }
    fn all_gather(&self, send: &[u8], receive: &mut [u8], _: &[usize]) -> Result<()> {
        receive.copy_from_slice(send);
        Ok(())
    }
    fn broadcast(&self, _: &mut [u8], _: usize) -> Result<()> {
        Ok(())
    }
    fn send(&self, _: &[u8], to: usize) -> Result<()> {
        Err(crate::Error::Ranks(format!("there is no rank {to}: this process works alone")))
    }
    fn receive(&self, _: &mut [u8], from: usize) -> Result<()> {
        self.send(&[], from)
    }
    fn barrier(&self) -> Result<()> {
        Ok(())
    }
    fn sent(&self) -> u64 {
        0
    }
}

/// How gradients travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wire {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, sums too; they are added in f32.
    Bf16,
}

/// What ranks said to each other, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Communication {
    /// Seconds in which something was exchanged, the waiting for slower ranks included.
    pub seconds: f64,
    /// Seconds of them in which nothing was computed.
    pub waited: f64,
    /// Bytes that this rank sent.
    pub bytes: u64,
}

impl std::ops::AddAssign for Communication {
    fn add_assign(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.waited += other.waited;
        self.bytes += other.bytes;
    }
}
