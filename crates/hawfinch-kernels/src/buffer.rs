//! Memory for weights: aligned to cache lines, in huge pages where the system grants them, so that streams through
//! it cost few address translations.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

/// A fixed number of bytes, zero at first.
pub struct Buffer {
    data: *mut u8,
    layout: Layout,
}

// SAFETY: it owns its bytes, as a Vec does.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// Size and alignment of a huge page.
const HUGE: usize = 2 << 20;
/// Cache line, and the widest register.
const LINE: usize = 64;

impl Buffer {
    /// `len` zeros.
    pub fn new(len: usize) -> Self {
        let layout = layout(len);
        // SAFETY: the size is not zero; as many bytes are written as were allocated.
        let data = unsafe {
            if layout.align() == HUGE {
                let data = huge(layout);
                data.write_bytes(0, layout.size());
                data
            } else {
                alloc_zeroed(layout)
            }
        };
        if data.is_null() {
            handle_alloc_error(layout);
        }
        Buffer { data, layout }
    }

    /// A copy of `bytes` (of none: one zero).
    pub fn copy_of(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Buffer::new(0);
        }
        let layout = layout(bytes.len());
        // SAFETY: the size is not zero; as many bytes are allocated as are copied, in memory that nothing else has.
        unsafe {
            let data = huge(layout);
            data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            Buffer { data, layout }
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this size, and written when it was made.
        unsafe { std::slice::from_raw_parts(self.data, self.layout.size()) }
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.layout.size()) }
    }
}

/// Several huge pages are worth their alignment.
fn layout(len: usize) -> Layout {
    let align = if len >= 2 * HUGE { HUGE } else { LINE };
    Layout::from_size_align(len.max(1), align).expect("a size that can be allocated")
}

/// Memory of no particular content, in huge pages where the layout is aligned to them and the system has them.
///
/// # Safety
/// The layout's size is not zero.
unsafe fn huge(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's promise. (`alloc_zeroed` would touch small pages before they can be made huge.)
    let data = unsafe { std::alloc::alloc(layout) };
    if data.is_null() {
        handle_alloc_error(layout);
    }
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE {
        // SAFETY: whole pages of this allocation; the call only advises. A refusal changes nothing.
        unsafe {
            libc::madvise(data.cast(), layout.size() / HUGE * HUGE, libc::MADV_HUGEPAGE);
        }
    }
    data
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.data, self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_zero() {
        for len in [0, 1, 4096, 5 << 20] {
            let mut b = Buffer::new(len);
            assert_eq!(b.bytes().as_ptr() as usize % if len >= 4 << 20 { HUGE } else { LINE }, 0);
            assert!(b.bytes().iter().all(|&v| v == 0));
            b.bytes_mut().fill(7);
            assert!(b.bytes().iter().all(|&v| v == 7));
            let copy = Buffer::copy_of(b.bytes());
            assert_eq!(copy.bytes().as_ptr() as usize % if len >= 4 << 20 { HUGE } else { LINE }, 0);
            assert!(copy.bytes() == b.bytes());
        }
    }
}
