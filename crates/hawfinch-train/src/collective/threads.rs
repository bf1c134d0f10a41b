//! Ranks that are threads of one process: for tests, and the meaning of the others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};

use super::Collective;
use crate::{Error, Result};

/// What one rank sends to another.
struct Message {
    /// The call it belongs to.
    call: &'static str,
    bytes: Vec<u8>,
}

/// One rank of a group of threads. Those that do not do the same are told so; when one is dropped, the others' calls fail.
pub struct Threads {
    rank: usize,
    to: Vec<Sender<Message>>,
    from: Vec<Mutex<Receiver<Message>>>,
    sent: AtomicU64,
}

impl Threads {
    /// All ranks of a group, one for each thread.
    pub fn group(size: usize) -> Vec<Threads> {
        let mut to: Vec<Vec<Sender<Message>>> = (0..size).map(|_| Vec::new()).collect();
        let mut group = Vec::new();
        for rank in 0..size {
            let mut from = Vec::new();
            for of in &mut to {
                let (sender, receiver) = mpsc::channel();
                of.push(sender);
                from.push(Mutex::new(receiver));
            }
            group.push(Threads { rank, to: Vec::new(), from, sent: AtomicU64::new(0) });
        }
        group.iter_mut().zip(to).for_each(|(one, to)| one.to = to);
        group
    }

    fn give(&self, call: &'static str, bytes: &[u8], to: usize) -> Result<()> {
        if to != self.rank {
            self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        let message = Message { call, bytes: bytes.to_vec() };
        self.to[to].send(message).map_err(|_| Error::Ranks(format!("rank {to} has ended")))
    }

    fn take(&self, call: &'static str, bytes: &mut [u8], from: usize) -> Result<()> {
        let receiver = self.from[from].lock().unwrap_or_else(PoisonError::into_inner);
        let message = receiver.recv().map_err(|_| Error::Ranks(format!("rank {from} has ended")))?;
        if message.call != call || message.bytes.len() != bytes.len() {
            return Err(Error::Ranks(format!(
                "rank {} waits for {} bytes ({call}), and rank {from} sends {} ({}): they do not do the same",
                self.rank,
                bytes.len(),
                message.bytes.len(),
                message.call
            )));
        }
        bytes.copy_from_slice(&message.bytes);
        Ok(())
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn all_to_all(
        &self,
        mut send: &[u8],
        to: &[usize],
        mut receive: &mut [u8],
        from: &[usize],
    ) -> Result<()> {
        for (rank, n) in to.iter().enumerate() {
            let (part, rest) = send.split_at(*n);
            self.give("all to all", part, rank)?;
            send = rest;
        }
        for (rank, n) in from.iter().enumerate() {
            let (part, rest) = receive.split_at_mut(*n);
            self.take("all to all", part, rank)?;
            receive = rest;
        }
        Ok(())
    }

    fn all_gather(&self, send: &[u8], mut receive: &mut [u8], counts: &[usize]) -> Result<()> {
        for rank in 0..self.size() {
            self.give("all gather", send, rank)?;
        }
        for (rank, n) in counts.iter().enumerate() {
            let (part, rest) = receive.split_at_mut(*n);
            self.take("all gather", part, rank)?;
            receive = rest;
        }
        Ok(())
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<()> {
        if self.rank != root {
            return self.take("broadcast", bytes, root);
        }
        (0..self.size()).filter(|r| *r != root).try_for_each(|rank| self.give("broadcast", bytes, rank))
    }

    fn send(&self, bytes: &[u8], to: usize) -> Result<()> {
        self.give("send", bytes, to)
    }

    fn receive(&self, bytes: &mut [u8], from: usize) -> Result<()> {
        self.take("send", bytes, from)
    }

    fn barrier(&self) -> Result<()> {
        self.all_gather(&[], &mut [], &vec![0; self.size()])
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_do_something_else_are_told() {
        let mut group = Threads::group(2);
        let (b, a) = (group.pop().unwrap(), group.pop().unwrap());
        std::thread::scope(|s| {
            s.spawn(move || {
                let said = b.all_gather(&[1, 2], &mut [0; 4], &[2, 2]).unwrap_err().to_string();
                assert!(said.contains("do not do the same"), "{said}");
            });
            let said = a.all_gather(&[1], &mut [0; 2], &[1, 1]).unwrap_err().to_string();
            assert!(said.contains("do not do the same"), "{said}");
        });
        let mut group = Threads::group(2);
        group.pop();
        let said = group[0].barrier().unwrap_err().to_string();
        assert!(said.contains("rank 1 has ended"), "{said}");
    }

    #[test]
    fn a_message_goes_to_one() {
        let mut group = Threads::group(3);
        let (c, b, a) = (group.pop().unwrap(), group.pop().unwrap(), group.pop().unwrap());
        a.send(&[7], 2).unwrap();
        b.send(&[8], 2).unwrap();
        let mut got = [0];
        c.receive(&mut got, 1).unwrap();
        assert_eq!(got, [8]);
        c.receive(&mut got, 0).unwrap();
        assert_eq!((got, a.sent(), c.sent()), ([7], 1, 0));
    }
}
