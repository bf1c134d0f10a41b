//! The loops around panels: blocks that fit the caches, shared out to threads.
//!
//! Both operands are packed: panels of some rows of `a`, panels of some columns of `b`, word by word along the inner
//! dimension, block by block. A panel is packed once, by whichever thread comes, and read by all. Then blocks of `c` are
//! shared out; a thread works through all inner blocks of one before the next, so that this part of `c` and the
//! panels it needs stay in its second cache.

use std::cell::RefCell;
use std::ops::Range;

use super::{Into, Operands, View};
use crate::buffer::Buffer;
use crate::pool::Parts;
use crate::{Pool, Real};

/// How operands are packed and what multiplies them. Its sums may depend on the inner dimension, not on the others.
pub trait Kernel<F: Real>: Sync {
    /// What panels are made of.
    type Word: Copy + Send + Sync;
    /// Rows of `a` that a panel holds.
    const ROWS: usize;
    /// Columns of `b` that a panel holds.
    const COLUMNS: usize;
    /// Lengths of blocks are multiples of it, but for the last.
    const STEP: usize;

    /// Length of the blocks that an inner dimension of `k` is divided into: a multiple of [`Kernel::STEP`].
    fn depth(&self, k: usize) -> usize;
    /// Words of a panel of rows, of `k` numbers each.
    fn left_words(&self, k: usize) -> usize;
    /// Words of a panel of columns, of `k` numbers each.
    fn right_words(&self, k: usize) -> usize;
    /// Writes numbers `at ..` of each row into a panel of rows; zeros, where there are fewer rows than it has.
    ///
    /// * `x`: `[rows, numbers]`; `at` and, but at the end, its numbers are multiples of [`Kernel::STEP`]
    fn pack_left(&self, panel: &mut [Self::Word], at: usize, x: View<'_, F>);
    /// The same for a panel of columns.
    ///
    /// * `x`: `[columns, numbers]`
    fn pack_right(&self, panel: &mut [Self::Word], at: usize, x: View<'_, F>);
    /// Multiplies panels.
    ///
    /// # Safety
    /// `block.c` points to a matrix of that many rows and columns, which nobody else uses meanwhile.
    unsafe fn multiply(&self, block: Block<'_, F, Self::Word>);
}

/// Part of the result, and panels of one inner block.
#[derive(Clone, Copy)]
pub struct Block<'a, F, W> {
    /// `[rows, columns]`, rows `c_row` apart
    pub c: *mut F,
    pub c_row: usize,
    pub rows: usize,
    pub columns: usize,
    /// Whether products are added to what stands there.
    pub add: bool,
    /// Numbers of the inner dimension.
    pub depth: usize,
    /// Panels of rows, `left_panel` words apart; the last may be of fewer.
    pub left: &'a [W],
    pub left_panel: usize,
    /// Panels of columns.
    pub right: &'a [W],
    pub right_panel: usize,
}

/// Rows and columns whose panels are packed together at most.
const SIDE: usize = 4096;
/// Bytes of one operand that are packed at a time, where blocks are not longer.
const PACKED: usize = 8 << 20;
/// Bytes of the panels of one operand that a thread works with: half of them all, beside a part of `c`, have room in
/// a second cache.
const NEAR: usize = 256 << 10;
/// Panels that are packed by one thread, one part of each after the other.
const GROUP: usize = 8;
/// Numbers of each of several panels that are packed in turn where neighbours lie in different panels: rows of memory
/// that are open at a time.
const PART: usize = 32;
/// Chunks for each thread that make it unimportant when one is the last.
const CHUNKS: usize = 16;

thread_local! {
    /// Panels of both operands. Of the thread that calls.
    static ROOM: RefCell<[Option<Buffer>; 2]> = const { RefCell::new([None, None]) };
}

/// Computes the product.
pub fn run<F: Real, K: Kernel<F>>(kernel: &K, pool: &Pool, operands: Operands<'_, '_, F>) {
    let Operands { c, c_row, into, a, b } = operands;
    let ([m, k], n) = (a.shape(), b.columns);
    let depth = kernel.depth(k);
    assert!(depth.is_multiple_of(K::STEP) && PART.is_multiple_of(K::STEP));
    let left = Side { lanes: K::ROWS, panel: kernel.left_words(depth), size: size_of::<K::Word>() };
    let right = Side { lanes: K::COLUMNS, panel: kernel.right_words(depth), size: size_of::<K::Word>() };
    let (rows, columns) = (left.even(m), right.even(n));
    let most = left.bytes(rows).max(right.bytes(columns));
    let blocks = (PACKED / most).clamp(1, k.div_ceil(depth));
    // As even as the number of blocks allows.
    let blocks = k.div_ceil(depth).div_ceil(k.div_ceil(depth).div_ceil(blocks));
    let c = Parts::new(c);
    ROOM.with_borrow_mut(|[left_room, right_room]| {
        let left_room = room::<K::Word>(left_room, left.panels(rows) * left.panel * blocks);
        let right_room = room::<K::Word>(right_room, right.panels(columns) * right.panel * blocks);
        for j in (0..n).step_by(columns) {
            let columns = j..n.min(j + columns);
            for from in (0..k).step_by(blocks * depth) {
                let inner = Inner { range: from..k.min(from + blocks * depth), depth };
                for i in (0..m).step_by(rows) {
                    let rows = i..m.min(i + rows);
                    let a = a.rows(rows.clone()).columns(inner.range.clone());
                    let b = b.columns(columns.clone()).rows(inner.range.clone()).transposed();
                    let packs = [
                        Pack { side: &left, inner: &inner, x: a, to: Parts::new(left_room) },
                        Pack { side: &right, inner: &inner, x: b, to: Parts::new(right_room) },
                    ];
                    // Columns stay while the rows go on.
                    let [first, second] = [packs[0].chunks(), if i == 0 { packs[1].chunks() } else { 0 }];
                    pool.run(first + second, &|chunk| {
                        // SAFETY: each chunk is called once.
                        unsafe {
                            if chunk < first {
                                packs[0].chunk(chunk, &|panel, at, x| kernel.pack_left(panel, at, x));
                            } else {
                                packs[1]
                                    .chunk(chunk - first, &|panel, at, x| kernel.pack_right(panel, at, x));
                            }
                        }
                    });
                    let multiply = Multiply {
                        kernel,
                        c: &c,
                        c_row,
                        add: into == Into::Add || from > 0,
                        rows: Lanes::new(&left, rows),
                        columns: Lanes::new(&right, columns.clone()),
                        inner: &inner,
                        left: left_room,
                        right: right_room,
                    };
                    multiply.run(pool);
                }
            }
        }
    });
}

/// So many words that a product may write to.
fn room<W: Copy>(buffer: &mut Option<Buffer>, words: usize) -> &mut [W] {
    let bytes = words * size_of::<W>();
    if buffer.as_ref().is_none_or(|b| b.bytes().len() < bytes) {
        *buffer = None; // freed before the larger one is there
    }
    let buffer = buffer.get_or_insert_with(|| Buffer::new(bytes)).bytes_mut();
    // SAFETY: aligned to 64 bytes, as no word is more; any bits are a word; within the buffer.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), words) }
}

/// How one operand is divided into panels.
struct Side {
    /// Rows or columns of a panel.
    lanes: usize,
    /// Words of a panel of a whole block.
    panel: usize,
    /// Bytes of a word.
    size: usize,
}

impl Side {
    fn panels(&self, lanes: usize) -> usize {
        lanes.div_ceil(self.lanes)
    }

    /// Of the panels of one block.
    fn bytes(&self, lanes: usize) -> usize {
        self.panels(lanes) * self.panel * self.size
    }

    /// How many of `lanes` are packed together: as even as panels allow.
    fn even(&self, lanes: usize) -> usize {
        lanes.div_ceil(lanes.div_ceil(SIDE)).next_multiple_of(self.lanes)
    }
}

/// A part of the inner dimension, in blocks.
struct Inner {
    range: Range<usize>,
    depth: usize,
}

impl Inner {
    fn blocks(&self) -> usize {
        self.range.len().div_ceil(self.depth)
    }

    /// Within the part.
    fn block(&self, n: usize) -> Range<usize> {
        n * self.depth..self.range.len().min((n + 1) * self.depth)
    }
}

/// Packing of one operand. A chunk is some neighbouring panels of one inner block.
struct Pack<'a, F, W> {
    side: &'a Side,
    inner: &'a Inner,
    /// `[lanes, inner]`
    x: View<'a, F>,
    /// `[block, panel]`
    to: Parts<W>,
}

impl<F: Real, W> Pack<'_, F, W> {
    fn chunks(&self) -> usize {
        self.inner.blocks() * self.side.panels(self.x.rows).div_ceil(GROUP)
    }

