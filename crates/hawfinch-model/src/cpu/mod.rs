//! The contract on the CPU: handles over recycled buffers, arithmetic by `hawfinch-kernels`, generic over
//! f32 (running) and f64 (checking).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hawfinch_kernels::attention::{self, Rotary};
use hawfinch_kernels::elementwise::{self, Binary, Toward, Unary};
use hawfinch_kernels::mixes::{Affine, Run, norm_mixes};
use hawfinch_kernels::{self as kernels, Isa, Pool, Real, norm, wkv};

use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::ops::{Apply, Batch, LoraRows, Norm, Ops, Reading, Then};
use crate::quantize::Quant;
use crate::{Result, State, StateLayout};

mod adapters;
mod lent;
mod matrix;
mod order;

pub use lent::{Background, Checked};
pub use matrix::Matrix;

/// The CPU.
pub struct Cpu<F: Real = f32> {
    buffers: Arc<Buffers<F>>,
    pool: Arc<Pool>,
    isa: Isa,
    quant: Option<Quant>,
    /// Scratch of products with quantised weights.
    activations: matrix::Scratch,
    order: order::Order,
    lent: lent::Lent,
    background: Background,
    after_relu: AfterRelu,
}

/// Counts of what has entered the matrices that come after relu² (`ffn.value`).
#[derive(Default)]
struct AfterRelu {
    on: AtomicBool,
    inputs: AtomicU64,
    zeros: AtomicU64,
}

impl AfterRelu {
    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    fn count<F: Real>(&self, x: &[F]) {
        self.inputs.fetch_add(x.len() as u64, Ordering::Relaxed);
        self.zeros.fetch_add(x.iter().filter(|v| **v == F::ZERO).count() as u64, Ordering::Relaxed);
    }
}

impl<F: Real> Cpu<F> {
    /// With so many threads (at least one) and the instruction set of `HAWFINCH_ISA`, or the fastest.
    /// Results depend on neither (with [`Quant::Bf16`] on whether there are tiles).
    pub fn new(threads: usize) -> Self {
        Self::with(Arc::new(Pool::new(threads)), Isa::chosen().unwrap_or_else(|_| Isa::best()))
    }

    /// On a given pool of threads, with a given instruction set.
    pub fn with(pool: Arc<Pool>, isa: Isa) -> Self {
        Cpu {
            buffers: Buffers::new(POOLED),
            pool,
            isa,
            quant: None,
            activations: matrix::Scratch::default(),
            order: order::Order::default(),
            lent: lent::Lent::default(),
            background: Background::Nothing,
            after_relu: AfterRelu::default(),
        }
    }

    /// Counts from now on how many inputs of `ffn.value` are zero, which quantised weights are not read for when one token
    /// is computed: [`Cpu::zeros`].
    pub fn count_zeros(&self) {
        self.after_relu.on.store(true, Ordering::Relaxed);
    }

    /// Of all inputs of `ffn.value` so far (layers × tokens × channels), the share that was zero; `None` if nothing was
    /// counted.
    pub fn zeros(&self) -> Option<f64> {
        let counted = &self.after_relu;
        let inputs = counted.inputs.load(Ordering::Relaxed);
        (inputs > 0).then(|| counted.zeros.load(Ordering::Relaxed) as f64 / inputs as f64)
    }

    /// Keeps so many free buffers for further use: as many as one step of training lets go of.
    pub fn keeping(mut self, buffers: usize) -> Self {
        self.buffers = Buffers::new(buffers);
        self
    }

    /// Models prepared from now on have their weights quantised as they are opened (where they are floats).
    pub fn quantizing(mut self, quant: Option<Quant>) -> Self {
        self.quant = quant;
        self
    }

    /// What a thread does with a packed file after its model's first call. No result changes, but damage that is found
    /// is the error of the next call.
    pub fn in_background(mut self, background: Background) -> Self {
        self.background = background;
        self
    }

    /// Waits until that is done; `None` when it never began.
    ///
    /// # Errors
    /// A tensor of the file whose bytes are not those that were written.
    pub fn checked(&self) -> Result<Option<Checked>> {
        self.lent.wait()
    }

