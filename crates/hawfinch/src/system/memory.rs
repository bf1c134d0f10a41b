//! How much memory there is, with the limits of control groups counted, and whether a model fits it.
//! Swap counts for nothing: weights that are read for every token must not live there.

use std::path::{Path, PathBuf};

use anyhow::bail;
use hawfinch_kernels::DType;
use hawfinch_model::names::{self, Role};
use hawfinch_model::{Config, STEP_TOKENS, Version};

use super::{cgroup, read};
use crate::output::size;
use crate::shapes;

/// The memory of the machine and of this process's control groups, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Installed.
    pub machine_total: Option<u64>,
    /// What programs can still have without anything being moved to swap.
    pub machine_available: Option<u64>,
    /// The control group that leaves least, if one limits memory at all.
    pub limit: Option<Limit>,
}

/// A limit that a control group sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The group's folder.
    pub group: PathBuf,
    /// The limit.
    pub bytes: u64,
    /// What of it is left: the limit less what the group holds, cached files not counted.
    pub left: u64,
}

impl Memory {
    /// Of this machine, now.
    pub fn now() -> Memory {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        return Memory::at(Path::new("/"));
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        return other::memory();
    }

    /// Of the machine whose `/proc` and `/sys` lie below `root`.
    pub fn at(root: &Path) -> Memory {
        let info = read(root, "proc/meminfo").unwrap_or_default();
        let machine_total = field(&info, "MemTotal:").map(|k| k.saturating_mul(1024));
        let available = field(&info, "MemAvailable:").map(|k| k.saturating_mul(1024));
        let groups = cgroup::groups(root, "memory");
        let limits = groups.iter().flat_map(|g| g.folders.iter().filter_map(|f| limit(root, f, g.v2)));
        // "No limit" is written as a number beyond any machine by version 1.
        let real = limits.filter(|l| machine_total.is_none_or(|t| l.bytes < t));
        Memory { machine_total, machine_available: available, limit: real.min_by_key(|l| (l.left, l.bytes)) }
    }

    /// What this process may use at most: of machine and limit the smaller.
    pub fn total(&self) -> Option<u64> {
        smaller(self.machine_total, self.limit.as_ref().map(|l| l.bytes))
    }

    /// What it can still have now.
    pub fn available(&self) -> Option<u64> {
        smaller(self.machine_available, self.limit.as_ref().map(|l| l.left))
    }

    /// True when it is the control group, not the machine, that leaves less.
    pub fn limited(&self) -> bool {
        self.limit.as_ref().is_some_and(|l| self.machine_available.is_none_or(|a| l.left <= a))
    }
}

