//! See the crate.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::ThreadId;

use hawfinch_train::collective::Collective;
use hawfinch_train::{Error, Result};

// SAFETY: as `shim.c` declares them.
unsafe extern "C" {
    fn hawfinch_mpi_start(rank: *mut c_int, size: *mut c_int, level: *mut c_int) -> c_int;
    fn hawfinch_mpi_end() -> c_int;
    fn hawfinch_mpi_abort(code: c_int) -> c_int;
    fn hawfinch_mpi_error(code: c_int, text: *mut c_char, room: c_int) -> c_int;
    fn hawfinch_mpi_all_to_all(
        send: *const c_void,
        to: *const c_int,
        send_at: *const c_int,
        receive: *mut c_void,
        from: *const c_int,
        receive_at: *const c_int,
    ) -> c_int;
    fn hawfinch_mpi_all_gather(
        send: *const c_void,
        n: c_int,
        receive: *mut c_void,
        counts: *const c_int,
        at: *const c_int,
    ) -> c_int;
    fn hawfinch_mpi_broadcast(bytes: *mut c_void, n: c_int, root: c_int) -> c_int;
    fn hawfinch_mpi_send(bytes: *const c_void, n: c_int, to: c_int) -> c_int;
    fn hawfinch_mpi_receive(bytes: *mut c_void, n: c_int, from: c_int) -> c_int;
    fn hawfinch_mpi_barrier() -> c_int;
}

/// Whether MPI runs, from [`Mpi::start`] to its end.
static RUNS: AtomicBool = AtomicBool::new(false);

/// This process's place in an MPI job. MPI is ended when it is dropped.
pub struct Mpi {
    rank: usize,
    size: usize,
    any_thread: bool,
    thread: ThreadId,
    sent: AtomicU64,
    /// Held during a call: MPI was started for one at a time.
    call: Mutex<()>,
}

fn ranks(what: impl Into<String>) -> Error {
    Error::Ranks(what.into())
}

/// What MPI says of an error code.
fn check(call: &str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text = [0 as c_char; 256];
    // SAFETY: at most 256 characters are written.
    let n = unsafe { hawfinch_mpi_error(code, text.as_mut_ptr(), 256) };
    let said: String = text.iter().take(n.max(0) as usize).map(|c| char::from(*c as u8)).collect();
    Err(ranks(format!("MPI could not do its part ({call}): {}", said.trim())))
}

/// A count as MPI takes it.
fn count(n: usize) -> Result<c_int> {
    c_int::try_from(n)
        .map_err(|_| ranks(format!("{n} bytes are too many for one message of MPI: make `bucket` smaller")))
}

/// Counts, and where each part begins; they must be as many as there are ranks and fill `len`.
fn parts(counts: &[usize], ranks_: usize, len: usize) -> Result<(Vec<c_int>, Vec<c_int>)> {
    assert!(counts.len() == ranks_ && counts.iter().sum::<usize>() == len, "a count for each rank");
    count(len)?;
    let mut at = 0;
    let (mut n, mut places) = (Vec::new(), Vec::new());
    for &c in counts {
        n.push(count(c)?);
        places.push(count(at)?);
        at += c;
    }
    Ok((n, places))
}

/// Where bytes are, as MPI takes them. An empty slice of Rust's may point at address 1, which is Open MPI's `MPI_IN_PLACE`.
fn address(bytes: &[u8]) -> *const c_void {
    static NOTHING: u8 = 0;
    if bytes.is_empty() { (&raw const NOTHING).cast() } else { bytes.as_ptr().cast() }
}

/// The same of bytes to be written; of none, nothing is.
fn address_mut(bytes: &mut [u8]) -> *mut c_void {
    if bytes.is_empty() { address(bytes).cast_mut() } else { bytes.as_mut_ptr().cast() }
}

/// Ends all processes of the job at once, if MPI runs; the caller has said why.
pub fn abort(code: i32) {
    if RUNS.load(Ordering::SeqCst) {
        // SAFETY: MPI was started and not ended. It may be called from any thread: the job ends here.
        unsafe { hawfinch_mpi_abort(code) };
    }
}

