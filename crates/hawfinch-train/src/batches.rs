//! From a data set to batches. Which tokens a sample has is a function of its number alone, so a run that goes on needs to
//! know nothing but the number of its next sample.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use hawfinch_data::Mask;
use hawfinch_data::binidx::Reader;
use hawfinch_data::sampler::{Sampler, permutation};

use crate::config::Order;
use crate::{Error, Result};

/// Sequences to learn from: their tokens lie one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Tokens of each sequence; each starts from a fresh state. None is 0.
    pub lengths: Vec<usize>,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// What follows each.
    pub targets: Vec<u32>,
    /// Whether each target counts.
    pub counts: Vec<bool>,
}

impl Batch {
    /// Targets that count.
    pub fn counted(&self) -> usize {
        self.counts.iter().filter(|c| **c).count()
    }

    /// Adds a sequence: `ids` and each one's successor, which counts if it is to be `learned` (all are if that is not said).
    fn push(&mut self, ids: &[u32], learned: Option<&[bool]>) {
        let Some((_, targets)) = ids.split_first().filter(|(_, targets)| !targets.is_empty()) else { return };
        self.lengths.push(targets.len());
        self.tokens.extend(&ids[..targets.len()]);
        self.targets.extend(targets);
        match learned {
            Some(learned) => self.counts.extend(&learned[1..]),
            None => self.counts.resize(self.tokens.len(), true),
        }
    }
}

/// A data set, in an order.
pub struct Batches {
    reader: Reader,
    mask: Option<Mask>,
    /// Tokens that are to be learned.
    learned: u64,
    ctx: u64,
    kind: Kind,
}

enum Kind {
    /// Windows of `ctx` tokens, wherever documents end: states are not reset there, as in the references.
    Windows(Sampler),
    /// The same, one after the other; the last may be shorter.
    InOrder,
    /// Whole documents.
    Packed {
        seed: u64,
        /// Tokens of a pass: the same for each.
        tokens: u64,
        pass: Mutex<Option<Arc<Pass>>>,
    },
}

/// One pass over the documents of a packed order.
struct Pass {
    number: u64,
    /// Tokens that have a successor in their document, in all documents before the n-th of the order.
    before: Vec<u64>,
}

impl Batches {
    /// A data set (NAME of NAME.bin and NAME.idx) in an order, in samples of `ctx` tokens.
    ///
    /// # Errors
    /// Files that are no data set; data that is empty, or too small for the reference's order; a mask of other data, or one
    /// that leaves nothing to learn.
    pub fn open(name: &Path, order: Order, ctx: usize, seed: u64) -> Result<Batches> {
        let (reader, mask, learned) = open(name)?;
        let (tokens, ctx) = (reader.tokens(), ctx as u64);
        let kind = match order {
            Order::MagicPrime => Kind::Windows(Sampler::magic_prime(tokens, ctx)?),
            Order::Shuffle if tokens <= ctx => Kind::InOrder,
            Order::Shuffle => Kind::Windows(Sampler::shuffle(tokens, ctx, seed)?),
            Order::Packed => Kind::Packed { seed, tokens: 0, pass: Mutex::default() },
        };
        let mut batches = Batches { reader, mask, learned, ctx, kind };
        if order == Order::Packed {
            let of_pass = batches.pass(0)?.tokens();
            if let Kind::Packed { tokens, .. } = &mut batches.kind {
                *tokens = of_pass;
            }
        }
        if batches.samples() == 0 {
            let path = batches.reader.path().display();
            return Err(Error::request(format!(
                "{path} has no document of two tokens: there is nothing to learn from"
            )));
        }
        Ok(batches)
    }

    /// A data set from its first token to its last, for validation.
    ///
    /// # Errors
    /// As [`Batches::open`].
    pub fn in_order(name: &Path, ctx: usize) -> Result<Batches> {
        let (reader, mask, learned) = open(name)?;
        Ok(Batches { reader, mask, learned, ctx: ctx as u64, kind: Kind::InOrder })
    }

    /// Tokens of the data set.
    pub fn tokens(&self) -> u64 {
        self.reader.tokens()
    }

    /// Whether a mask says which tokens are to be learned.
    pub fn is_masked(&self) -> bool {
        self.mask.is_some()
    }

