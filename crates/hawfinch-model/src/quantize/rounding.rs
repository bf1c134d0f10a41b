//! Weights in blocks, and what rounding them changes in the weights themselves.

use hawfinch_kernels::{DType, block};

use crate::checkpoint::StoredTensor;
use crate::{Cpu, Error, Result};

/// F16, in which blocks hold their scales, has no number from here on.
const END: f32 = 65520.0;

/// The 4-bit block type whose blocks divide a row of so many numbers.
pub fn narrow(inputs: usize) -> Option<DType> {
    [DType::Q4_K, DType::Q4_0].into_iter().find(|d| d.bytes_for(inputs).is_some())
}

/// The 8-bit block type, where its blocks divide such a row.
pub fn wide(inputs: usize) -> Option<DType> {
    Some(DType::Q8_0).filter(|d| d.bytes_for(inputs).is_some())
}

/// A float weight `[out, in]` in blocks of `dtype`, encoded on all threads.
///
/// # Errors
/// A number that blocks cannot hold: NaN, an infinity, or beyond F16.
///
/// # Panics
/// When the blocks do not divide a row, or it is no float weight.
pub fn encoded(ops: &Cpu, name: &str, weight: &StoredTensor, dtype: DType) -> Result<StoredTensor> {
    check(name, weight)?;
    let weight = &weight.unpacked();
    if weight.transposed || weight.scale != 1.0 {
        return Ok(weight.converted(dtype).expect("whole blocks of a type that is written"));
    }
    let inputs = weight.shape[1];
    let data = ops.quantized(weight, inputs, dtype).into();
    Ok(StoredTensor { dtype, data, ..weight.clone() })
}

fn check(name: &str, weight: &StoredTensor) -> Result<()> {
    if let Some((index, value)) = weight.first_non_finite() {
        return Err(Error::NonFinite { name: name.into(), index, value: value.to_string() });
    }
    let mut largest = 0f32;
    each_row(weight, |row| largest = row.iter().fold(largest, |m, v| m.max(v.abs())));
    if largest * weight.scale.abs() >= END {
        return Err(Error::Invalid(format!(
            "tensor `{name}` holds numbers up to {largest:e}, which no block can hold (its scale ends at 65504)"
        )));
    }
    Ok(())
}

/// Rows as they are stored, decoded but not scaled.
fn each_row(t: &StoredTensor, mut f: impl FnMut(&[f32])) {
    let t = &t.unpacked();
    let cols = t.shape[t.shape.len() - if t.transposed { 2 } else { 1 }];
    let Some(bytes) = t.dtype.bytes_for(cols).filter(|&b| b > 0) else { return };
    let mut row = vec![0.0; cols];
    for data in t.data.chunks_exact(bytes) {
        block::decode(t.dtype, data, &mut row);
        f(&row);
    }
}

/// Numbers that share a scale in every block type that is used.
const BLOCK: usize = 32;

/// How a weight's numbers are spread, and what rounding does to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Rounding {
    /// The largest number over the root mean square of all: 3 to 6 where they are spread as random ones are, tens
    /// where a few stand out.
    pub peak: f64,
    /// Root mean square of what rounding changes, over that of the numbers, both without the largest of every 32: about
    /// 0.1 in 4 bits where none stands out, up to 1 (all others lost) where one in 32 does.
    pub error: f64,
}

impl Rounding {
    /// Of a weight and the same in blocks.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn of(weight: &StoredTensor, rounded: &StoredTensor) -> Rounding {
        assert_eq!(weight.shape, rounded.shape);
        let mut sums = Sums::default();
        if weight.transposed || weight.scale != 1.0 {
            sums.add(&weight.to_f32(), &rounded.to_f32());
        } else {
            let cols = weight.shape[1];
            let bytes = rounded.dtype.bytes_for(cols).expect("whole blocks");
            let (mut rows, mut other) = (rounded.data.chunks_exact(bytes.max(1)), vec![0.0; cols]);
            each_row(weight, |row| {
                block::decode(rounded.dtype, rows.next().expect("as many rows"), &mut other);
                sums.add(row, &other);
            });
        }
        let root = |sum: f64, of: f64| if of > 0.0 { (sum / of).sqrt() } else { 0.0 };
        let all = sums.largest * sums.largest * weight.len() as f64;
        Rounding { peak: root(all, sums.squares), error: root(sums.others_changed, sums.others) }
    }
}

#[derive(Default)]
struct Sums {
    largest: f64,
    squares: f64,
    /// Squares of all but the largest of every block, and of what changed in them.
    others: f64,
    others_changed: f64,
}

impl Sums {
    fn add(&mut self, weight: &[f32], rounded: &[f32]) {
        for (w, r) in weight.chunks(BLOCK).zip(rounded.chunks(BLOCK)) {
            let top = (0..w.len()).fold(0, |top, i| if w[i].abs() > w[top].abs() { i } else { top });
            self.largest = self.largest.max(f64::from(w[top].abs()));
            for (i, (&w, &r)) in w.iter().zip(r).enumerate() {
                let (w, r) = (f64::from(w), f64::from(r));
                self.squares += w * w;
                if i != top {
                    self.others += w * w;
                    self.others_changed += (w - r) * (w - r);
                }
            }
        }
    }
}

/// Any float tensor with its numbers rounded as blocks of `dtype` would hold them, along its numbers in their
/// order, as f32: what blocks would cost where none are used. `None` where they are no whole blocks.
pub fn as_if(tensor: &StoredTensor, dtype: DType) -> Option<StoredTensor> {
    let mut values = tensor.to_f32();
    dtype.bytes_for(values.len())?;
    let mut blocks = Vec::new();
    if !tensor.dtype.is_float() || !block::encode(dtype, &values, &mut blocks) {
        return None;
    }
    block::decode(dtype, &blocks, &mut values);
    Some(StoredTensor::from_f32(&tensor.shape, &values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_stands_out_costs_its_block() {
        let mut random = crate::Rng::new(3);
        let mut values: Vec<f32> =
            (0..64 * 64).map(|_| (random.next_u64() % 2001) as f32 / 1000.0 - 1.0).collect();
        let of = |values: &[f32]| {
            let w = StoredTensor::from_f32(&[64, 64], values);
            let q = encoded(&Cpu::new(1), "w", &w, DType::Q4_0).unwrap();
            assert_eq!(Some(&q.data), w.converted(DType::Q4_0).map(|t| t.data).as_ref());
            Rounding::of(&w, &q)
        };
        let even = of(&values);
        assert!(even.peak < 2.0 && even.error > 0.04 && even.error < 0.12, "{even:?}");
        values.iter_mut().step_by(32).for_each(|v| *v = 20.0);
        let sharp = of(&values);
        assert!(sharp.peak > 5.0, "{sharp:?}");
        // The others are lost.
        assert!(sharp.error > 0.9, "{sharp:?}");
        assert_eq!(of(&[0.0; 64 * 64]), Rounding::default());
    }

    #[test]
    fn numbers_that_no_block_holds() {
        for bad in [f32::NAN, f32::INFINITY, 7e4] {
            let mut values = [0.5; 64];
            values[40] = bad;
            let w = StoredTensor::from_f32(&[2, 32], &values);
            let said = encoded(&Cpu::new(1), "blocks.0.w", &w, DType::Q8_0).unwrap_err().to_string();
            assert!(said.contains("blocks.0.w"), "{said}");
        }
    }
}