    /// The most bytes of tensors that were there at once since it was made or last asked.
    pub fn take_peak(&self) -> u64 {
        self.buffers.peak.swap(self.buffers.used.load(Ordering::Relaxed), Ordering::Relaxed)
    }

    /// How it quantises weights that are floats.
    pub fn quant(&self) -> Option<Quant> {
        self.quant
    }

    /// Threads it works with.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl<F: Real> Default for Cpu<F> {
    /// With the threads of `HAWFINCH_THREADS`, or as many as the machine runs at once.
    fn default() -> Self {
        let asked = std::env::var("HAWFINCH_THREADS").ok().and_then(|s| s.parse().ok());
        let there = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Self::new(asked.unwrap_or_else(there))
    }
}

/// Buffers that no tensor uses any more, with the counters of their handles, so that a step allocates nothing.
struct Buffers<F> {
    /// The one that was given back last is the last.
    free: Mutex<Vec<Arc<Vec<F>>>>,
    /// Of more free buffers than so many the one that was not used for longest is given back to the system.
    most: usize,
    /// Bytes of the buffers that tensors use, and the most that were used at once.
    used: AtomicU64,
    peak: AtomicU64,
}

impl<F: Real> Buffers<F> {
    fn new(most: usize) -> Arc<Self> {
        Arc::new(Buffers { free: Mutex::default(), most, used: AtomicU64::new(0), peak: AtomicU64::new(0) })
    }
}

/// Free buffers that are kept, unless it is said how many.
const POOLED: usize = 64;

impl<F: Real> Buffers<F> {
    /// A buffer of at least `len` numbers of no particular value.
    fn take(&self, len: usize) -> Arc<Vec<F>> {
        let mut free = self.free.lock().unwrap_or_else(|e| e.into_inner());
        // The smallest buffer that is large enough without wasting more than half.
        let fits = |b: &Vec<F>| b.len() >= len && b.len() / 2 <= len;
        let best =
            free.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.len()).map(|(i, _)| i);
        let buffer = match best {
            Some(i) => free.remove(i),
            None => Arc::new(vec![F::ZERO; len]),
        };
        let bytes = (buffer.len() * size_of::<F>()) as u64;
        self.peak.fetch_max(self.used.fetch_add(bytes, Ordering::Relaxed) + bytes, Ordering::Relaxed);
        buffer
    }

    /// Takes a buffer back, if its handle is the last.
    fn give(&self, mut buffer: Arc<Vec<F>>) {
        if Arc::get_mut(&mut buffer).is_some() {
            self.used.fetch_sub((buffer.len() * size_of::<F>()) as u64, Ordering::Relaxed);
            let mut free = self.free.lock().unwrap_or_else(|e| e.into_inner());
            free.push(buffer);
            // Else buffers of lengths that do not come again would keep the place of those that do.
            let oldest = (free.len() > self.most).then(|| free.remove(0));
            drop(free);
            drop(oldest);
        }
    }
}

/// The numbers of a buffer that was just taken.
fn own<F>(buffer: &mut Arc<Vec<F>>) -> &mut [F] {
    Arc::get_mut(buffer).expect("buffers are given back by their last handle")
}

/// Handle of `[rows, channels]` values on the CPU.
#[derive(Clone)]
pub struct Tensor<F: Real> {
    /// As long as when it was made; a tensor may use less of it. There until the handle is dropped.
    buffer: Option<Arc<Vec<F>>>,
    home: Arc<Buffers<F>>,
    len: usize,
    channels: usize,
}

impl<F: Real> Drop for Tensor<F> {
    fn drop(&mut self) {
        self.buffer.take().into_iter().for_each(|buffer| self.home.give(buffer));
    }
}

