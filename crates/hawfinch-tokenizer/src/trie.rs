//! A byte trie as a double array: longest match of many keys at one place of a text.
//!
//! A node is one `u64`, so a step costs one load: `nodes[base ^ byte]` is the child if its label is `byte`.
//! Every inner node has a `base` of its own, so the label alone proves the parentage.
//! A node also carries the value of the longest key that is a prefix of its path and how many bytes ago that
//! key ended: when the walk stops, the answer is in the last node, without any bookkeeping on the way.

use std::collections::VecDeque;

use crate::error::{Error, Result};

/// Values lie in `1..VALUE_LIMIT`; 0 means "no key".
pub(crate) const VALUE_LIMIT: u32 = 1 << VALUE_BITS;
/// Longest key in bytes: the distance to the last key must fit its field.
pub(crate) const MAX_KEY: usize = (1 << BACK_BITS) - 1;

// Fields of a node from the lowest bit: label, back, value, base. A free slot has the label 0x100, which no byte
// equals.
const LABEL_BITS: u32 = 9;
const BACK_BITS: u32 = 10;
const VALUE_BITS: u32 = 20;
const BASE_BITS: u32 = 25;
const BACK_SHIFT: u32 = LABEL_BITS;
const VALUE_SHIFT: u32 = BACK_SHIFT + BACK_BITS;
const BASE_SHIFT: u32 = VALUE_SHIFT + VALUE_BITS;
const FREE: Node = Node(0x100);
const MAX_SLOTS: usize = 1 << BASE_BITS;

/// One node. The base 0 belongs to a block of free slots, so that a leaf leads nowhere without a special case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node(u64);

impl Node {
    fn new(label: u8, back: usize, value: u32) -> Node {
        Node(u64::from(label) | (back as u64) << BACK_SHIFT | u64::from(value) << VALUE_SHIFT)
    }
    #[inline(always)]
    pub(crate) fn label(self) -> u32 {
        (self.0 & ((1 << LABEL_BITS) - 1)) as u32
    }
    /// Bytes between the end of the longest key on this path and this node.
    #[inline(always)]
    pub(crate) fn back(self) -> usize {
        ((self.0 >> BACK_SHIFT) & ((1 << BACK_BITS) - 1)) as usize
    }
    /// Value of the longest key on this path, 0 if there is none.
    #[inline(always)]
    pub(crate) fn value(self) -> u32 {
        ((self.0 >> VALUE_SHIFT) & ((1 << VALUE_BITS) - 1)) as u32
    }
    /// The same key, `bytes` further from its end, and no children.
    pub(crate) fn stop_after(self, bytes: usize) -> Node {
        Node::new(0, self.back() + bytes, self.value())
    }
    #[inline(always)]
    fn base(self) -> usize {
        (self.0 >> BASE_SHIFT) as usize
    }
}

/// The trie. See the file's head.
pub(crate) struct Trie {
    nodes: Vec<Node>,
    root: Node,
}

impl Trie {
    /// Builds the trie of `(key, value)` pairs. Keys are unique, 1 to [`MAX_KEY`] bytes, sorted by bytes; values lie
    /// in `1..VALUE_LIMIT`. (The callers check this; it decides results, not memory safety.)
    ///
    /// # Errors
    /// The keys need more nodes than the format can number (33 million slots).
    pub(crate) fn build(keys: &[(&[u8], u32)]) -> Result<Trie> {
        Builder::new(keys).build()
    }

    #[inline(always)]
    pub(crate) fn root(&self) -> Node {
        self.root
    }

    /// What stands where the child of `node` along `byte` would: the child if its label is `byte`.
    #[inline(always)]
    fn slot(&self, node: Node, byte: u8) -> Node {
        self.nodes[node.base() ^ usize::from(byte)]
    }

    /// The same without a check of bounds.
    ///
    /// # Safety
    /// `node` comes from this trie.
    #[inline(always)]
    pub(crate) unsafe fn slot_unchecked(&self, node: Node, byte: u8) -> Node {
        debug_assert!(node.base() < self.nodes.len());
        // SAFETY: the builder asserts that each base lies inside `nodes`, whose length is a multiple of 256: a base
        // with its low eight bits changed lies inside too.
        unsafe { *self.nodes.get_unchecked(node.base() ^ usize::from(byte)) }
    }

