//! Which rank keeps which moments and makes which updates (ZeRO, stage 1: Rajbhandari et al. 2020).

use hawfinch_kernels::adamw::CHUNK;

/// Neighbouring numbers of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which tensor, of those that are trained.
    pub tensor: usize,
    /// Its first number.
    pub from: usize,
    /// Behind its last.
    pub to: usize,
    /// The rank that it belongs to.
    pub owner: usize,
}

impl Piece {
    pub fn len(&self) -> usize {
        self.to - self.from
    }
}

/// All numbers that are trained, in pieces of the length in which the optimiser adds up squares: so that the length of the
/// gradient is the same sum whoever has computed its parts. Each next piece goes to the rank that has least, so every rank
/// has a share of every layer.
#[derive(Clone, Debug)]
pub(crate) struct Shards {
    pieces: Vec<Piece>,
    /// The first piece of each tensor, and the end.
    first: Vec<usize>,
}

impl Shards {
    /// Of tensors of these lengths.
    pub fn new(lengths: &[usize], ranks: usize) -> Shards {
        let (mut pieces, mut first, mut has) = (Vec::new(), vec![0], vec![0; ranks]);
        for (tensor, &len) in lengths.iter().enumerate() {
            for from in (0..len).step_by(CHUNK) {
                let to = len.min(from + CHUNK);
                let owner = (0..ranks).min_by_key(|r| has[*r]).expect("a rank");
                has[owner] += to - from;
                pieces.push(Piece { tensor, from, to, owner });
            }
            first.push(pieces.len());
        }
        Shards { pieces, first }
    }

    /// All pieces, in order.
    pub fn all(&self) -> &[Piece] {
        &self.pieces
    }

    /// Those of one tensor.
    pub fn of(&self, tensor: usize) -> &[Piece] {
        &self.pieces[self.first[tensor]..self.first[tensor + 1]]
    }

    /// How many tensors there are.
    pub fn tensors(&self) -> usize {
        self.first.len() - 1
    }

    /// Those of one rank.
    pub fn owned(&self, rank: usize) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |p| p.owner == rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_belongs_to_one_and_all_have_as_much() {
        let lengths = [5, 3 * CHUNK + 1, 40, 0, 9 * CHUNK, 7];
        for ranks in 1..5 {
            let shards = Shards::new(&lengths, ranks);
            assert_eq!(shards.tensors(), 6);
            for (t, len) in lengths.iter().enumerate() {
                let ends = shards.of(t).iter().fold(0, |at, p| {
                    assert_eq!((p.from, p.tensor), (at, t));
                    p.to
                });
                assert_eq!(ends, *len);
            }
            let has = |r| shards.owned(r).map(Piece::len).sum::<usize>();
            let (least, most) = ((0..ranks).map(has).min().unwrap(), (0..ranks).map(has).max().unwrap());
            assert!(most - least <= CHUNK);
        }
    }
}
