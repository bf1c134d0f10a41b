//! The processor: its name, cores, caches, instruction sets, and how much of it this process may use.

use std::collections::BTreeSet;
use std::path::Path;

use super::{cgroup, read};

/// What is known of the processor.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cpu {
    /// The maker's name of the model.
    pub name: Option<String>,
    /// Cores, hyper-threads counted once.
    pub physical_cores: Option<usize>,
    /// Hardware threads.
    pub logical_cores: Option<usize>,
    /// Hardware threads that this process may run on.
    pub allowed: Option<usize>,
    /// Processors' worth of time that control groups grant (2.5: two and a half).
    pub quota: Option<f64>,
    /// Memory nodes.
    pub numa_nodes: Option<usize>,
    /// Caches that one core sees, innermost first.
    pub caches: Vec<Cache>,
    /// Instruction sets that matter for arithmetic, of those this processor has.
    pub instruction_sets: Vec<&'static str>,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cache {
    /// `L1d`, `L2`, `L3`
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Hardware threads that share it.
    pub shared_by: Option<usize>,
}

impl Cpu {
    /// Of this machine.
    pub fn now() -> Cpu {
        let mut cpu = Cpu::at(Path::new("/"));
        cpu.logical_cores = cpu.logical_cores.or_else(threads_allowed);
        cpu.instruction_sets = instruction_sets(&read(Path::new("/"), "proc/cpuinfo").unwrap_or_default());
        cpu
    }

    /// Of the machine whose `/proc` and `/sys` lie below `root`; without the instruction sets.
    pub fn at(root: &Path) -> Cpu {
        let info = read(root, "proc/cpuinfo").unwrap_or_default();
        let values = |key: &'static str| {
            info.lines().filter_map(move |l| {
                let (k, v) = l.split_once(':')?;
                (k.trim() == key).then(|| v.trim())
            })
        };
        let logical = values("processor").count();
        let packages = values("physical id").zip(values("core id")).collect::<BTreeSet<_>>().len();
        let status = read(root, "proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|l| list_len(l.strip_prefix("Cpus_allowed_list:")?.trim()));
        let nodes = read(root, "sys/devices/system/node/online");
        Cpu {
            name: values("model name").next().filter(|n| !n.is_empty()).map(str::to_owned),
            physical_cores: (packages > 0).then_some(packages),
            logical_cores: (logical > 0).then_some(logical),
            allowed,
            quota: quota(root),
            numa_nodes: nodes.and_then(|n| list_len(&n)),
            caches: caches(root),
            instruction_sets: Vec::new(),
        }
    }

    /// Bytes of the largest cache; 0 when unknown.
    pub fn largest_cache(&self) -> u64 {
        self.caches.iter().map(|c| c.bytes).max().unwrap_or(0)
    }
}

/// Threads that can run at once, as the standard library tells (affinity and quotas counted).
pub fn threads_allowed() -> Option<usize> {
    std::thread::available_parallelism().ok().map(|n| n.get())
}

/// Members of a list like `0-3,8,10-11`.
fn list_len(list: &str) -> Option<usize> {
    list.split(',').try_fold(0usize, |sum, part| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (usize, usize) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        sum.checked_add(high.checked_sub(low)?.checked_add(1)?)
    })
}

/// The smallest processor quota of all groups up the hierarchy.
fn quota(root: &Path) -> Option<f64> {
    let folders = cgroup::groups(root, "cpu");
    let all = folders.iter().flat_map(|g| {
        g.folders.iter().filter_map(|f| {
            let (quota, period) = if g.v2 {
                let text = read(f, "cpu.max")?;
                let (q, p) = text.split_once(' ')?;
                (q.parse::<f64>().ok()?, p.parse::<f64>().ok()?)
            } else {
                let number = |file| read(f, file)?.parse::<f64>().ok();
                (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
            };
            // Version 1 writes -1 for none.
            (quota > 0.0 && period > 0.0).then_some(quota / period)
        })
    });
    all.min_by(f64::total_cmp)
}

fn caches(root: &Path) -> Vec<Cache> {
    let cache = |n: usize| {
        let dir = root.join(format!("sys/devices/system/cpu/cpu0/cache/index{n}"));
        let kind = match read(&dir, "type")?.as_str() {
            "Data" => "d",
            "Unified" => "",
            _ => return None,
        };
        let size = read(&dir, "size")?;
        let (digits, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len()));
        let unit = match unit {
            "" => 1,
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => return None,
        };
        Some(Cache {
            name: format!("L{}{kind}", read(&dir, "level")?),
            bytes: digits.parse::<u64>().ok()?.checked_mul(unit)?,
            shared_by: read(&dir, "shared_cpu_list").and_then(|l| list_len(&l)),
        })
    };
    (0..8).filter_map(cache).collect()
}

