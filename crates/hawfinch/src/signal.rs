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

/// True when Ctrl-C was pressed since the last [`clear`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}

/// Forgets what was pressed.
pub fn clear() {
    PRESSED.store(0, Ordering::SeqCst);
}