    /// # Safety
    /// No two threads do the same chunk, or use `to` meanwhile.
    unsafe fn chunk(&self, n: usize, pack: &dyn Fn(&mut [W], usize, View<'_, F>)) {
        let panels = self.side.panels(self.x.rows);
        let (block, group) = (n / panels.div_ceil(GROUP), n % panels.div_ceil(GROUP));
        let x = self.x.columns(self.inner.block(block));
        let part = if self.x.column_stride == 1 { x.columns } else { PART };
        for at in (0..x.columns).step_by(part) {
            let x = x.columns(at..x.columns.min(at + part));
            for panel in group * GROUP..panels.min((group + 1) * GROUP) {
                let lanes = panel * self.side.lanes..x.rows.min((panel + 1) * self.side.lanes);
                // SAFETY: this panel of this block belongs to this chunk.
                let to = unsafe { self.to.get((block * panels + panel) * self.side.panel, self.side.panel) };
                pack(to, at, x.rows(lanes));
            }
        }
    }
}

/// Rows or columns of `c`, and how many panels of them a chunk has.
struct Lanes<'a> {
    side: &'a Side,
    range: Range<usize>,
    panels: usize,
    chunk: usize,
}

impl<'a> Lanes<'a> {
    fn new(side: &'a Side, range: Range<usize>) -> Self {
        let panels = side.panels(range.len());
        let chunk = (NEAR / (side.panel * side.size)).clamp(1, panels);
        Lanes { side, range, panels, chunk }
    }

