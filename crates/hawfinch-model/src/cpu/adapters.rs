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
        let first = loras.iter().map(|l| (&x.data()[numbers(l, x.channels)], l.a));
        let low = self.products(&first.collect::<Vec<_>>());
        let second = low.iter().zip(loras).map(|(low, l)| (low.data(), l.b));
        let added = self.products(&second.collect::<Vec<_>>());
        let mut y = self.unshared(y);
        let c = y.channels;
        for (l, added) in loras.iter().zip(&added) {
            let (scale, added) = (F::from_f64(l.scale), added.data());
            let rows = &mut y.data_mut()[numbers(l, c)];
            if rows.len() <= DIVIDED {
                elementwise::add_scaled_to(self.isa, rows, added, scale);
                continue;
            }
            self.pool.split(rows, c, (DIVIDED / 4).div_ceil(c), |first, part| {
                let added = &added[first * c..][..part.len()];
                elementwise::add_scaled_to(self.isa, part, added, scale);
            });
        }
        y
    }

    /// y = x Wᵀ each, as one job.
    fn products(&self, products: &[(&[F], &Matrix)]) -> Vec<Tensor<F>> {
        let make = |(x, w): &(&[F], &Matrix)| {
            self.make(x.len().checked_div(w.inputs()).unwrap_or(0), w.outputs(), |_| {})
        };
        let mut made: Vec<_> = products.iter().map(make).collect();
        self.multiply_each(made.iter_mut().map(Tensor::data_mut).collect(), products);
        made
    }

    /// The tensor, or a copy where another handle shares its values.
    fn unshared(&self, mut y: Tensor<F>) -> Tensor<F> {
        match y.get_mut().is_some() {
            true => y,
            false => self.make(y.rows(), y.channels, |copy| copy.copy_from_slice(y.data())),
        }
    }
}
