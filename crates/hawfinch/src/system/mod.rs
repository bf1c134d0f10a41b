//! Facts about the machine: memory, processor, disk, where output goes. The only files of the program that name an
//! operating system; where a fact cannot be had, it is `None`, never a guess.
//!
//! Everything that Linux says through files is read below a root folder (`/` in earnest), so that tests
//! can lay out a machine of their own.

mod cgroup;
pub mod cpu;
pub mod disk;
pub mod folders;
pub mod load;
pub mod memory;
pub mod stdout;

/// Contents of a file below `root`, trimmed; `None` when it cannot be read.
fn read(root: &std::path::Path, path: &str) -> Option<String> {
    let text = std::fs::read_to_string(root.join(path.trim_start_matches('/'))).ok()?;
    Some(text.trim().to_owned())
}