    fn chunks(&self) -> usize {
        self.panels.div_ceil(self.chunk)
    }
}

/// The products of what is packed. A chunk is a block of `c`.
struct Multiply<'a, F, K: Kernel<F>>
where
    F: Real,
{
    kernel: &'a K,
    c: &'a Parts<F>,
    c_row: usize,
    add: bool,
    rows: Lanes<'a>,
    columns: Lanes<'a>,
    inner: &'a Inner,
    left: &'a [K::Word],
    right: &'a [K::Word],
}

impl<F: Real, K: Kernel<F>> Multiply<'_, F, K> {
    fn run(mut self, pool: &Pool) {
        // Smaller chunks, until there are enough for all threads to end at about the same time.
        let threads = pool.threads();
        while threads > 1 && self.rows.chunks() * self.columns.chunks() < CHUNKS * threads {
            let (rows, columns) = (self.rows.chunk * K::ROWS, self.columns.chunk * K::COLUMNS);
            let larger = if rows >= columns && self.rows.chunk > 1 || self.columns.chunk == 1 {
                &mut self.rows.chunk
            } else {
                &mut self.columns.chunk
            };
            if *larger == 1 {
                break;
            }
            *larger = larger.div_ceil(2);
        }
        for lanes in [&mut self.rows, &mut self.columns] {
            lanes.chunk = lanes.panels.div_ceil(lanes.chunks());
        }
        let across = self.columns.chunks();
        pool.run(self.rows.chunks() * across, &|n| {
            // SAFETY: each chunk is called once.
            unsafe { self.chunk(n / across, n % across) };
        });
    }

    /// # Safety
    /// No two threads do the same chunk.
    unsafe fn chunk(&self, row: usize, column: usize) {
        // Of one side: its panels, and their lanes within the part.
        let part = |lanes: &Lanes<'_>, n: usize| {
            let panels = n * lanes.chunk..lanes.panels.min((n + 1) * lanes.chunk);
            let range = panels.start * lanes.side.lanes..lanes.range.len().min(panels.end * lanes.side.lanes);
            (panels, range)
        };
        let (left, rows) = part(&self.rows, row);
        let (right, columns) = part(&self.columns, column);
        let at = (self.rows.range.start + rows.start) * self.c_row + self.columns.range.start + columns.start;
        assert!(at + (rows.len() - 1) * self.c_row + columns.len() <= self.c.len);
        for n in 0..self.inner.blocks() {
            fn words<'a, W>(all: &'a [W], lanes: &Lanes<'_>, block: usize, panels: &Range<usize>) -> &'a [W] {
                let first = block * lanes.panels;
                &all[(first + panels.start) * lanes.side.panel..(first + panels.end) * lanes.side.panel]
            }
            let block = Block {
                // SAFETY: within c, as was compared.
                c: unsafe { self.c.pointer().add(at) },
                c_row: self.c_row,
                rows: rows.len(),
                columns: columns.len(),
                add: self.add || n > 0,
                depth: self.inner.block(n).len(),
                left: words(self.left, &self.rows, n, &left),
                left_panel: self.rows.side.panel,
                right: words(self.right, &self.columns, n, &right),
                right_panel: self.columns.side.panel,
            };
            // SAFETY: within c; blocks of different chunks are disjoint.
            unsafe { self.kernel.multiply(block) };
        }
    }
}
