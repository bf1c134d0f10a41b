//! Between two tokens the sampler and the stop matcher allocate nothing, once their buffers have grown.

use hawfinch_engine::{Rng, Sampler, SamplerConfig, StopMatcher, Uncounted};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above, so from the system allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// One test only: another one's thread would be counted too.
#[test]
fn nothing_is_allocated_between_two_tokens() {
    let mut rng = Rng::new(1);
    let logits: Vec<f32> = (0..65_536).map(|_| (0..8).map(|_| rng.next_f64() as f32 * 4.0).sum()).collect();
    let base = SamplerConfig { seed: Some(1), ..SamplerConfig::default() };
    let configs = [
        base.clone(),
        SamplerConfig { temperature: 0.7, top_k: 50, typical_p: 0.9, min_p: 0.01, ..base.clone() },
        SamplerConfig { mirostat: Some(Default::default()), ..base.clone() },
        SamplerConfig { repetition_penalty: 1.2, repetition_last_n: 32, ..base },
    ];
    for config in configs {
        let mut sampler = Sampler::new(config.clone(), Uncounted::none()).unwrap();
        let mut stops = StopMatcher::new(&["\n\nUser:", "\nUser:"]).unwrap();
        let mut out = Vec::with_capacity(4096);
        let mut token = |sampler: &mut Sampler| {
            let id = sampler.sample(&logits).unwrap().id;
            sampler.accept(id);
            stops.push(b"\n\nUse", &mut out);
        };
        for _ in 0..50 {
            token(&mut sampler);
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..50 {
            token(&mut sampler);
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before, "{config:?}");
    }
}
