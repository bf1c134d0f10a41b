//! The state tree: states keyed by the exact tokens that led to them.
//!
//! A radix tree over tokens, one root for each thing that can compute (model, adapters, first state). A node may hold a
//! [`Snapshot`]: in memory, or in a [`store::Store`] behind it (files, another machine). Any text that begins as a known one
//! starts from the deepest snapshot on its path; where two texts part, the tree knows the place. Nothing else but
//! equality of all tokens makes a snapshot usable, so a result cannot differ from that of a fresh run.
//!
//! [`StateTree`] is the tree alone, without threads; [`cache`] puts it behind a lock, with its stores; [`store`] and
//! [`files`] keep snapshots outside of memory.

pub mod cache;
pub mod files;
pub mod store;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A sequence at one place: what a fork costs one copy of.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot<S> {
    /// The model's state after the tokens.
    pub state: S,
    /// Logits after the last of them; empty where nobody wanted them.
    pub logits: Vec<f32>,
}

/// What a node has.
#[derive(Debug)]
enum Entry<S> {
    Memory(Arc<Snapshot<S>>),
    /// It lies in the store; whether with logits.
    Stored {
        logits: bool,
    },
}

#[derive(Debug)]
struct Node<S> {
    parent: usize,
    /// The tokens from the parent to here; empty for roots alone.
    edge: Vec<u32>,
    /// By the first token of their edge.
    children: BTreeMap<u32, usize>,
    entry: Option<Entry<S>>,
    /// Also in the store, when it is in memory.
    stored: bool,
    /// When it was used last.
    used: u64,
}

/// A place that a text can start from.
#[derive(Debug, Clone)]
pub enum Found<S> {
    /// It begins as nothing known.
    Nothing,
    /// In memory.
    Memory(Arc<Snapshot<S>>),
    /// In the store.
    Stored,
}

/// What the tree knows of a text.
#[derive(Debug, Clone)]
pub struct Match<S> {
    /// The deepest usable snapshot.
    pub found: Found<S>,
    /// How many tokens lead to it.
    pub at: usize,
    /// How many of the text's first tokens lie on a known path, with or without a snapshot.
    pub known: usize,
}

/// A snapshot that was moved out of memory, to be written to the store.
#[derive(Debug)]
pub struct Evicted<S> {
    /// The root it belongs to.
    pub root: Arc<str>,
    /// The tokens that lead to it.
    pub tokens: Vec<u32>,
    /// It.
    pub snapshot: Arc<Snapshot<S>>,
}

/// The tree.
#[derive(Debug)]
pub struct StateTree<S> {
    nodes: Vec<Node<S>>,
    free: Vec<usize>,
    roots: HashMap<Arc<str>, usize>,
    /// Nodes with a snapshot in memory, by when they were used.
    in_memory: BTreeMap<u64, usize>,
    /// Nodes whose snapshot is in the store.
    in_store: usize,
    /// Bytes of one snapshot without its logits.
    state_bytes: usize,
    bytes: usize,
    budget: usize,
    clock: u64,
    /// Whether what leaves memory stays known.
    keeps_evicted: bool,
}