    /// The child of `node` along `byte`.
    #[inline(always)]
    pub(crate) fn child(&self, node: Node, byte: u8) -> Option<Node> {
        let child = self.slot(node, byte);
        (child.label() == u32::from(byte)).then_some(child)
    }

    /// Value and length of the longest key that starts at the beginning of `text`.
    pub(crate) fn longest_prefix(&self, text: &[u8]) -> Option<(u32, usize)> {
        let mut node = self.root;
        let mut depth = 0;
        for &byte in text {
            match self.child(node, byte) {
                Some(child) => node = child,
                None => break,
            }
            depth += 1;
        }
        (node.value() != 0).then(|| (node.value(), depth - node.back()))
    }

    /// Number of slots (for reports about memory).
    #[cfg(test)]
    pub(crate) fn slots(&self) -> usize {
        self.nodes.len()
    }
}

const BLOCK: usize = 256;
/// How many blocks with free slots are kept in view.
const OPEN_BLOCKS: usize = 8;
/// A block with fewer free slots is not searched any more.
const FEW_FREE: u32 = 12;

/// One bit for each slot of a block.
type Bits = [u64; 4];

/// The set `{x ^ label : x in bits}`.
fn shifted(bits: &Bits, label: u8) -> Bits {
    const EVEN: [u64; 6] = [
        0x5555_5555_5555_5555,
        0x3333_3333_3333_3333,
        0x0F0F_0F0F_0F0F_0F0F,
        0x00FF_00FF_00FF_00FF,
        0x0000_FFFF_0000_FFFF,
        0x0000_0000_FFFF_FFFF,
    ];
    std::array::from_fn(|word| {
        let mut w = bits[word ^ usize::from(label >> 6)];
        for (bit, even) in EVEN.iter().enumerate() {
            if label >> bit & 1 == 1 {
                w = (w & even) << (1 << bit) | (w >> (1 << bit)) & even;
            }
        }
        w
    })
}

/// A block of slots that still has room.
struct OpenBlock {
    start: usize,
    free: Bits,
    /// Bases in this block that no node has yet.
    bases: Bits,
}

impl OpenBlock {
    /// A base with room for `labels`; takes it and the slots.
    fn place(&mut self, labels: &[(u8, u32, u32)]) -> Option<usize> {
        let mut fitting = self.bases;
        for &(label, ..) in labels {
            let room = shifted(&self.free, label);
            for (f, r) in fitting.iter_mut().zip(room) {
                *f &= r;
            }
            if fitting == [0; 4] {
                return None;
            }
        }
        let word = fitting.iter().position(|&w| w != 0)?;
        let base = word * 64 + fitting[word].trailing_zeros() as usize;
        self.bases[word] &= !(1 << (base % 64));
        for &(label, ..) in labels {
            let slot = base ^ usize::from(label);
            self.free[slot / 64] &= !(1 << (slot % 64));
        }
        Some(self.start + base)
    }

    fn is_full(&self) -> bool {
        self.free.iter().map(|w| w.count_ones()).sum::<u32>() < FEW_FREE || self.bases == [0; 4]
    }
}

struct Builder<'a> {
    keys: &'a [(&'a [u8], u32)],
    nodes: Vec<Node>,
    /// Oldest first.
    open: VecDeque<OpenBlock>,
}

/// A node whose children are still to be placed: `keys[from..to]` pass through it.
struct Open {
    from: u32,
    to: u32,
    depth: u32,
    /// Slot of the node; 0 for the root.
    slot: u32,
    node: Node,
}