/// Instruction sets of this processor. AMX is taken from what the system reports (`cpuinfo`), because a
/// program may use it only where the system saves its registers.
fn instruction_sets(cpuinfo: &str) -> Vec<&'static str> {
    let mut found = detected();
    let flags = cpuinfo.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.trim() == "flags"));
    let flags: BTreeSet<&str> = flags.map(|(_, v)| v.split_whitespace().collect()).unwrap_or_default();
    for (flag, name) in [("amx_tile", "AMX-TILE"), ("amx_bf16", "AMX-BF16"), ("amx_int8", "AMX-INT8")] {
        if flags.contains(flag) {
            found.push(name);
        }
    }
    found
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Vec<&'static str> {
    macro_rules! have {
        ($($feature:tt $name:literal),* $(,)?) => {
            [$((std::arch::is_x86_feature_detected!($feature), $name)),*]
        };
    }
    let all = have![
        "avx2" "AVX2", "fma" "FMA", "f16c" "F16C", "avxvnni" "AVX-VNNI",
        "avx512f" "AVX-512F", "avx512bw" "AVX-512BW", "avx512vl" "AVX-512VL",
        "avx512vnni" "AVX-512VNNI", "avx512bf16" "AVX-512BF16", "avx512fp16" "AVX-512FP16",
    ];
    all.into_iter().filter_map(|(there, name)| there.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn detected() -> Vec<&'static str> {
    macro_rules! have {
        ($($feature:tt $name:literal),* $(,)?) => {
            [$((std::arch::is_aarch64_feature_detected!($feature), $name)),*]
        };
    }
    let all = have![
        "neon" "NEON", "fp16" "FP16", "dotprod" "DOTPROD", "i8mm" "I8MM", "bf16" "BF16", "sve" "SVE",
    ];
    all.into_iter().filter_map(|(there, name)| there.then_some(name)).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::tests::{MOUNT_V2, machine};
    use super::*;

    #[test]
    fn a_machine_of_two_cores_with_two_threads_each() {
        let block = |p: usize, core: usize| {
            format!(
                "processor\t: {p}\nmodel name\t: Some CPU @ 2.0GHz\nphysical id\t: 0\ncore id\t\t: {core}\nflags\t\t: fpu amx_tile amx_int8\n\n"
            )
        };
        let info: String = (0..4).map(|p| block(p, p % 2)).collect();
        let index = "sys/devices/system/cpu/cpu0/cache/index";
        let files = [
            ("proc/cpuinfo".to_owned(), info.as_str()),
            ("proc/self/status".into(), "Name:\tx\nCpus_allowed_list:\t0-1,3\n"),
            ("proc/self/cgroup".into(), "0::/a\n"),
            ("proc/self/mountinfo".into(), MOUNT_V2),
            ("sys/fs/cgroup/cpu.max".into(), "max 100000\n"),
            ("sys/fs/cgroup/a/cpu.max".into(), "150000 100000\n"),
            ("sys/devices/system/node/online".into(), "0-1\n"),
            (format!("{index}0/type"), "Data\n"),
            (format!("{index}0/level"), "1\n"),
            (format!("{index}0/size"), "48K\n"),
            (format!("{index}0/shared_cpu_list"), "0,2\n"),
            (format!("{index}1/type"), "Instruction\n"),
            (format!("{index}1/size"), "32K\n"),
            (format!("{index}2/type"), "Unified\n"),
            (format!("{index}2/level"), "3\n"),
            (format!("{index}2/size"), "32M\n"),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), *t)).collect();
        let cpu = Cpu::at(machine(&files).path());
        assert_eq!(cpu.name.as_deref(), Some("Some CPU @ 2.0GHz"));
        assert_eq!((cpu.physical_cores, cpu.logical_cores, cpu.allowed), (Some(2), Some(4), Some(3)));
        assert_eq!((cpu.quota, cpu.numa_nodes), (Some(1.5), Some(2)));
        let caches: Vec<_> = cpu.caches.iter().map(|c| (c.name.as_str(), c.bytes, c.shared_by)).collect();
        assert_eq!(caches, [("L1d", 48 << 10, Some(2)), ("L3", 32 << 20, None)]);
        assert_eq!(cpu.largest_cache(), 32 << 20);
        let amx: Vec<_> = instruction_sets(&info).into_iter().filter(|s| s.starts_with("AMX")).collect();
        assert_eq!(amx, ["AMX-TILE", "AMX-INT8"]);
    }

    #[test]
    fn version_1_quota_and_its_none() {
        let mount = "33 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let files = |quota| {
            machine(&[
                ("proc/self/cgroup", "3:cpu,cpuacct:/\n"),
                ("proc/self/mountinfo", mount),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
            ])
        };
        assert_eq!(quota(files("50000").path()), Some(0.5));
        assert_eq!(quota(files("-1").path()), None);
    }

    #[test]
    fn nothing_known_is_nothing_said() {
        assert_eq!(Cpu::at(Path::new("/nonexistent")), Cpu::default());
        for (list, len) in [("0", Some(1)), ("0-3,8", Some(5)), ("3-1", None), ("", None), ("a-b", None)] {
            assert_eq!(list_len(list), len);
        }
        assert_eq!(list_len("0-18446744073709551615"), None);
    }
}
