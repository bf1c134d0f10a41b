//! What runs on the machine: its load, the processor time that others take, the memory of this process.

use std::path::Path;

use super::read;

/// Processes that ran or waited to, on average over the last 1, 5 and 15 minutes.
pub fn average() -> Option<[f64; 3]> {
    average_at(Path::new("/"))
}

fn average_at(root: &Path) -> Option<[f64; 3]> {
    let text = read(root, "proc/loadavg")?;
    let mut numbers = text.split_whitespace().map(|n| n.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

/// Processor time since the machine started, in its ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ticks {
    /// Of all processors, idle or not.
    all: f64,
    /// Of all processors, at work (also for other virtual machines).
    busy: f64,
    /// Of this process.
    own: f64,
    processors: f64,
}

impl Ticks {
    /// Now.
    pub fn now() -> Option<Ticks> {
        Ticks::at(Path::new("/"))
    }

    fn at(root: &Path) -> Option<Ticks> {
        let stat = read(root, "proc/stat")?;
        let processors =
            stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count() as f64;
        let sums = stat.lines().find_map(|l| l.strip_prefix("cpu "))?;
        // user nice system idle iowait irq softirq steal; what guests take is part of user.
        let sums: Vec<f64> = sums.split_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
        let all = sums.iter().sum::<f64>();
        let busy = all - sums.get(3)? - sums.get(4)?;
        // The name of the program, in brackets, may hold anything: fields are counted after it.
        let own = read(root, "proc/self/stat")?;
        let own: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
        let own = own.get(11)?.parse::<f64>().ok()? + own.get(12)?.parse::<f64>().ok()?;
        Some(Ticks { all, busy, own, processors })
    }

    /// (processors that other programs kept busy since `earlier`, processors there are).
    pub fn others_since(&self, earlier: &Ticks) -> Option<(f64, f64)> {
        let all = self.all - earlier.all;
        let others = (self.busy - earlier.busy) - (self.own - earlier.own);
        (all > 0.0).then(|| ((others / all * self.processors).max(0.0), self.processors))
    }
}

/// Memory of this process that lies in the machine's, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Now, mapped files counted.
    pub now: u64,
    /// The most there was.
    pub peak: u64,
}

/// The memory of this process.
pub fn resident() -> Option<Resident> {
    resident_at(Path::new("/"))
}

fn resident_at(root: &Path) -> Option<Resident> {
    let status = read(root, "proc/self/status")?;
    let field = |name: &str| {
        let kilobytes = status.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next());
        kilobytes?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let now = field("VmRSS:")?;
    Some(Resident { now, peak: field("VmHWM:").unwrap_or(now).max(now) })
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::tests::machine;
    use super::*;

    #[test]
    fn what_others_take_is_what_is_busy_and_not_ours() {
        let at = |stat: &str, own: &str| {
            let m = machine(&[
                ("proc/stat", &*format!("cpu  {stat} 0 0\ncpu0 1\ncpu1 1\nintr 5\n")),
                ("proc/self/stat", &*format!("7 (a ) name) R 1 2 3 4 5 6 7 8 9 10 {own} 0 0 20\n")),
                ("proc/loadavg", "0.50 1.25 2.00 1/100 77\n"),
                ("proc/self/status", "Name: x\nVmHWM:\t    2000 kB\nVmRSS:\t 1000 kB\n"),
            ]);
            assert_eq!(average_at(m.path()), Some([0.5, 1.25, 2.0]));
            assert_eq!(resident_at(m.path()), Some(Resident { now: 1_024_000, peak: 2_048_000 }));
            Ticks::at(m.path()).unwrap()
        };
        let before = at("100 10 10 1000 5 0 0 0", "50 5");
        // 200 ticks of two processors: 150 busy, 100 of them ours, so others had half of one.
        let after = at("200 40 20 1040 15 0 0 10", "140 15");
        assert_eq!(after.others_since(&before), Some((0.5, 2.0)));
        assert_eq!(before.others_since(&before), None);
    }

    #[test]
    fn nonsense_gives_nothing() {
        let m = machine(&[("proc/stat", "cpu x\n"), ("proc/self/stat", ")"), ("proc/loadavg", "1 b")]);
        assert_eq!((average_at(m.path()), Ticks::at(m.path())), (None, None));
        assert_eq!(resident_at(m.path()), None);
    }
}
