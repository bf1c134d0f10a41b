//! Who is next: requests wait in order; clients take turns by what was computed for each so far, and so do the users of one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Clients, and users of a client, remembered after their last request.
const REMEMBERED: usize = 1024;

/// Somebody who is served: a client, or a user of one.
#[derive(Debug, Default)]
struct Served {
    active: usize,
    waiting: usize,
    /// Tokens computed, in all; who comes anew begins with what the least served has.
    tokens: u64,
}

impl Served {
    fn is_busy(&self) -> bool {
        self.active + self.waiting > 0
    }
}

#[derive(Debug)]
struct User<T> {
    served: Served,
    requests: VecDeque<T>,
}

#[derive(Debug)]
struct Client<T> {
    served: Served,
    users: HashMap<Arc<str>, User<T>>,
}

/// Client and user of a request.
pub(super) type Who = (Arc<str>, Arc<str>);

/// Requests by client and user.
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

    /// Requests of a client that wait.
    pub fn waiting_of(&self, client: &str) -> usize {
        self.clients.get(client).map_or(0, |c| c.served.waiting)
    }

    pub fn push(&mut self, (client, user): &Who, item: T) {
        let least =
            |all: &mut dyn Iterator<Item = &Served>| all.filter(|s| s.is_busy()).map(|s| s.tokens).min();
        let of_clients = least(&mut self.clients.values().map(|c| &c.served));
        if self.clients.len() >= REMEMBERED {
            self.clients.retain(|_, c| c.served.is_busy());
        }
        let c = self
            .clients
            .entry(client.clone())
            .or_insert_with(|| Client { served: Served::default(), users: HashMap::new() });
        let of_users = least(&mut c.users.values().map(|u| &u.served));
        if c.users.len() >= REMEMBERED {
            c.users.retain(|_, u| u.served.is_busy());
        }
        let u = c
            .users
            .entry(user.clone())
            .or_insert_with(|| User { served: Served::default(), requests: VecDeque::new() });
        for (served, least) in [(&mut c.served, of_clients), (&mut u.served, of_users)] {
            if !served.is_busy() {
                // Idle time is not saved up.
                served.tokens = served.tokens.max(least.unwrap_or(0));
            }
            served.waiting += 1;
        }
        u.requests.push_back(item);
        self.len += 1;
    }

    /// The next request: the oldest of the user that was served least, of the client that was. Both count as active until
    /// [`Queue::ended`].
    pub fn pop(&mut self) -> Option<T> {
        let order = |s: &Served| (s.tokens, s.active);
        let waiting = self.clients.values_mut().filter(|c| c.served.waiting > 0);
        let c = waiting.min_by_key(|c| order(&c.served))?;
        let u = c.users.values_mut().filter(|u| u.served.waiting > 0).min_by_key(|u| order(&u.served))?;
        for served in [&mut c.served, &mut u.served] {
            served.active += 1;
            served.waiting -= 1;
        }
        self.len -= 1;
        u.requests.pop_front()
    }

    /// Does something with what a request's client and user were served.
    fn both(&mut self, (client, user): &Who, mut work: impl FnMut(&mut Served)) {
        if let Some(c) = self.clients.get_mut(client) {
            work(&mut c.served);
            if let Some(u) = c.users.get_mut(user) {
                work(&mut u.served);
            }
        }
    }

    pub fn served(&mut self, who: &Who, tokens: usize) {
        self.both(who, |s| s.tokens += tokens as u64);
    }

    pub fn served_so_far(&self, (client, user): &Who) -> (u64, u64) {
        self.clients
            .get(client)
            .map_or((0, 0), |c| (c.served.tokens, c.users.get(user).map_or(0, |u| u.served.tokens)))
    }

    pub fn ended(&mut self, who: &Who) {
        self.both(who, |s| s.active = s.active.saturating_sub(1));
    }

    /// Takes out the waiting requests that `gone` says.
    pub fn remove(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for c in self.clients.values_mut().filter(|c| c.served.waiting > 0) {
            for u in c.users.values_mut() {
                if !u.requests.iter().any(&mut gone) {
                    continue;
                }
                let requests = std::mem::take(&mut u.requests).into_iter();
                let (out, stay): (VecDeque<T>, _) = requests.partition(|t| gone(t));
                u.requests = stay;
                u.served.waiting -= out.len();
                c.served.waiting -= out.len();
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

    fn who(client: &str, user: &str) -> Who {
        (client.into(), user.into())
    }

    #[test]
    fn clients_take_turns_and_requests_keep_their_order() {
        let mut q = Queue::default();
        (0..4).for_each(|i| q.push(&who("a", ""), ("a", i)));
        q.push(&who("b", ""), ("b", 0));
        let mut order = Vec::new();
        while let Some((of, i)) = q.pop() {
            order.push((of, i));
            q.served(&who(of, ""), 10);
            q.ended(&who(of, ""));
            if order.len() == 3 {
                // Who comes late does not get all that the others had before.
                q.push(&who("c", ""), ("c", 0));
                q.push(&who("c", ""), ("c", 1));
            }
        }
        let place = |x| order.iter().position(|y| *y == x).unwrap();
        assert!(place(("b", 0)) <= 1, "{order:?}");
        assert!((0..3).all(|i| place(("a", i)) < place(("a", i + 1))));
        assert!(place(("c", 1)) > place(("a", 2)), "{order:?}");
        assert_eq!((q.len(), q.pop()), (0, None));
    }

    #[test]
    fn many_users_are_one_client() {
        let mut q = Queue::default();
        // Each request of a under another name.
        (0..6).for_each(|i| q.push(&who("a", &i.to_string()), ("a", i.to_string())));
        (0..3).for_each(|_| q.push(&who("b", "same"), ("b", "same".into())));
        q.push(&who("a", "5"), ("a", "5".into()));
        let mut order = Vec::new();
        while let Some((client, user)) = q.pop() {
            q.served(&who(client, &user), 10);
            q.ended(&who(client, &user));
            order.push((client, user));
        }
        assert_eq!(order[..6].iter().filter(|(c, _)| *c == "b").count(), 3, "{order:?}");
        // Of one client's users, who has had something waits for those who have not.
        assert_eq!(order.last().unwrap().1, "5");
        assert_eq!((q.waiting_of("a"), q.waiting_of("b")), (0, 0));
    }

    #[test]
    fn what_is_gone_leaves_the_queue() {
        let mut q = Queue::default();
        (0..5).for_each(|i| q.push(&who("a", ""), i));
        assert_eq!(q.remove(|i| i % 2 == 0), [0, 2, 4]);
        assert_eq!((q.waiting_of("a"), q.len(), q.pop(), q.pop(), q.pop()), (2, 2, Some(1), Some(3), None));
    }
}
