//! Room on a disk.

use std::path::Path;

/// Bytes that this user may still write in the folder `dir`; `None` where the system was not asked.
#[cfg(unix)]
pub fn free(dir: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a C string and `stat` has room for one statvfs; both outlive the call.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: statvfs returned 0, so it has filled `stat`.
    let stat = unsafe { stat.assume_init() };
    // The fields' widths differ between systems.
    #[allow(clippy::unnecessary_cast)]
    (stat.f_bavail as u64).checked_mul(stat.f_frsize as u64)
}

/// Bytes that this user may still write in the folder `dir`; `None` where the system was not asked.
#[cfg(not(unix))]
pub fn free(_dir: &Path) -> Option<u64> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    #[test]
    fn a_folder_that_is_there_has_some() {
        assert!(super::free(&std::env::temp_dir()).is_some());
        assert_eq!(super::free(std::path::Path::new("/nonexistent/folder")), None);
    }
}