    /// Tokens that are to be learned: those of the mask, or all.
    pub fn learned(&self) -> u64 {
        self.learned
    }

    /// What tells this data from other data: how much there is, how much of it is to be learned, and a checksum of its
    /// beginning, middle and end, mask included.
    ///
    /// # Errors
    /// Ids that are no token ids.
    pub fn fingerprint(&self) -> Result<String> {
        const PART: u64 = 1 << 16;
        let (tokens, documents) = (self.tokens(), self.reader.documents());
        let mut sum = xxhash_rust::xxh64::Xxh64::new(0);
        for start in [0, tokens / 2, tokens.saturating_sub(PART)] {
            let mut ids = Vec::new();
            self.reader.read(start, PART.min(tokens - start), &mut ids)?;
            ids.iter().for_each(|id| sum.update(&id.to_le_bytes()));
            let mut learned = Vec::new();
            if let Some(mask) = &self.mask {
                mask.read(start, PART.min(tokens - start), &mut learned)?;
            }
            learned.iter().for_each(|l| sum.update(&[u8::from(*l)]));
        }
        let learned = if self.is_masked() { format!(", {} learned", self.learned) } else { String::new() };
        Ok(format!("{tokens} tokens, {documents} documents{learned}, {:016x}", sum.digest()))
    }

    /// Samples of one pass.
    pub fn samples(&self) -> u64 {
        match &self.kind {
            Kind::Windows(sampler) => sampler.period(),
            Kind::InOrder => self.tokens().saturating_sub(1).div_ceil(self.ctx),
            // A document's last token has no successor.
            Kind::Packed { tokens, .. } => tokens.div_ceil(self.ctx),
        }
    }

    /// Samples `first ..`, so many; after the last of a pass comes the first of the next. An order of validation has one
    /// pass.
    ///
    /// # Errors
    /// The data set is damaged.
    pub fn batch(&self, first: u64, count: usize) -> Result<Batch> {
        let mut batch = Batch::default();
        for n in first..first + count as u64 {
            self.sample(n, &mut batch)?;
        }
        Ok(batch)
    }

    fn sample(&self, n: u64, batch: &mut Batch) -> Result<()> {
        match &self.kind {
            Kind::Windows(sampler) => self.sequence(sampler.start(n + 1), self.ctx + 1, batch)?,
            Kind::InOrder => {
                let start = n % self.samples() * self.ctx;
                self.sequence(start, (self.ctx + 1).min(self.tokens() - start), batch)?;
            }
            Kind::Packed { .. } => {
                let per_pass = self.samples();
                let pass = self.pass(n / per_pass)?;
                let from = n % per_pass * self.ctx;
                let to = (from + self.ctx).min(pass.tokens());
                // The first document that reaches into the sample.
                let mut place = pass.before.partition_point(|before| *before <= from) - 1;
                let mut at = from;
                while at < to {
                    let (begins, ends) = (pass.before[place], pass.before[place + 1]);
                    if ends > at {
                        let (first, _) = self.reader.span(self.document(pass.number, place as u64))?;
                        self.sequence(first + (at - begins), ends.min(to) - at + 1, batch)?;
                        at = ends.min(to);
                    }
                    place += 1;
                }
            }
        }
        Ok(())
    }

    /// Adds `len` tokens from `start` on, of which the last is a target alone.
    fn sequence(&self, start: u64, len: u64, batch: &mut Batch) -> Result<()> {
        let (mut ids, mut learned) = (Vec::new(), Vec::new());
        self.reader.read(start, len, &mut ids)?;
        if let Some(mask) = &self.mask {
            mask.read(start, len, &mut learned)?;
        }
        batch.push(&ids, self.is_masked().then_some(&learned));
        Ok(())
    }

