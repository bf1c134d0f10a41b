//! An allocator that refuses what no small input should ask for: a reader that allocates by a length it
//! has not checked ends the program here, in a fuzz target as in the tests that replay its finds.

use std::alloc::{GlobalAlloc, Layout, System};

/// Largest single allocation, in bytes. (The largest honest one is a tokenizer's table of ids, 16 MiB.)
const LIMIT: usize = 64 << 20;

pub struct Limited;

// SAFETY: every request is the system allocator's, or refused with a null pointer, which `GlobalAlloc`
// allows at any time.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LIMIT {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LIMIT {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if new_size > LIMIT {
            return std::ptr::null_mut();
        }
        // SAFETY: `ptr` came from `System` with this layout; the rest is the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;