impl<F: Real> Tensor<F> {
    /// The values, row-major.
    pub fn data(&self) -> &[F] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[..self.len])
    }
    /// The values of a tensor that was just made.
    fn data_mut(&mut self) -> &mut [F] {
        self.buffer.as_mut().map_or(&mut [], |buffer| &mut own(buffer)[..self.len])
    }
    /// The values, to change; `None` while another handle shares them.
    pub fn get_mut(&mut self) -> Option<&mut [F]> {
        let len = self.len;
        self.buffer.as_mut().and_then(Arc::get_mut).map(|values| &mut values[..len])
    }
    /// Rows.
    pub fn rows(&self) -> usize {
        self.data().len() / self.channels
    }
    /// Numbers in a row.
    pub fn channels(&self) -> usize {
        self.channels
    }
    /// The numbers `at`, or the only row, which stands for every row.
    fn rows_or_one(&self, at: std::ops::Range<usize>) -> &[F] {
        if self.rows() == 1 { self.data() } else { &self.data()[at] }
    }
}

/// Numbers above which an element-wise operation is divided over the threads: some ten microseconds.
const DIVIDED: usize = 1 << 15;

impl<F: Real> Cpu<F> {
    /// A new tensor of `rows × channels`, filled by `fill`; what it holds before is of no particular value.
    pub fn make(&self, rows: usize, channels: usize, fill: impl FnOnce(&mut [F])) -> Tensor<F> {
        let len = rows * channels;
        let mut data = self.buffers.take(len);
        fill(&mut own(&mut data)[..len]);
        self.tensor(data, rows, channels)
    }

    /// The tensor of the first `rows × channels` numbers of a buffer.
    fn tensor(&self, buffer: Arc<Vec<F>>, rows: usize, channels: usize) -> Tensor<F> {
        Tensor { buffer: Some(buffer), home: self.buffers.clone(), len: rows * channels, channels }
    }

    /// The same, filled row by row on all threads: `fill(range, part)` fills `part`, which holds the numbers
    /// `range` of the tensor.
    pub fn by_rows(
        &self,
        rows: usize,
        channels: usize,
        fill: impl Fn(std::ops::Range<usize>, &mut [F]) + Sync,
    ) -> Tensor<F> {
        self.make(rows, channels, |y| {
            if rows * channels <= DIVIDED {
                return fill(0..rows * channels, y);
            }
            let chunk = (DIVIDED / 4).div_ceil(channels);
            self.pool.split(y, channels, chunk, |first, part| {
                fill(first * channels..first * channels + part.len(), part);
            });
        })
    }

    /// Softmax attention of sequences of these lengths, each head of each on its own.
    pub fn attend(
        &self,
        [q, k, v]: [&Tensor<F>; 3],
        heads: usize,
        scale: f64,
        lengths: &[usize],
    ) -> Tensor<F> {
        let (c, n) = (q.channels, q.channels / heads);
        let rotary = Rotary::new(lengths.iter().copied().max().unwrap_or(0), n);
        self.make(q.rows(), c, |y| {
            let mut rest = y;
            let mut at = 0;
            let mut sequences = Vec::new();
            for len in lengths {
                let (own, after) = rest.split_at_mut(len * c);
                // SAFETY: each head is computed by one call; the tensor outlives them.
                sequences.push((at..at + len * c, unsafe { wkv::Rows::new(own) }));
                (rest, at) = (after, at + len * c);
            }
            self.pool.run(sequences.len() * heads, &|job| {
                let (at, y) = &sequences[job / heads];
                let [r, k, v] = [q, k, v].map(|t| &t.data()[at.clone()]);
                let x = wkv::Head { r, k, v, head: job % heads, n, c };
                attention::attention(self.isa, y, x, &rotary, F::from_f64(scale));
            });
        })
    }

