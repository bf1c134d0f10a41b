//! One long text on several threads, with exactly the ids of one thread (see [`super::join`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::World;
use super::join::Join;

/// Bytes of a piece that one thread matches at a time.
const PIECE: usize = 1 << 18;

impl World {
    /// The ids of one long text, found by `threads` threads (0: as many as the machine has).
    /// Exactly the result of [`World::encode`].
    pub fn encode_parallel(&self, text: &[u8], threads: usize) -> Vec<u32> {
        self.encode_pieces(text, crate::many::thread_count(threads), PIECE)
    }

    /// The same in pieces of `size` bytes.
    pub(super) fn encode_pieces(&self, text: &[u8], threads: usize, size: usize) -> Vec<u32> {
        let pieces = text.len().div_ceil(size);
        if threads < 2 || pieces < 2 {
            return self.encode(text);
        }
        let bounds = |piece: usize| (piece * size, ((piece + 1) * size).min(text.len()));
        let next = AtomicUsize::new(0);
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..threads.min(pieces) {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let piece = next.fetch_add(1, Ordering::Relaxed)
                        && piece < pieces
                    {
                        let (from, to) = bounds(piece);
                        let mut guess = Vec::with_capacity(super::likely_ids(to - from));
                        let end = self.encode_range(text, from, to, &mut guess);
                        if sender.send((piece, guess, end)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            // This thread joins what has come, in the text's order, while the others go on.
            let mut ids = Vec::with_capacity(super::likely_ids(text.len()));
            let mut join = Join { at: 0 };
            let mut waiting = HashMap::new();
            let mut piece = 0;
            for (index, guess, end) in receiver {
                waiting.insert(index, (guess, end));
                while let Some((guess, end)) = waiting.remove(&piece) {
                    let (from, to) = bounds(piece);
                    join.piece(self, text, from, to, &guess, end, &mut ids);
                    piece += 1;
                }
            }
            ids
        })
    }
}
