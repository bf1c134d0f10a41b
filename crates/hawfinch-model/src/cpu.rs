//! The contract on the CPU: handles over recycled buffers, arithmetic by `hawfinch-kernels`, generic over
//! f32 (running) and f64 (checking).

use std::sync::{Arc, Mutex};

use hawfinch_kernels::elementwise::{self, Binary, Unary};
use hawfinch_kernels::linear::{self, Layout};
use hawfinch_kernels::{DType, Real, norm, wkv};

use crate::checkpoint::StoredTensor;
use crate::ops::{Apply, Batch, Norm, Ops};
use crate::{Error, Result, State, StateLayout};

/// The CPU.
pub struct Cpu<F: Real = f32> {
    pool: Arc<Pool<F>>,
    threads: usize,
}

impl<F: Real> Cpu<F> {
    /// With so many threads (at least one). Results do not depend on their number.
    pub fn new(threads: usize) -> Self {
        Cpu { pool: Arc::new(Pool(Mutex::default())), threads: threads.max(1) }
    }

    /// Threads it works with.
    pub fn threads(&self) -> usize {
        self.threads
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

/// Buffers that no tensor uses any more.
struct Pool<F>(Mutex<Vec<Vec<F>>>);

/// Free buffers beyond this many are given back to the system.
const POOLED: usize = 64;

impl<F: Real> Pool<F> {
    /// A buffer of `len` numbers of no particular value.
    fn take(&self, len: usize) -> Vec<F> {
        let mut free = self.0.lock().unwrap_or_else(|e| e.into_inner());
        // The smallest buffer that is large enough without wasting more than half.
        let fits = |b: &Vec<F>| b.capacity() >= len && b.capacity() / 2 <= len;
        let best = free
            .iter()
            .enumerate()
            .filter(|(_, b)| fits(b))
            .min_by_key(|(_, b)| b.capacity())
            .map(|(i, _)| i);
        let mut buffer = best.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        buffer.resize(len, F::ZERO);
        buffer
    }
}

struct Buffer<F: Real> {
    data: Vec<F>,
    pool: Arc<Pool<F>>,
}

impl<F: Real> Drop for Buffer<F> {
    fn drop(&mut self) {
        let mut free = self.pool.0.lock().unwrap_or_else(|e| e.into_inner());
        if free.len() < POOLED {
            free.push(std::mem::take(&mut self.data));
        }
    }
}

/// Handle of `[rows, channels]` values on the CPU.
#[derive(Clone)]
pub struct Tensor<F: Real> {
    buffer: Arc<Buffer<F>>,
    channels: usize,
}

impl<F: Real> Tensor<F> {
    /// The values, row-major.
    pub fn data(&self) -> &[F] {
        &self.buffer.data
    }
    fn rows(&self) -> usize {
        self.data().len() / self.channels
    }
}

/// A weight on the CPU: the bytes of the file as they are.
pub struct Matrix {
    weight: StoredTensor,
    outputs: usize,
    inputs: usize,
    layout: Layout,
}

impl Matrix {
    fn view(&self) -> linear::Matrix<'_> {
        linear::Matrix {
            dtype: self.weight.dtype,
            outputs: self.outputs,
            inputs: self.inputs,
            layout: self.layout,
            scale: self.weight.scale,
            data: &self.weight.data,
        }
    }
}

impl<F: Real> Cpu<F> {
    /// A new tensor of `rows × channels`, filled by `fill`.
    fn make(&self, rows: usize, channels: usize, fill: impl FnOnce(&mut [F])) -> Tensor<F> {
        let mut data = self.pool.take(rows * channels);
        fill(&mut data);
        Tensor { buffer: Arc::new(Buffer { data, pool: self.pool.clone() }), channels }
    }

    /// A tensor of `x`'s shape filled sequence by sequence: `step(sequence, rows, out, state)` gets the
    /// range of the sequence's numbers in every `[t, c]` operand.
    fn by_sequence(
        &self,
        x: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        mut step: impl FnMut(std::ops::Range<usize>, &mut [F], &mut State<F>),
    ) -> Tensor<F> {
        let c = x.channels;
        self.make(x.rows(), c, |y| {
            let mut at = 0;
            for (len, state) in batch.lengths.iter().zip(&mut batch.states) {
                let range = at..at + len * c;
                step(range.clone(), &mut y[range.clone()], state);
                at = range.end;
            }
        })
    }
}

impl<F: Real> Ops for Cpu<F> {
    type Tensor = Tensor<F>;
    type Matrix = Matrix;
    type State = State<F>;

    fn matrix(&self, name: &str, weight: &StoredTensor, apply: Apply) -> Result<Matrix> {
        let [a, b] = weight.shape[..] else {
            return Err(Error::Shape {
                name: name.into(),
                found: weight.shape.clone(),
                expected: "two axes".into(),
            });
        };
        if !weight.dtype.is_float() && !weight.dtype.is_quantized() {
            return Err(Error::Invalid(format!(
                "tensor `{name}` holds {} numbers; weights are floats or quantised blocks",
                weight.dtype
            )));
        }
        let (outputs, inputs) = match apply {
            Apply::Linear => (a, b),
            Apply::Right => (b, a),
        };
        let layout = match (apply, weight.transposed) {
            (Apply::Linear, false) | (Apply::Right, true) => Layout::OutIn,
            (Apply::Linear, true) | (Apply::Right, false) => Layout::InOut,
        };
        debug_assert!(weight.dtype != DType::Bool);
        Ok(Matrix { weight: weight.clone(), outputs, inputs, layout })
    }

    fn vector(&self, values: &[f64]) -> Tensor<F> {
        self.make(1, values.len(), |y| y.iter_mut().zip(values).for_each(|(y, &v)| *y = F::from_f64(v)))
    }

