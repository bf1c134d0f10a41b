//! How far what a model says moves when its weights are rounded: distributions of the next token compared.

use hawfinch_kernels::Pool;

use crate::checkpoint::StoredTensor;
use crate::ops::Ops;
use crate::{Model, Result, Trace, log_sum_exp};

/// What the comparison of two models over a text gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Quality {
    /// Tokens after which the next one's distribution was compared.
    pub tokens: usize,
    /// Mean over them of KL(full ‖ rounded), in nats.
    pub kl: f64,
    /// The largest of them.
    pub largest_kl: f64,
    /// Share of them after which both find the same token likeliest.
    pub same_top: f64,
    /// Perplexity of the text to the full model: e to the mean of -ln p(next token).
    pub perplexity: f64,
    /// The same to the rounded model.
    pub rounded_perplexity: f64,
}

/// What was found at one token.
#[derive(Clone, Copy, Default)]
struct Found {
    kl: f64,
    same_top: bool,
    /// -ln p of the next token in the full and the rounded model.
    nats: Option<[f64; 2]>,
}

/// The full model's logits over a text, to compare others with.
pub struct Reference<'t, 'm, O: Ops> {
    trace: &'t Trace<'m, O>,
    /// `[tokens, vocab]`
    logits: Vec<f32>,
    next: Vec<Option<u32>>,
}

impl<'t, 'm, O: Ops + 'static> Reference<'t, 'm, O> {
    /// Computes and keeps the logits: tokens × vocabulary × 4 bytes.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn new(trace: &'t Trace<'m, O>) -> Result<Self> {
        let mut logits = Vec::with_capacity(trace.tokens().len() * trace.model().config().vocab);
        let none = &mut |_: &str| unreachable!("nothing is changed");
        trace.logits(&[], none, &mut |_, rows| logits.extend_from_slice(rows))?;
        Ok(Reference { trace, logits, next: trace.next_tokens() })
    }

    /// The model.
    pub fn model(&self) -> &'m Model<O> {
        self.trace.model()
    }

    /// Compares with the same model in which the tensors `changed` are as `make` gives them.
    ///
    /// # Errors
    /// As [`Trace::logits`].
    pub fn compare(
        &self,
        pool: &Pool,
        changed: &[&str],
        make: &mut dyn FnMut(&str) -> Result<StoredTensor>,
    ) -> Result<Quality> {
        let mut found = vec![Found::default(); self.next.len()];
        let mut take = |first: usize, rows: &[f32]| self.compare_rows(pool, first, rows, &mut found);
        self.trace.logits(changed, make, &mut take)?;
        Ok(summed(&found))
    }

    /// Compares with another model of the same vocabulary.
    ///
    /// # Errors
    /// As [`Trace::new`] and [`Trace::logits`].
    ///
    /// # Panics
    /// When the vocabularies differ.
    pub fn compare_model<P: Ops + 'static>(&self, pool: &Pool, other: &Model<P>) -> Result<Quality> {
        assert_eq!(other.config().vocab, self.model().config().vocab, "two models of one vocabulary");
        let trace = Trace::new(other, &self.trace.sequences())?;
        let mut found = vec![Found::default(); self.next.len()];
        let mut take = |first: usize, rows: &[f32]| self.compare_rows(pool, first, rows, &mut found);
        trace.logits(&[], &mut |_| unreachable!("nothing is changed"), &mut take)?;
        Ok(summed(&found))
    }

    fn compare_rows(&self, pool: &Pool, first: usize, rows: &[f32], found: &mut [Found]) {
        let vocab = self.model().config().vocab;
        let count = rows.len() / vocab;
        let full = &self.logits[first * vocab..(first + count) * vocab];
        let next = &self.next[first..first + count];
        pool.split(&mut found[first..first + count], 1, 1, |n, found| {
            let row = n * vocab..(n + 1) * vocab;
            found[0] = compare_row(&full[row.clone()], &rows[row], next[n]);
        });
    }
}

/// The index of the largest, of equal ones the first.
fn top(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |top, i| if row[i] > row[top] { i } else { top })
}

fn compare_row(p: &[f32], q: &[f32], next: Option<u32>) -> Found {
    let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p) - zp, f64::from(q) - zq);
        p.exp() * (p - q)
    };
    let nats = next.map(|id| [zp - f64::from(p[id as usize]), zq - f64::from(q[id as usize])]);
    // It is not negative but for rounding.
    Found { kl: p.iter().zip(q).map(term).sum::<f64>().max(0.0), same_top: top(p) == top(q), nats }
}

fn summed(found: &[Found]) -> Quality {
    let n = found.len().max(1) as f64;
    let nats: Vec<[f64; 2]> = found.iter().filter_map(|f| f.nats).collect();
    let perplexity =
        |which: usize| (nats.iter().map(|n| n[which]).sum::<f64>() / nats.len().max(1) as f64).exp();
    Quality {
        tokens: found.len(),
        kl: found.iter().map(|f| f.kl).sum::<f64>() / n,
        largest_kl: found.iter().map(|f| f.kl).fold(0.0, f64::max),
        same_top: found.iter().filter(|f| f.same_top).count() as f64 / n,
        perplexity: perplexity(0),
        rounded_perplexity: perplexity(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distributions (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4): KL = ½ ln 2 + ¼ ln ½ = ¼ ln 2.
    #[test]
    fn by_hand() {
        let ln = |v: f64| v.ln() as f32;
        let p = [ln(2.0), ln(1.0), ln(1.0)];
        let q = [ln(1.0) + 7.0, ln(2.0) + 7.0, ln(1.0) + 7.0];
        let got = summed(&[compare_row(&p, &q, Some(0)), compare_row(&p, &p, None)]);
        assert!((got.kl - 0.125 * 2f64.ln()).abs() < 1e-6, "{got:?}");
        assert!((got.largest_kl - 0.25 * 2f64.ln()).abs() < 1e-6, "{got:?}");
        assert_eq!((got.tokens, got.same_top), (2, 0.5));
        assert!(
            (got.perplexity - 2.0).abs() < 1e-6 && (got.rounded_perplexity - 4.0).abs() < 1e-5,
            "{got:?}"
        );
    }
}