fn smaller(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// The number behind a field name at a line's beginning.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The limit of one group's folder, if it has one.
fn limit(root: &Path, folder: &Path, v2: bool) -> Option<Limit> {
    let number = |file: &str| read(folder, file)?.parse::<u64>().ok();
    let stat = read(folder, "memory.stat").unwrap_or_default();
    let (max, current, cached) = if v2 {
        // `memory.max` may say `max`, which is no number and no limit.
        (number("memory.max")?, number("memory.current"), ["inactive_file ", "active_file "])
    } else {
        let names = ["total_inactive_file ", "total_active_file "];
        (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes"), names)
    };
    let cached = cached.iter().filter_map(|n| field(&stat, n)).fold(0, u64::saturating_add);
    let held = current.unwrap_or(0).saturating_sub(cached);
    let group = Path::new("/").join(folder.strip_prefix(root).unwrap_or(folder));
    Some(Limit { group, bytes: max, left: max.saturating_sub(held) })
}

/// What running a model takes, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Need {
    /// The weights: the mapped file, or what is made of it once; all of it is read for every token.
    pub weights: u64,
    /// Norms, mixes, decays: kept in f32 beside the file.
    pub vectors: u64,
    /// Intermediate values of one step, logits included.
    pub activations: u64,
    /// The states of all sequences.
    pub states: u64,
    /// Sizes of the model, for what would fit instead.
    pub config: Config,
}

impl Need {
    /// For a model of these sizes in a file of `file_bytes`, with so many sequences at once.
    pub fn of(config: &Config, file_bytes: u64, sequences: usize) -> Need {
        let vectors: u64 = params(config).filter(|p| p.1 == Role::Vector).map(|p| p.0 * 4).sum();
        let [d, f, v] =
            [config.width.max(config.att_width), config.ffn_width, config.vocab].map(|n| n as u64);
        let rows = (STEP_TOKENS.max(sequences)) as u64;
        // About two dozen tensors of the model's width live at once, two of the inner width; logits at most.
        let activations = 4 * rows * (24 * d + 2 * f + v);
        let states = 4 * config.state_len() as u64 * sequences as u64;
        Need { weights: file_bytes, vectors, activations, states, config: *config }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        [self.vectors, self.activations, self.states].iter().fold(self.weights, |a, b| a.saturating_add(*b))
    }

    /// The same model with its matrices in `dtype`.
    fn with(&self, dtype: DType) -> Need {
        Need { weights: weight_bytes(&self.config, dtype), ..self.clone() }
    }
}

/// (numbers, role) of every parameter.
fn params(config: &Config) -> impl Iterator<Item = (u64, Role)> + '_ {
    names::all_params(config.version, config.layers).into_iter().map(|(_, p)| {
        let n = config.shape(p).iter().fold(1u64, |a, &d| a.saturating_mul(d as u64));
        (n, p.role)
    })
}

/// Bytes of a file of a model of these sizes: matrices in `dtype`, low-rank matrices and vectors in 16
/// bits (nobody quantises those: they are small and sensitive).
pub fn weight_bytes(config: &Config, dtype: DType) -> u64 {
    let size = |(n, role)| match role {
        Role::Matrix => (n as f64 * dtype.bits() / 8.0) as u64,
        Role::LowRank | Role::Vector => n * 2,
    };
    params(config).map(size).sum()
}

/// A released size of RWKV-7, with its configuration.
pub struct Released {
    /// As it is called: `2.9B`.
    pub name: String,
    /// Its sizes.
    pub config: Config,
}

/// The sizes in which RWKV-7 is released (World vocabulary), smallest first.
pub fn released() -> Vec<Released> {
    let goose = shapes::PUBLISHED.iter().filter(|p| p.shape.version == Version::V7);
    goose.map(|p| Released { name: p.size(), config: p.shape.config() }).collect()
}

/// Bits a number that the commands speak of, with the block format meant.
pub const WIDTHS: [(&str, DType); 3] =
    [("bf16", DType::BF16), ("8 bits", DType::Q8_0), ("4 bits", DType::Q4_K)];

/// Refuses a model that does not fit this machine, before it is loaded. Where the memory cannot be told,
/// every model passes. Callers offer a flag to run all the same.
///
/// # Errors
/// One sentence: what it needs, what there is and what limits it, what would fit.
pub fn check(need: &Need) -> anyhow::Result<()> {
    check_in(need, &Memory::now())
}

/// [`check`] against a given memory.
pub fn check_in(need: &Need, memory: &Memory) -> anyhow::Result<()> {
    let Some(available) = memory.available().filter(|a| need.total() > *a) else { return Ok(()) };
    let of = match &memory.limit {
        Some(l) if memory.limited() => format!(
            "the control group {} leaves {} of its limit of {}",
            l.group.display(),
            size(l.left),
            size(l.bytes)
        ),
        _ => match memory.machine_total {
            Some(total) => format!("{} of the machine's {} are free", size(available), size(total)),
            None => format!("{} are free", size(available)),
        },
    };
    let small = need.total() - need.weights;
    bail!(
        "the model does not fit in memory: it needs {} ({} of weights, {} for its states and values in \
         between), and {of}; {}",
        size(need.total()),
        size(need.weights),
        size(small),
        instead(need, available)
    );
}

