//! What has to be the same on all ranks.

use super::{Collective, gather};
use crate::{Error, Result};

/// Something that all ranks have to agree on: what it is, and what it is here.
pub type Fact = (String, String);

/// Compares facts, which every rank gives in the same order, with those of rank 0.
///
/// # Errors
/// On every rank the same sentence: which rank differs, in what and how; as [`Collective::all_gather`].
pub fn agree(c: &dyn Collective, facts: &[Fact]) -> Result<()> {
    let own = serde_json::to_vec(facts).expect("strings");
    let all = gather(c, &own)?;
    let read = |rank: usize| -> Result<Vec<Fact>> {
        serde_json::from_slice(&all[rank])
            .map_err(|e| Error::Ranks(format!("rank {rank} says what is no list of settings: {e}")))
    };
    let first = read(0)?;
    for rank in 1..c.size() {
        let other = read(rank)?;
        let differs = first.iter().zip(&other).find(|(a, b)| a != b);
        let why = match differs {
            Some(((a, x), (b, y))) if a == b => format!("{a} is {y} on rank {rank} and {x} on rank 0"),
            None if first.len() == other.len() => continue,
            _ => format!("rank {rank} runs another version of this program than rank 0"),
        };
        return Err(Error::Ranks(format!("{why}: all ranks have to train alike")));
    }
    Ok(())
}
