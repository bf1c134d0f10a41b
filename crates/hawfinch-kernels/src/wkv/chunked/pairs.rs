//! What the tokens of one chunk are to each other and to the state, without an exponent that could overflow.
//!
//! Some vectors of a token read the state (receptance; in v7 the removal key too), others are written to it (key; in
//! v7 the replacement key too). Between a write at token s and a read at token t > s the state decays by the product D
//! of the decays between them, and what the read finds of the write is ⟨read_t ⊙ D, written_s⟩. The usual way, to
//! divide the writes by the decay since the chunk began, overflows where a decay is near 0. Here nothing is ever
//! divided: every factor is a product of decays, at most 1, and one that vanishes means that the true one does.
//!
//! * Inside a block of [`BLOCK`] tokens a write is decayed token by token and multiplied with each read it meets.
//! * Between blocks D is two factors: of the write to the border where the reading block begins, of the read from there.
//!   Writes are kept decayed to the last border, and go through it together.

use super::product::{Left, Start, dot, product};
use crate::{Isa, Real};

/// Tokens of a block.
pub const BLOCK: usize = 4;

/// Columns of what is kept a token a column: whole registers.
const COLUMNS: usize = 16;

/// A vector of `n` numbers for each token: token t's at `first + t * step`.
#[derive(Clone, Copy)]
pub struct Side<'a, F> {
    pub data: &'a [F],
    pub first: usize,
    pub step: usize,
}

impl<'a, F> Side<'a, F> {
    #[inline(always)]
    pub fn row(&self, t: usize, n: usize) -> &'a [F] {
        &self.data[self.first + t * self.step..][..n]
    }
}

/// Vectors that read.
#[derive(Clone, Copy)]
pub struct Reads<'a, F> {
    pub rows: Side<'a, F>,
    /// Whether the state is read after the token's own decay and writes, not before.
    pub after: bool,
}

/// The quantities of a chunk: R vectors of a token read, W are written. Made once, used for every chunk of a call.
pub struct Pairs<F, const R: usize, const W: usize> {
    n: usize,
    /// Tokens kept room for, to whole registers.
    pub room: usize,
    /// Reads decayed from the chunk's begin, `[tokens, n]` each.
    pub reads: [Vec<F>; R],
    /// Writes decayed to the chunk's end, `[n, room]` each.
    pub written: [Vec<F>; W],
    /// What read t finds of write s, `[tokens, room]` for each read and write; 0 for s > t within t's block, not to
    /// be used behind it.
    pub found: [[Vec<F>; W]; R],
    /// The decay of the whole chunk, `[n]`.
    pub decay: Vec<F>,
    /// The same of one block.
    block: Vec<F>,
    /// Reads decayed from their block's begin, `[BLOCK, n]`.
    near: Vec<F>,
    /// Writes decayed to their block's end, `[BLOCK, n]` each.
    ended: [Vec<F>; W],
}

impl<F: Real, const R: usize, const W: usize> Pairs<F, R, W> {
    /// For chunks of at most `chunk` tokens with heads of `n` channels.
    pub fn new(chunk: usize, n: usize) -> Self {
        let room = chunk.next_multiple_of(COLUMNS);
        let zeros = |len: usize| vec![F::ZERO; len];
        Pairs {
            n,
            room,
            reads: std::array::from_fn(|_| zeros(chunk * n)),
            written: std::array::from_fn(|_| zeros(n * room)),
            found: std::array::from_fn(|_| std::array::from_fn(|_| zeros(chunk * room))),
            decay: zeros(n),
            block: zeros(n),
            near: zeros(BLOCK * n),
            ended: std::array::from_fn(|_| zeros(BLOCK * n)),
        }
    }

    /// The chunk of the tokens whose decays are `w`, `[tokens, n]`.
    #[inline(always)]
    pub fn fill(&mut self, isa: Isa, w: &[F], reads: [Reads<'_, F>; R], writes: [Side<'_, F>; W]) {
        let (n, tokens) = (self.n, w.len() / self.n);
        self.decay.fill(F::ONE);
        for first in (0..tokens).step_by(BLOCK) {
            let len = BLOCK.min(tokens - first);
            let w = &w[first * n..][..len * n];
            for (read, x) in reads.iter().enumerate() {
                self.read(isa, read, *x, w, first);
            }
            for (write, x) in writes.iter().enumerate() {
                self.write(isa, write, *x, &reads, w, first);
            }
            for i in 0..n {
                self.decay[i] *= self.block[i];
            }
        }
    }