/// What would fit, as the end of a sentence.
fn instead(need: &Need, available: u64) -> String {
    for (words, dtype) in [("8 bits", DType::Q8_0), ("4 bits", DType::Q4_K)] {
        let smaller = need.with(dtype);
        if smaller.weights < need.weights && smaller.total() <= available {
            return format!("the same model at {words} a weight would fit (about {})", size(smaller.total()));
        }
    }
    let fits = |dtype: DType| {
        let mut sizes = released().into_iter().rev();
        sizes.find(|r| Need::of(&r.config, weight_bytes(&r.config, dtype), 1).total() <= available)
    };
    match (fits(DType::BF16), fits(DType::Q4_K)) {
        (Some(wide), Some(narrow)) if wide.name == narrow.name => {
            format!("of the released sizes, {} would fit", wide.name)
        }
        (Some(wide), Some(narrow)) => format!(
            "of the released sizes, {} at 16 bits or {} at 4 bits a weight would fit",
            wide.name, narrow.name
        ),
        (None, Some(narrow)) => {
            format!("of the released sizes, {} at 4 bits a weight would fit", narrow.name)
        }
        _ => "none of the released sizes would fit: free some memory or raise the limit".into(),
    }
}

/// Systems that are not Linux: what they have installed; what is free is not asked for.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod other {
    use super::Memory;

    #[cfg(target_vendor = "apple")]
    pub fn memory() -> Memory {
        let mut size = 0u64;
        let mut len = size_of::<u64>();
        // SAFETY: the name is a C string, `size` has room for the `len` bytes announced, and nothing is set.
        let failed = unsafe {
            let to = (&raw mut size).cast();
            libc::sysctlbyname(c"hw.memsize".as_ptr(), to, &mut len, std::ptr::null_mut(), 0)
        };
        let machine_total = (failed == 0 && len == size_of::<u64>()).then_some(size);
        Memory { machine_total, machine_available: None, limit: None }
    }

    #[cfg(not(target_vendor = "apple"))]
    pub fn memory() -> Memory {
        Memory::default()
    }
}

#[cfg(test)]
mod tests {
    use super::cgroup::tests::{MOUNT_V2, machine};
    use super::*;

    const GB: u64 = 1_000_000_000;
    const MEMINFO: &str =
        "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\nSwapTotal: 99999999 kB\n";

    #[test]
    fn a_machine_without_limits() {
        let m = machine(&[("proc/meminfo", MEMINFO)]);
        let memory = Memory::at(m.path());
        assert_eq!(memory.total(), Some(16_384_000_000));
        assert_eq!(memory.available(), Some(8_192_000_000));
        assert!(!memory.limited());
    }

    #[test]
    fn nothing_known_is_nothing_said() {
        let m = machine(&[("proc/meminfo", "MemTotal: many kB\nMemAvailable:\n")]);
        let memory = Memory::at(m.path());
        assert_eq!(memory, Memory::default());
        let config = released().remove(4).config;
        assert!(check_in(&Need::of(&config, u64::MAX, 1), &memory).is_ok());
    }

