//! Adapters of single sequences on the CPU.

use hawfinch_kernels::{Real, elementwise};

use super::{Cpu, DIVIDED, Matrix, Tensor};
use crate::ops::LoraRows;

impl<F: Real> Cpu<F> {
    /// [`crate::ops::Ops::add_loras`]: the first products of all adapters as one job of the threads, then the second ones.
    pub(super) fn with_loras(
        &self,
        y: Tensor<F>,
        x: &Tensor<F>,
        loras: &[LoraRows<'_, Matrix>],
    ) -> Tensor<F> {
        let numbers = |l: &LoraRows<'_, _>, channels| l.rows.start * channels..l.rows.end * channels;
        let rows = |l: &LoraRows<'_, _>| l.rows.len();
        let first = loras.iter().map(|l| (&x.data()[numbers(l, x.channels)], l.a));
        let low = self.products(&first.collect::<Vec<_>>(), loras.iter().map(rows));
        let parts = cut(low.data(), loras.iter().map(|l| rows(l) * l.a.outputs()));
        let second = parts.zip(loras).map(|(low, l)| (low, l.b));
        let added = self.products(&second.collect::<Vec<_>>(), loras.iter().map(rows));
        let mut y = self.unshared(y);
        let c = y.channels;
        for (l, added) in loras.iter().zip(cut(added.data(), loras.iter().map(|l| rows(l) * c))) {
            let scale = F::from_f64(l.scale);
            let y = &mut y.data_mut()[numbers(l, c)];
            if y.len() <= DIVIDED {
                elementwise::add_scaled_to(self.isa, y, added, scale);
                continue;
            }
            self.pool.split(y, c, (DIVIDED / 4).div_ceil(c), |first, part| {
                let added = &added[first * c..][..part.len()];
                elementwise::add_scaled_to(self.isa, part, added, scale);
            });
        }
        y
    }

    /// y = x Wᵀ each, for so many rows, as one job; all in one tensor, one after the other, so that a step takes as few
    /// buffers however many adapters it has.
    fn products(&self, products: &[(&[F], &Matrix)], rows: impl Iterator<Item = usize>) -> Tensor<F> {
        let lengths: Vec<_> = rows.zip(products).map(|(rows, (_, w))| rows * w.outputs()).collect();
        self.make(1, lengths.iter().sum(), |mut rest| {
            let part = |len: &usize| {
                let (part, after) = std::mem::take(&mut rest).split_at_mut(*len);
                rest = after;
                part
            };
            self.multiply_each(lengths.iter().map(part).collect(), products);
        })
    }

    /// The tensor, or a copy where another handle shares its values.
    fn unshared(&self, mut y: Tensor<F>) -> Tensor<F> {
        match y.get_mut().is_some() {
            true => y,
            false => self.make(y.rows(), y.channels, |copy| copy.copy_from_slice(y.data())),
        }
    }
}

/// Parts of these lengths, one after the other.
fn cut<T>(mut rest: &[T], lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = &[T]> {
    lengths.map(move |len| {
        let (part, after) = rest.split_at(len);
        rest = after;
        part
    })
}