    /// Which document stands at a place of a pass's order.
    fn document(&self, pass: u64, place: u64) -> u64 {
        let Kind::Packed { seed, .. } = &self.kind else { unreachable!("only documents have an order") };
        permutation(place, self.reader.documents(), seed ^ pass.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// The order of a pass: computed when it is first asked for, eight bytes a document.
    fn pass(&self, number: u64) -> Result<Arc<Pass>> {
        let Kind::Packed { pass, .. } = &self.kind else { unreachable!("only documents have passes") };
        let mut kept = pass.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pass) = kept.as_ref().filter(|p| p.number == number) {
            return Ok(pass.clone());
        }
        let mut before = vec![0];
        let mut sum = 0;
        for place in 0..self.reader.documents() {
            let (_, len) = self.reader.span(self.document(number, place))?;
            sum += len.saturating_sub(1);
            before.push(sum);
        }
        let pass = Arc::new(Pass { number, before });
        *kept = Some(pass.clone());
        Ok(pass)
    }
}

impl Pass {
    fn tokens(&self) -> u64 {
        *self.before.last().expect("at least one")
    }
}

/// A data set, the mask beside it and how many tokens are to be learned.
fn open(name: &Path) -> Result<(Reader, Option<Mask>, u64)> {
    let reader = Reader::open(name)?;
    if reader.tokens() < 2 {
        let (path, tokens) = (reader.path().display(), reader.tokens());
        return Err(Error::request(format!("{path} has {tokens} tokens: there is nothing to learn from")));
    }
    let mask = Mask::open(&reader)?;
    let learned = mask.as_ref().map_or(Ok(reader.tokens()), Mask::count)?;
    if learned == 0 {
        let path = mask.as_ref().map_or(reader.path(), Mask::path).display();
        return Err(Error::request(format!(
            "{path} says that no token is to be learned: build the data set again, or remove its mask to learn from every token"
        )));
    }
    Ok((reader, mask, learned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A data set of documents of these lengths (an end token each); ids are places in the whole.
    fn data(dir: &Path, lengths: &[usize]) -> std::path::PathBuf {
        let name = dir.join("d");
        let mut writer = hawfinch_data::binidx::Writer::create(&name).unwrap();
        let mut id = 1u16;
        for len in lengths {
            let mut ids: Vec<u16> = (0..*len as u16).map(|n| id + n).collect();
            id += *len as u16;
            ids.push(0);
            writer.push(&ids).unwrap();
        }
        writer.finish().unwrap();
        name
    }

    /// How often each token is an input, and whether every target follows its input in its document.
    fn seen(batches: &Batches, from: u64, samples: u64, across: bool) -> BTreeMap<u32, usize> {
        let mut seen = BTreeMap::new();
        for n in from..from + samples {
            let batch = batches.batch(n, 1).unwrap();
            assert_eq!(batch.lengths.iter().sum::<usize>(), batch.tokens.len());
            assert_eq!(batch.counted(), batch.tokens.len());
            for (token, target) in batch.tokens.iter().zip(&batch.targets) {
                *seen.entry(*token).or_insert(0) += 1;
                assert!(across || *token != 0, "the end of a document predicts nothing");
                assert!(*target == token + 1 || *target == 0 || *token == 0, "{token} {target}");
            }
        }
        seen
    }

    #[test]
    fn packed_documents_are_read_once_a_pass_and_never_run_together() {
        let dir = tempfile::tempdir().unwrap();
        let lengths = [3, 0, 1, 40, 7, 2, 0, 1, 1, 9];
        let name = data(dir.path(), &lengths);
        let total: usize = lengths.iter().sum();
        for ctx in [1, 4, 8, 100] {
            let b = Batches::open(&name, Order::Packed, ctx, 5).unwrap();
            assert_eq!(b.samples(), (total as u64).div_ceil(ctx as u64));
            let passes: Vec<_> = (0..2).map(|p| seen(&b, p * b.samples(), b.samples(), false)).collect();
            for pass in passes {
                assert!(pass.len() == total && pass.values().all(|n| *n == 1), "{ctx}: {pass:?}");
            }
            let largest = (0..b.samples()).map(|n| b.batch(n, 1).unwrap().tokens.len()).max().unwrap();
            assert!(largest <= ctx);
        }
        let b = Batches::open(&name, Order::Packed, 8, 5).unwrap();
        assert_ne!(b.batch(0, 3).unwrap(), b.batch(b.samples(), 3).unwrap(), "each pass has its order");
        assert_eq!(b.batch(1, 2).unwrap(), {
            let mut two = b.batch(1, 1).unwrap();
            let next = b.batch(2, 1).unwrap();
            two.lengths.extend(next.lengths);
            two.tokens.extend(next.tokens);
            two.targets.extend(next.targets);
            two.counts.extend(next.counts);
            two
        });
    }

    #[test]
    fn windows_of_data_of_any_size() {
        let dir = tempfile::tempdir().unwrap();
        let name = data(dir.path(), &[100]);
        let b = Batches::open(&name, Order::Shuffle, 16, 1).unwrap();
        assert_eq!((b.samples(), b.batch(0, 2).unwrap().lengths), (6, vec![16, 16]));
        assert!(seen(&b, 0, 6, true).values().all(|n| *n == 1));
        // Shorter than a sample: all of it.
        let b = Batches::open(&name, Order::Shuffle, 1000, 1).unwrap();
        assert_eq!((b.samples(), b.batch(7, 2).unwrap().lengths), (1, vec![100, 100]));
        let b = Batches::in_order(&name, 30).unwrap();
        assert_eq!(
            (0..b.samples()).map(|n| b.batch(n, 1).unwrap().lengths[0]).collect::<Vec<_>>(),
            [30, 30, 30, 10]
        );
        assert!(
            Batches::open(&name, Order::MagicPrime, 16, 1).err().unwrap().to_string().contains("shuffle")
        );
    }

    /// Writes a mask that follows from the ids, which each stand for their place.
    fn mask(name: &Path, learned: impl Fn(u32) -> bool) {
        let reader = Reader::open(name).unwrap();
        let mut writer = hawfinch_data::MaskWriter::create(name).unwrap();
        for n in 0..reader.documents() {
            let ids = reader.document(n).unwrap();
            writer.push(&ids.iter().map(|id| u8::from(learned(*id))).collect::<Vec<_>>()).unwrap();
        }
        writer.finish().unwrap();
    }

    /// In every order a target counts if the mask says so of itself, not of what comes before it.
    #[test]
    fn the_mask_of_the_target_decides() {
        let dir = tempfile::tempdir().unwrap();
        let name = data(dir.path(), &[3, 0, 1, 40, 7, 2, 0, 1, 1, 9]);
        let plain = Batches::open(&name, Order::Packed, 8, 5).unwrap();
        assert!(!plain.is_masked() && plain.learned() == plain.tokens());
        let of_plain = plain.fingerprint().unwrap();
        let learned = |id: u32| id % 3 == 1 || id == 0;
        mask(&name, learned);
        let count = (1..=64).filter(|id| learned(*id)).count() as u64 + 10;
        let mut prints = vec![of_plain];
        for ctx in [1, 8, 100] {
            let orders = [Order::Packed, Order::Shuffle].map(|o| Batches::open(&name, o, ctx, 5).unwrap());
            for b in orders.into_iter().chain([Batches::in_order(&name, ctx).unwrap()]) {
                assert_eq!((b.is_masked(), b.learned()), (true, count));
                let batch = b.batch(0, b.samples() as usize).unwrap();
                assert!(batch.targets.iter().zip(&batch.counts).all(|(id, c)| *c == learned(*id)));
                assert!(batch.counted() > 0 && batch.counted() < batch.targets.len());
                prints.push(b.fingerprint().unwrap());
            }
        }
        prints.dedup();
        assert_eq!(prints.len(), 2, "{prints:?}");
        // As many learned, but others.
        mask(&name, |id| id % 3 == 2 || id == 0 || id == 64);
        let other = Batches::open(&name, Order::Packed, 8, 5).unwrap();
        assert!(other.learned() == count && other.fingerprint().unwrap() != prints[1]);
        mask(&name, |_| false);
        for e in [Batches::open(&name, Order::Packed, 8, 5), Batches::in_order(&name, 8)] {
            let said = e.err().unwrap().to_string();
            assert!(said.contains("d.mask.bin") && said.contains("no token is to be learned"), "{said}");
        }
        // A mask of other documents.
        data(dir.path(), &[3, 0, 1]);
        let said = Batches::in_order(&name, 8).err().unwrap().to_string();
        assert!(said.contains("d.mask.idx") && said.contains("10 documents"), "{said}");
    }

    #[test]
    fn nothing_to_learn_from_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let name = data(dir.path(), &[0]);
        for order in [Order::Shuffle, Order::Packed] {
            let e = Batches::open(&name, order, 16, 1).err().unwrap().to_string();
            assert!(e.contains("nothing to learn from"), "{e}");
        }
        let name = data(dir.path(), &[0, 0, 0]);
        assert!(Batches::open(&name, Order::Packed, 16, 1).is_err());
    }
}