impl<'a> Builder<'a> {
    fn new(keys: &'a [(&'a [u8], u32)]) -> Self {
        // Block 0 stays free for ever: leaves point at it.
        let mut nodes = Vec::with_capacity((keys.len() * 2).next_multiple_of(BLOCK));
        nodes.resize(BLOCK, FREE);
        Builder { keys, nodes, open: VecDeque::with_capacity(OPEN_BLOCKS + 1) }
    }

    fn build(mut self) -> Result<Trie> {
        let mut root = Node::new(0, 0, 0);
        let mut queue = VecDeque::with_capacity(1 << 15);
        queue.push_back(Open { from: 0, to: self.keys.len() as u32, depth: 0, slot: 0, node: root });
        let mut labels: Vec<(u8, u32, u32)> = Vec::with_capacity(BLOCK);
        // Breadth first: the few nodes near the root, which every match visits, lie together.
        while let Some(open) = queue.pop_front() {
            let depth = open.depth as usize;
            labels.clear();
            for (index, (key, _)) in (open.from..).zip(&self.keys[open.from as usize..open.to as usize]) {
                match (key.get(depth), labels.last_mut()) {
                    (None, _) => {} // the key that ends in this very node
                    (Some(&label), Some(last)) if last.0 == label => last.2 = index + 1,
                    (Some(&label), _) => labels.push((label, index, index + 1)),
                }
            }
            if labels.is_empty() {
                continue;
            }
            let base = self.find_base(&labels)?;
            let with_base = Node(open.node.0 | (base as u64) << BASE_SHIFT);
            if depth == 0 {
                root = with_base;
            } else {
                self.nodes[open.slot as usize] = with_base;
            }
            for &(label, from, to) in &labels {
                // The shortest of the sorted keys with this prefix is the first.
                let (key, value) = self.keys[from as usize];
                let node = if key.len() == depth + 1 {
                    Node::new(label, 0, value)
                } else if open.node.value() == 0 {
                    Node::new(label, 0, 0)
                } else {
                    Node::new(label, open.node.back() + 1, open.node.value())
                };
                let slot = base ^ usize::from(label);
                self.nodes[slot] = node;
                if to - from > 1 || key.len() > depth + 1 {
                    queue.push_back(Open { from, to, depth: open.depth + 1, slot: slot as u32, node });
                }
            }
        }
        // What `slot_unchecked` relies on.
        let slots = self.nodes.len();
        assert!(slots.is_multiple_of(BLOCK) && root.base() < slots);
        assert!(self.nodes.iter().all(|node| node.base() < slots));
        Ok(Trie { nodes: self.nodes, root })
    }

    /// A base that no other node has, with all slots for `labels` free; they are taken.
    fn find_base(&mut self, labels: &[(u8, u32, u32)]) -> Result<usize> {
        // Only children fill the gaps of the oldest blocks; brothers look where most is free.
        let single = labels.len() == 1;
        for turn in 0..self.open.len() {
            let index = if single { turn } else { self.open.len() - 1 - turn };
            if let Some(base) = self.open[index].place(labels) {
                if self.open[index].is_full() {
                    self.open.remove(index);
                }
                return Ok(base);
            }
        }
        let start = self.nodes.len();
        if start + BLOCK > MAX_SLOTS {
            return Err(Error::Vocabulary("it has too many different tokens for the token trie".into()));
        }
        self.nodes.resize(start + BLOCK, FREE);
        let mut block = OpenBlock { start, free: [u64::MAX; 4], bases: [u64::MAX; 4] };
        let base = block.place(labels);
        if self.open.len() == OPEN_BLOCKS {
            self.open.pop_front();
        }
        self.open.push_back(block);
        base.ok_or_else(|| Error::Vocabulary("a trie node has no children".into()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::Random;

    /// Keys of few and of many different bytes: dense and sparse nodes.
    #[test]
    fn finds_what_was_put_in_and_stays_compact() {
        let mut random = Random::new(10);
        for (count, letters) in [(0, 1), (1, 256), (300, 2), (5_000, 16), (20_000, 256)] {
            let mut keys: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            for value in 1..=count {
                let key = (0..1 + random.below(6)).map(|_| (random.below(letters) * 37) as u8).collect();
                keys.insert(key, value);
            }
            let sorted: Vec<(&[u8], u32)> =
                keys.iter().map(|(key, value)| (key.as_slice(), *value)).collect();
            let trie = Trie::build(&sorted).unwrap();
            let nodes: std::collections::BTreeSet<&[u8]> =
                keys.keys().flat_map(|key| (1..=key.len()).map(move |n| &key[..n])).collect();
            assert!(
                trie.slots() < 4 * nodes.len() + 2 * BLOCK + 1,
                "{} slots for {} nodes",
                trie.slots(),
                nodes.len()
            );
            let near = keys.keys().flat_map(|key| [&key[..key.len() - 1], key].map(|k| [k, b"%x"].concat()));
            let random = (0..1_000).map(|_| (0..8).map(|_| (random.below(letters) * 37) as u8).collect());
            for text in near.chain(random) {
                let expected =
                    (1..=text.len()).rev().find_map(|n| keys.get(&text[..n]).map(|&value| (value, n)));
                assert_eq!(trie.longest_prefix(&text), expected);
            }
        }
    }
}
