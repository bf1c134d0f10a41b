//! A step like the last one takes no memory that grows with the model: buffers, handles and outputs are used again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use hawfinch_kernels::DType;
use hawfinch_model::{Cpu, Model, OpenOptions, Output, Quant, Rows, Sequence, State, Version, synthetic};

/// Counts what is asked for.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What the lists of a step take: some words a sequence.
const WORDS: usize = 64 * size_of::<usize>();

#[test]
fn a_step_like_the_last_allocates_only_lists_of_its_sequences() {
    for version in [Version::V4, Version::V5_2, Version::V6, Version::V7] {
        for quant in [None, Some(Quant::Bf16), Some(Quant::Int8), Some(Quant::Int4)] {
            let sizes =
                synthetic::Shape { version, layers: 3, width: 256, vocab: 8192, head_size: 64 }.config();
            let cpu = Cpu::new(2).quantizing(quant);
            let checkpoint = synthetic::checkpoint(&sizes, DType::BF16, 1);
            let model = Model::from_checkpoint(checkpoint, OpenOptions::default(), cpu).unwrap();
            for n in [1, 3] {
                let mut states: Vec<State> = (0..n).map(|_| model.new_state()).collect();
                let mut outputs = vec![Output::default(); n];
                let mut step = |id: u32| {
                    let mut sequences: Vec<_> = states
                        .iter_mut()
                        .map(|state| Sequence {
                            tokens: &[7, 8][..1],
                            state,
                            logits: Rows::Last,
                            hidden: Rows::None,
                        })
                        .collect();
                    let before = BYTES.load(Ordering::Relaxed);
                    model.forward_into(&mut sequences, &mut outputs).unwrap();
                    let used = BYTES.load(Ordering::Relaxed) - before;
                    assert!(outputs.iter().all(|o| o.logits.len() == 8192), "{id}");
                    used
                };
                let first = step(0);
                // A thread that came too late for its first chunk makes room for its own at a later one.
                (1..20).for_each(|id| _ = step(id));
                let used: Vec<usize> = (20..24).map(&mut step).collect();
                assert!(first > 8192 * 4, "the count counts: {first}");
                assert!(
                    used.iter().all(|u| *u <= n * WORDS),
                    "{version} {quant:?}, {n} at once: bytes a step {used:?}, the first {first}"
                );
            }
        }
    }
}
