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
        // Several huge pages are worth their alignment.
        let align = if len >= 2 * HUGE { HUGE } else { LINE };
        let layout = Layout::from_size_align(len.max(1), align).expect("a size that can be allocated");
        // SAFETY: the size is not zero.
        let data = unsafe { if align == HUGE { huge(layout) } else { alloc_zeroed(layout) } };
        if data.is_null() {
            handle_alloc_error(layout);
        }
        Buffer { data, layout }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this size, initialised with zeros.
        unsafe { std::slice::from_raw_parts(self.data, self.layout.size()) }
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.layout.size()) }
    }
}

/// Zeros in huge pages where the system has them.
///
/// # Safety
/// The layout's size is not zero.
unsafe fn huge(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's promise. (`alloc_zeroed` would touch small pages before they can be made huge.)
    let data = unsafe { std::alloc::alloc(layout) };
    if !data.is_null() {
        #[cfg(target_os = "linux")]
        // SAFETY: whole pages of this allocation; the call only advises. A refusal changes nothing.
        unsafe {
            libc::madvise(data.cast(), layout.size() / HUGE * HUGE, libc::MADV_HUGEPAGE);
        }
        // SAFETY: so many bytes were allocated.
        unsafe { data.write_bytes(0, layout.size()) };
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
        }
    }
}