    #[test]
    fn version_2_limits_count_up_the_hierarchy() {
        let m = machine(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("proc/self/mountinfo", MOUNT_V2),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "4000000000\n"),
            ("sys/fs/cgroup/a/memory.current", "3000000000\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 500000000\nfile 2500000000\ninactive_file 2000000000\nactive_file 500000000\n",
            ),
        ]);
        let memory = Memory::at(m.path());
        let limit = memory.limit.clone().unwrap();
        assert_eq!(limit.group, Path::new("/sys/fs/cgroup/a"));
        assert_eq!((limit.bytes, limit.left), (4 * GB, 3_500_000_000));
        assert_eq!((memory.total(), memory.available()), (Some(4 * GB), Some(3_500_000_000)));
        assert!(memory.limited());
    }

    #[test]
    fn the_group_that_leaves_least_counts_not_the_smallest() {
        let m = machine(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("proc/self/mountinfo", MOUNT_V2),
            ("sys/fs/cgroup/a/b/memory.max", "3000000000"),
            ("sys/fs/cgroup/a/b/memory.current", "0"),
            ("sys/fs/cgroup/a/memory.max", "5000000000"),
            ("sys/fs/cgroup/a/memory.current", "4900000000"),
        ]);
        assert_eq!(Memory::at(m.path()).available(), Some(100_000_000));
    }

    #[test]
    fn version_1_limits_count_and_its_no_limit_does_not() {
        let mount = "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let limited = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:memory:/job\n"),
            ("proc/self/mountinfo", mount),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2000000000\n"),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1500000000\n"),
            ("sys/fs/cgroup/memory/job/memory.stat", "total_inactive_file 400000000\n"),
        ];
        let memory = Memory::at(machine(&limited).path());
        assert_eq!((memory.total(), memory.available()), (Some(2 * GB), Some(900_000_000)));
        let memory = Memory::at(machine(&limited[..4]).path());
        assert_eq!((memory.limit.clone(), memory.limited()), (None, false));
    }

    fn there(available: u64) -> Memory {
        Memory { machine_total: Some(16 * GB), machine_available: Some(available), limit: None }
    }

    #[test]
    fn a_model_that_fits_passes_and_one_byte_less_does_not() {
        let config = released().remove(2).config;
        let need = Need::of(&config, weight_bytes(&config, DType::BF16), 1);
        assert!(check_in(&need, &there(need.total())).is_ok());
        assert!(check_in(&need, &there(need.total() - 1)).is_err());
    }

    #[test]
    fn the_refusal_says_need_limit_and_what_would_fit() {
        let config = released().remove(3).config;
        let need = Need::of(&config, weight_bytes(&config, DType::BF16), 1);
        let mut memory = there(8 * GB);
        memory.limit = Some(Limit { group: "/sys/fs/cgroup/job".into(), bytes: 5 * GB, left: 4 * GB });
        let text = check_in(&need, &memory).unwrap_err().to_string();
        for part in [
            "needs 6.00 GB (5.90 GB of weights, 103.39 MB for its states",
            "control group /sys/fs/cgroup/job leaves 4.00 GB of its limit of 5.00 GB",
            "the same model at 8 bits a weight would fit (about 3.33 GB)",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains('\n') && text.matches(". ").count() == 0, "one sentence: {text}");
        let said = |available| check_in(&need, &there(available)).unwrap_err().to_string();
        assert!(said(2 * GB).contains("at 4 bits a weight would fit"), "{}", said(2 * GB));
        let more = said(1_100_000_000);
        assert!(more.ends_with("0.4B at 16 bits or 1.5B at 4 bits a weight would fit"), "{more}");
        assert!(said(GB).ends_with("of the released sizes, 0.4B would fit"), "{}", said(GB));
        assert!(said(GB).contains("1.00 GB of the machine's 16.00 GB are free"), "{}", said(GB));
        assert!(said(1).contains("none of the released sizes"), "{}", said(1));
    }

    #[test]
    fn a_quantised_model_is_not_told_to_be_wider() {
        let config = released().remove(3).config;
        let need = Need::of(&config, weight_bytes(&config, DType::Q4_K), 1);
        let text = check_in(&need, &there(GB)).unwrap_err().to_string();
        assert!(!text.contains("the same model"), "{text}");
    }

    #[test]
    fn sizes_of_the_released_models() {
        let weights: Vec<u64> = released().iter().map(|r| weight_bytes(&r.config, DType::BF16)).collect();
        // Two bytes a parameter, and the parameters are those published.
        assert_eq!(
            weights,
            [191_084_544u64, 450_834_432, 1_527_668_736, 2_948_065_280, 7_199_932_416].map(|n| 2 * n)
        );
    }

    #[test]
    fn this_machine_has_memory() {
        if cfg!(target_os = "linux") {
            let now = Memory::now();
            assert!(now.total().unwrap() >= now.available().unwrap().min(now.total().unwrap()));
            assert!(now.available().unwrap() > 0);
        }
    }
}