    fn embedding(&self, table: &Matrix, tokens: &[u32]) -> Tensor<F> {
        self.make(tokens.len(), table.inputs, |y| linear::embedding(y, tokens, table.view()))
    }

    fn linear(&self, x: &Tensor<F>, w: &Matrix) -> Tensor<F> {
        self.make(x.rows(), w.outputs, |y| linear::linear(y, x.data(), w.view(), self.threads))
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
        self.make(x.rows(), x.channels, |y| elementwise::unary(f, y, x.data()))
    }

    fn binary(&self, f: Binary, a: &Tensor<F>, b: &Tensor<F>) -> Tensor<F> {
        self.make(a.rows(), a.channels, |y| elementwise::binary(f, y, a.data(), b.data()))
    }

    fn add_scaled(&self, a: &Tensor<F>, b: &Tensor<F>, s: f64) -> Tensor<F> {
        self.make(a.rows(), a.channels, |y| elementwise::add_scaled(y, a.data(), b.data(), F::from_f64(s)))
    }

    fn lerp(&self, from: &Tensor<F>, to: &Tensor<F>, weight: &Tensor<F>) -> Tensor<F> {
        self.make(from.rows(), from.channels, |y| {
            elementwise::lerp(y, from.data(), to.data(), weight.data());
        })
    }

    fn layer_norm(&self, x: &Tensor<F>, norm: &Norm<Tensor<F>>) -> Tensor<F> {
        self.group_norm(x, norm, 1)
    }

    fn group_norm(&self, x: &Tensor<F>, p: &Norm<Tensor<F>>, heads: usize) -> Tensor<F> {
        let (n, eps) = (x.channels / heads, F::from_f64(p.eps));
        self.make(x.rows(), x.channels, |y| {
            norm::group_norm(y, x.data(), p.weight.data(), p.bias.data(), n, eps);
        })
    }

    fn normalize_heads(&self, x: &Tensor<F>, heads: usize) -> Tensor<F> {
        self.make(x.rows(), x.channels, |y| norm::l2_normalize(y, x.data(), x.channels / heads))
    }

    fn token_shift(
        &self,
        x: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
        field: &str,
    ) -> Tensor<F> {
        self.by_sequence(x, batch, |at, y, state| {
            elementwise::token_shift(y, &x.data()[at], state.field_mut(layer, field));
        })
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
        self.by_sequence(k, batch, |at, y, state| {
            let layout = state.layout().clone();
            let start = layout.field("aa").expect("a v4 state").offset;
            let c = k.channels;
            // aa, bb, pp follow each other in the layout.
            let fields = &mut state.layer_mut(layer)[start..start + 3 * c];
            let (aa, rest) = fields.split_at_mut(c);
            let (bb, pp) = rest.split_at_mut(c);
            let (k, v) = (&k.data()[at.clone()], &v.data()[at]);
            wkv::wkv4(y, wkv::State4 { aa, bb, pp }, k, v, time_decay.data(), time_first.data());
        })
    }

    fn wkv5(
        &self,
        [r, k, v]: [&Tensor<F>; 3],
        time_decay: &Tensor<F>,
        bonus: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
    ) -> Tensor<F> {
        self.by_sequence(r, batch, |at, y, state| {
            let n = state.layout().field("wkv").expect("a matrix state").shape[2];
            let [r, k, v] = [r, k, v].map(|t| &t.data()[at.clone()]);
            wkv::wkv5(y, state.field_mut(layer, "wkv"), r, k, v, time_decay.data(), bonus.data(), n);
        })
    }

    fn wkv6(
        &self,
        [r, k, v]: [&Tensor<F>; 3],
        d: &Tensor<F>,
        bonus: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
    ) -> Tensor<F> {
        self.by_sequence(r, batch, |at, y, state| {
            let n = state.layout().field("wkv").expect("a matrix state").shape[2];
            let [r, k, v, d] = [r, k, v, d].map(|t| &t.data()[at.clone()]);
            wkv::wkv6(y, state.field_mut(layer, "wkv"), r, k, v, d, bonus.data(), n);
        })
    }

    fn wkv7(
        &self,
        [r, k, v]: [&Tensor<F>; 3],
        om: &Tensor<F>,
        kk: &Tensor<F>,
        a: &Tensor<F>,
        batch: &mut Batch<'_, State<F>>,
        layer: usize,
    ) -> Tensor<F> {
        self.by_sequence(r, batch, |at, y, state| {
            let n = state.layout().field("wkv").expect("a matrix state").shape[2];
            let [r, om, k, v, kk, a] = [r, om, k, v, kk, a].map(|t| &t.data()[at.clone()]);
            wkv::wkv7(y, state.field_mut(layer, "wkv"), r, om, k, v, kk, a, n);
        })
    }

    fn scale_key(&self, k: &Tensor<F>, a: &Tensor<F>, k_a: &Tensor<F>) -> Tensor<F> {
        self.make(k.rows(), k.channels, |y| elementwise::scale_key(y, k.data(), a.data(), k_a.data()))
    }

    fn bonus(&self, x: &Tensor<F>, [r, k, v]: [&Tensor<F>; 3], r_k: &Tensor<F>, heads: usize) -> Tensor<F> {
        let n = x.channels / heads;
        self.make(x.rows(), x.channels, |y| {
            elementwise::bonus(y, x.data(), r.data(), k.data(), v.data(), r_k.data(), n);
        })
    }

    fn read(&self, x: &Tensor<F>, out: &mut Vec<f32>) {
        out.extend(x.data().iter().map(|v| v.to_f32()));
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
}
