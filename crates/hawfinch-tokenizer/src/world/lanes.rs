//! Several places of one text matched at once by one thread.
//!
//! A greedy match is one chain of dependent loads with a badly predicted branch at each token's end: the processor
//! mostly waits. Three chains at three places of the text, each step of each without a branch, fill these waits. Every
//! lane but the first begins at a guessed place; [`super::join`] makes the exact sequence of them.

use super::World;
use super::join::Join;
use crate::trie::Node;

const LANES: usize = 3;
/// Bytes of one lane's piece. Small, so that the lanes of one round hold the same kind of text and end together.
const PIECE: usize = 4000;
/// Room for a piece's ids (no more than its bytes), a power of two so that an index can be masked.
const ROOM: usize = 4096;
const _: () = assert!(ROOM.is_power_of_two() && ROOM > PIECE);

/// Shorter texts are matched one token after another.
pub(super) const MIN_TEXT: usize = 1024;

/// Ids of each lane.
pub(super) type Scratch = [[u32; ROOM]; LANES];

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
        let mut scratch: Box<Scratch> = Box::new([[0; ROOM]; LANES]);
        let mut join = Join { at: from };
        let mut round = from;
        while to - round >= MIN_TEXT {
            let piece = (to - round).div_ceil(LANES).min(PIECE);
            let mut lanes: [Lane; LANES] = std::array::from_fn(|l| {
                let start = round + l * piece;
                let end = (start + piece).min(to);
                Lane { node: self.pair(text, start), next: start + 2, end, ids: 0 }
            });
            self.run(text, &mut lanes, &mut scratch);
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
    fn run(&self, text: &[u8], lanes: &mut [Lane; LANES], ids: &mut Scratch) {
        loop {
            // A step moves a lane by two bytes at most, and looks one byte beyond the next.
            let steps = lanes.iter().map(|lane| lane.end.saturating_sub(lane.next) / 2).min().unwrap_or(0);
            if steps == 0 {
                return;
            }
            let mut local = *lanes;
            for _ in 0..steps {
                for (lane, ids) in local.iter_mut().zip(ids.iter_mut()) {
                    let byte = text[lane.next];
                    let child = self.trie.slot(lane.node, byte);
                    let over = child.label() != u32::from(byte);
                    let start = lane.next - lane.node.back();
                    let fresh = self.pair(text, start);
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
    fn finish(&self, text: &[u8], lane: &mut Lane, ids: &mut [u32; ROOM]) -> usize {
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
