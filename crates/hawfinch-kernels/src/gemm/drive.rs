//! The loops around panels: blocks that fit the caches, shared out to threads.
//!
//! Both operands are packed: panels of some rows of `a`, panels of some columns of `b`, word by word along the inner
//! dimension, block by block. A panel is packed once, by whichever thread comes, and read by all. Then blocks of `c` are
//! shared out; a thread works through all inner blocks of one before the next, so that this part of `c` and the
//! panels it needs stay in its second cache. Where one operand has few rows (or columns), the panels of the other are
//! read by one thread each: it packs them itself, and they never leave its caches.

use std::cell::RefCell;
use std::ops::Range;

use super::walk::Walk;
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
    /// What is read next from far memory: to be fetched meanwhile.
    pub ahead: Walk,
}

/// How much is done at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows and columns whose panels are packed together at most.
    pub side: usize,
    /// Bytes of one operand that are packed at a time, where blocks are not longer.
    pub packed: usize,
    /// Bytes of the panels of one operand that a thread works with.
    pub near: usize,
}

/// For machines as they are: panels of both operands that a thread works with and a part of `c` have room in a second cache
/// of 1 MB (where it is smaller, panels come from the third often enough to be fetched in time), all that is packed in a
/// third cache.
pub const LIMITS: Limits = Limits { side: 4096, packed: 8 << 20, near: 256 << 10 };

/// Panels that are packed by one thread, one part of each after the other.
const GROUP: usize = 8;
/// Numbers of each of several panels that are packed in turn where neighbours lie in different panels: rows of memory
/// that are open at a time.
const PART: usize = 32;
/// Panels for each thread that make it worth while to pack them where they are read.
const ALONE: usize = 16;
/// Chunks for each thread that make it unimportant when one is the last.
const CHUNKS: usize = 16;

thread_local! {
    /// Panels of both operands. Of the thread that calls.
    static ROOM: RefCell<[Option<Buffer>; 2]> = const { RefCell::new([None, None]) };
    /// Panels of the rows or columns of a chunk. Of the thread that does it.
    static OWN: RefCell<[Option<Buffer>; 2]> = const { RefCell::new([None, None]) };
}

