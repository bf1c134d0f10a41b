//! Prompts that begin alike and come at once are read once: who shares a beginning with a prompt that is still being read
//! waits until that has been read so far, and goes on from its state.

use super::slot::Slot;
use super::{BatchModel, MARK_APART};
use crate::tree::cache::StateCache;

/// Where a prompt waits to begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    /// The number of the sequence that reads for it.
    pub reader: u64,
    /// After how many tokens it goes on by itself.
    pub at: usize,
}

/// Lets `i` begin, or wait for who reads the same.
pub(super) fn begin<M: BatchModel>(slots: &mut [Slot<M>], i: usize, cache: &StateCache<M::State>) {
    pair(slots, i);
    slots[i].count_start(cache);
}

/// Looks for a sequence before `i` that reads what `i` would read, and lets `i` wait for the one that shares most with it.
///
/// Sequences stand in the order in which they began: none waits for one behind it, so that none waits for itself.
fn pair<M: BatchModel>(slots: &mut [Slot<M>], i: usize) {
    let (before, own) = slots.split_at_mut(i);
    let own = &mut own[0];
    if own.ended || !own.is_reading() {
        return;
    }
    let mut best: Option<(usize, usize)> = None;
    for (j, other) in before.iter().enumerate() {
        let shared = own.shares(other);
        // Behind what the other has read already there is nothing to wait for.
        let worth = shared > own.fed() + MARK_APART && other.fed() < shared;
        if worth && best.is_none_or(|(_, most)| shared > most) {
            best = Some((j, shared));
        }
    }
    if let Some((j, at)) = best {
        before[j].mark(at);
        own.waits = Some(Wait { reader: before[j].number, at });
    }
}

/// Lets go on those for whom enough has been read, or whose reader is gone.
pub(super) fn release<M: BatchModel>(slots: &mut [Slot<M>], cache: &StateCache<M::State>) {
    for i in 0..slots.len() {
        let Some(wait) = slots[i].waits else { continue };
        let reader = slots[..i].iter().find(|s| s.number == wait.reader);
        if reader.is_some_and(|s| !s.ended && s.is_reading() && s.fed() < wait.at) {
            continue;
        }
        let gone = reader.is_none_or(|s| s.ended);
        slots[i].waits = None;
        slots[i].start(cache);
        // A state that was read for it and is not there (a memory of no size) would not be there the next time either.
        if gone || slots[i].fed() >= wait.at {
            pair(slots, i);
        }
        slots[i].count_start(cache);
    }
}

/// Gives each reader the rank of the foremost that waits for it: by `ranks` those with little done for them come first.
pub(super) fn inherit<M: BatchModel, R: Ord + Copy>(slots: &[Slot<M>], ranks: &mut [R]) {
    // From behind, since a reader may wait itself.
    for i in (0..slots.len()).rev() {
        if let Some(wait) = slots[i].waits
            && let Some(j) = slots[..i].iter().position(|s| s.number == wait.reader)
        {
            ranks[j] = ranks[j].min(ranks[i]);
        }
    }
}
