//! Work divided over threads: whole items of a slice, each thread its own consecutive part.

/// Calls `work(first_item, part)` for consecutive parts of `data`, which is made of items of `item`
/// numbers, on up to `threads` threads (the caller's among them). Parts are disjoint and cover all.
pub fn split<T: Send>(data: &mut [T], item: usize, threads: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let items = data.len() / item.max(1);
    let threads = threads.clamp(1, items.max(1));
    if threads == 1 {
        return work(0, data);
    }
    let per = items.div_ceil(threads);
    std::thread::scope(|scope| {
        let mut parts = data.chunks_mut(per * item).enumerate();
        let own = parts.next();
        for (n, part) in parts {
            let work = &work;
            scope.spawn(move || work(n * per, part));
        }
        if let Some((_, part)) = own {
            work(0, part);
        }
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_item_is_visited_once() {
        for (items, item, threads) in [(10, 3, 4), (1, 5, 8), (7, 1, 7), (0, 2, 3)] {
            let mut data = vec![0usize; items * item];
            super::split(&mut data, item, threads, |first, part| {
                for (n, v) in part.iter_mut().enumerate() {
                    *v += first * item + n + 1;
                }
            });
            assert!(data.iter().enumerate().all(|(n, v)| *v == n + 1));
        }
    }
}
