//! Several places of one text matched at once by one thread.
//!
//! A greedy match is one chain of dependent loads with a badly predicted branch at each token's end: the processor
//! mostly waits. Four chains at four places of the text, each step of each without a branch, fill these waits. Every
//! lane but the first begins at a guessed place; [`super::join`] makes the exact sequence of them.

use super::World;
use super::join::Join;
use crate::trie::Node;

const LANES: usize = 4;
/// Shorter texts are matched one token after another.
pub(super) const MIN_TEXT: usize = 128;

/// Ids of each lane. A piece has fewer bytes, and so fewer ids, than `ROOM`.
type Scratch<const ROOM: usize> = [[u32; ROOM]; LANES];

#[derive(Clone, Copy)]
struct Lane {
    /// What the walk has reached, and where in the text its next byte is.
    node: Node,
    next: usize,
    /// No token begins here or later.
    end: usize,
    ids: usize,
}

impl World {
    /// Appends the tokens that begin in `from..to` when one begins at `from`; returns where the last one ends.
    pub(super) fn encode_lanes(&self, text: &[u8], from: usize, to: usize, ids: &mut Vec<u32>) -> usize {
        // Rooms are powers of two, so that an index can be masked. The largest piece is still small, so that the lanes
        // of one round hold the same kind of text and end together; short texts need not clear so much memory.
        if to - from < LANES * 64 {
            self.encode_rounds(text, from, to, ids, &mut [[0; 64]; LANES])
        } else if to - from < LANES * 512 {
            self.encode_rounds(text, from, to, ids, &mut [[0; 512]; LANES])
        } else {
            let mut scratch: Box<Scratch<4096>> = Box::new([[0; 4096]; LANES]);
            self.encode_rounds(text, from, to, ids, &mut scratch)
        }
    }

    fn encode_rounds<const ROOM: usize>(
        &self,
        text: &[u8],
        from: usize,
        to: usize,
        ids: &mut Vec<u32>,
        scratch: &mut Scratch<ROOM>,
    ) -> usize {
        const { assert!(ROOM.is_power_of_two()) };
        let mut join = Join { at: from };
        let mut round = from;
        while to - round >= MIN_TEXT {
            let piece = (to - round).div_ceil(LANES).min(ROOM - 1);
            let mut lanes: [Lane; LANES] = std::array::from_fn(|l| {
                let start = round + l * piece;
                let end = (start + piece).min(to);
                Lane { node: self.pair(text, start), next: start + 2, end, ids: 0 }
            });
            self.run(text, &mut lanes, scratch);
            for (l, (lane, lane_ids)) in lanes.iter_mut().zip(scratch.iter_mut()).enumerate() {
                let start = round + l * piece;
                let end = self.finish(text, lane, lane_ids);
                join.piece(self, text, start, lane.end, &lane_ids[..lane.ids], end, ids);
            }
            round = lanes[LANES - 1].end;
        }
        self.encode_one_by_one(text, join.at, to, ids)
    }

    #[inline(always)]
    fn pair(&self, text: &[u8], at: usize) -> Node {
        let bytes: [u8; 2] = text[at..at + 2].try_into().unwrap_or_default();
        self.pairs[usize::from(u16::from_be_bytes(bytes))]
    }

    /// Steps all lanes until one of them is near its end.
    fn run<const ROOM: usize>(&self, text: &[u8], lanes: &mut [Lane; LANES], ids: &mut Scratch<ROOM>) {
        loop {
            assert!(lanes.iter().all(|lane| lane.end <= text.len()));
            // A step moves a lane by two bytes at most, so in each of these steps `next + 1 < end`.
            let steps = lanes.iter().map(|lane| lane.end.saturating_sub(lane.next) / 2).min().unwrap_or(0);
            if steps == 0 {
                return;
            }
            let mut local = *lanes;
            for _ in 0..steps {
                for (lane, ids) in local.iter_mut().zip(ids.iter_mut()) {
                    let start = lane.next - lane.node.back();
                    debug_assert!(lane.node.back() < lane.next && lane.next + 1 < lane.end);
                    // SAFETY: `start <= next`, because a walk's last accepted token ends at its first byte or later
                    // (each single byte is a token), so `back` is less than the bytes walked. `next + 1 < end`, see
                    // `steps`, and `end <= text.len()` was asserted: both reads are inside `text`. All nodes come
                    // from this trie.
                    let (pair, byte, child) = unsafe {
                        let pair = text.as_ptr().add(start).cast::<[u8; 2]>().read();
                        let byte = *text.get_unchecked(lane.next);
                        (pair, byte, self.trie.slot_unchecked(lane.node, byte))
                    };
                    let over = child.label() != u32::from(byte);
                    let fresh = self.pairs[usize::from(u16::from_be_bytes(pair))];
                    // Written in every step, kept when the token is over.
                    ids[lane.ids & (ROOM - 1)] = lane.node.value();
                    lane.ids += usize::from(over);
                    lane.node = std::hint::select_unpredictable(over, fresh, child);
                    lane.next = std::hint::select_unpredictable(over, start + 2, lane.next + 1);
                }
            }
            *lanes = local;
        }
    }

    /// Takes one lane to the end of its piece; returns where its last token ends.
    fn finish<const ROOM: usize>(&self, text: &[u8], lane: &mut Lane, ids: &mut [u32; ROOM]) -> usize {
        let mut push = |id| {
            ids[lane.ids & (ROOM - 1)] = id;
            lane.ids += 1;
        };
        while let Some(&byte) = text.get(lane.next)
            && let Some(child) = self.trie.child(lane.node, byte)
        {
            lane.node = child;
            lane.next += 1;
        }
        push(lane.node.value());
        let mut at = lane.next - lane.node.back();
        while at < lane.end
            && let Some((id, end)) = self.match_at(text, at)
        {
            push(id);
            at = end;
        }
        at
    }
}
