//! Where a user's data lies on this system.

use std::path::PathBuf;

/// The variable as an absolute path; anything else counts as not set.
fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute())
}

/// The folder in which programs keep a user's data; `None` without a home.
pub fn data() -> Option<PathBuf> {
    if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_vendor = "apple") {
        absolute("HOME").map(|h| h.join("Library/Application Support"))
    } else {
        absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|h| h.join(".local/share")))
    }
}

/// The cache of Hugging Face's own programs: `HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`.
pub fn hugging_face() -> Option<PathBuf> {
    let home = || absolute(if cfg!(windows) { "USERPROFILE" } else { "HOME" });
    absolute("HF_HUB_CACHE")
        .or_else(|| absolute("HF_HOME").map(|h| h.join("hub")))
        .or_else(|| absolute("XDG_CACHE_HOME").map(|c| c.join("huggingface/hub")))
        .or_else(|| home().map(|h| h.join(".cache/huggingface/hub")))
}