    /// A WKV operation: `head(rows, state, operands, range)` computes one head of one sequence, whose numbers
    /// are `range` of every `[t, c]` operand, with the head's part of the state.
    fn by_heads(
        &self,
        [r, k, v]: [&Tensor<F>; 3],
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
        head: impl Fn(&wkv::Rows<F>, &mut [F], wkv::Head<'_, F>, std::ops::Range<usize>) + Sync,
    ) -> Tensor<F> {
        let c = r.channels;
        self.make(r.rows(), c, |y| {
            let mut at = 0;
            for (len, state) in batch.lengths.iter().zip(&mut batch.states) {
                let range = at..at + len * c;
                at = range.end;
                let n = state.layout().field("wkv").expect("a matrix state").shape[2];
                let [r, k, v] = [r, k, v].map(|t| &t.data()[range.clone()]);
                // SAFETY: each head is computed by one call.
                let rows = unsafe { wkv::Rows::new(&mut y[range.clone()]) };
                // A step of a head takes about a microsecond.
                let chunk = 8usize.div_ceil(*len);
                self.pool.split(state.field_mut(layer, "wkv"), n * n, chunk, |first, part| {
                    for (h, s) in part.chunks_exact_mut(n * n).enumerate() {
                        let x = wkv::Head { r, k, v, head: first + h, n, c };
                        head(&rows, s, x, range.clone());
                    }
                });
            }
        })
    }
}

impl<F: Real> Ops for Cpu<F> {
    type Tensor = Tensor<F>;
    type Matrix = Matrix;
    type State = State<F>;

    fn matrix(&self, name: &str, weight: &StoredTensor, apply: Apply) -> Result<Matrix> {
        self.prepare(name, weight, apply)
    }

    fn vector(&self, _name: &str, values: &[f64]) -> Tensor<F> {
        self.make(1, values.len(), |y| y.iter_mut().zip(values).for_each(|(y, &v)| *y = F::from_f64(v)))
    }

    fn embedding(&self, table: &Matrix, tokens: &[u32]) -> Tensor<F> {
        self.make(tokens.len(), table.inputs(), |y| table.look_up(y, tokens))
    }

    fn linear_then(&self, x: &Tensor<F>, w: &Matrix, then: Then<'_, Tensor<F>>) -> Tensor<F> {
        let then = match then {
            Then::ReluSquared => kernels::Then::ReluSquared,
            Then::Add(x) => kernels::Then::Add(x.data()),
        };
        let mut y = self.make(x.rows(), w.outputs(), |_| {});
        self.multiply_all([(y.data_mut(), then)], [(x.data(), w)]);
        y
    }

    fn linears<const N: usize>(&self, products: [(&Tensor<F>, &Matrix); N]) -> [Tensor<F>; N] {
        let mut made = products.map(|(x, w)| (self.buffers.take(x.rows() * w.outputs()), x, w));
        let nothing = kernels::Then::Nothing;
        let ys = made.each_mut().map(|(y, x, w)| (&mut own(y)[..x.rows() * w.outputs()], nothing));
        self.multiply_all(ys, products.map(|(x, w)| (x.data(), w)));
        made.map(|(y, x, w)| self.tensor(y, x.rows(), w.outputs()))
    }

    fn columns(&self, x: &Tensor<F>, start: usize, len: usize) -> Tensor<F> {
        self.make(x.rows(), len, |y| {
            for (y, x) in y.chunks_exact_mut(len).zip(x.data().chunks_exact(x.channels)) {
                y.copy_from_slice(&x[start..start + len]);
            }
        })
    }

    fn rows(&self, x: &Tensor<F>, rows: &[usize]) -> Tensor<F> {
        let c = x.channels;
        self.make(rows.len(), c, |y| {
            for (y, &r) in y.chunks_exact_mut(c).zip(rows) {
                y.copy_from_slice(&x.data()[r * c..(r + 1) * c]);
            }
        })
    }

    fn unary(&self, f: Unary, x: &Tensor<F>) -> Tensor<F> {
        self.by_rows(x.rows(), x.channels, |at, y| elementwise::unary(self.isa, f, y, &x.data()[at]))
    }

    fn binary(&self, f: Binary, a: &Tensor<F>, b: &Tensor<F>) -> Tensor<F> {
        self.by_rows(a.rows(), a.channels, |at, y| {
            elementwise::binary(self.isa, f, y, &a.data()[at.clone()], b.rows_or_one(at));
        })
    }