impl<S> StateTree<S> {
    /// An empty tree that keeps at most `budget` bytes of snapshots of `state_bytes` each in memory. With `keeps_evicted`
    /// what is beyond it stays known as stored; without, it is forgotten.
    pub fn new(state_bytes: usize, budget: usize, keeps_evicted: bool) -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            roots: HashMap::new(),
            in_memory: BTreeMap::new(),
            in_store: 0,
            state_bytes,
            bytes: 0,
            budget,
            clock: 0,
            keeps_evicted,
        }
    }

    /// Bytes of snapshots in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Snapshots in memory and in the store.
    pub fn len(&self) -> [usize; 2] {
        [self.in_memory.len(), self.in_store]
    }

    /// Whether there is no snapshot at all.
    pub fn is_empty(&self) -> bool {
        self.len() == [0, 0]
    }

    fn cost(&self, snapshot: &Snapshot<S>) -> usize {
        self.state_bytes + size_of_val(&snapshot.logits[..])
    }

    /// The deepest snapshot that a text can start from, counted as used. One that stands at the text's very end serves only if
    /// it has logits.
    pub fn find(&mut self, root: &str, tokens: &[u32]) -> Match<S> {
        let mut result = Match { found: Found::Nothing, at: 0, known: 0 };
        let Some(&root) = self.roots.get(root) else { return result };
        let (path, known) = self.walk(root, tokens);
        result.known = known;
        for (node, at) in path.into_iter().rev() {
            let last = at == tokens.len();
            match &self.nodes[node].entry {
                Some(Entry::Memory(s)) if !last || !s.logits.is_empty() => {
                    result.found = Found::Memory(s.clone());
                }
                Some(Entry::Stored { logits }) if !last || *logits => result.found = Found::Stored,
                _ => continue,
            }
            result.at = at;
            self.touch(node);
            break;
        }
        result
    }

    /// The nodes on a text's path with their depth, and how far it is known.
    fn walk(&self, root: usize, tokens: &[u32]) -> (Vec<(usize, usize)>, usize) {
        let (mut node, mut at) = (root, 0);
        let mut path = vec![(root, 0)];
        while let Some(&child) = tokens.get(at).and_then(|t| self.nodes[node].children.get(t)) {
            let same = common(&self.nodes[child].edge, &tokens[at..]);
            at += same;
            if same < self.nodes[child].edge.len() {
                break;
            }
            node = child;
            path.push((node, at));
        }
        (path, at)
    }

    /// Keeps a snapshot of the state after `tokens`. Of two at one place that with logits stays. Returns what had to leave
    /// memory and is not in the store yet.
    pub fn insert(&mut self, root: &Arc<str>, tokens: &[u32], snapshot: Arc<Snapshot<S>>) -> Vec<Evicted<S>> {
        let node = self.node_at(root, tokens);
        let same = match &self.nodes[node].entry {
            Some(Entry::Memory(there)) => !there.logits.is_empty() || snapshot.logits.is_empty(),
            _ => false,
        };
        if !same {
            let stored = matches!(
                self.nodes[node].entry,
                Some(Entry::Stored { logits }) if logits || snapshot.logits.is_empty()
            );
            self.set(node, Some(Entry::Memory(snapshot)));
            self.nodes[node].stored = stored;
        }
        self.touch(node);
        self.shrink()
    }

    /// Notes that the store has a snapshot after `tokens`.
    pub fn insert_stored(&mut self, root: &Arc<str>, tokens: &[u32], logits: bool) {
        let at = self.node_at(root, tokens);
        let node = &mut self.nodes[at];
        match &node.entry {
            Some(Entry::Memory(s)) => node.stored |= logits || s.logits.is_empty(),
            _ => self.set(at, Some(Entry::Stored { logits })),
        }
    }

    /// Forgets the snapshot after `tokens`, wherever it is; nothing happens when there is none.
    pub fn remove(&mut self, root: &str, tokens: &[u32]) {
        let Some(&root) = self.roots.get(root) else { return };
        let (path, _) = self.walk(root, tokens);
        if let Some(&(node, at)) = path.last()
            && at == tokens.len()
        {
            self.set(node, None);
            self.tidy(node);
        }
    }

    /// Forgets that the store has a snapshot after `tokens`; one in memory stays.
    pub fn remove_stored(&mut self, root: &str, tokens: &[u32]) {
        let Some(&root) = self.roots.get(root) else { return };
        let (path, _) = self.walk(root, tokens);
        if let Some(&(node, at)) = path.last()
            && at == tokens.len()
        {
            self.nodes[node].stored = false;
            if let Some(Entry::Stored { .. }) = self.nodes[node].entry {
                self.set(node, None);
                self.tidy(node);
            }
        }
    }

    /// What is in memory and not in the store, the most recently used first; each counts as stored from when it is taken.
    pub fn next_unsaved(&mut self, worth: impl Fn(usize) -> bool) -> Option<Evicted<S>> {
        let candidates: Vec<usize> = self.in_memory.values().rev().copied().collect();
        for node in candidates {
            if std::mem::replace(&mut self.nodes[node].stored, true) {
                continue;
            }
            let taken = self.taken(node);
            if taken.as_ref().is_some_and(|e| worth(e.tokens.len())) {
                return taken;
            }
        }
        None
    }

    /// Puts an entry in place of a node's, or takes it away.
    fn set(&mut self, node: usize, entry: Option<Entry<S>>) {
        match &self.nodes[node].entry {
            Some(Entry::Memory(s)) => {
                self.bytes -= self.cost(s);
                self.in_memory.remove(&self.nodes[node].used);
            }
            Some(Entry::Stored { .. }) => self.in_store -= 1,
            None => {}
        }
        match &entry {
            Some(Entry::Memory(s)) => self.bytes += self.cost(s),
            Some(Entry::Stored { .. }) => self.in_store += 1,
            None => {}
        }
        self.nodes[node].entry = entry;
        self.touch(node);
    }

    /// Counts a node as used now.
    fn touch(&mut self, node: usize) {
        self.clock += 1;
        self.in_memory.remove(&self.nodes[node].used);
        self.nodes[node].used = self.clock;
        if let Some(Entry::Memory(_)) = self.nodes[node].entry {
            self.in_memory.insert(self.clock, node);
        }
    }

    /// A node's snapshot with what names it.
    fn taken(&self, node: usize) -> Option<Evicted<S>> {
        let Some(Entry::Memory(snapshot)) = &self.nodes[node].entry else { return None };
        let (mut edges, mut at) = (Vec::new(), node);
        while !self.nodes[at].edge.is_empty() {
            edges.push(&self.nodes[at].edge);
            at = self.nodes[at].parent;
        }
        let tokens = edges.into_iter().rev().flatten().copied().collect();
        let root = self.roots.iter().find(|(_, n)| **n == at)?.0.clone();
        Some(Evicted { root, tokens, snapshot: snapshot.clone() })
    }

    /// Moves snapshots out of memory, those first that were not used for longest, until it fits.
    fn shrink(&mut self) -> Vec<Evicted<S>> {
        let mut evicted = Vec::new();
        while self.bytes > self.budget
            && let Some((_, &oldest)) = self.in_memory.first_key_value()
        {
            if !self.nodes[oldest].stored {
                evicted.extend(self.taken(oldest));
            }
            let logits = matches!(&self.nodes[oldest].entry, Some(Entry::Memory(s)) if !s.logits.is_empty());
            if self.keeps_evicted {
                self.set(oldest, Some(Entry::Stored { logits }));
            } else {
                self.set(oldest, None);
                self.tidy(oldest);
            }
        }
        evicted
    }

    /// The node after these tokens, made if need be.
    fn node_at(&mut self, root: &Arc<str>, tokens: &[u32]) -> usize {
        let mut node = match self.roots.get(root) {
            Some(&node) => node,
            None => {
                let node = self.add(usize::MAX, Vec::new());
                self.roots.insert(root.clone(), node);
                node
            }
        };
        let mut at = 0;
        while at < tokens.len() {
            let Some(&child) = self.nodes[node].children.get(&tokens[at]) else {
                let leaf = self.add(node, tokens[at..].to_vec());
                self.nodes[node].children.insert(tokens[at], leaf);
                return leaf;
            };
            let same = common(&self.nodes[child].edge, &tokens[at..]);
            at += same;
            if same < self.nodes[child].edge.len() {
                // The edge is divided where the texts part.
                let rest = self.nodes[child].edge.split_off(same);
                let edge = std::mem::replace(&mut self.nodes[child].edge, rest);
                let (first, second) = (edge[0], self.nodes[child].edge[0]);
                let between = self.add(node, edge);
                self.nodes[between].children.insert(second, child);
                self.nodes[child].parent = between;
                self.nodes[node].children.insert(first, between);
                node = between;
            } else {
                node = child;
            }
        }
        node
    }

    fn add(&mut self, parent: usize, edge: Vec<u32>) -> usize {
        let node = Node { parent, edge, children: BTreeMap::new(), entry: None, stored: false, used: 0 };
        match self.free.pop() {
            Some(at) => {
                self.nodes[at] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Drops nodes that hold nothing and lead nowhere, and joins an edge that is no longer divided.
    fn tidy(&mut self, mut node: usize) {
        while self.nodes[node].entry.is_none() && !self.nodes[node].edge.is_empty() {
            let parent = self.nodes[node].parent;
            match self.nodes[node].children.len() {
                0 => {
                    let first = self.nodes[node].edge[0];
                    self.nodes[parent].children.remove(&first);
                    self.free.push(node);
                    self.nodes[node].edge.clear();
                    node = parent;
                }
                1 => {
                    let Some((_, child)) = self.nodes[node].children.pop_first() else { return };
                    let mut edge = std::mem::take(&mut self.nodes[node].edge);
                    let first = edge[0];
                    edge.append(&mut self.nodes[child].edge);
                    self.nodes[child].edge = edge;
                    self.nodes[child].parent = parent;
                    self.nodes[parent].children.insert(first, child);
                    self.free.push(node);
                    return;
                }
                _ => return,
            }
        }
        // A root without anything goes too.
        if self.nodes[node].edge.is_empty()
            && self.nodes[node].parent == usize::MAX
            && self.nodes[node].children.is_empty()
            && self.nodes[node].entry.is_none()
            && let Some(name) = self.roots.iter().find(|(_, n)| **n == node).map(|(name, _)| name.clone())
        {
            self.roots.remove(&name);
            self.free.push(node);
        }
    }
}

/// How many first tokens are the same.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