/// Computes the product.
pub fn run<F: Real, K: Kernel<F>>(kernel: &K, pool: &Pool, operands: Operands<'_, '_, F>, limits: &Limits) {
    let Operands { c, c_row, into, a, b } = operands;
    let ([m, k], n) = (a.shape(), b.columns);
    let depth = kernel.depth(k);
    assert!(depth.is_multiple_of(K::STEP) && PART.is_multiple_of(K::STEP));
    let size = size_of::<K::Word>();
    let left = Side { lanes: K::ROWS, panel: kernel.left_words(depth), size };
    let right = Side { lanes: K::COLUMNS, panel: kernel.right_words(depth), size };
    // Panels that one chunk alone reads are packed by it, when there are enough of them for all threads.
    let alone = |side: &Side, lanes: usize, other: &Side, others: usize| {
        other.bytes(others) <= 2 * limits.near && side.panels(lanes) >= ALONE * pool.threads()
    };
    let right_alone = alone(&right, n, &left, m) && !(alone(&left, m, &right, n) && m > n);
    let left_alone = !right_alone && alone(&left, m, &right, n);
    let (rows, columns) = (
        left.even(m, if left_alone { m } else { limits.side }),
        right.even(n, if right_alone { n } else { limits.side }),
    );
    let bytes = |side: &Side, lanes: usize, alone: bool| if alone { 0 } else { side.bytes(lanes) };
    let [left_bytes, right_bytes] = [bytes(&left, rows, left_alone), bytes(&right, columns, right_alone)];
    let blocks = k.div_ceil(depth);
    // As even as the number of blocks allows.
    let blocks =
        blocks.div_ceil(blocks.div_ceil((limits.packed / left_bytes.max(right_bytes)).clamp(1, blocks)));
    let c = Parts::new(c);
    ROOM.with_borrow_mut(|[left_room, right_room]| {
        let left_room = room::<K::Word>(left_room, left_bytes / size * blocks);
        let right_room = room::<K::Word>(right_room, right_bytes / size * blocks);
        for j in (0..n).step_by(columns) {
            let columns = j..n.min(j + columns);
            for from in (0..k).step_by(blocks * depth) {
                let inner = Inner { range: from..k.min(from + blocks * depth), depth };
                for i in (0..m).step_by(rows) {
                    let rows = i..m.min(i + rows);
                    let a = a.rows(rows.clone()).columns(inner.range.clone());
                    let b = b.columns(columns.clone()).rows(inner.range.clone()).transposed();
                    let pack_left = Pack {
                        side: &left,
                        inner: &inner,
                        x: a,
                        pack: &|to, at, x| kernel.pack_left(to, at, x),
                    };
                    let pack_right = Pack {
                        side: &right,
                        inner: &inner,
                        x: b,
                        pack: &|to, at, x| kernel.pack_right(to, at, x),
                    };
                    // Columns stay while the rows go on.
                    let first = if left_alone { 0 } else { pack_left.chunks() };
                    let second = if right_alone || i > 0 { 0 } else { pack_right.chunks() };
                    let (left_parts, right_parts) = (Parts::new(left_room), Parts::new(right_room));
                    pool.run(first + second, &|chunk| {
                        // SAFETY: each chunk is called once.
                        unsafe {
                            if chunk < first {
                                pack_left.chunk(chunk, &left_parts);
                            } else {
                                pack_right.chunk(chunk - first, &right_parts);
                            }
                        }
                    });
                    let multiply = Multiply {
                        kernel,
                        c: &c,
                        c_row,
                        add: into == Into::Add || from > 0,
                        rows: Lanes::new(pack_left, (!left_alone).then_some(left_room), i, limits),
                        columns: Lanes::new(pack_right, (!right_alone).then_some(right_room), j, limits),
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

    /// How many of `lanes` are packed together, `most` at most: as even as panels allow.
    fn even(&self, lanes: usize, most: usize) -> usize {
        lanes.div_ceil(lanes.div_ceil(most)).next_multiple_of(self.lanes)
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

/// What packs part of a panel: [`Kernel::pack_left`] or [`Kernel::pack_right`].
type PackPart<'a, F, W> = dyn Fn(&mut [W], usize, View<'_, F>) + Sync + 'a;

/// Packing of one operand.
struct Pack<'a, F, W> {
    side: &'a Side,
    inner: &'a Inner,
    /// `[lanes, inner]`
    x: View<'a, F>,
    pack: &'a PackPart<'a, F, W>,
}

impl<F: Real, W> Pack<'_, F, W> {
    /// A chunk is some neighbouring panels of one inner block.
    fn chunks(&self) -> usize {
        self.inner.blocks() * self.panels().div_ceil(GROUP)
    }

    fn panels(&self) -> usize {
        self.side.panels(self.x.rows)
    }

    /// * `to`: `[block, panel]`
    ///
    /// # Safety
    /// No two threads do the same chunk, or use `to` meanwhile.
    unsafe fn chunk(&self, n: usize, to: &Parts<W>) {
        let groups = self.panels().div_ceil(GROUP);
        let (block, first) = (n / groups, n % groups * GROUP);
        let panels = first..self.panels().min(first + GROUP);
        let (at, len) = ((block * self.panels() + first) * self.side.panel, panels.len() * self.side.panel);
        // SAFETY: these panels of this block belong to this chunk.
        self.panels_of(block, panels, unsafe { to.get(at, len) });
    }

    /// Some panels of one block.
    fn panels_of(&self, block: usize, panels: Range<usize>, to: &mut [W]) {
        let x = self.x.columns(self.inner.block(block));
        let part = if x.column_stride == 1 { x.columns } else { PART };
        for at in (0..x.columns).step_by(part) {
            let x = x.columns(at..x.columns.min(at + part));
            for (panel, to) in panels.clone().zip(to.chunks_exact_mut(self.side.panel)) {
                let lanes = panel * self.side.lanes..x.rows.min((panel + 1) * self.side.lanes);
                (self.pack)(to, at, x.rows(lanes));
            }
        }
    }
}

/// Rows or columns of `c`, and how many panels of them a chunk has.
struct Lanes<'a, F, W> {
    pack: Pack<'a, F, W>,
    /// `[block, panel]`, where they are packed before.
    packed: Option<&'a [W]>,
    /// The first lane.
    first: usize,
    /// Panels of a chunk.
    chunk: usize,
}

impl<'a, F: Real, W: Copy> Lanes<'a, F, W> {
    fn new(pack: Pack<'a, F, W>, packed: Option<&'a [W]>, first: usize, limits: &Limits) -> Self {
        // What a chunk packs itself needs room twice.
        let near = if packed.is_some() { limits.near } else { limits.near / 2 };
        let chunk = (near / (pack.side.panel * pack.side.size)).clamp(1, pack.panels());
        Lanes { pack, packed, first, chunk }
    }

    fn chunks(&self) -> usize {
        self.pack.panels().div_ceil(self.chunk)
    }

    /// Of a chunk: its panels, and their lanes within the part.
    fn part(&self, n: usize) -> (Range<usize>, Range<usize>) {
        let panels = n * self.chunk..self.pack.panels().min((n + 1) * self.chunk);
        let lanes = self.pack.side.lanes;
        (panels.clone(), panels.start * lanes..self.pack.x.rows.min(panels.end * lanes))
    }

    /// What a thread packs after block `block` of chunk `n`.
    fn ahead(&self, block: usize, n: usize) -> Walk {
        if self.packed.is_some() {
            return Walk::default();
        }
        let (block, n) = if block + 1 < self.pack.inner.blocks() { (block + 1, n) } else { (0, n + 1) };
        let lanes = if n < self.chunks() { self.part(n).1 } else { 0..0 };
        Walk::new(self.pack.x.rows(lanes).columns(self.pack.inner.block(block)))
    }

    /// Words of some panels of one block.
    fn words<'b>(&'b self, block: usize, panels: &Range<usize>, own: &'b mut Option<Buffer>) -> &'b [W] {
        let size = self.pack.side.panel;
        match self.packed {
            Some(all) => {
                let first = block * self.pack.panels();
                &all[(first + panels.start) * size..(first + panels.end) * size]
            }
            None => {
                let own = room(own, self.chunk * size);
                self.pack.panels_of(block, panels.clone(), own);
                &own[..panels.len() * size]
            }
        }
    }
}

/// The products of the panels of a part of the inner dimension. A chunk is a block of `c`.
struct Multiply<'a, F: Real, K: Kernel<F>> {
    kernel: &'a K,
    c: &'a Parts<F>,
    c_row: usize,
    add: bool,
    rows: Lanes<'a, F, K::Word>,
    columns: Lanes<'a, F, K::Word>,
}

impl<F: Real, K: Kernel<F>> Multiply<'_, F, K> {
    fn run(mut self, pool: &Pool) {
        // What is packed by a chunk is packed once: the chunk takes all of the other side.
        let (left_alone, right_alone) = (self.rows.packed.is_none(), self.columns.packed.is_none());
        if left_alone {
            self.columns.chunk = self.columns.pack.panels();
        }
        if right_alone {
            self.rows.chunk = self.rows.pack.panels();
        }
        // Smaller chunks, until there are enough for all threads to end at about the same time.
        let threads = pool.threads();
        while threads > 1 && self.rows.chunks() * self.columns.chunks() < CHUNKS * threads {
            let (rows, columns) = (self.rows.chunk * K::ROWS, self.columns.chunk * K::COLUMNS);
            let rows = left_alone
                || !right_alone && (rows >= columns && self.rows.chunk > 1 || self.columns.chunk == 1);
            let larger = if rows { &mut self.rows.chunk } else { &mut self.columns.chunk };
            if *larger == 1 {
                break;
            }
            *larger = larger.div_ceil(2);
        }
        for lanes in [&mut self.rows, &mut self.columns] {
            lanes.chunk = lanes.pack.panels().div_ceil(lanes.chunks());
        }
        let across = self.columns.chunks();
        pool.run(self.rows.chunks() * across, &|n| {
            // SAFETY: each chunk is called once.
            OWN.with_borrow_mut(|own| unsafe { self.chunk(n / across, n % across, own) });
        });
    }

    /// # Safety
    /// No two threads do the same chunk.
    unsafe fn chunk(&self, row: usize, column: usize, own: &mut [Option<Buffer>; 2]) {
        let ((left, rows), (right, columns)) = (self.rows.part(row), self.columns.part(column));
        let at = (self.rows.first + rows.start) * self.c_row + self.columns.first + columns.start;
        assert!(at + (rows.len() - 1) * self.c_row + columns.len() <= self.c.len);
        let inner = self.rows.pack.inner;
        let [own_left, own_right] = own;
        for n in 0..inner.blocks() {
            let block = Block {
                // SAFETY: within c, as was compared.
                c: unsafe { self.c.pointer().add(at) },
                c_row: self.c_row,
                rows: rows.len(),
                columns: columns.len(),
                add: self.add || n > 0,
                depth: inner.block(n).len(),
                left: self.rows.words(n, &left, own_left),
                left_panel: self.rows.pack.side.panel,
                right: self.columns.words(n, &right, own_right),
                right_panel: self.columns.pack.side.panel,
                ahead: if self.rows.packed.is_none() {
                    self.rows.ahead(n, row)
                } else {
                    self.columns.ahead(n, column)
                },
            };
            // SAFETY: within c; blocks of different chunks are disjoint.
            unsafe { self.kernel.multiply(block) };
        }
    }
}
