//! One long text on several threads, with exactly the ids of one thread (see [`super::join`]).

use super::World;
use super::join::Join;

/// Below this a thread costs more than it brings.
const MIN_PIECE: usize = 1 << 16;

impl World {
    /// The ids of one long text, found by `threads` threads (0: as many as the machine has).
    /// Exactly the result of [`World::encode`].
    pub fn encode_parallel(&self, text: &[u8], threads: usize) -> Vec<u32> {
        let threads = crate::many::thread_count(threads).min(text.len() / MIN_PIECE).max(1);
        self.encode_pieces(text, threads)
    }

    /// The same in `pieces` pieces, whatever their size.
    pub(super) fn encode_pieces(&self, text: &[u8], pieces: usize) -> Vec<u32> {
        if pieces < 2 || text.len() < pieces {
            return self.encode(text);
        }
        let size = text.len().div_ceil(pieces);
        let cuts: Vec<(usize, usize)> =
            (0..text.len()).step_by(size).map(|from| (from, (from + size).min(text.len()))).collect();
        let guesses: Vec<(Vec<u32>, usize)> = std::thread::scope(|scope| {
            let guess = |from, to| {
                move || {
                    let mut ids = Vec::with_capacity((to - from) / 3 + 8);
                    let end = self.encode_range(text, from, to, &mut ids);
                    (ids, end)
                }
            };
            let workers: Vec<_> = cuts.iter().map(|&(from, to)| scope.spawn(guess(from, to))).collect();
            workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let mut ids = Vec::with_capacity(guesses.iter().map(|(ids, _)| ids.len()).sum());
        let mut join = Join { at: 0 };
        for (&(from, to), (guess, guess_end)) in cuts.iter().zip(&guesses) {
            join.piece(self, text, from, to, guess, *guess_end, &mut ids);
        }
        ids
    }
}
