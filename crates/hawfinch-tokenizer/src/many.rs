//! Many documents on several threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// `threads`, or what the machine has if that is 0.
pub(crate) fn thread_count(threads: usize) -> usize {
    if threads > 0 { threads } else { std::thread::available_parallelism().map_or(1, |n| n.get()) }
}

/// Encodes each document with `encode`; the results keep the documents' order.
pub(crate) fn encode_many<T: AsRef<[u8]> + Sync>(
    documents: &[T],
    threads: usize,
    encode: impl Fn(&[u8]) -> Vec<u32> + Sync,
) -> Vec<Vec<u32>> {
    let threads = thread_count(threads).min(documents.len());
    if threads < 2 {
        return documents.iter().map(|d| encode(d.as_ref())).collect();
    }
    // Documents differ in length, so each thread takes the next one when it is done.
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(document) = documents.get(index)
        {
            done.push((index, encode(document.as_ref())));
        }
        done
    };
    let mut ids = vec![Vec::new(); documents.len()];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let done = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            for (index, document_ids) in done {
                ids[index] = document_ids;
            }
        }
    });
    ids
}