impl Mpi {
    /// Starts MPI, once in a process.
    ///
    /// # Errors
    /// It was started before, or does not start.
    pub fn start() -> Result<Mpi> {
        static ONCE: AtomicBool = AtomicBool::new(false);
        if ONCE.swap(true, Ordering::SeqCst) {
            return Err(ranks("MPI is started once in a process"));
        }
        let (mut rank, mut size, mut level) = (0, 0, 0);
        // SAFETY: three places to write to; nothing of MPI was called before.
        check("start", unsafe { hawfinch_mpi_start(&mut rank, &mut size, &mut level) })?;
        RUNS.store(true, Ordering::SeqCst);
        let (rank, size) = (rank as usize, size as usize);
        let thread = std::thread::current().id();
        let (sent, call) = (AtomicU64::new(0), Mutex::new(()));
        Ok(Mpi { rank, size, any_thread: level == 1, thread, sent, call })
    }

    /// Waits for its turn, counts what is sent.
    fn enter(&self, bytes: usize) -> MutexGuard<'_, ()> {
        assert!(self.any_thread || std::thread::current().id() == self.thread, "MPI is called by one thread");
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.call.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // One that fails cannot end in peace: the others would wait for it.
        let thread = self.any_thread || std::thread::current().id() == self.thread;
        if thread && !std::thread::panicking() {
            RUNS.store(false, Ordering::SeqCst);
            // SAFETY: MPI was started, and nothing calls it any more.
            unsafe { hawfinch_mpi_end() };
        }
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_to_all(&self, send: &[u8], to: &[usize], receive: &mut [u8], from: &[usize]) -> Result<()> {
        let (to_n, to_at) = parts(to, self.size, send.len())?;
        let (from_n, from_at) = parts(from, self.size, receive.len())?;
        let _turn = self.enter(send.len() - to[self.rank]);
        // SAFETY: counts and places of as many ranks as there are, within both slices.
        check("all to all", unsafe {
            hawfinch_mpi_all_to_all(
                address(send),
                to_n.as_ptr(),
                to_at.as_ptr(),
                address_mut(receive),
                from_n.as_ptr(),
                from_at.as_ptr(),
            )
        })
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8], counts: &[usize]) -> Result<()> {
        let (n, at) = parts(counts, self.size, receive.len())?;
        assert_eq!(send.len(), counts[self.rank], "as many bytes as counted");
        let _turn = self.enter(send.len() * (self.size - 1));
        // SAFETY: counts and places of as many ranks as there are, within `receive`.
        check("all gather", unsafe {
            hawfinch_mpi_all_gather(
                address(send),
                n[self.rank],
                address_mut(receive),
                n.as_ptr(),
                at.as_ptr(),
            )
        })
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<()> {
        let n = count(bytes.len())?;
        let _turn = self.enter(if root == self.rank { bytes.len() * (self.size - 1) } else { 0 });
        // SAFETY: `n` bytes that may be written.
        check("broadcast", unsafe { hawfinch_mpi_broadcast(address_mut(bytes), n, root as c_int) })
    }

    fn send(&self, bytes: &[u8], to: usize) -> Result<()> {
        let n = count(bytes.len())?;
        let _turn = self.enter(bytes.len());
        // SAFETY: `n` bytes.
        check("send", unsafe { hawfinch_mpi_send(address(bytes), n, to as c_int) })
    }

    fn receive(&self, bytes: &mut [u8], from: usize) -> Result<()> {
        let n = count(bytes.len())?;
        let _turn = self.enter(0);
        // SAFETY: `n` bytes that may be written.
        check("receive", unsafe { hawfinch_mpi_receive(address_mut(bytes), n, from as c_int) })
    }

    fn barrier(&self) -> Result<()> {
        let _turn = self.enter(0);
        // SAFETY: MPI was started.
        check("barrier", unsafe { hawfinch_mpi_barrier() })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn works_from_any_thread(&self) -> bool {
        self.any_thread
    }
}
