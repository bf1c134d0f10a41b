//! Running the binary.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// What a run of the binary gave.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Run {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Run {
        assert_eq!(self.code, 0, "{}\n{}", self.text(), self.err);
        self
    }

    /// Asserts a failure told in one sentence that contains these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}\n{}", self.text(), self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        let sentences: Vec<&str> = self.err.lines().filter(|l| l.starts_with("hawfinch: ")).collect();
        assert_eq!(sentences.len(), 1, "one sentence: {}", self.err);
        for word in words {
            assert!(sentences[0].contains(word), "`{word}` in: {}", self.err);
        }
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Standard output as lines of JSON.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }
}

/// A folder to run in.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The binary, in this folder, away from the user's own models and caches.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_hawfinch"));
        c.args(args);
        self.at_home(c)
    }

    /// A command in this folder, away from the user's own models and caches.
    fn at_home(&self, mut c: Command) -> Command {
        c.current_dir(self.0.path());
        c.env("HAWFINCH_CACHE", self.path("cache")).env("HAWFINCH_MODELS", self.path("models"));
        c.env("HAWFINCH_THREADS", "2").env_remove("NO_COLOR").env("COLUMNS", "100");
        c
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.run_with(args, b"")
    }

    /// With this on standard input.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Run {
        let mut c = self.command(args);
        let mut child =
            c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A program that fails early does not read its input.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let out = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Run {
            code: out.status.code().unwrap_or(-1),
            out: out.stdout,
            err: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    /// Runs the binary where no file may grow beyond so many blocks of 512 bytes: to it, a full disk.
    #[cfg(unix)]
    pub fn run_limited(&self, blocks: usize, args: &[&str]) -> Run {
        let mut c = Command::new("sh");
        // The signal that the system sends is ignored; what is written says so.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        c.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_hawfinch")).args(args);
        let done = self.at_home(c).output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        Run { code: done.status.code().unwrap_or(-1), out: done.stdout, err }
    }

    /// A small random model.
    pub fn model(&self, name: &str, args: &[&str]) -> PathBuf {
        let sizes = [("--layers", "2"), ("--width", "64"), ("--vocab", "256")];
        let sizes = sizes.iter().filter(|(option, _)| !args.contains(option));
        let sizes: Vec<&str> = sizes.flat_map(|&(option, n)| [option, n]).collect();
        self.run(&[&["synthesize", name], &sizes[..], args].concat()).ok();
        self.path(name)
    }
}

/// Sizes of a model that `train` teaches in no time.
pub const TINY: [&str; 12] = [
    "--layers",
    "1",
    "--width",
    "16",
    "--head-size",
    "16",
    "--ctx",
    "16",
    "--batch",
    "1",
    "--warmup-steps",
    "0",
];

/// A terminal: the program's end and ours.
#[cfg(unix)]
pub fn terminal() -> (std::fs::File, std::fs::File) {
    use std::os::fd::FromRawFd;
    let (mut ours, mut theirs) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: openpty writes two descriptors; name, settings and size may be null.
    let rc = unsafe { libc::openpty(&mut ours, &mut theirs, null, null.cast(), null.cast()) };
    assert_eq!(rc, 0, "no terminal: {}", std::io::Error::last_os_error());
    // SAFETY: openpty succeeded: both are open and nobody else's.
    unsafe { (std::fs::File::from_raw_fd(theirs), std::fs::File::from_raw_fd(ours)) }
}

/// Runs a command whose standard error is a terminal; what was written there.
#[cfg(unix)]
pub fn at_terminal(command: &mut Command) -> String {
    use std::io::Read;
    let (theirs, mut ours) = terminal();
    let mut child = command.env("TERM", "xterm").stdin(Stdio::null()).stderr(theirs).spawn().unwrap();
    // The command keeps a copy of the terminal's end, which would never be closed.
    command.stderr(Stdio::null());
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        // At the end Linux gives an error.
        let _ = ours.read_to_end(&mut seen);
        String::from_utf8_lossy(&seen).into_owned()
    });
    assert!(child.wait().unwrap().success());
    reader.join().unwrap()
}

/// A file or folder below `../shared/data`, or a note that the test is skipped.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")).join(path);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}
