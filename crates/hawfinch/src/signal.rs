//! Ctrl-C as a request that a command can look at. Commands that do not call [`catch`] end at the first, as
//! usual.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static PRESSED: AtomicU32 = AtomicU32::new(0);
static PATIENCE: AtomicU32 = AtomicU32::new(1);
static INSTALL: Once = Once::new();

/// Exit code of a program that Ctrl-C ended: 128 + the number of the signal.
pub const INTERRUPTED: u8 = 130;

/// From now on Ctrl-C ends the program as usual, but leaves no half of a model on the disk.
pub fn end_cleanly() {
    catch(0);
}

/// As [`end_cleanly`], unless the command looks at Ctrl-C itself.
pub fn end_cleanly_unless_caught() {
    if !INSTALL.is_completed() {
        end_cleanly();
    }
}

/// From now on Ctrl-C is counted; after `patience` presses that nobody has looked at, the next ends the
/// program. Where the system gives no handler, it ends the program as usual.
pub fn catch(patience: u32) {
    PATIENCE.store(patience, Ordering::SeqCst);
    INSTALL.call_once(|| {
        let _ = ctrlc::set_handler(|| {
            if PRESSED.fetch_add(1, Ordering::SeqCst) >= PATIENCE.load(Ordering::SeqCst) {
                hawfinch_model::format::remove_unfinished();
                crate::output::remove_unfinished();
                std::process::exit(INTERRUPTED.into());
            }
        });
    });
    clear();
}

/// From now on a request of the system to end (SIGTERM; a batch system's SIGUSR1 before its limit) counts like Ctrl-C, as often
/// as it comes.
#[cfg(unix)]
pub fn catch_requests_to_end() {
    extern "C" fn asked(_: libc::c_int) {
        PRESSED.fetch_add(1, Ordering::SeqCst);
    }
    let handler: extern "C" fn(libc::c_int) = asked;
    for signal in [libc::SIGTERM, libc::SIGUSR1] {
        // SAFETY: the handler changes an atomic number and nothing else, which a handler may.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// There are no such requests here.
#[cfg(not(unix))]
pub fn catch_requests_to_end() {}

/// True when Ctrl-C was pressed since the last [`clear`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}

/// Forgets what was pressed.
pub fn clear() {
    PRESSED.store(0, Ordering::SeqCst);
}
