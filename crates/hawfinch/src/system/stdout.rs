//! Where standard output goes.

/// Whether it is a file of a disk: what is written there disturbs no terminal, unlike what a pipe's other end may do
/// with it. Where the system cannot be asked: no.
pub fn is_file() -> bool {
    #[cfg(unix)]
    let own = std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned();
    #[cfg(windows)]
    let own = std::os::windows::io::AsHandle::as_handle(&std::io::stdout()).try_clone_to_owned();
    #[cfg(any(unix, windows))]
    return own.and_then(|own| std::fs::File::from(own).metadata()).is_ok_and(|m| m.is_file());
    #[cfg(not(any(unix, windows)))]
    return false;
}
