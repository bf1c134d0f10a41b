//! Snapshots as bytes, and places that keep them.
//!
//! A record holds everything that makes it usable: the root, all tokens, the state, the logits, and a checksum over them. Who reads
//! one compares root and tokens with what was asked for, so neither a collision of names nor another program's record can
//! stand in for it.

use super::Snapshot;
use std::sync::Arc;
use xxhash_rust::xxh64::Xxh64;

/// Begins every record; the number counts changes of the form.
const MAGIC: &[u8; 16] = b"hawfinch-state-1";

/// States as bytes and back.
pub trait StateCodec<S>: Send + Sync {
    /// The state's bytes.
    fn encode(&self, state: &S) -> Vec<u8>;
    /// The state of bytes that [`StateCodec::encode`] made for the same model; `None` for anything else.
    fn decode(&self, bytes: &[u8]) -> Option<S>;
}

/// A place that keeps snapshots, shared by many programs or not.
pub trait Store<S>: Send + Sync {
    /// Keeps a snapshot; says which others had to go for it.
    ///
    /// # Errors
    /// What stands in the way, in words.
    fn put(&self, root: &str, tokens: &[u32], snapshot: &Snapshot<S>) -> Result<Vec<Label>, String>;
    /// The snapshot after `tokens`, if it is there and whole.
    ///
    /// # Errors
    /// What stands in the way, in words. A damaged record is removed and counts as none.
    fn get(&self, root: &str, tokens: &[u32]) -> Result<Option<Snapshot<S>>, String>;
    /// The longest beginning of `tokens`, longer than `above`, that a snapshot is there for.
    ///
    /// # Errors
    /// What stands in the way, in words.
    fn longest(&self, root: &str, tokens: &[u32], above: usize) -> Result<Option<usize>, String>;
}

/// What identifies a record before its state is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// What computed it.
    pub root: Arc<str>,
    /// The tokens that led to it.
    pub tokens: Vec<u32>,
    /// Whether it has logits.
    pub logits: bool,
}

/// A record of these.
pub fn record<S>(codec: &dyn StateCodec<S>, root: &str, tokens: &[u32], snapshot: &Snapshot<S>) -> Vec<u8> {
    let state = codec.encode(&snapshot.state);
    let mut out =
        Vec::with_capacity(64 + root.len() + 4 * (tokens.len() + snapshot.logits.len()) + state.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[0; 8]);
    for length in [root.len(), tokens.len(), snapshot.logits.len(), state.len()] {
        out.extend_from_slice(&(length as u64).to_le_bytes());
    }
    out.extend_from_slice(root.as_bytes());
    tokens.iter().for_each(|t| out.extend_from_slice(&t.to_le_bytes()));
    snapshot.logits.iter().for_each(|l| out.extend_from_slice(&l.to_le_bytes()));
    out.extend_from_slice(&state);
    let sum = checksum(&out[24..]);
    out[16..24].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Bytes of a record's head.
pub(super) const HEAD: usize = 24 + 4 * 8;

/// The lengths in a record's head: root, tokens, logits, state; `None` when it is no record, or its parts are not `total`
/// bytes together.
fn lengths(head: &[u8], total: u64) -> Option<[usize; 4]> {
    let rest = head.get(..HEAD)?.strip_prefix(MAGIC)?;
    let mut lengths = [0; 4];
    for (length, bytes) in lengths.iter_mut().zip(rest[8..].chunks_exact(8)) {
        *length = usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()?;
    }
    let [root, tokens, logits, state] = lengths;
    let numbers = tokens.checked_add(logits)?.checked_mul(4)?;
    let sum = HEAD.checked_add(root)?.checked_add(numbers)?.checked_add(state)?;
    (sum as u64 == total).then_some(lengths)
}

/// The bytes that [`label`] needs of a record of `total` bytes that begins with `head`.
pub(super) fn label_bytes(head: &[u8], total: u64) -> Option<usize> {
    let [root, tokens, ..] = lengths(head, total)?;
    Some(HEAD + root + 4 * tokens)
}

/// Whose record it is, from its first [`label_bytes`].
pub(super) fn label(bytes: &[u8], total: u64) -> Option<Label> {
    let [root, tokens, logits, _] = lengths(bytes, total)?;
    let text = std::str::from_utf8(bytes.get(HEAD..HEAD + root)?).ok()?;
    let tokens = numbers(bytes.get(HEAD + root..HEAD + root + 4 * tokens)?);
    Some(Label { root: text.into(), tokens: tokens.collect(), logits: logits > 0 })
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// A record's snapshot, if it is whole and is that of exactly this root and these tokens.
pub fn read<S>(codec: &dyn StateCodec<S>, bytes: &[u8], root: &str, tokens: &[u32]) -> Option<Snapshot<S>> {
    let [root_len, token_len, logit_len, _] = lengths(bytes, bytes.len() as u64)?;
    let sum = u64::from_le_bytes(bytes[16..24].try_into().ok()?);
    let (root_at, tokens_at) = (HEAD, HEAD + root_len);
    let logits_at = tokens_at + 4 * token_len;
    let state_at = logits_at + 4 * logit_len;
    let same = bytes[root_at..tokens_at] == *root.as_bytes()
        && token_len == tokens.len()
        && numbers(&bytes[tokens_at..logits_at]).eq(tokens.iter().copied());
    if !same || checksum(&bytes[24..]) != sum {
        return None;
    }
    let logits: Vec<f32> = numbers(&bytes[logits_at..state_at]).map(f32::from_bits).collect();
    Some(Snapshot { state: codec.decode(&bytes[state_at..])?, logits })
}

fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(bytes, 0)
}

/// The names of beginnings of a text, each with its length, from the longest down to `above` + 1: 32 hexadecimal digits of
/// root and tokens.
pub fn names(root: &str, tokens: &[u32], above: usize) -> Vec<(usize, String)> {
    // Two of 64 bits with other seeds; which record it is its own label says.
    let mut hashes = [Xxh64::new(1), Xxh64::new(2)];
    hashes.iter_mut().for_each(|h| h.update(root.as_bytes()));
    let mut all = Vec::new();
    for (t, len) in tokens.iter().zip(1..) {
        hashes.iter_mut().for_each(|h| h.update(&t.to_le_bytes()));
        if len > above {
            all.push((len, format!("{:016x}{:016x}", hashes[0].digest(), hashes[1].digest())));
        }
    }
    all.reverse();
    all
}

/// The name of a text itself.
pub fn name(root: &str, tokens: &[u32]) -> String {
    let mut hashes = [Xxh64::new(1), Xxh64::new(2)];
    for h in &mut hashes {
        h.update(root.as_bytes());
        tokens.iter().for_each(|t| h.update(&t.to_le_bytes()));
    }
    format!("{:016x}{:016x}", hashes[0].digest(), hashes[1].digest())
}
