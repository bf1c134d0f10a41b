//! Control groups of Linux, version 1 and 2: which folders hold the limits of this process. A limit
//! anywhere up the hierarchy counts, so the whole path is walked.

use std::path::{Path, PathBuf};

use super::read;

/// Folders of this process's group for one controller, from its own up to the top of what is mounted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Groups {
    /// Version 2 (one hierarchy for everything) or 1 (one a controller).
    pub v2: bool,
    /// Existing folders, below the root given, innermost first.
    pub folders: Vec<PathBuf>,
}

/// The groups that limit `controller` (`memory`, `cpu`) for this process; several on machines that mount
/// both versions.
pub(super) fn groups(root: &Path, controller: &str) -> Vec<Groups> {
    let Some(cgroup) = read(root, "proc/self/cgroup") else { return Vec::new() };
    let mounts = read(root, "proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in cgroup.lines() {
        // hierarchy-id:controllers:path
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let v2 = id == "0" && controllers.is_empty();
        if !v2 && !controllers.split(',').any(|c| c == controller) {
            continue;
        }
        let Some((mount, mounted)) = mount_of(&mounts, v2, controller) else { continue };
        found.push(Groups { v2, folders: folders(root, &mount, &mounted, path) });
    }
    found
}

/// (mount point, path within the hierarchy that is mounted there) of the hierarchy.
fn mount_of(mountinfo: &str, v2: bool, controller: &str) -> Option<(String, String)> {
    mountinfo.lines().find_map(|line| {
        // id parent major:minor root mountpoint options [tags…] - type source super-options
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (mounted, point) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        let (kind, options) = (back.next()?, back.nth(1).unwrap_or_default());
        let right = match v2 {
            true => kind == "cgroup2",
            false => kind == "cgroup" && options.split(',').any(|o| o == controller),
        };
        right.then(|| (unescape(point), unescape(mounted)))
    })
}

/// mountinfo writes blanks and the like as `\040`.
fn unescape(s: &str) -> String {
    let mut out = Vec::new();
    let bytes = s.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal =
            bytes.get(at + 1..at + 4).filter(|d| bytes[at] == b'\\' && d.iter().all(u8::is_ascii_digit));
        let value =
            octal.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match value {
            Some(b) => {
                out.push(b);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn folders(root: &Path, mount: &str, mounted: &str, path: &str) -> Vec<PathBuf> {
    let top = root.join(mount.trim_start_matches('/'));
    // A container may see the path of the machine while only its own part is mounted. Parts that lead
    // out of the mount (`/../…`: a group beside ours) are dropped.
    let inside = path.strip_prefix(mounted.trim_end_matches('/')).unwrap_or(path);
    let parts = inside.split('/').filter(|p| !p.is_empty() && *p != "." && *p != "..");
    let mut all = vec![top.clone()];
    let mut at = top;
    for part in parts {
        at.push(part);
        all.push(at.clone());
    }
    all.retain(|p| p.is_dir());
    all.reverse();
    all
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes files below a fresh folder: a machine for tests.
    pub fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    pub const MOUNT_V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

    #[test]
    fn every_folder_up_the_hierarchy_is_found() {
        let m = machine(&[
            ("proc/self/cgroup", "0::/user.slice/job 1\n"),
            ("proc/self/mountinfo", MOUNT_V2),
            ("sys/fs/cgroup/user.slice/job 1/memory.max", "1"),
        ]);
        let top = m.path().join("sys/fs/cgroup");
        let found = groups(m.path(), "memory");
        assert_eq!(found.len(), 1);
        assert!(found[0].v2);
        assert_eq!(found[0].folders, [top.join("user.slice/job 1"), top.join("user.slice"), top]);
    }

    #[test]
    fn a_container_that_sees_the_machines_path() {
        let m = machine(&[
            ("proc/self/cgroup", "7:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n"),
            (
                "proc/self/mountinfo",
                "1 2 0:1 / / rw - ext4 /dev/a rw\n41 3 0:9 /docker/abc /sys/fs/cg\\040roup/memory ro shared:7 - cgroup cgroup rw,memory\n",
            ),
            ("sys/fs/cg roup/memory/memory.limit_in_bytes", "5"),
        ]);
        let found = groups(m.path(), "memory");
        assert_eq!(found.len(), 1);
        assert!(!found[0].v2);
        assert_eq!(found[0].folders, [m.path().join("sys/fs/cg roup/memory")]);
        assert!(groups(m.path(), "cpu").is_empty(), "not mounted");
    }

    #[test]
    fn nonsense_gives_nothing() {
        let m = machine(&[("proc/self/cgroup", "x\n0::\n::\n"), ("proc/self/mountinfo", "- - -\n\u{0}")]);
        assert!(groups(m.path(), "memory").is_empty());
        assert!(groups(Path::new("/nonexistent"), "memory").is_empty());
    }
}