    /// One block's reads: what they find in the blocks before.
    #[inline(always)]
    fn read(&mut self, isa: Isa, read: usize, x: Reads<'_, F>, w: &[F], first: usize) {
        let (n, room, len) = (self.n, self.room, w.len() / self.n);
        self.block.fill(F::ONE);
        for (t, w) in w.chunks_exact(n).enumerate() {
            let own = x.rows.row(first + t, n);
            let near = &mut self.near[t * n..][..n];
            let far = &mut self.reads[read][(first + t) * n..][..n];
            for i in 0..n {
                let passed = self.block[i] * w[i];
                near[i] = own[i] * if x.after { passed } else { self.block[i] };
                far[i] = near[i] * self.decay[i];
                self.block[i] = passed;
            }
        }
        if first > 0 {
            // In whole registers: what is behind `first` is written over or not used.
            let columns = first.next_multiple_of(COLUMNS);
            for (found, written) in self.found[read].iter_mut().zip(&self.written) {
                let near = Left { data: &self.near, row: n, step: 1 };
                let found = &mut found[first * room..];
                product(isa, (found, room), near, (written, room), [len, n, columns], Start::Zero);
            }
        }
    }

    /// One block's writes: what its own reads find of them, and how they and those before reach its end.
    #[inline(always)]
    fn write(
        &mut self,
        isa: Isa,
        write: usize,
        x: Side<'_, F>,
        reads: &[Reads<'_, F>; R],
        w: &[F],
        first: usize,
    ) {
        let (n, room, len) = (self.n, self.room, w.len() / self.n);
        for s in 0..len {
            let left = &mut self.ended[write][s * n..][..n];
            left.copy_from_slice(x.row(first + s, n));
            for (x, found) in reads.iter().zip(&mut self.found) {
                let column = first + s;
                for t in 0..s {
                    found[write][(first + t) * room + column] = F::ZERO;
                }
                found[write][column * room + column] =
                    if x.after { dot(isa, x.rows.row(column, n), left) } else { F::ZERO };
            }
            for t in s + 1..len {
                let row = first + t;
                let at = row * room + first + s;
                for (x, found) in reads.iter().zip(&mut self.found).filter(|(x, _)| !x.after) {
                    found[write][at] = dot(isa, x.rows.row(row, n), left);
                }
                for (left, w) in left.iter_mut().zip(&w[t * n..][..n]) {
                    *left *= *w;
                }
                for (x, found) in reads.iter().zip(&mut self.found).filter(|(x, _)| x.after) {
                    found[write][at] = dot(isa, x.rows.row(row, n), left);
                }
            }
        }
        let (written, ended) = (&mut self.written[write], &self.ended[write]);
        // In whole registers too.
        let columns = first.next_multiple_of(COLUMNS);
        for (row, decay) in written.chunks_exact_mut(room).zip(&self.block) {
            for before in row[..columns].chunks_exact_mut(COLUMNS) {
                before.iter_mut().for_each(|k| *k *= *decay);
            }
        }
        let of = |s: usize| &ended[s * n..][..n];
        if len == BLOCK {
            let ended: [&[F]; BLOCK] = [of(0), of(1), of(2), of(3)];
            for (i, row) in written.chunks_exact_mut(room).enumerate() {
                row[first..first + BLOCK].copy_from_slice(&[
                    ended[0][i],
                    ended[1][i],
                    ended[2][i],
                    ended[3][i],
                ]);
            }
        } else {
            for (i, row) in written.chunks_exact_mut(room).enumerate() {
                for s in 0..len {
                    row[first + s] = ended[s * n + i];
                }
            }
        }
    }

    /// `out = reads S`: what read `read` of each token finds in the state the chunk began with. `out`: `[tokens, n]`,
    /// `s`: `[n, n]`, index [key, value].
    #[inline(always)]
    pub fn read_state(&self, isa: Isa, out: &mut [F], read: usize, s: &[F]) {
        let (n, tokens) = (self.n, out.len() / self.n);
        let reads = Left { data: &self.reads[read], row: n, step: 1 };
        product(isa, (out, n), reads, (s, n), [tokens, n, n], Start::Zero);
    }

    /// `out += found values`: what it finds of the chunk's own writes. `out`: `[tokens, n]`; `values` has a row of n
    /// numbers for each token, `value_row` apart.
    #[inline(always)]
    pub fn read_written(
        &self,
        isa: Isa,
        out: &mut [F],
        [read, write]: [usize; 2],
        (values, value_row): (&[F], usize),
    ) {
        let (n, room) = (self.n, self.room);
        for (block, out) in out.chunks_mut(BLOCK * n).enumerate() {
            let (first, len) = (block * BLOCK, out.len() / n);
            let found = Left { data: &self.found[read][write][first * room..], row: room, step: 1 };
            product(isa, (out, n), found, (values, value_row), [len, first + len, n], Start::Kept);
        }
    }

    /// `S = start + Σ_s written_s values_sᵀ`, the state at the chunk's end.
    #[inline(always)]
    pub fn write_state(
        &self,
        isa: Isa,
        s: &mut [F],
        write: usize,
        (values, value_row): (&[F], usize),
        tokens: usize,
        start: Start<'_, F>,
    ) {
        let n = self.n;
        let written = Left { data: &self.written[write], row: self.room, step: 1 };
        product(isa, (s, n), written, (values, value_row), [n, tokens, n], start);
    }
}
