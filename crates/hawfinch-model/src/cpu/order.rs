//! Which products follow which: learned as they run, so that the first bytes of the next ones can be fetched while
//! threads wait.

use std::collections::HashMap;
use std::sync::Mutex;

use hawfinch_kernels::{Pool, Reads, Work};

/// Products beyond this many are forgotten (models that are gone).
const KEPT: usize = 1 << 14;

/// What was read after what.
#[derive(Default)]
pub(super) struct Order(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// Where the first of the last products reads.
    last: usize,
    /// What each thread read first in the products after those that read there.
    after: HashMap<usize, Vec<Reads>>,
}

impl Order {
    /// Notes that these products are next, and says to the threads what followed them the last time.
    pub fn next<W: Work>(&self, pool: &Pool, products: &[W]) {
        // A thread alone never waits.
        if pool.threads() == 1 {
            return;
        }
        let mut seen = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let Seen { last, after } = &mut *seen;
        let key = pool.reads(products).next().map_or(0, |first| first.start());
        if key == 0 {
            return;
        }
        if after.len() > KEPT {
            after.clear();
        }
        let follower = after.entry(std::mem::replace(last, key)).or_default();
        follower.clear();
        follower.extend(pool.reads(products));
        if let Some(next) = after.get(&key) {
            pool.expect(next);
        }
    }
}
