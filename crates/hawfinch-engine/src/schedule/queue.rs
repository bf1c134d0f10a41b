//! Who is next: requests wait in order, clients take turns by what was computed for each so far.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Clients remembered after their last request.
const REMEMBERED: usize = 4096;

#[derive(Debug)]
struct Client<T> {
    waiting: VecDeque<T>,
    active: usize,
    /// Tokens computed for it, in all; who comes anew begins with what the least served has.
    served: u64,
}

/// Requests by client.
#[derive(Debug)]
pub(super) struct Queue<T> {
    clients: HashMap<Arc<str>, Client<T>>,
    len: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { clients: HashMap::new(), len: 0 }
    }
}

impl<T> Queue<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn push(&mut self, client: &Arc<str>, item: T) {
        let busy = |c: &&Client<T>| c.active > 0 || !c.waiting.is_empty();
        let least = self.clients.values().filter(busy).map(|c| c.served).min();
        if self.clients.len() >= REMEMBERED {
            self.clients.retain(|_, c| c.active > 0 || !c.waiting.is_empty());
        }
        let c = self.clients.entry(client.clone()).or_insert_with(|| Client {
            waiting: VecDeque::new(),
            active: 0,
            served: 0,
        });
        if c.active == 0 && c.waiting.is_empty() {
            // Idle time is not saved up.
            c.served = c.served.max(least.unwrap_or(0));
        }
        c.waiting.push_back(item);
        self.len += 1;
    }

    /// The next request: the oldest of the client that was served least; that client counts as active until
    /// [`Queue::ended`].
    pub fn pop(&mut self) -> Option<T> {
        let waiting = self.clients.values_mut().filter(|c| !c.waiting.is_empty());
        let next = waiting.min_by_key(|c| (c.served, c.active))?;
        next.active += 1;
        self.len -= 1;
        next.waiting.pop_front()
    }

    pub fn served(&mut self, client: &str, tokens: usize) {
        if let Some(c) = self.clients.get_mut(client) {
            c.served += tokens as u64;
        }
    }

    pub fn served_so_far(&self, client: &str) -> u64 {
        self.clients.get(client).map_or(0, |c| c.served)
    }

    pub fn ended(&mut self, client: &str) {
        if let Some(c) = self.clients.get_mut(client) {
            c.active = c.active.saturating_sub(1);
        }
    }

    /// Takes out the waiting requests that `gone` says.
    pub fn remove(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for c in self.clients.values_mut() {
            if c.waiting.iter().any(&mut gone) {
                let (out, stay) = std::mem::take(&mut c.waiting).into_iter().partition(|t| gone(t));
                c.waiting = stay;
                let out: VecDeque<T> = out;
                removed.extend(out);
            }
        }
        self.len -= removed.len();
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns_and_requests_keep_their_order() {
        let (a, b, c): (Arc<str>, Arc<str>, Arc<str>) = ("a".into(), "b".into(), "c".into());
        let mut q = Queue::default();
        (0..4).for_each(|i| q.push(&a, ("a", i)));
        q.push(&b, ("b", 0));
        let mut order = Vec::new();
        while let Some((who, i)) = q.pop() {
            order.push((who, i));
            q.served(who, 10);
            q.ended(who);
            if order.len() == 3 {
                // Who comes late does not get all that the others had before.
                q.push(&c, ("c", 0));
                q.push(&c, ("c", 1));
            }
        }
        let place = |x| order.iter().position(|y| *y == x).unwrap();
        assert!(place(("b", 0)) <= 1, "{order:?}");
        assert!((0..3).all(|i| place(("a", i)) < place(("a", i + 1))));
        assert!(place(("c", 1)) > place(("a", 2)), "{order:?}");
        assert_eq!((q.len(), q.pop()), (0, None));
    }

    #[test]
    fn what_is_gone_leaves_the_queue() {
        let a: Arc<str> = "a".into();
        let mut q = Queue::default();
        (0..5).for_each(|i| q.push(&a, i));
        assert_eq!(q.remove(|i| i % 2 == 0), [0, 2, 4]);
        assert_eq!((q.len(), q.pop(), q.pop(), q.pop()), (2, Some(1), Some(3), None));
    }
}