    fn add_scaled(&self, a: &Tensor<F>, b: &Tensor<F>, s: f64) -> Tensor<F> {
        self.by_rows(a.rows(), a.channels, |at, y| {
            elementwise::add_scaled(self.isa, y, &a.data()[at.clone()], &b.data()[at], F::from_f64(s));
        })
    }

    fn add_loras(&self, y: Tensor<F>, x: &Tensor<F>, loras: &[LoraRows<'_, Matrix>]) -> Tensor<F> {
        self.with_loras(y, x, loras)
    }

    fn lerp(&self, from: &Tensor<F>, to: &Tensor<F>, weight: &Tensor<F>) -> Tensor<F> {
        self.by_rows(from.rows(), from.channels, |at, y| {
            let (from, to) = (&from.data()[at.clone()], &to.data()[at.clone()]);
            elementwise::lerp(self.isa, y, from, to, weight.rows_or_one(at));
        })
    }

    fn layer_norm(&self, x: &Tensor<F>, norm: &Norm<Tensor<F>>) -> Tensor<F> {
        self.group_norm(x, norm, 1)
    }

    fn group_norm(&self, x: &Tensor<F>, p: &Norm<Tensor<F>>, heads: usize) -> Tensor<F> {
        let (n, eps) = (x.channels / heads, F::from_f64(p.eps));
        self.by_rows(x.rows(), x.channels, |at, y| {
            norm::group_norm(self.isa, y, &x.data()[at], p.weight.data(), p.bias.data(), n, eps);
        })
    }

    fn normalize_heads(&self, x: &Tensor<F>, heads: usize) -> Tensor<F> {
        let n = x.channels / heads;
        self.by_rows(x.rows(), x.channels, |at, y| norm::l2_normalize(self.isa, y, &x.data()[at], n))
    }

    fn token_shift(
        &self,
        x: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
        field: &str,
    ) -> Tensor<F> {
        let c = x.channels;
        self.make(x.rows(), c, |y| {
            let mut at = 0;
            for (len, state) in batch.lengths.iter().zip(&mut batch.states) {
                let range = at..at + len * c;
                at = range.end;
                let previous = state.field_mut(layer, field);
                elementwise::token_shift(&mut y[range.clone()], &x.data()[range], previous);
            }
        })
    }

    fn norm_mixes<const N: usize>(
        &self,
        x: &Tensor<F>,
        norm: &Norm<Tensor<F>>,
        (weights, toward): ([&Tensor<F>; N], Toward),
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
        field: &str,
    ) -> [Tensor<F>; N] {
        let (t, c) = (x.rows(), x.channels);
        let mut made: [_; N] = std::array::from_fn(|_| self.buffers.take(t * c));
        let mut last = self.make(batch.lengths.len(), c, |_| {});
        let Batch { lengths, states } = &*batch;
        norm_mixes(
            self.isa,
            &self.pool,
            made.each_mut().map(|y| &mut own(y)[..t * c]),
            last.data_mut(),
            x.data(),
            Affine { weight: norm.weight.data(), bias: norm.bias.data(), eps: F::from_f64(norm.eps) },
            (weights.map(|w| w.data()), toward),
            &|s: usize| Run { rows: lengths[s], before: states[s].field(layer, field) },
            &|len, with| {
                let mut room = self.buffers.take(len);
                with(&mut own(&mut room)[..len]);
                self.buffers.give(room);
            },
        );
        for (state, last) in batch.states.iter_mut().zip(last.data().chunks_exact(c)) {
            state.field_mut(layer, field).copy_from_slice(last);
        }
        made.map(|y| self.tensor(y, t, c))
    }

    fn wkv4(
        &self,
        k: &Tensor<F>,
        v: &Tensor<F>,
        time_decay: &Tensor<F>,
        time_first: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
    ) -> Tensor<F> {
        let c = k.channels;
        self.make(k.rows(), c, |y| {
            let mut at = 0;
            for (len, state) in batch.lengths.iter().zip(&mut batch.states) {
                let range = at..at + len * c;
                at = range.end;
                let layout = state.layout().clone();
                let start = layout.field("aa").expect("a v4 state").offset;
                // aa, bb, pp follow each other in the layout.
                let (aa, rest) = state.layer_mut(layer)[start..start + 3 * c].split_at_mut(c);
                let (bb, pp) = rest.split_at_mut(c);
                let (k, v) = (&k.data()[range.clone()], &v.data()[range.clone()]);
                let (state, y) = (wkv::State4 { aa, bb, pp }, &mut y[range]);
                wkv::wkv4(self.isa, &self.pool, y, state, k, v, time_decay.data(), time_first.data());
            }
        })
    }

    fn wkv5(
        &self,
        rkv: [&Tensor<F>; 3],
        time_decay: &Tensor<F>,
        bonus: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
    ) -> Tensor<F> {
        self.by_heads(rkv, batch, layer, |y, s, x, _| {
            wkv::wkv5(self.isa, y, s, x, time_decay.data(), bonus.data());
        })
    }

    fn wkv6(
        &self,
        rkv: [&Tensor<F>; 3],
        d: &Tensor<F>,
        bonus: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
    ) -> Tensor<F> {
        self.by_heads(rkv, batch, layer, |y, s, x, at| {
            wkv::wkv6(self.isa, y, s, x, &d.data()[at], bonus.data());
        })
    }

    fn wkv7(
        &self,
        rkv: [&Tensor<F>; 3],
        om: &Tensor<F>,
        kk: &Tensor<F>,
        a: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
    ) -> Tensor<F> {
        self.by_heads(rkv, batch, layer, |y, s, x, at| {
            let [om, kk, a] = [om, kk, a].map(|t| &t.data()[at.clone()]);
            wkv::wkv7(self.isa, y, s, x, om, kk, a);
        })
    }

    fn attention(
        &self,
        qkv: [&Tensor<F>; 3],
        heads: usize,
        scale: f64,
        batch: &Batch<'_, State<F>>,
    ) -> Tensor<F> {
        self.attend(qkv, heads, scale, &batch.lengths)
    }

    fn scale_key(&self, k: &Tensor<F>, a: &Tensor<F>, k_a: &Tensor<F>) -> Tensor<F> {
        self.by_rows(k.rows(), k.channels, |at, y| {
            elementwise::scale_key(self.isa, y, &k.data()[at.clone()], &a.data()[at], k_a.data());
        })
    }

    fn bonus(&self, x: &Tensor<F>, rkv: [&Tensor<F>; 3], r_k: &Tensor<F>, heads: usize) -> Tensor<F> {
        let n = x.channels / heads;
        self.by_rows(x.rows(), x.channels, |at, y| {
            let [r, k, v] = rkv.map(|t| &t.data()[at.clone()]);
            elementwise::bonus(self.isa, y, &x.data()[at], r, k, v, r_k.data(), n);
        })
    }

    fn read(&self, x: &Tensor<F>, readings: &mut [Reading<'_>]) {
        self.pool.split(readings, 1, 1, |_, reading| {
            let Reading { rows, out, unsound } = &mut reading[0];
            let begun = out.len();
            let values = &x.data()[rows.start * x.channels..rows.end * x.channels];
            out.extend(values.iter().map(|v| v.to_f32()));
            let rows = out[begun..].chunks_exact(x.channels);
            // No way out of the loop within a row: it goes over many numbers at once.
            *unsound = rows.map(|row| row.iter().filter(|v| !v.is_finite()).count()).position(|n| n > 0);
        });
    }

    fn state(&self, from: &State) -> State<F> {
        from.cast()
    }

    fn read_state(&self, state: &State<F>) -> State {
        state.cast()
    }

    fn layout<'s>(&self, state: &'s State<F>) -> &'s StateLayout {
        state.layout()
    }

    fn count_tokens(&self, state: &mut State<F>, tokens: u64) {
        state.tokens += tokens;
    }

    fn called(&self, checkpoint: &Checkpoint) -> Result<()> {
        match self.background {
            Background::Nothing => Ok(()),
            Background::Check => self.lent.begin(checkpoint, false),
            Background::Copy => self.lent.begin(checkpoint, true),
        }
    }
}
