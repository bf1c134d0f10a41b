//! What the system tells of processes (Linux).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/status");
    let text =
        std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e} (does the server still run?)"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|l| l.split_ascii_whitespace().next()?.parse().ok());
    kib.map(|k| k * 1024).ok_or_else(|| format!("{path} tells no VmRSS"))
}

/// Seconds of processor that a process took so far; Linux counts them in hundredths for every program.
pub fn processor(pid: &str) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces; what follows its bracket does not. Fields 14 and 15 of the line.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

/// Cores of the machine.
pub fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
}

/// The most memory that a process had, looked at twice a second until it is dropped.
pub struct Watch {
    most: Rc<Cell<u64>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    /// Begins to look; must be called inside a `LocalSet`.
    pub fn new(pid: u32) -> Self {
        let most = Rc::new(Cell::new(0));
        let of = most.clone();
        let task = tokio::task::spawn_local(async move {
            loop {
                of.set(of.get().max(resident(pid).unwrap_or(0)));
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        Self { most, task }
    }

    /// The most so far.
    pub fn most(&self) -> u64 {
        self.most.get()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// MB to one decimal.
pub fn mb(bytes: u64) -> f64 {
    (bytes as f64 / 1e5).round() / 10.0
}
